"""Rule model: check a model's files and describe them."""

from job import run

from sparseswaps.artifacts import write_model
from sparseswaps.blocks import describe
from sparseswaps.modeldir import locate


def main(snakemake, settings):
    model = describe(locate(settings["source"]))
    write_model(snakemake.output[0], model)
    layers = sum(map(len, model.blocks))
    return f"{model.folder}: {len(model.blocks)} blocks, {layers} layers, left dense: {model.left_dense or 'none'}"


run(snakemake, main)
