"""Rule assemble: one mask file for the whole model, and the pruned checkpoint."""

import json

from job import run

from sparseswaps.artifacts import read_masks, read_model, write_masks
from sparseswaps.checkpoint import write_pruned
from sparseswaps.errors import naming
from sparseswaps.masks import check_mask
from sparseswaps.pattern import parse_pattern


def main(snakemake, settings):
    model = read_model(snakemake.input.model)
    pattern = parse_pattern(settings["pattern"])
    masks = {}
    for block, path in enumerate(snakemake.input.masks):
        of_block = read_masks(path, model)
        for layer in model.blocks[block]:
            name = model.tensor_name(block, layer.name)
            with naming(name):
                check_mask(of_block[layer.name], pattern)
            masks[name] = layer.in_file(of_block[layer.name])
    write_masks(snakemake.output.masks, masks, model, snakemake.params.key, base=model.base, pattern=pattern.label)
    about = {"base": model.base, "pattern": pattern.label, "wildcards": dict(snakemake.wildcards.items())}
    write_pruned(
        model.checkpoint, masks, snakemake.output.checkpoint, {"sparseswaps.json": json.dumps(about, indent=2) + "\n"}
    )
    pruned = sum(int((~mask).sum()) for mask in masks.values())
    return f"{pruned} of {sum(mask.numel() for mask in masks.values())} weights are zero in {len(masks)} matrices"


run(snakemake, main)
