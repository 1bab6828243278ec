"""Rule capture: the Gram matrices of every block's inputs."""

import logging

from job import device, run

from sparseswaps.artifacts import read_model, read_samples, write_grams
from sparseswaps.capture import capture
from sparseswaps.errors import naming
from sparseswaps.gram import check_gram
from sparseswaps.pretrained import load_model


def main(snakemake, settings):
    described = read_model(snakemake.input.model)
    calibration, held_out = read_samples(snakemake.input.samples, described)
    model = load_model(described.folder, device(settings), described.trust_remote_code)
    blocks = capture(model, calibration, held_out, settings["batch_size"])
    for path, grams in zip(snakemake.output, blocks, strict=True):
        for matrices in (grams.matrix, grams.held_out):
            for name, matrix in matrices.items():
                with naming(f"{path}, {name}"):
                    check_gram(matrix)
        write_grams(path, grams, described, snakemake.params.key)
        logging.info("%s: %s", path, ", ".join(f"{n} {len(g)}" for n, g in grams.matrix.items()))
    return f"{calibration.numel()} tokens, {held_out.numel()} held out"


run(snakemake, main)
