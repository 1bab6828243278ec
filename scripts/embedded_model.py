"""Rule embedded_model: train the embedded model from nothing."""

import logging
from dataclasses import asdict
from pathlib import Path

from job import run

from sparseswaps.base.files import replacing
from sparseswaps.embedded.train import Recipe, build


def main(snakemake, settings):
    recipe = Recipe()
    # Beside the output, not in it: Snakemake deletes the output of a job that failed, and the state is there to go on.
    state = Path(snakemake.output[0]).with_suffix(".state")
    with replacing(snakemake.output[0]) as folder:
        build(folder, recipe, state, logging.info)
    state.unlink()
    return f"{asdict(recipe)}; to ship it, copy {snakemake.output[0]} to sparseswaps/embedded/model"


run(snakemake, main)
