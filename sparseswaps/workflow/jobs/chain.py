"""Calibrate, mask, refine and reconstruct one block on the outputs of the pruned blocks before it."""

from pathlib import Path

from sparseswaps.base.files import write_atomically, write_csv
from sparseswaps.calibration.activations import choose_keep
from sparseswaps.calibration.replay import Replay
from sparseswaps.calibration.settings import PrunedInputs
from sparseswaps.layer.settings import Reconstruction, RefinementSettings
from sparseswaps.model.weights import WeightsOnDisk
from sparseswaps.pruning.block import total
from sparseswaps.pruning.chain import Chain
from sparseswaps.pruning.progress import blocks_part
from sparseswaps.pruning.refine import Refine
from sparseswaps.workflow import artifacts
from sparseswaps.workflow.context import device_of, patterns_of
from sparseswaps.workflow.jobs.warmstart import first_masks


def run(inputs, outputs, settings, context):
    model, device, block = artifacts.read_model(inputs["model"]), device_of(settings), context.block
    calibration, held_out = artifacts.read_samples(inputs["samples"], model)
    chain = Chain(
        weight_of=lambda _block, layer: model.weight(layer).to(device),
        pattern_of=patterns_of(inputs, settings),
        warmstart=first_masks(settings, model),
        refine=Refine(RefinementSettings.of(settings["refinement"]), settings["counted"]),
        reconstruction=Reconstruction.of(settings["reconstruction"]) if settings["reconstruction"] else None,
        inputs=PrunedInputs.of(settings),
    )
    keep = choose_keep(settings["activations"], Path(outputs["hidden"]).parent)
    training = chain.reconstruction.block if chain.reconstruction else None
    passes = 1 + (training.epochs if training else 0)  # beside the pass for its inputs
    part = blocks_part([model.blocks[block]], len(calibration) + len(held_out), passes)
    with context.progress("blocks", "sequences", [part]) as (report,):
        replay = Replay(WeightsOnDisk(model, device, settings["dtype"]), keep, lambda _done, made: report(0, made))
        if "hidden" in inputs:
            replay.resume(artifacts.read_hidden(inputs["hidden"], model))
        else:
            chain.start(replay, calibration, held_out, settings["batch_size"])
        pruned = chain.prune_next(replay, block)
    handed_on = replay.batches if block + 1 < len(model.blocks) else []
    with write_atomically(outputs["hidden"]) as folder:
        artifacts.write_hidden(folder, handed_on, model, context.provenance)
    artifacts.write_masks(outputs["masks"], pruned.masks.items(), model, context.provenance)
    write_csv(outputs["losses"], pruned.losses)
    write_csv(outputs["curves"], pruned.curves)
    write_csv(outputs["epochs"], pruned.epochs)
    weights = pruned.weights if chain.reconstruction else {}
    artifacts.write_weights(outputs["weights"], weights, model, context.provenance)
    return total(pruned.losses)
