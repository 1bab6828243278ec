"""Calibrate, mask, refine and reconstruct one block on the outputs of the pruned blocks before it."""

from pathlib import Path

from sparseswaps.base.files import write_atomically, write_csv
from sparseswaps.calibration.activations import choose_keep
from sparseswaps.calibration.replay import Replay
from sparseswaps.layer.settings import Reconstruction, RefinementSettings
from sparseswaps.model.weights import WeightsOnDisk
from sparseswaps.pruning.block import total
from sparseswaps.pruning.chain import prune_next_block, start_chain
from sparseswaps.pruning.progress import blocks_part
from sparseswaps.pruning.refine import Refine
from sparseswaps.workflow.artifacts import (
    read_hidden,
    read_model,
    read_samples,
    write_hidden,
    write_masks,
    write_weights,
)
from sparseswaps.workflow.context import device_of, patterns_of
from sparseswaps.workflow.jobs.warmstart import first_masks


def run(inputs, outputs, settings, context):
    model, device, block = read_model(inputs["model"]), device_of(settings), context.block
    calibration, held_out = read_samples(inputs["samples"], model)
    first, refine = (
        first_masks(settings, model),
        Refine(RefinementSettings.of(settings["refinement"]), settings["counted"]),
    )
    reconstruction = settings["reconstruction"] and Reconstruction.of(settings["reconstruction"])
    keep = choose_keep(settings["activations"], Path(outputs["hidden"]).parent)
    part = blocks_part([model.blocks[block]], len(calibration) + len(held_out), pruned=True)
    with context.progress("blocks", "sequences", [part]) as (report,):
        replay = Replay(WeightsOnDisk(model, device), keep, lambda _done, made: report(0, made))
        if "hidden" in inputs:
            replay.resume(read_hidden(inputs["hidden"], model))
        else:
            start_chain(replay, calibration, held_out, settings["batch_size"], reconstruction)

        def weight_of(layer):
            return model.weight(layer).to(device)

        pattern_of = patterns_of(inputs, settings)
        pruned = prune_next_block(replay, block, weight_of, pattern_of, first, refine, reconstruction)
    last = block == len(model.blocks) - 1
    with write_atomically(outputs["hidden"]) as folder:
        write_hidden(folder, [] if last else replay.batches, model, context.provenance)
    write_masks(outputs["masks"], pruned.masks.items(), model, context.provenance)
    write_csv(outputs["losses"], pruned.losses)
    write_csv(outputs["curves"], pruned.curves)
    write_csv(outputs["epochs"], pruned.epochs)
    write_weights(outputs["weights"], pruned.weights if reconstruction else {}, model, context.provenance)
    return total(pruned.losses)
