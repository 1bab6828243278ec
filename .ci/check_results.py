"""Check the tables of the last run of config.yaml: what the embedded default must show."""

import sys
from pathlib import Path

import pandas

from sparseswaps.layer.pattern import parse_pattern, slug_of
from sparseswaps.model.checkpoint import Checkpoint
from sparseswaps.workflow.artifacts import read_model

RESULTS = Path("results")
TABLES = RESULTS / "reports" / "embedded" / "tables"
PERPLEXITY = "perplexity/held_out"


def main() -> None:
    cells = pandas.read_csv(TABLES / "cells.csv").set_index(["pattern", "warmstart", "refinement"]).sort_index()
    layers = pandas.read_csv(TABLES / "layers.csv")
    dense = cells.loc["dense", PERPLEXITY].item()
    worse = layers[layers["loss_after"] > layers["loss_before"]]
    if len(worse):
        sys.exit(f"refinement raised the error of {len(worse)} layers:\n{worse}")
    for pattern in ("50%", "60%", "2:4"):
        before, after, refitted = (cells.loc[(pattern, "wanda", name)] for name in ("none", "swaps", "swaps+ls"))
        print(
            f"{pattern} from wanda: error {-after['error_reduction']:.1f} %, perplexity {before[PERPLEXITY]:.2f} -> "
            f"{after[PERPLEXITY]:.2f}, with refitted weights {refitted[PERPLEXITY]:.2f} (dense {dense:.2f})"
        )
        if not refitted[PERPLEXITY] < after[PERPLEXITY] < before[PERPLEXITY]:
            sys.exit(f"{pattern}: refinement or least squares did not lower the perplexity")
        if after["certified"] != 1:
            sys.exit(f"{pattern}: not every row reached its local optimum")
        check_zeros(pattern)
    if not cells.loc[("60%", "wanda", "none"), PERPLEXITY] > 2 * dense:
        sys.exit("60% from wanda no longer doubles the embedded model's perplexity")


def check_zeros(label: str) -> None:
    """Check that every block of every row of every pruned matrix holds as many zeros as the pattern says."""
    pattern = parse_pattern(label)
    model = read_model(RESULTS / "embedded" / "model.json")
    folder = RESULTS / "embedded" / "stdlib" / "seed0" / slug_of(pattern.label) / "wanda" / "swaps" / "checkpoint"
    checkpoint = Checkpoint(folder)
    for layers in model.blocks:
        for layer in layers:
            size, kept = pattern.groups(layer.d_in)
            weight = checkpoint.tensor(layer.tensor)
            zeros = (weight.view(layer.d_out, -1, size) == 0).sum(-1)
            if not (zeros == size - kept).all():
                sys.exit(f"{label}: {layer.tensor} has not exactly {size - kept} zeros in every {size} weights")


main()
