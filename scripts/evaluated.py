"""What the two scripts that evaluate a model have in common."""

from typing import Any

import job  # noqa: F401  it makes the package importable where it is not installed

from sparseswaps.model.checkpoint import read_pruned
from sparseswaps.workflow.artifacts import read_model


def evaluated(snakemake: Any, settings: dict) -> tuple[str, str | None, bool]:
    """What an evaluation job loads: a model directory, the mask file to put on it where it is not pruned itself, and
    whether code in that directory may run."""
    if settings["checkpoint"]:
        folder = snakemake.input.model
        return folder, None, read_pruned(folder)["base"]["trust_remote_code"]
    model = read_model(snakemake.input.model)
    return model.folder, snakemake.input.get("masks"), model.trust_remote_code
