"""Rule report: one HTML page with everything in it."""

import json
import platform
from pathlib import Path

import job
import pandas
from job import run

from sparseswaps.base.files import replacing, write_json
from sparseswaps.model.directory import weight_files
from sparseswaps.report.figures import CAPTIONS
from sparseswaps.report.page import SIZES, render
from sparseswaps.report.tables import beside_published, read_published, read_table, summary
from sparseswaps.workflow.artifacts import digest, read_model, read_samples
from sparseswaps.workflow.config import warmstarts
from sparseswaps.workflow.provenance import source_digest

STAGES = ("model", "samples", "capture", "allocation", "warmstart", "refine", "reconstruct", "chain")
STAGES += ("masks", "assemble", "perplexity", "harness")


def main(snakemake, settings):
    cells, layers = read_table(snakemake.input.cells), read_table(snakemake.input.layers)
    drawn = []
    folder = Path(snakemake.input.figures)
    for picture in sorted(folder.rglob("*.png")):
        function, _, text = picture.stem.partition("-")
        title, caption = CAPTIONS[function]
        about = ", ".join(filter(None, [*picture.relative_to(folder).parts[:-1], text]))
        drawn.append((f"{title} ({about})", caption, picture.read_bytes()))
    published = settings["config"]["published"]
    ran, devices = stages(Path("logs"), settings["folders"])
    about = provenance(snakemake, layers) | {"devices": ", ".join(devices)}
    code = {stage: source_digest(Path(job.__file__).with_name(f"{stage}.py")) for stage in ran["stage"]}
    of_stages = ran.astype(object).where(ran.notna(), None).to_dict("records")  # memory of a moment is not measured
    record = {"config": settings["config"], "made with": about, "code": code, "stages": of_stages}
    write_json(snakemake.output.provenance, record)
    page = render(
        config=settings["config"],
        summary=summary(cells),
        cells=cells,
        layers=layers,
        figures=drawn,
        stages=ran,
        provenance=about,
        sizes=sizes(snakemake),
        published=beside_published(cells, read_published(published)) if published else None,
    )
    with replacing(snakemake.output.page) as partial:
        partial.write_text(page, encoding="utf-8")
    return f"{Path(snakemake.output.page).resolve()}: {len(cells)} cells, {len(drawn)} figures"


def stages(logs, folders):
    """Jobs, wall seconds and peak resident memory by stage, from Snakemake's benchmark files in the study's folders;
    and the names of the devices, from the last lines of the logs."""
    found, devices = [], set()
    for folder in folders:
        for path in (logs / folder).glob("*.tsv"):
            measured = pandas.read_csv(path, sep="\t", na_values="-")
            found.append((path.name.split(".")[0], measured["s"].sum(), measured["max_rss"].max()))
            log = path.with_suffix(".log")
            last = log.read_text(encoding="utf-8").rstrip().rpartition("\n")[2] if log.is_file() else ""
            devices |= {last.rpartition(", on ")[2]} - {last}
    frame = pandas.DataFrame(found, columns=["stage", "seconds", "peak_memory_mb"])
    table = frame.groupby("stage").agg(
        jobs=("seconds", "size"), seconds=("seconds", "sum"), peak_memory_mb=("peak_memory_mb", "max")
    )
    return table.reindex([stage for stage in STAGES if stage in table.index]).reset_index(), sorted(devices)


def sizes(snakemake):
    """The bytes of each model's weights, of a pruned checkpoint's if there are any, and of a mask file."""
    found = {}
    for path in snakemake.input.models:
        folder = Path(read_model(path).folder)
        found[Path(path).parent] = {"dense": bytes_of(folder, weight_files(folder))}
    for path in snakemake.input.masks:
        model = next(model for model in found if model in Path(path).parents)
        found[model].setdefault("masks", Path(path).stat().st_size)
    for path in snakemake.input.checkpoints:
        model = next(model for model in found if model in Path(path).parents)
        found[model].setdefault("checkpoint", bytes_of(Path(path), weight_files(Path(path))))
    table = pandas.DataFrame([{"model": model.name} | of_model for model, of_model in found.items()])
    return table[["model", *(name for name in SIZES if name in table)]]


def bytes_of(folder, names):
    return sum((folder / name).stat().st_size for name in names)


def provenance(snakemake, layers):
    """What the study ran on and with."""
    key = json.loads(snakemake.params.key)
    found = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    found |= key["versions"]
    for path in snakemake.input.models:
        model = read_model(path)
        name = Path(path).parent.name
        found[f"model {name}"] = ", ".join(filter(None, [model.source, model.revision, f"weights {model.fingerprint}"]))
        masked = set(layers.loc[layers["model"] == name, ["block", "layer"]].itertuples(index=False, name=None))
        dense = list(model.left_dense)
        if masked:  # the model calls a layer never, and it could not be calibrated
            blocks = enumerate(model.blocks)
            dense += [la.tensor for block, of_block in blocks for la in of_block if (block, la.name) not in masked]
        if dense:
            found[f"left dense in {name}"] = ", ".join(dense)
    made_elsewhere = {name: path for name, path in warmstarts(key["settings"]["config"]).items() if path}
    found |= {f"warm start {name}": f"from {path}" for name, path in made_elsewhere.items()}
    for path in snakemake.input.samples:
        draw = Path(path).parent
        model = read_model(draw.parent.parent / "model.json")
        found[f"token ids of {draw.relative_to(draw.parent.parent.parent)}"] = digest(*read_samples(path, model))
    return found


run(snakemake, main)
