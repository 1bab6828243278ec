"""Fit the kept weights of one block to its refined masks, and measure every layer's error again."""

from sparseswaps.base.files import read_csv, write_csv
from sparseswaps.layer.settings import Reconstruction
from sparseswaps.pruning.block import prune_block, total
from sparseswaps.pruning.reconstruct import Reconstruct
from sparseswaps.workflow.artifacts import block_file, read_grams, read_masks, read_model, write_weights
from sparseswaps.workflow.context import device_of, patterns_of


def run(inputs, outputs, settings, context):
    model, device = read_model(inputs["model"]), device_of(settings)
    pruned = prune_block(
        context.block,
        model.blocks[context.block],
        read_grams(f"{inputs['grams']}/{block_file(context.block)}", model),
        lambda layer: model.weight(layer).to(device),
        patterns_of(inputs, settings),
        [Reconstruct(Reconstruction.of(settings))],
        masks=read_masks(inputs["masks"], model),
        figures={row["layer"]: row for row in read_csv(inputs["losses"])},
    )
    write_weights(outputs["weights"], pruned.weights, model, context.provenance)
    write_csv(outputs["losses"], pruned.losses)
    return total(pruned.losses)
