"""Make the first masks of one block by a criterion, or import them."""

from sparseswaps.model.imported_masks import import_masks
from sparseswaps.pruning.warmstart import WarmStart
from sparseswaps.workflow.artifacts import read_model, write_masks
from sparseswaps.workflow.jobs.block import prune_stored_block


def run(inputs, outputs, settings, context):
    model = read_model(inputs["model"])
    pruned = prune_stored_block(inputs, settings, context, model, first_masks(settings, model))
    write_masks(outputs["masks"], pruned.masks.items(), model, context.provenance)
    return ", ".join(f"{name} {1 - mask.float().mean():.2%} pruned" for name, mask in pruned.masks.items())


def first_masks(settings, model):
    """Return the step that makes first masks, by the settings of a warm start."""
    imported = import_masks(settings["from"], model) if settings["from"] else None
    return WarmStart(settings["criterion"], imported, settings["counted"])
