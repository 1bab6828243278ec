"""Rule refine: the masks of one block after refinement, and what it did to every layer."""

import logging

from job import block_of, device, patterns, progress, run

from sparseswaps.base.errors import prefix_errors
from sparseswaps.base.files import write_csv
from sparseswaps.layer.masks import check_mask
from sparseswaps.layer.refinement import RefinementSettings, refine_layer, summary, total
from sparseswaps.pruning.progress import rows_of
from sparseswaps.workflow.artifacts import read_grams, read_masks, read_model, write_masks


def main(snakemake, settings):
    place, how = device(settings), RefinementSettings.of(settings)
    model = read_model(snakemake.input.model)
    grams = read_grams(snakemake.input.gram, model)
    starts = read_masks(snakemake.input.masks, model)
    block, pattern_of = block_of(snakemake), patterns(snakemake, settings)
    masks, rows, curves, layers = {}, [], [], grams.readers(model.blocks[block])
    with progress(snakemake, "rows", "swaps", rows_of(layers, how.max_swaps)) as reports:
        for layer, report in zip(layers, reports, strict=True):
            name, here = f"block {block}, {layer.name}", {"block": block, "layer": layer.name}
            with prefix_errors(name):
                weight, inputs = model.weight(layer).to(place), grams.of(layer.name, place)
                pattern, start = pattern_of(block, layer.name), starts[layer.name].to(place)
                refined = refine_layer(weight, inputs, start, pattern, how, report)
                check_mask(refined.mask, pattern, settings["counted"])
            masks[layer.name] = refined.mask
            rows.append(here | grams.about(layer.name) | refined.figures)
            curves += [here | point for point in refined.curve]
            logging.info("%s: %s", name, summary(refined.figures))
    write_masks(snakemake.output.masks, masks.items(), model, snakemake.params.key)
    write_csv(snakemake.output.losses, rows)
    write_csv(snakemake.output.curves, curves)
    return total(rows)


run(snakemake, main)
