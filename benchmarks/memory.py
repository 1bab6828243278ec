"""Measure every stage's peak memory; print the bounds, write results/memory-cpu.json.

    python benchmarks/memory.py     a random Llama of 1.1 B parameters, pruned at 2:4 and evaluated, on the CPU

Each row makes at most one swap, because swaps take time and no memory. The bound of a stage is three decoder blocks in
the dtype that computes, the hidden states of all sequences, and 1 GB; beside them the Gram matrices of one block or, in
evaluation, the head and a slice of logits. Needs the project installed, 13 GB of disk, and half an hour on two cores.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml
from engine import machine, save
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from sparseswaps.embedded import MODEL
from sparseswaps.evaluation.scores import LOGITS

REPOSITORY = Path(__file__).resolve().parent.parent
MB = 2**20
CELL = "results/large/stdlib/seed0/2of4/wanda/swaps-1"
TARGETS = [f"{CELL}/perplexity/held_out.json", f"{CELL}/lm_eval.json"]
EVALUATION = ("perplexity", "harness")
SAMPLES, HELD_OUT, SEQLEN = 8, 2, 128
GRAM, HEAD = "Gram matrices of a block, calibration and held out, float32", "the head and a slice of logits, float32"
SHAPE = dict(hidden_size=2048, intermediate_size=5632, num_attention_heads=32, num_key_value_heads=4)
LARGE = LlamaConfig(**SHAPE, num_hidden_layers=22, vocab_size=32000, max_position_embeddings=2048)
SMALL = LlamaConfig(
    **dict.fromkeys(SHAPE, 4) | {"hidden_size": 64, "intermediate_size": 96},
    num_hidden_layers=1,
    vocab_size=2048,
    max_position_embeddings=128,
)


def write_model(config: LlamaConfig, folder: Path) -> int:
    """Write a random bf16 checkpoint with a file for each block, one after the other; return its bytes."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    files: dict[str, dict[str, torch.Size]] = {}
    for name, shape in shapes.items():
        block = re.match(r"model\.layers\.(\d+)\.", name)
        files.setdefault(f"model-{int(block[1]) if block else 'rest'}.safetensors", {})[name] = shape
    random = torch.Generator().manual_seed(0)
    folder.mkdir(parents=True)
    for file, tensors in files.items():
        weights = {
            name: torch.ones(shape, dtype=torch.bfloat16)
            if len(shape) == 1
            else (torch.randn(shape, generator=random) / shape[1] ** 0.5).bfloat16()
            for name, shape in tensors.items()
        }
        save_file(weights, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config.dtype, config.architectures = torch.bfloat16, ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder)
    return sum(shape.numel() for shape in shapes.values()) * 2


def study(folder: Path) -> dict:
    return {
        "name": "memory",
        "models": {"large": {"source": str(folder)}},
        "calibrations": {
            "stdlib": {"text": "embedded", "samples": SAMPLES, "held_out": HELD_OUT, "seqlen": SEQLEN},
        },
        "patterns": ["2:4"],
        "warmstarts": ["wanda"],
        "refinements": {"swaps-1": {"max_swaps": 1}},  # memory is what is measured here
        "evaluation": {
            "perplexity": {"held_out": {"text": "embedded", "seqlen": SEQLEN, "windows": SAMPLES + HELD_OUT}},
            "lm_eval": {"tasks": ["embedded_cloze"], "limit": 4},
        },
        "batch_size": 4,
    }


def terms(config: LlamaConfig) -> dict[str, float]:
    """Return the terms of the bounds in MB. On the CPU, models and Gram matrices are in float32."""
    hidden, inner = config.hidden_size, config.intermediate_size
    key_value = hidden // config.num_attention_heads * config.num_key_value_heads
    block = 2 * hidden * hidden + 2 * key_value * hidden + 3 * inner * hidden
    gram = 3 * hidden * hidden + inner * inner  # the inputs of q k v, o, gate and up, down
    return {
        "3 blocks in float32": 3 * block * 4 / MB,
        GRAM: 2 * gram * 4 / MB,
        HEAD: (hidden * config.vocab_size + min(LOGITS, SEQLEN * config.vocab_size)) * 4 / MB,
        "hidden states of all sequences, float32": (SAMPLES + HELD_OUT) * SEQLEN * hidden * 4 / MB,
        "1 GB": 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it runs")
    parser.add_argument("--work", type=Path, help="folder for the model and the study (default: a temporary one)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "memory-cpu.json")
    arguments = parser.parse_args()
    config = SMALL if arguments.quick else LARGE
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        folder = Path(work)
        size = write_model(config, folder / "model")
        (folder / "study.yaml").write_text(yaml.safe_dump(study(folder / "model")))
        began = time.monotonic()
        command = [sys.executable, "-m", "snakemake", "--snakefile", REPOSITORY / "Snakefile", "--directory", folder]
        command += ["--configfile", folder / "study.yaml", "--cores", "2", "--", *TARGETS]
        done = subprocess.run(list(map(str, command)), check=False)
        if done.returncode:
            sys.exit("the workflow failed")
        seconds = time.monotonic() - began
        peaks: dict[str, int] = {}
        for path in (folder / "logs").rglob("*.json"):
            record = json.loads(path.read_text())
            peaks[record["stage"]] = max(peaks.get(record["stage"], 0), record["peak_resident_mb"])
    parts = terms(config)
    bounds = {
        stage: sum(value for name, value in parts.items() if name != (GRAM if stage in EVALUATION else HEAD))
        for stage in peaks
    }
    blocks = config.num_hidden_layers
    print(f"\n{size / 2e9:.2f} B parameters, {size / 1e9:.2f} GB in bf16, {blocks} blocks; {seconds:.0f} s")
    for name, value in parts.items():
        print(f"  {value:8.0f} MB  {name}")
    for stage, peak in sorted(peaks.items(), key=lambda item: -item[1]):
        over = "" if peak <= bounds[stage] else "  OVER THE BOUND"
        print(f"  {peak:8d} MB  peak resident memory of {stage}, bound {bounds[stage]:.0f} MB{over}")
    result = machine("cpu") | {
        "parameters": size // 2,
        "checkpoint_mb": size / MB,
        "blocks": blocks,
        "tokens": (SAMPLES + HELD_OUT) * SEQLEN,
        "terms_mb": parts,
        "bound_mb": bounds,
        "peak_resident_mb": peaks,
        "seconds": seconds,
    }
    save(result, arguments.out)
    if any(peak > bounds[stage] for stage, peak in peaks.items()):
        sys.exit("a stage is over the bound")


main()
