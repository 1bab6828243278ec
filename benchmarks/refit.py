"""Measure swaps and elimination with refit beside plain swaps and least squares; write results/refit-cpu.json.

    python benchmarks/refit.py          layers of d_in 576, 1536 and 4096, a few rows of each, on one CPU core

A wider layer has fewer rows, so the seconds of a whole layer [d_in, d_in] are extrapolated from the time per row. The
check of the Gram matrix, which every call makes once, is measured by itself and taken off.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from engine import machine, measure, save, say, show_table, synthetic_gram, synthetic_weight
from torch import Tensor

from sparseswaps.layer.criteria import wanda
from sparseswaps.layer.gram import output_error, validate_layer
from sparseswaps.layer.least_squares import least_squares
from sparseswaps.layer.pattern import Pattern, parse_pattern
from sparseswaps.layer.swaps.engine import refine_mask
from sparseswaps.layer.swaps.refit import refit_eliminate, refit_swaps

ROWS = {576: 16, 1536: 4, 4096: 1}  # rows measured, by d_in
PATTERNS = ("60%", "2:4")
DAMPING, ITERATIONS = 0.01, 50


def measure_case(d_in: int, rows: int, pattern: Pattern) -> dict[str, Any]:
    """Measure every search on some rows of one layer: milliseconds a row, and errors after least squares."""
    weight, gram = synthetic_weight(rows, d_in, 1, "cpu"), synthetic_gram(d_in, 2, "cpu")
    _, check = measure("cpu", validate_layer, weight, gram)

    def each(function: Callable, *arguments: Any) -> tuple[Any, float]:
        """Return a result, and milliseconds a row without the check of the Gram matrix."""
        result, seconds = measure("cpu", function, weight, gram, *arguments)
        return result, 1e3 * max(seconds - check, 0) / rows

    def error(mask: Tensor) -> float:
        new = least_squares(weight, gram, mask, DAMPING, ITERATIONS)
        return float(output_error(weight, gram, new).sum())

    start = wanda(weight, gram, pattern)
    plain, plain_ms = each(refine_mask, start, pattern)
    _, squares_ms = each(least_squares, plain.mask, DAMPING, ITERATIONS)
    swapped, refit_ms = each(refit_swaps, start, pattern, DAMPING)
    further, further_ms = each(refit_swaps, plain.mask, pattern, DAMPING)
    eliminated, obc_ms = each(refit_eliminate, pattern, DAMPING)
    base = error(start)
    return {
        "d_in": d_in,
        "rows": rows,
        "pattern": pattern.label,
        "check_s": check,
        "swaps_ms": plain_ms,
        "least_squares_ms": squares_ms,
        "refit_ms": refit_ms,
        "refit_from_swaps_ms": further_ms,
        "obc_ms": obc_ms,
        "swaps": float(plain.swaps.double().mean()),
        "refit_swaps": float(swapped.swaps.double().mean()),
        "certified": bool(swapped.certified.all() and further.certified.all()),
        "swaps_error": error(plain.mask) / base,
        "refit_error": error(swapped.mask) / base,
        "refit_from_swaps_error": error(further.mask) / base,
        "obc_error": error(eliminated) / base,
        "layer_refit_s": refit_ms * d_in / 1e3,
        "layer_obc_s": obc_ms * d_in / 1e3,
    }


def main() -> None:
    """Read the command line, measure all cases, and fail if a row is not certified."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a short version, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "refit-cpu.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = machine("cpu") | {"quick": arguments.quick, "cases": []}
    measure_case(64, 2, parse_pattern("60%"))  # loads and compiles what the first call needs
    for d_in, rows in {96: 4}.items() if arguments.quick else ROWS.items():
        for label in PATTERNS:
            report["cases"].append(measure_case(d_in, rows, parse_pattern(label)))
            save(report, arguments.out)
    columns = {"d_in": "d_in", "rows": "rows", "pattern": "pattern"}
    times = {"swaps": "swaps_ms", "least squares": "least_squares_ms", "refit swaps": "refit_ms"}
    times |= {"refit after swaps": "refit_from_swaps_ms", "obc": "obc_ms"}
    layer = {"layer, refit s": "layer_refit_s", "layer, obc s": "layer_obc_s"}
    show_table(
        "Milliseconds a row from Wanda; seconds of a layer [d_in, d_in], EXTRAPOLATED",
        report["cases"],
        columns | times | layer,
    )
    errors = {"swaps": "swaps_error", "refit swaps": "refit_error", "refit after swaps": "refit_from_swaps_error"}
    errors |= {"obc": "obc_error", "swaps/row": "swaps", "refit swaps/row": "refit_swaps", "certified": "certified"}
    show_table("Error after least squares, relative to Wanda's after least squares", report["cases"], columns | errors)
    say(f"\nwritten: {arguments.out}")
    if not all(case["certified"] for case in report["cases"]):
        sys.exit("FAILED: a row is not certified")


if __name__ == "__main__":
    main()
