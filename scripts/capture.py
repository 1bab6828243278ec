"""Rule capture: the Gram matrices of every block's inputs."""

import logging
from pathlib import Path

from job import device, progress, run

from sparseswaps.base.errors import prefix_errors
from sparseswaps.calibration.activations import keeping
from sparseswaps.calibration.capture import capture
from sparseswaps.layer.gram import check_gram
from sparseswaps.model.weights import OnDisk
from sparseswaps.pruning.progress import blocks_of
from sparseswaps.workflow.artifacts import read_model, read_samples, write_grams


def main(snakemake, settings):
    described = read_model(snakemake.input.model)
    calibration, held_out = read_samples(snakemake.input.samples, described)
    weights = OnDisk(described, device(settings))
    keep = keeping(settings["activations"], Path(snakemake.output[0]).parent)

    def write(path, grams):
        for matrices in (grams.matrix, grams.held_out):
            for name, matrix in matrices.items():
                with prefix_errors(f"{path}, {name}"):
                    check_gram(matrix)
        write_grams(path, grams, described, snakemake.params.key)
        logging.info("%s: %s", path, ", ".join(f"{n} {len(g)}" for n, g in grams.matrix.items()))
        if grams.unrouted:
            logging.info("too few tokens were routed to %s: calibrated on all", ", ".join(grams.unrouted))

    work = blocks_of(described.blocks, len(calibration) + len(held_out))
    with progress(snakemake, "blocks", "sequences", [work]) as (report,):
        blocks = capture(weights, calibration, held_out, settings["batch_size"], keep=keep, progress=report)
        for path in snakemake.output:
            write(path, next(blocks))  # which no name holds any more while the next are summed
    return f"{calibration.numel()} tokens, {held_out.numel()} held out"


run(snakemake, main)
