"""Capture the Gram matrices of the inputs of every decoder block of a dense model."""

import logging
from pathlib import Path

from sparseswaps.base.errors import prefix_errors
from sparseswaps.base.files import write_atomically
from sparseswaps.calibration.activations import choose_keep
from sparseswaps.calibration.capture import capture
from sparseswaps.layer.gram import check_gram
from sparseswaps.model.weights import WeightsOnDisk
from sparseswaps.pruning.progress import blocks_part
from sparseswaps.workflow.artifacts import block_file, read_model, read_samples, write_grams
from sparseswaps.workflow.context import device_of


def run(inputs, outputs, settings, context):
    model = read_model(inputs["model"])
    calibration, held_out = read_samples(inputs["samples"], model)
    weights = WeightsOnDisk(model, device_of(settings), settings["dtype"])
    keep = choose_keep(settings["activations"], Path(outputs["grams"]).parent)

    def write(path, grams):
        for matrices in (grams.matrix, grams.held_out):
            for name, matrix in matrices.items():
                with prefix_errors(f"{path.stem}, {name}"):
                    check_gram(matrix)
        write_grams(path, grams, model, context.provenance)
        logging.info("%s: %s", path.stem, ", ".join(f"{name} {len(matrix)}" for name, matrix in grams.matrix.items()))
        if grams.unrouted:
            logging.info("too few tokens were routed to %s: calibrated on all tokens", ", ".join(grams.unrouted))

    work = blocks_part(model.blocks, len(calibration) + len(held_out))
    with context.progress("blocks", "sequences", [work]) as (report,), write_atomically(outputs["grams"]) as folder:
        blocks = capture(weights, calibration, held_out, settings["batch_size"], keep=keep, progress=report)
        for block in range(len(model.blocks)):
            # No name holds a block's matrices while those of the next block are summed.
            write(folder / block_file(block), next(blocks))
    return f"{calibration.numel()} tokens, {held_out.numel()} held out"
