"""Rule warmstart: the first masks of one block."""

from job import block_of, device, patterns, progress, run

from sparseswaps.artifacts import read_grams, read_model, write_masks
from sparseswaps.criteria import WARMSTARTS
from sparseswaps.errors import naming
from sparseswaps.masks import check_mask
from sparseswaps.progress import rows_of


def main(snakemake, settings):
    model = read_model(snakemake.input.model)
    grams = read_grams(snakemake.input.gram, model)
    block, pattern_of = block_of(snakemake), patterns(snakemake, settings)
    warm_start, place = WARMSTARTS[settings["criterion"]], device(settings)
    masks, layers = {}, grams.readers(model.blocks[block])
    with progress(snakemake, "rows", "", rows_of(layers)) as reports:
        for layer, report in zip(layers, reports, strict=True):
            with naming(f"block {block}, {layer.name}"):
                weight, gram = model.weight(layer).to(place), grams.of(layer.name, place).gram
                pattern = pattern_of(block, layer.name)
                masks[layer.name] = warm_start(weight, gram, pattern, progress=report)
                check_mask(masks[layer.name], pattern, settings["equal_rows"])
    write_masks(snakemake.output[0], masks.items(), model, snakemake.params.key)
    return ", ".join(f"{name} {1 - mask.float().mean():.2%} pruned" for name, mask in masks.items())


run(snakemake, main)
