"""Measure the relative error of every block's output in a cell, on held-out calibration sequences."""

from pathlib import Path

from sparseswaps.base.files import write_csv
from sparseswaps.base.progress import Part
from sparseswaps.calibration.activations import choose_keep
from sparseswaps.evaluation.drift import drift
from sparseswaps.model.weights import WeightsOnDisk
from sparseswaps.workflow.artifacts import evaluated_model, read_model, read_samples
from sparseswaps.workflow.context import device_of


def run(inputs, outputs, settings, context):
    base = read_model(inputs["model"])
    _, held_out = read_samples(inputs["samples"], base)
    ids = held_out[: settings["sequences"]]  # the configuration check made sure that there are enough
    model, masks = evaluated_model(inputs)
    dense, pruned = (WeightsOnDisk(one, device_of(settings), settings["dtype"]) for one in (base, model))
    keep = choose_keep(settings["activations"], Path(outputs["drift"]).parent)
    with context.progress("blocks", "sequences", [Part(dense.depth, likely=dense.depth * len(ids))]) as (report,):
        rows = drift(dense, pruned, ids, settings["batch_size"], masks, keep, report)
    write_csv(outputs["drift"], rows)
    last = rows[-1]
    return f"relative error of the last block {last['pruned_path']:.3g}, its own {last['dense_path']:.3g}"
