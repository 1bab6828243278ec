"""Rule warmstart: the first masks of one block."""

from job import block_of, device, run

from sparseswaps.artifacts import read_grams, read_model, write_masks
from sparseswaps.criteria import WARMSTARTS
from sparseswaps.errors import naming
from sparseswaps.masks import check_mask
from sparseswaps.pattern import parse_pattern


def main(snakemake, settings):
    model = read_model(snakemake.input.model)
    grams = read_grams(snakemake.input.gram, model)
    block = block_of(snakemake)
    pattern = parse_pattern(settings["pattern"])
    warm_start, place = WARMSTARTS[settings["criterion"]], device(settings)
    masks = {}
    for layer in grams.readers(model.blocks[block]):
        with naming(f"block {block}, {layer.name}"):
            gram = grams.matrix[grams.reads[layer.name]].to(place)
            masks[layer.name] = warm_start(model.weight(layer).to(place), gram, pattern)
            check_mask(masks[layer.name], pattern)
    write_masks(snakemake.output[0], masks.items(), model, snakemake.params.key)
    return ", ".join(f"{name} {1 - mask.float().mean():.2%} pruned" for name, mask in masks.items())


run(snakemake, main)
