"""Compare the time of the stages with their bare matrix products; print a table, write JSON into results/.

    python benchmarks/floors.py                      blocks with the sizes of SmolLM2-135M, float32, one thread
    python benchmarks/floors.py --dtype bfloat16     the same in bfloat16

The floor of a stage is its matrix products and attention alone, on tensors of the same shapes: the arithmetic that no
implementation can leave out. A training step is three forward passes. One run takes turns between all works; the
figures are medians. Nothing else should run on the machine. Needs torch, transformers and tabulate.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from engine import machine, measure, save
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from sparseswaps.calibration.capture import capture, sum_grams
from sparseswaps.calibration.replay import Replay
from sparseswaps.evaluation.perplexity import perplexity
from sparseswaps.layer.criteria import wanda
from sparseswaps.layer.gram import accumulate
from sparseswaps.layer.least_squares import least_squares
from sparseswaps.layer.pattern import parse_pattern
from sparseswaps.layer.settings import BlockReconstruction, RefinementSettings
from sparseswaps.layer.swaps.engine import refine_mask
from sparseswaps.model.weights import WeightsInMemory
from sparseswaps.pruning.block import prune_block
from sparseswaps.pruning.reconstruct import SetZeros
from sparseswaps.pruning.refine import Refine
from sparseswaps.pruning.training import BlockTraining
from sparseswaps.pruning.warmstart import WarmStart

FULL = dict(hidden=576, inner=1536, heads=9, key_values=3, blocks=4, vocabulary=49152, sequences=4, seqlen=1024)
QUICK = dict(hidden=64, inner=96, heads=4, key_values=2, blocks=2, vocabulary=256, sequences=4, seqlen=32)
BATCH, EPOCHS, ITERATIONS = 2, 2, 20
PATTERN = parse_pattern("60%")


class Floors:
    """The bare products of a model's stages, on random tensors."""

    def __init__(self, size: dict[str, int], dtype: torch.dtype) -> None:
        self.size, self.tokens = size, BATCH * size["seqlen"]
        head = size["hidden"] // size["heads"]
        key_value = head * size["key_values"]
        self.widths = [size["hidden"], size["hidden"], size["hidden"], size["inner"]]  # of the distinct inputs
        shapes = [(size["hidden"], size["hidden"])] * 2 + [(key_value, size["hidden"])] * 2
        shapes += [(size["inner"], size["hidden"])] * 2 + [(size["hidden"], size["inner"])]
        self.weights = [torch.randn(shape).to(dtype) for shape in shapes]
        self.inputs = {width: torch.randn(self.tokens, width).to(dtype) for width in set(self.widths)}
        self.head = torch.randn(size["vocabulary"], size["hidden"]).to(dtype)
        self.heads = torch.randn(3, BATCH, size["heads"], size["seqlen"], head).to(dtype)
        self.totals = {width: torch.zeros(width, width, dtype=torch.float64) for width in set(self.widths)}
        self.batches = size["sequences"] // BATCH

    @torch.inference_mode()
    def block(self) -> None:
        """Run the products of one block on the whole text."""
        for _ in range(self.batches):
            functional.scaled_dot_product_attention(*self.heads, is_causal=True)
            for weight in self.weights:
                functional.linear(self.inputs[weight.shape[1]], weight)

    def capture(self) -> None:
        for _ in range(self.size["blocks"]):
            self.block()
            for _ in range(self.batches):
                for width in self.widths:
                    accumulate(self.totals[width], self.inputs[width])

    @torch.inference_mode()
    def perplexity(self) -> None:
        for _ in range(self.size["blocks"]):
            self.block()
        for _ in range(self.batches):
            functional.linear(self.inputs[self.size["hidden"]], self.head)

    def training(self) -> None:
        for _ in range(3 * EPOCHS):
            self.block()


