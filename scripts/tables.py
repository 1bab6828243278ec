"""Rule tables: every measurement of the study in three tables."""

from pathlib import Path

import pandas
from job import run

from sparseswaps.files import read_json
from sparseswaps.tables import cells_table, layers_table, summary, write_table


def main(snakemake, settings):
    cells, texts = settings["cells"], settings["texts"]
    tables = iter(snakemake.input.losses)
    losses = []
    for blocks in settings["blocks"]:
        parts = [pandas.read_csv(next(tables)) for _ in range(blocks)]
        losses.append(pandas.concat(parts, ignore_index=True) if parts else None)
    measured = iter(snakemake.input.perplexity)
    perplexities = [{text: read_json(next(measured)) for text in texts} for _ in cells]
    scores = [read_json(path) for path in snakemake.input.harness] if settings["harness"] else [None] * len(cells)
    frame = cells_table(cells, losses, perplexities, scores)
    folder = Path(snakemake.output[0]).parent
    write_table(frame, folder / "cells")
    write_table(layers_table(cells, losses), folder / "layers")
    write_table(summary(frame), folder / "summary")
    return f"{len(frame)} cells"


run(snakemake, main)
