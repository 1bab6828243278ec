"""Write the report: one HTML page with everything in it, and the record of what made it."""

import json
import os
import platform
from pathlib import Path

from sparseswaps.base.errors import BrokenFileError
from sparseswaps.base.files import read_json, write_atomically, write_json
from sparseswaps.base.tensor_file import read_header
from sparseswaps.model.directory import weight_files
from sparseswaps.report.page import Report, read_pictures, render, usage_table
from sparseswaps.report.tables import compare_published, read_published, read_table
from sparseswaps.workflow.stages import STAGES


def run(inputs, outputs, settings, context):
    cells, layers = read_table(inputs["cells"]), read_table(inputs["layers"])
    models = {Path(path).parent: read_json(path) for path in inputs["models"]}
    config = {name: value for name, value in settings.items() if name not in ("template", "log folders")}
    jobs = job_records(Path("logs"), settings["log folders"])
    usage = usage_table(jobs, STAGES)
    about = provenance(json.loads(context.provenance), inputs, models, layers)
    about["devices"] = ", ".join(sorted({job["device"] for job in jobs}))
    code = {job["stage"]: parameter(job["params"], "code") for job in jobs}
    stages = usage.astype(object).where(usage.notna(), None).to_dict("records")
    record = {"config": config, "made with": about, "code": dict(sorted(code.items())), "stages": stages}
    write_json(outputs["provenance"], record)
    published = inputs["published"]
    report = Report(
        config=config,
        cells=cells,
        layers=layers,
        pictures=read_pictures(inputs["figures"]),
        links=[links(Path(masks), Path(outputs["page"]).parent) for masks in inputs["masks"]],
        usage=usage,
        sizes=sizes(inputs, models),
        provenance=about,
        published=compare_published(cells, read_published(published[0])) if published else None,
    )
    with write_atomically(outputs["page"]) as partial:
        partial.write_text(render(report), encoding="utf-8")
    return f"{Path(outputs['page']).resolve()}: {len(cells)} cells, {len(report.pictures)} figures"


def parameter(params, name):
    """Return the value of a parameter by its name, from texts `name=value`."""
    return next(value.partition("=")[2] for value in params if value.startswith(f"{name}="))


def job_records(logs, folders):
    """Return the records of finished jobs; they are no input of the rule, as a deleted log must not rerun a study."""
    paths = (path for folder in folders for path in (logs / folder).glob("*.json"))
    return [record for record in map(read_json, sorted(paths)) if "seconds" in record]


def links(masks, page):
    """Return the paths of a cell's files relative to the page's folder, by name. `masks` is the cell's mask file."""
    cell, results = masks.parent, page.parent.parent
    files = {"masks": masks, "checkpoint": cell / "checkpoint", "logs": "logs" / cell.relative_to(results)}
    return {name: os.path.relpath(path, page) for name, path in files.items() if path.exists()}


def sizes(inputs, models):
    """Return the bytes of each model's weights, and of a mask file and a checkpoint's weights where there are any."""
    sizes = {}
    for folder, model in models.items():
        sizes[folder.name] = {"dense": bytes_of(Path(model["folder"]))}
        masks = [path for path in map(Path, inputs["masks"]) if folder in path.parents]
        checkpoints = [path for path in map(Path, inputs["checkpoints"]) if folder in path.parents]
        if masks:
            sizes[folder.name]["masks"] = masks[0].stat().st_size
        if checkpoints:
            sizes[folder.name]["checkpoint"] = bytes_of(checkpoints[0])
    return sizes


def bytes_of(folder):
    return sum((folder / name).stat().st_size for name in weight_files(folder))


def provenance(params, inputs, models, layers):
    """Return what the study ran on and with, by name."""
    about = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    about |= {name: parameter(params, name) for name in STAGES["report"].packages}
    for folder, model in models.items():
        origin = [model["source"], model["revision"], f"weights {model['fingerprint']}"]
        about[f"model {folder.name}"] = ", ".join(filter(None, origin))
        masked = set(layers.loc[layers["model"] == folder.name, ["block", "layer"]].itertuples(index=False, name=None))
        dense = list(model["left_dense"])
        if masked:  # a layer that the model never calls could not be calibrated
            for block, of_block in enumerate(model["blocks"]):
                dense += [layer["tensor"] for layer in of_block if (block, layer["name"]) not in masked]
        if dense:
            about[f"left dense in {folder.name}"] = ", ".join(dense)
    for entry in json.loads(parameter(params, "warmstarts")):
        if isinstance(entry, dict):
            about[f"warm start {entry['name']}"] = f"from {entry['from']}"
    for path in map(Path, inputs["samples"]):
        folder = path.parents[2]
        about[f"token ids of {path.parent.relative_to(folder.parent)}"] = token_ids(path)
    return about


def token_ids(samples):
    """Return the SHA-256 of a draw's token ids, as its file says: torch is not needed here."""
    header = read_header(samples)
    if header.get("kind") != "samples":
        raise BrokenFileError(samples, f"holds {header.get('kind', 'nothing known')}, not samples")
    return header["more"]["sha256"]
