"""Fit the kept weights of one block to its refined masks, and measure every layer's error again."""

from sparseswaps.base.files import write_csv
from sparseswaps.layer.settings import Reconstruction
from sparseswaps.pruning.block import total
from sparseswaps.pruning.reconstruct import Reconstruct
from sparseswaps.workflow.artifacts import read_model, write_weights
from sparseswaps.workflow.jobs.block import prune_stored_block


def run(inputs, outputs, settings, context):
    model = read_model(inputs["model"])
    step = Reconstruct(Reconstruction.of(settings))
    pruned = prune_stored_block(inputs, settings, context, model, step)
    write_weights(outputs["weights"], pruned.weights, model, context.provenance)
    write_csv(outputs["losses"], pruned.losses)
    return total(pruned.losses)