def works(size: dict[str, int], dtype: torch.dtype) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Return each stage's work, and its floor."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=size["hidden"],
        intermediate_size=size["inner"],
        num_attention_heads=size["heads"],
        num_key_value_heads=size["key_values"],
        num_hidden_layers=size["blocks"],
        vocab_size=size["vocabulary"],
        initializer_range=size["hidden"] ** -0.5,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(dtype).eval()
    ids = torch.randint(0, size["vocabulary"], (size["sequences"], size["seqlen"]))
    floors, weights = Floors(size, dtype), WeightsInMemory(model)
    none = ids[:0]
    replay = Replay(weights)
    replay.start(ids, none, BATCH, keep_dense=True)
    grams = sum_grams(replay, 0)
    replay.advance_dense(0, replay.blocks[0])
    dense = {
        layer.name: layer.view_in(replay.blocks[0].get_parameter(layer.parameter)).detach().clone()
        for layer in weights.layers[0]
    }
    steps = [WarmStart("wanda", None, "rows"), Refine(RefinementSettings(max_swaps=0), "rows"), SetZeros()]
    start = prune_block(0, weights.layers[0], grams, lambda layer: dense[layer.name], lambda *_: PATTERN, steps)
    settings = BlockReconstruction(epochs=EPOCHS, sequences=BATCH)

    def train() -> None:
        BlockTraining(replay, 0, grams, dense, lambda *_: PATTERN, steps, settings).run(start)

    pairs = {
        "capture": (lambda: list(capture(weights, ids, none, BATCH)), floors.capture),
        "perplexity": (lambda: perplexity(weights, ids, BATCH), floors.perplexity),
        f"block training, {EPOCHS} epochs": (train, floors.training),
    }
    for name in ("self_attn.q_proj", "mlp.down_proj"):
        weight, gram = dense[name].float(), grams.matrix[grams.reads[name]]
        mask, double = wanda(weight, gram, PATTERN), (weight.double(), gram.double())

        def solve(weight=weight, gram=gram, mask=mask) -> None:
            least_squares(weight, gram, mask, 0.01, ITERATIONS)

        def multiply(double=double) -> None:
            for _ in range(ITERATIONS):
                double[0] @ double[1]

        pairs[f"least squares, d_in {weight.shape[1]}"] = solve, multiply
    return pairs


def swaps_per_second(d_in: int) -> float:
    """Return the swaps a second of a search to the optimum of 256 rows from Wanda's mask, on correlated inputs."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(4 * d_in, d_in, generator=generator) @ torch.randn(d_in, d_in, generator=generator)
    weight, gram = torch.randn(256, d_in, generator=generator), mixed.T @ mixed / d_in
    mask = wanda(weight, gram, PATTERN)
    result, seconds = measure("cpu", refine_mask, weight, gram, mask, PATTERN)
    return int(result.swaps.sum()) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it runs")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    size = QUICK if arguments.quick else FULL
    stages, rows = works(size, getattr(torch, arguments.dtype)), []
    for name, pair in stages.items():
        times = []
        for repeat in range(arguments.repeats + 1):
            seconds = [measure("cpu", work)[1] for work in pair]
            if repeat:  # the first round warms up
                times.append(seconds)
        stage, floor = (statistics.median(column) for column in zip(*times, strict=True))
        rows.append({"stage": name, "seconds": stage, "floor_seconds": floor, "ratio": stage / floor})
        print(f"{name:28} {stage:8.3f} s, products alone {floor:8.3f} s: {stage / floor:5.2f} times")
    rates = {}
    for d_in in (64,) if arguments.quick else (576, 1536):
        swaps_per_second(64)  # compiles
        rates[d_in] = swaps_per_second(d_in)
        print(f"swaps at d_in {d_in:4}           {rates[d_in]:8,.0f} a second")
    out = arguments.out or Path(__file__).parent / "results" / f"floors-cpu-{arguments.dtype}.json"
    report = machine("cpu") | size | {"dtype": arguments.dtype, "batch": BATCH}
    save(report | {"stages": rows, "swaps_per_second": rates}, out)


main()
