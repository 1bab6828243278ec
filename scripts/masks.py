"""Rule masks: one mask file for the whole model."""

from job import run

from sparseswaps.artifacts import read_masks, read_model, write_masks
from sparseswaps.errors import naming
from sparseswaps.masks import check_mask
from sparseswaps.model import tensor_masks
from sparseswaps.pattern import parse_pattern


def main(snakemake, settings):
    model = read_model(snakemake.input.model)
    pattern = parse_pattern(settings["pattern"])
    masks = {}
    for block, path in enumerate(snakemake.input.masks):
        of_block = read_masks(path, model)
        for layer in model.blocks[block]:
            with naming(f"block {block}, {layer.name}"):
                check_mask(of_block[layer.name], pattern)
        masks |= tensor_masks(model.blocks[block], of_block)
    write_masks(snakemake.output[0], masks, model, snakemake.params.key, base=model.base, pattern=pattern.label)
    pruned = sum(int((~mask).sum()) for mask in masks.values())
    return f"{pruned} of {sum(mask.numel() for mask in masks.values())} weights are pruned in {len(masks)} matrices"


run(snakemake, main)
