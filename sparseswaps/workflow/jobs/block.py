"""Run one step on the layers of a stored block, for the jobs of warm start, refinement and reconstruction."""

from collections.abc import Mapping
from typing import Any

from sparseswaps.base.files import read_csv
from sparseswaps.model.description import Model
from sparseswaps.pruning.block import PrunedBlock, Step, prune_block
from sparseswaps.workflow.artifacts import block_file, read_grams, read_masks
from sparseswaps.workflow.context import Context, Paths, device_of, patterns_of


def prune_stored_block(
    inputs: Paths, settings: Mapping[str, Any], context: Context, model: Model, step: Step
) -> PrunedBlock:
    """Run a step on the layers of the job's block, beginning with the masks and losses among the inputs."""
    device = device_of(settings)
    losses = read_csv(inputs["losses"]) if "losses" in inputs else []
    return prune_block(
        context.block,
        model.blocks[context.block],
        read_grams(f"{inputs['grams']}/{block_file(context.block)}", model),
        lambda layer: model.weight(layer).to(device),
        patterns_of(inputs, settings),
        [step],
        masks=read_masks(inputs["masks"], model) if "masks" in inputs else None,
        figures={row["layer"]: row for row in losses},
    )
