"""Rule refine: the masks of one block after refinement, and what it did to every layer."""

import logging

from job import block_of, device, run

from sparseswaps.artifacts import read_grams, read_masks, read_model, write_masks
from sparseswaps.errors import naming
from sparseswaps.files import write_csv
from sparseswaps.layerwise import refine_layer, summary, total
from sparseswaps.pattern import parse_pattern


def main(snakemake, settings):
    place = device(settings)
    model = read_model(snakemake.input.model)
    grams = read_grams(snakemake.input.gram, model)
    starts = read_masks(snakemake.input.masks, model)
    block = block_of(snakemake)
    pattern = parse_pattern(settings["pattern"])
    masks, rows = {}, []
    for layer in grams.readers(model.blocks[block]):
        name = f"block {block}, {layer.name}"
        with naming(name):
            source = grams.reads[layer.name]
            unseen = grams.held_out[source].to(place) if source in grams.held_out else None
            masks[layer.name], row = refine_layer(
                model.weight(layer).to(place),
                grams.matrix[source].to(place),
                unseen,
                starts[layer.name].to(place),
                pattern,
                settings["max_swaps"],
            )
        rows.append({"block": block, "layer": layer.name} | grams.about(layer.name) | row)
        logging.info("%s: %s", name, summary(row))
    write_masks(snakemake.output.masks, masks.items(), model, snakemake.params.key)
    write_csv(snakemake.output.losses, rows)
    return total(rows)


run(snakemake, main)
