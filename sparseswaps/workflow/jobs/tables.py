"""Gather every measurement of the study: by cell, by layer, by number of swaps, and summaries for people."""

from pathlib import Path

import pandas

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
from sparseswaps.workflow.artifacts import block_files


def run(inputs, outputs, settings, context):
    facts = {name.removeprefix("cell "): value for name, value in settings.items() if name.startswith("cell ")}
    measured = [measurements(folder, values, inputs, settings["texts"]) for folder, values in facts.items()]
    frame = cells_table(measured)
    folder = Path(outputs["cells"][0]).parent
    write_table(frame, folder / "cells")
    write_table(layers_table(measured), folder / "layers")
    write_table(curves_table(measured), folder / "curves")
    for name, table, marks in (("summary", summary, best), ("comparison", comparison, lowest)):
        write_measures(table(frame), marks(table(frame)), folder / name)
    if inputs["published"]:
        write_table(beside_published(frame, read_published(inputs["published"][0])), folder / "published")
    return f"{len(frame)} cells"


def measurements(folder, facts, inputs, texts):
    """Return what was measured of one variant, whose artifacts are in `folder` below the results."""

    def files(name):
        return [path for path in inputs[name] if f"/{folder}/" in path]

    scores = files("scores")
    return Measured(
        facts=facts,
        losses=table_of_blocks(files("losses")),
        curves=table_of_blocks(files("curves")),
        perplexities={text: read_json(path) for text, path in zip(texts, files("perplexity"), strict=True)},
        scores=read_json(scores[0])["results"] if scores else {},
    )


def table_of_blocks(paths):
    """Return the tables of a cell's blocks as one; None where there are none."""
    if not paths:
        return None
    files = block_files(paths[0]) if Path(paths[0]).is_dir() else paths
    return pandas.concat([pandas.DataFrame(read_csv(path)) for path in files], ignore_index=True)
