"""Gather every measurement of the study: by cell, by layer, by number of swaps, and summaries for people."""

from pathlib import Path

from sparseswaps.base.files import read_json
from sparseswaps.report.tables import Measured, read_tables, write_all


def run(inputs, outputs, settings, context):
    facts = {name.removeprefix("cell "): value for name, value in settings.items() if name.startswith("cell ")}
    measured = [measurements(folder, values, inputs) for folder, values in facts.items()]
    published = inputs["published"][0] if inputs["published"] else None
    cells = write_all(measured, Path(outputs["cells"][0]).parent, published)
    return f"{len(cells)} cells"


def measurements(folder, facts, inputs):
    """Return what was measured of one variant, whose artifacts are in `folder` below the results."""

    def files(name):
        return [path for path in inputs[name] if f"/{folder}/" in path]

    scores = files("scores")
    return Measured(
        facts=facts,
        losses=read_tables(files("losses")),
        curves=read_tables(files("curves")),
        epochs=read_tables(files("epochs")),
        perplexities={Path(path).stem: read_json(path) for path in files("perplexity")},
        scores=read_json(scores[0])["results"] if scores else {},
        drift=read_tables(files("drift")),
    )
