"""Refine the masks of one block by exact 1-swaps, and measure every layer's error on the way."""

from sparseswaps.base.files import write_csv
from sparseswaps.layer.settings import RefinementSettings
from sparseswaps.pruning.block import prune_block, total
from sparseswaps.pruning.refine import Refine
from sparseswaps.workflow.artifacts import block_file, read_grams, read_masks, read_model, write_masks
from sparseswaps.workflow.context import device_of, patterns_of


def run(inputs, outputs, settings, context):
    model, device = read_model(inputs["model"]), device_of(settings)
    pruned = prune_block(
        context.block,
        model.blocks[context.block],
        read_grams(f"{inputs['grams']}/{block_file(context.block)}", model),
        lambda layer: model.weight(layer).to(device),
        patterns_of(inputs, settings),
        [Refine(RefinementSettings.of(settings), settings["counted"])],
        masks=read_masks(inputs["masks"], model),
    )
    write_masks(outputs["masks"], pruned.masks.items(), model, context.provenance)
    write_csv(outputs["losses"], pruned.losses)
    write_csv(outputs["curves"], pruned.curves)
    return total(pruned.losses)
