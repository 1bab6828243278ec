"""Rule warmstart: the first masks of one block."""

from first import first_masks
from job import block_of, device, patterns, progress, run

from sparseswaps.base.errors import prefix_errors
from sparseswaps.pruning.progress import rows_of
from sparseswaps.workflow.artifacts import read_grams, read_model, write_masks


def main(snakemake, settings):
    model = read_model(snakemake.input.model)
    grams = read_grams(snakemake.input.gram, model)
    block, pattern_of = block_of(snakemake), patterns(snakemake, settings)
    first, place = first_masks(settings, model), device(settings)
    masks, layers = {}, grams.readers(model.blocks[block])
    with progress(snakemake, "rows", "", rows_of(layers)) as reports:
        for layer, report in zip(layers, reports, strict=True):
            with prefix_errors(f"block {block}, {layer.name}"):
                weight, gram = model.weight(layer).to(place), grams.of(layer.name, place).gram
                pattern = pattern_of(block, layer.name)
                masks[layer.name] = first(layer, weight, gram, pattern, report)
    write_masks(snakemake.output[0], masks.items(), model, snakemake.params.key)
    return ", ".join(f"{name} {1 - mask.float().mean():.2%} pruned" for name, mask in masks.items())


run(snakemake, main)
