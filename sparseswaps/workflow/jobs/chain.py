"""Calibrate, mask, refine and reconstruct block after block, each on the outputs of the pruned blocks before it."""

from contextlib import ExitStack
from pathlib import Path

from sparseswaps.base.files import write_atomically, write_csv
from sparseswaps.calibration.activations import choose_keep
from sparseswaps.calibration.capture import capture
from sparseswaps.layer.settings import Reconstruction, RefinementSettings
from sparseswaps.model.weights import WeightsOnDisk
from sparseswaps.pruning.block import check_held_out, prune_block, total
from sparseswaps.pruning.progress import blocks_part
from sparseswaps.pruning.reconstruct import Reconstruct, SetZeros
from sparseswaps.pruning.refine import Refine
from sparseswaps.workflow.artifacts import block_file, read_model, read_samples, write_masks, write_weights
from sparseswaps.workflow.context import device_of, patterns_of
from sparseswaps.workflow.jobs.warmstart import first_masks


def run(inputs, outputs, settings, context):
    model, device = read_model(inputs["model"]), device_of(settings)
    calibration, held_out = read_samples(inputs["samples"], model)
    pattern_of, reconstruction = patterns_of(inputs, settings), settings["reconstruction"]
    refine = Refine(RefinementSettings.of(settings["refinement"]), settings["counted"])
    new_weights = Reconstruct(Reconstruction.of(reconstruction)) if reconstruction else SetZeros()
    steps = [first_masks(settings, model), refine, new_weights]
    weights, batch_size = WeightsOnDisk(model, device), settings["batch_size"]
    keep = choose_keep(settings["activations"], Path(outputs["masks"]).parent)
    work = blocks_part(model.blocks, len(calibration) + len(held_out), pruned=True)
    losses = []
    with ExitStack() as stack:
        (report,) = stack.enter_context(context.progress("blocks", "sequences", [work]))
        folders = {name: stack.enter_context(write_atomically(path)) for name, path in outputs.items()}
        for folder in folders.values():
            folder.mkdir()

        def prune(block, grams):
            check_held_out(grams)
            layers = model.blocks[block]
            pruned = prune_block(block, layers, grams, lambda layer: model.weight(layer).to(device), pattern_of, steps)
            write_masks(folders["masks"] / block_file(block), pruned.masks.items(), model, context.provenance)
            write_csv(folders["losses"] / block_file(block, "csv"), pruned.losses)
            write_csv(folders["curves"] / block_file(block, "csv"), pruned.curves)
            if reconstruction:
                write_weights(folders["weights"] / block_file(block), pruned.weights, model, context.provenance)
            losses.extend(pruned.losses)
            return pruned.weights

        for _ in capture(weights, calibration, held_out, batch_size, prune, keep, report):
            pass  # the Gram matrices of a block serve `prune` alone
    return total(losses)
