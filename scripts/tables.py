"""Rule tables: every measurement of the study in its tables."""

from pathlib import Path

import pandas
from job import run

from sparseswaps.base.files import read_csv, read_json
from sparseswaps.report.tables import (
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
    cells, texts = settings["cells"], settings["texts"]
    losses = of_cells(snakemake.input.losses, settings["blocks"])
    curves = of_cells(snakemake.input.curves, settings["curves"])
    measured = iter(snakemake.input.perplexity)
    perplexities = [{text: read_json(next(measured)) for text in texts} for _ in cells]
    scores = [read_json(path) for path in snakemake.input.harness] if settings["harness"] else [None] * len(cells)
    frame = cells_table(cells, losses, perplexities, scores)
    folder = Path(snakemake.output[0]).parent
    write_table(frame, folder / "cells")
    write_table(layers_table(cells, losses), folder / "layers")
    write_table(curves_table(cells, curves), folder / "curves")
    for name, table, marks in (("summary", summary, best), ("comparison", comparison, lowest)):
        write_measures(table(frame), marks(table(frame)), folder / name)
    if settings["published"]:
        write_table(beside_published(frame, read_published(settings["published"])), folder / "published")
    return f"{len(frame)} cells"


def of_cells(paths, numbers):
    """The tables of each cell's blocks as one, by how many files there are for each cell."""
    paths = iter(paths)
    parts = [[pandas.DataFrame(read_csv(next(paths))) for _ in range(number)] for number in numbers]
    return [pandas.concat(tables, ignore_index=True) if tables else None for tables in parts]


run(snakemake, main)
