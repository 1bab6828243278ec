"""Rule masks: one mask file for the whole model."""

from job import patterns, run

from sparseswaps.base.errors import prefix_errors
from sparseswaps.layer.masks import check_mask
from sparseswaps.model.layers import file_tensors
from sparseswaps.workflow.artifacts import read_masks, read_model, write_masks


def main(snakemake, settings):
    model = read_model(snakemake.input.model)
    pattern_of = patterns(snakemake, settings)
    counts = []

    def checked():
        for block, path in enumerate(snakemake.input.masks):
            of_block = read_masks(path, model)
            layers = [layer for layer in model.blocks[block] if layer.name in of_block]
            for layer in layers:
                with prefix_errors(f"block {block}, {layer.name}"):
                    check_mask(of_block[layer.name], pattern_of(block, layer.name), settings["counted"])
            for name, mask in file_tensors(layers, of_block).items():
                counts.append((mask.numel(), int(mask.sum())))
                yield name, mask

    write_masks(
        snakemake.output[0], checked(), model, snakemake.params.key, base=model.base, pattern=settings["pattern"]
    )
    every, kept = map(sum, zip(*counts, strict=True))
    return f"{every - kept} of {every} weights are pruned in {len(counts)} matrices"


run(snakemake, main)
