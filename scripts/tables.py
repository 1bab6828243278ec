"""Rule tables: every measurement of the study in its tables."""

from pathlib import Path

import pandas
from job import run

from sparseswaps.base.files import read_csv, read_json
from sparseswaps.report.tables import (
    Measured,
    beside_published,
    best,
    cells_table,
    comparison,
    curves_table,
    layers_table,
    lowest,
    read_published,
    summary,
    write_measures,
    write_table,
)


def main(snakemake, settings):
    texts = settings["texts"]
    losses, curves, perplexity, harness = (
        iter(getattr(snakemake.input, name)) for name in ("losses", "curves", "perplexity", "harness")
    )
    measured = [
        Measured(
            facts=facts,
            losses=of_blocks([next(losses) for _ in range(blocks)]),
            curves=of_blocks([next(curves) for _ in range(curve_blocks)]),
            perplexities={text: read_json(next(perplexity)) for text in texts},
            scores=read_json(next(harness))["results"] if settings["harness"] else {},
        )
        for facts, blocks, curve_blocks in zip(settings["cells"], settings["blocks"], settings["curves"], strict=True)
    ]
    frame = cells_table(measured)
    folder = Path(snakemake.output[0]).parent
    write_table(frame, folder / "cells")
    write_table(layers_table(measured), folder / "layers")
    write_table(curves_table(measured), folder / "curves")
    for name, table, marks in (("summary", summary, best), ("comparison", comparison, lowest)):
        write_measures(table(frame), marks(table(frame)), folder / name)
    if settings["published"]:
        write_table(beside_published(frame, read_published(settings["published"])), folder / "published")
    return f"{len(frame)} cells"


def of_blocks(paths):
    """The tables of a cell's blocks as one, None where there are none."""
    return pandas.concat([pandas.DataFrame(read_csv(path)) for path in paths], ignore_index=True) if paths else None


run(snakemake, main)
