"""Rule chain: a whole model's masks where every block is calibrated on the outputs of the pruned blocks before it."""

import logging

from job import device, run

from sparseswaps.artifacts import read_model, read_samples, write_masks
from sparseswaps.capture import capture
from sparseswaps.criteria import WARMSTARTS
from sparseswaps.errors import naming
from sparseswaps.files import write_csv
from sparseswaps.gram import check_gram
from sparseswaps.layerwise import refine_layer, summary, total
from sparseswaps.pattern import parse_pattern
from sparseswaps.pretrained import load_model


def main(snakemake, settings):
    place = device(settings)
    described = read_model(snakemake.input.model)
    calibration, held_out = read_samples(snakemake.input.samples, described)
    pattern, warm_start = parse_pattern(settings["pattern"]), WARMSTARTS[settings["criterion"]]
    every_row = []

    def prune(block, grams):
        masks, rows = {}, []
        for layer in described.blocks[block]:
            name = described.tensor_name(block, layer.name)
            with naming(name):
                source = grams.reads[layer.name]
                weight = described.weight(block, layer).to(place)
                gram = grams.matrix[source].float()  # the precision of the Gram matrices that other rules write
                unseen = grams.held_out[source].float() if source in grams.held_out else None
                if unseen is not None:
                    check_gram(unseen)
                start = warm_start(weight, gram, pattern)
                masks[layer.name], row = refine_layer(weight, gram, unseen, start, pattern, settings["max_swaps"])
            rows.append({"block": block, "layer": layer.name} | row)
            logging.info("%s: %s", name, summary(row))
        write_masks(snakemake.output.masks[block], masks, described, snakemake.params.key)
        write_csv(snakemake.output.losses[block], rows)
        every_row.extend(rows)
        return masks

    model = load_model(described.folder, place, described.trust_remote_code)
    for _ in capture(model, calibration, held_out, settings["batch_size"], prune):
        pass
    return total(every_row)


run(snakemake, main)
