"""Rule capture: the Gram matrices of every block's inputs."""

import logging

import torch
from job import device, run
from transformers import AutoModelForCausalLM

from sparseswaps.artifacts import read_model, read_samples, write_grams
from sparseswaps.capture import capture


def main(snakemake, settings):
    described = read_model(snakemake.input.model)
    calibration, held_out = read_samples(snakemake.input.samples, described)
    place = device(snakemake)
    dtype = "auto" if place == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(described.folder, dtype=dtype).eval().to(place)
    blocks = capture(model, calibration, held_out, settings["batch_size"])
    for path, grams in zip(snakemake.output, blocks, strict=True):
        write_grams(path, grams, described, snakemake.params.key)
        logging.info("%s: %s", path, ", ".join(f"{n} {len(g)}" for n, g in grams.matrix.items()))
    return f"{calibration.numel()} tokens, {held_out.numel()} held out"


run(snakemake, main)
