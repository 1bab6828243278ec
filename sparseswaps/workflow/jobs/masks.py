"""Put the masks of all blocks into one file, each in its tensor's shape, and check what they keep."""

from sparseswaps.base.errors import prefix_errors
from sparseswaps.layer.masks import check_mask
from sparseswaps.model.layers import file_tensors
from sparseswaps.workflow.artifacts import read_masks, read_model, write_masks
from sparseswaps.workflow.context import patterns_of


def run(inputs, outputs, settings, context):
    model, pattern_of = read_model(inputs["model"]), patterns_of(inputs, settings)
    sizes, kept = [], []

    def checked_masks():
        for block, path in enumerate(inputs["masks"]):
            masks = read_masks(path, model)
            layers = [layer for layer in model.blocks[block] if layer.name in masks]
            for layer in layers:
                with prefix_errors(f"block {block}, {layer.name}"):
                    check_mask(masks[layer.name], pattern_of(block, layer.name), settings["counted"])
            for tensor, mask in file_tensors(layers, masks).items():
                sizes.append(mask.numel())
                kept.append(int(mask.sum()))
                yield tensor, mask

    about = {"base": model.base, "pattern": settings["pattern"]}
    write_masks(outputs["masks"], checked_masks(), model, context.provenance, **about)
    return f"{sum(sizes) - sum(kept)} of {sum(sizes)} weights are pruned in {len(sizes)} matrices"
