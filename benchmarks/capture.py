"""Compare the time of capture with the same model's plain forward pass; print a table, write JSON into results/.

    python benchmarks/capture.py cpu     a random Llama of 55 M parameters, float32, on all cores
    python benchmarks/capture.py gpu     eight blocks with the shapes of Llama-3.1-8B, bfloat16

Capture reads its weights from files, block by block, as in the workflow. The plain pass has its model in memory and
leaves out the head. The Gram products alone are timed on tensors of the same shapes, and compared with a large matrix
product. One run takes turns between all of them; the figures are medians. Needs torch, transformers, accelerate,
safetensors and tabulate.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from engine import machine, measure, save
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from sparseswaps.calibration.capture import capture
from sparseswaps.layer.gram import accumulate
from sparseswaps.model.description import describe
from sparseswaps.model.weights import WeightsOnDisk

ALLOWED = 1.5  # times the plain forward pass, without the Gram products
SIZES = {
    "cpu": dict(hidden=768, inner=2048, heads=12, key_values=12, blocks=6, vocabulary=8192, dtype=torch.float32),
    "gpu": dict(hidden=4096, inner=14336, heads=32, key_values=8, blocks=8, vocabulary=32000, dtype=torch.bfloat16),
}
QUICK = dict(hidden=64, inner=96, heads=4, key_values=2, blocks=2, vocabulary=256)
TEXT = {"cpu": (8, 512, 4), "gpu": (32, 2048, 8)}  # sequences, tokens of each, sequences per pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=SIZES)
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model, to see that it runs; its times mean nothing"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = {"cpu": "cpu", "gpu": "cuda"}[arguments.part]
    size = SIZES[arguments.part] | (QUICK if arguments.quick else {})
    sequences, seqlen, batch = (4, 32, 2) if arguments.quick else TEXT[arguments.part]
    config = LlamaConfig(
        hidden_size=size["hidden"],
        intermediate_size=size["inner"],
        num_attention_heads=size["heads"],
        num_key_value_heads=size["key_values"],
        num_hidden_layers=size["blocks"],
        vocab_size=size["vocabulary"],
        max_position_embeddings=4096,
        dtype=size["dtype"],
    )
    torch.manual_seed(0)
    samples = torch.randint(0, size["vocabulary"], (sequences, seqlen))
    with tempfile.TemporaryDirectory() as folder:
        model = LlamaForCausalLM(config).to(size["dtype"]).eval()
        model.save_pretrained(folder)
        described, model = describe(Path(folder)), model.to(device)
        result = measure_capture(described, model, samples, batch, device, arguments.repeats)
    result |= size | {"dtype": str(size["dtype"]), "sequences": sequences, "seqlen": seqlen, "batch": batch}
    report(result)
    out = arguments.out or Path(__file__).parent / "results" / f"capture-{arguments.part}.json"
    save(machine(device) | result, out)
    if not arguments.quick and result["ratio"] > ALLOWED:
        sys.exit(f"capture takes {result['ratio']:.2f} times the plain forward pass, {ALLOWED} are allowed")


def measure_capture(described, model, samples: Tensor, batch: int, device: str, repeats: int) -> dict:
    layers = {layer.name: layer for layer in described.blocks[0]}
    widths = [layers[name].d_in for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")]

    @torch.inference_mode()
    def run_forward() -> None:
        for ids in samples.split(batch):
            model.base_model(input_ids=ids.to(device), use_cache=False)

    def run_capture() -> None:
        for _ in capture(WeightsOnDisk(described, device, "checkpoint"), samples, samples[:0], batch):
            pass

    inputs = [torch.randn(batch * samples.shape[1], width, device=device).to(model.dtype) for width in widths]
    totals = [torch.zeros(width, width, dtype=torch.float64, device=device) for width in widths]

    def run_products() -> None:
        for _ in range(len(described.blocks) * -(-len(samples) // batch)):
            for total, x in zip(totals, inputs, strict=True):
                accumulate(total, x)

    width = 4096 if device == "cuda" else 2048
    square = torch.randn(width, width, device=device).to(model.dtype)
    works = {
        "forward": run_forward,
        "capture": run_capture,
        "products": run_products,
        "square": lambda: square @ square,
    }
    for work in works.values():
        work()
    times = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            times[name].append(measure(device, work)[1])
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    flops = 2 * samples.numel() * len(described.blocks) * sum(width**2 for width in widths)
    ratios = [(c - p) / f for f, c, p in zip(times["forward"], times["capture"], times["products"], strict=True)]
    return {
        "tokens": samples.numel(),
        "seconds": median,
        "tokens_per_second": {name: samples.numel() / median[name] for name in ("forward", "capture")},
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "product_rate": flops / median["products"],
        "matrix_rate": 2 * len(square) ** 3 / median["square"],
    }


def report(result: dict) -> None:
    rate, seconds = result["tokens_per_second"], result["seconds"]
    low, high = result["ratio_range"]
    print(f"{result['tokens']} tokens, {result['blocks']} blocks of width {result['hidden']}, {result['dtype']}")
    print(f"  plain forward pass    {seconds['forward']:8.2f} s  {rate['forward']:10.0f} tokens/s")
    print(f"  capture               {seconds['capture']:8.2f} s  {rate['capture']:10.0f} tokens/s")
    print(f"  Gram products alone   {seconds['products']:8.2f} s")
    print(f"  capture less products {result['ratio']:8.2f} times the forward pass [{low:.2f} to {high:.2f}]")
    share = result["product_rate"] / result["matrix_rate"]
    rates = f"{result['product_rate'] / 1e12:.2f} of {result['matrix_rate'] / 1e12:.2f} TFLOP/s"
    print(f"  Gram products run at {rates}, {share:.0%} of a large matrix product's rate")


main()
