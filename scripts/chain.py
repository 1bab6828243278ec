"""Rule chain: a whole model's masks where every block is calibrated on the outputs of the pruned blocks before it."""

import logging
from pathlib import Path

from job import device, run

from sparseswaps.activations import keeping
from sparseswaps.artifacts import read_model, read_samples, write_masks
from sparseswaps.capture import capture
from sparseswaps.criteria import WARMSTARTS
from sparseswaps.errors import naming
from sparseswaps.files import write_csv
from sparseswaps.gram import check_gram
from sparseswaps.layerwise import refine_layer, summary, total
from sparseswaps.pattern import parse_pattern
from sparseswaps.weights import OnDisk


def main(snakemake, settings):
    place = device(settings)
    described = read_model(snakemake.input.model)
    calibration, held_out = read_samples(snakemake.input.samples, described)
    pattern, warm_start = parse_pattern(settings["pattern"]), WARMSTARTS[settings["criterion"]]
    every_row = []

    def prune(block, grams):
        masks, rows = {}, []
        for layer in grams.readers(described.blocks[block]):
            name = f"block {block}, {layer.name}"
            with naming(name):
                source = grams.reads[layer.name]
                weight = described.weight(layer).to(place)
                gram, unseen = grams.matrix[source], grams.held_out.get(source)
                if unseen is not None:
                    check_gram(unseen)
                start = warm_start(weight, gram, pattern)
                masks[layer.name], row = refine_layer(weight, gram, unseen, start, pattern, settings["max_swaps"])
            rows.append({"block": block, "layer": layer.name} | grams.about(layer.name) | row)
            logging.info("%s: %s", name, summary(row))
        write_masks(snakemake.output.masks[block], masks.items(), described, snakemake.params.key)
        write_csv(snakemake.output.losses[block], rows)
        every_row.extend(rows)
        return masks

    keep = keeping(settings["activations"], Path(snakemake.output.masks[0]).parent)
    for _ in capture(OnDisk(described, place), calibration, held_out, settings["batch_size"], prune, keep):
        pass
    return total(every_row)


run(snakemake, main)
