"""Rule chain: a whole model's masks where every block is calibrated on the outputs of the pruned blocks before it."""

from pathlib import Path

from first import first_masks
from job import device, patterns, progress, run

from sparseswaps.base.files import write_csv
from sparseswaps.calibration.activations import keeping
from sparseswaps.calibration.capture import capture
from sparseswaps.layer.reconstruction import Reconstruction
from sparseswaps.layer.refinement import RefinementSettings, total
from sparseswaps.model.weights import OnDisk
from sparseswaps.pruning.block import Recipe, prune_block
from sparseswaps.pruning.progress import blocks_of
from sparseswaps.workflow.artifacts import read_model, read_samples, write_masks, write_weights


def main(snakemake, settings):
    place = device(settings)
    described = read_model(snakemake.input.model)
    calibration, held_out = read_samples(snakemake.input.samples, described)
    recipe = Recipe(
        first_masks(settings, described),
        patterns(snakemake, settings),
        RefinementSettings.of(settings["refinement"]),
        settings["reconstruction"] and Reconstruction.of(settings["reconstruction"]),
        settings["counted"],
    )
    every_row = []

    def prune(block, grams):
        found = prune_block(
            block, described.blocks[block], grams, lambda layer: described.weight(layer).to(place), recipe
        )
        write_masks(snakemake.output.masks[block], found.masks.items(), described, snakemake.params.key)
        write_csv(snakemake.output.losses[block], found.losses)
        write_csv(snakemake.output.curves[block], found.curves)
        if recipe.reconstruction:
            write_weights(snakemake.output.weights[block], found.weights, described, snakemake.params.key)
        every_row.extend(found.losses)
        return found.weights

    keep = keeping(settings["activations"], Path(snakemake.output.masks[0]).parent)
    work = blocks_of(described.blocks, len(calibration) + len(held_out), again=True)
    with progress(snakemake, "blocks", "sequences", [work]) as (report,):
        weights = OnDisk(described, place)
        for _ in capture(weights, calibration, held_out, settings["batch_size"], prune, keep, report):
            pass
    return total(every_row)


run(snakemake, main)
