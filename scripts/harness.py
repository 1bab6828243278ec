"""Rule harness: one model on the configured lm-eval tasks."""

import os
from pathlib import Path

from evaluated import evaluated
from job import device, run

from sparseswaps.base.files import write_json
from sparseswaps.embedded.tasks import TASKS
from sparseswaps.evaluation.harness import evaluate
from sparseswaps.model.loading import load_tokenizer
from sparseswaps.model.masked import load_pruned


def main(snakemake, settings):
    if set(settings["tasks"]) <= set(TASKS):  # all is local, so nothing waits for a network that may be missing
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    folder, masks, trusted = evaluated(snakemake, settings)
    own = [Path(settings["include"])] if settings["include"] else []
    result = evaluate(
        load_pruned(folder, masks, device(settings), trusted),
        load_tokenizer(folder, trusted),
        settings["tasks"],
        include=[Path(snakemake.input.tasks[0]).parent, *own],
        limit=settings["limit"],
        batch_size=settings["batch_size"],
    )
    write_json(snakemake.output[0], result | {"key": snakemake.params.key})
    return ", ".join(f"{task} acc {values['acc']:.4f}" for task, values in result["results"].items() if "acc" in values)


run(snakemake, main)
