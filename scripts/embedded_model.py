"""Rule embedded_model: train the embedded model from nothing."""

import logging
from pathlib import Path

import torch
from job import run

from sparseswaps.embedded.train import Recipe, build


def main(snakemake, settings):
    torch.set_num_threads(snakemake.threads)
    build(Path(snakemake.output[0]), Recipe(**settings), logging.info)
    return f"copy {snakemake.output[0]} to sparseswaps/embedded/model to ship it"


run(snakemake, main)
