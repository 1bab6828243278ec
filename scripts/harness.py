"""Rule harness: one checkpoint on the configured lm-eval tasks."""

import os
from pathlib import Path

# What tasks need comes from local files or from the caches; a network that is missing must not be waited for.
if not os.environ.get("SPARSESWAPS_ONLINE"):
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1")

import torch
from job import device, evaluated, run

from sparseswaps.files import write_json
from sparseswaps.harness import evaluate


def main(snakemake, settings):
    torch.set_num_threads(snakemake.threads)
    place = device(snakemake)
    result = evaluate(
        evaluated(snakemake),
        settings["tasks"],
        include=Path(settings["include"] or Path(snakemake.input.tasks[0]).parent),
        limit=settings["limit"],
        batch_size=settings["batch_size"],
        device=place,
        max_length=None,
        dtype="auto" if place == "cuda" else "float32",
    )
    write_json(snakemake.output[0], result | {"key": snakemake.params.key})
    return ", ".join(f"{task} acc {values['acc']:.4f}" for task, values in result["results"].items() if "acc" in values)


run(snakemake, main)
