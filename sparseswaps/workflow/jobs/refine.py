"""Refine the masks of one block by exact 1-swaps, and measure every layer's error on the way."""

from sparseswaps.base.files import write_csv
from sparseswaps.layer.settings import RefinementSettings
from sparseswaps.pruning.block import total
from sparseswaps.pruning.refine import Refine
from sparseswaps.workflow.artifacts import read_model, write_masks
from sparseswaps.workflow.jobs.block import prune_stored_block


def run(inputs, outputs, settings, context):
    model = read_model(inputs["model"])
    step = Refine(RefinementSettings.of(settings), settings["counted"])
    pruned = prune_stored_block(inputs, settings, context, model, step)
    write_masks(outputs["masks"], pruned.masks.items(), model, context.provenance)
    write_csv(outputs["losses"], pruned.losses)
    write_csv(outputs["curves"], pruned.curves)
    return total(pruned.losses)
