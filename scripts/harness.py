"""Rule harness: one checkpoint on the configured lm-eval tasks."""

import os
from pathlib import Path

from job import device, evaluated, run

from sparseswaps.embedded.tasks import TASKS
from sparseswaps.files import write_json
from sparseswaps.harness import evaluate


def main(snakemake, settings):
    if set(settings["tasks"]) <= set(TASKS):  # all is local, so nothing waits for a network that may be missing
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    place = device(settings)
    folder, trust_remote_code = evaluated(snakemake)
    own = [Path(settings["include"])] if settings["include"] else []
    result = evaluate(
        folder,
        settings["tasks"],
        include=[Path(snakemake.input.tasks[0]).parent, *own],
        limit=settings["limit"],
        batch_size=settings["batch_size"],
        device=place,
        max_length=None,
        dtype="auto" if place == "cuda" else "float32",
        trust_remote_code=trust_remote_code,
    )
    write_json(snakemake.output[0], result | {"key": snakemake.params.key})
    return ", ".join(f"{task} acc {values['acc']:.4f}" for task, values in result["results"].items() if "acc" in values)


run(snakemake, main)
