"""Rule reconstruct: the kept weights of one block, fitted to its masks, and what that did to every layer."""

import logging

from job import block_of, device, progress, run

from sparseswaps.base.errors import prefix_errors
from sparseswaps.base.files import read_csv, write_csv
from sparseswaps.layer.reconstruction import Reconstruction, reconstruct_layer
from sparseswaps.layer.refinement import summary, total
from sparseswaps.pruning.progress import rows_of
from sparseswaps.workflow.artifacts import read_grams, read_masks, read_model, write_weights


def main(snakemake, settings):
    place, how = device(settings), Reconstruction.of(settings)
    model = read_model(snakemake.input.model)
    grams = read_grams(snakemake.input.gram, model)
    masks = read_masks(snakemake.input.masks, model)
    figures = {row["layer"]: row for row in read_csv(snakemake.input.losses)}
    block = block_of(snakemake)
    weights, rows, layers = {}, [], grams.readers(model.blocks[block])
    with progress(snakemake, "rows", "", rows_of(layers)) as reports:
        for layer, report in zip(layers, reports, strict=True):
            name = f"block {block}, {layer.name}"
            with prefix_errors(name):
                inputs, mask = grams.of(layer.name, place), masks[layer.name].to(place)
                weight = model.weight(layer).to(place)
                weights[layer.name], row = reconstruct_layer(weight, inputs, mask, how, figures[layer.name], report)
            rows.append(row)
            logging.info("%s: %s", name, summary(row))
    write_weights(snakemake.output.weights, weights, model, snakemake.params.key)
    write_csv(snakemake.output.losses, rows)
    return total(rows)


run(snakemake, main)
