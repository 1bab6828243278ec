"""Rule chain: a whole model's masks where every block is calibrated on the outputs of the pruned blocks before it."""

import logging
from pathlib import Path

from first import first_masks
from job import device, patterns, run

from sparseswaps.activations import keeping
from sparseswaps.artifacts import read_model, read_samples, write_masks, write_weights
from sparseswaps.capture import capture
from sparseswaps.errors import naming
from sparseswaps.files import write_csv
from sparseswaps.gram import check_gram
from sparseswaps.layerwise import Method, refine_layer, summary, total
from sparseswaps.masks import check_mask
from sparseswaps.rebuild import Reconstruction, reconstruct_layer
from sparseswaps.weights import OnDisk


def main(snakemake, settings):
    place = device(settings)
    described = read_model(snakemake.input.model)
    calibration, held_out = read_samples(snakemake.input.samples, described)
    pattern_of, first = patterns(snakemake, settings), first_masks(settings, described)
    how = Method.of(settings["refinement"])
    rebuild = settings["reconstruction"] and Reconstruction.of(settings["reconstruction"])
    every_row = []

    def prune(block, grams):
        masks, weights, rows, curves = {}, {}, [], []
        for layer in grams.readers(described.blocks[block]):
            name, here = f"block {block}, {layer.name}", {"block": block, "layer": layer.name}
            with naming(name):
                weight, inputs = described.weight(layer).to(place), grams.of(layer.name, place)
                pattern = pattern_of(block, layer.name)
                if inputs.held_out is not None:
                    check_gram(inputs.held_out)
                start = first(layer, weight, inputs.gram, pattern)
                refined = refine_layer(weight, inputs, start, pattern, how)
                check_mask(refined.mask, pattern, settings["counted"])
                figures, new = refined.figures, weight.masked_fill(~refined.mask, 0)
                if rebuild:
                    new, figures = reconstruct_layer(weight, inputs, refined.mask, rebuild, figures)
            masks[layer.name], weights[layer.name] = refined.mask, new
            rows.append(here | grams.about(layer.name) | figures)
            curves += [here | point for point in refined.curve]
            logging.info("%s: %s", name, summary(figures))
        write_masks(snakemake.output.masks[block], masks.items(), described, snakemake.params.key)
        write_csv(snakemake.output.losses[block], rows)
        write_csv(snakemake.output.curves[block], curves)
        if rebuild:
            write_weights(snakemake.output.weights[block], weights, described, snakemake.params.key)
        every_row.extend(rows)
        return weights

    keep = keeping(settings["activations"], Path(snakemake.output.masks[0]).parent)
    for _ in capture(OnDisk(described, place), calibration, held_out, settings["batch_size"], prune, keep):
        pass
    return total(every_row)


run(snakemake, main)
