"""Make the first masks of one block by a criterion, or import them."""

from sparseswaps.model.imported_masks import import_masks
from sparseswaps.pruning.block import prune_block
from sparseswaps.pruning.warmstart import WarmStart
from sparseswaps.workflow.artifacts import block_file, read_grams, read_model, write_masks
from sparseswaps.workflow.context import device_of, patterns_of


def run(inputs, outputs, settings, context):
    model, device = read_model(inputs["model"]), device_of(settings)
    pruned = prune_block(
        context.block,
        model.blocks[context.block],
        read_grams(f"{inputs['grams']}/{block_file(context.block)}", model),
        lambda layer: model.weight(layer).to(device),
        patterns_of(inputs, settings),
        [first_masks(settings, model)],
    )
    write_masks(outputs["masks"], pruned.masks.items(), model, context.provenance)
    return ", ".join(f"{name} {1 - mask.float().mean():.2%} pruned" for name, mask in pruned.masks.items())


def first_masks(settings, model):
    """Return the step that makes first masks, by the settings of a warm start."""
    imported = import_masks(settings["from"], model) if settings["from"] else None
    return WarmStart(settings["criterion"], imported, settings["counted"])
