"""Rule model: check a model's files and describe them."""

from dataclasses import replace

from job import run

from sparseswaps.artifacts import write_model
from sparseswaps.blocks import describe
from sparseswaps.hub import download
from sparseswaps.modeldir import locate


def main(snakemake, settings):
    source, revision = settings["source"], settings["revision"]
    folder = locate(settings) if revision is None else download(source, revision)
    model = replace(describe(folder, settings["trust_remote_code"]), source=source, revision=revision)
    write_model(snakemake.output[0], model)
    layers = sum(map(len, model.blocks))
    return f"{folder}: {len(model.blocks)} blocks, {layers} layers, left dense: {model.left_dense or 'none'}"


run(snakemake, main)
