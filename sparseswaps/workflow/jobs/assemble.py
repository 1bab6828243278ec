"""Write the pruned checkpoint: the dense one, with zeros where the mask file says so, and reconstructed weights."""

from sparseswaps.base.progress import Part
from sparseswaps.model.checkpoint import write_pruned
from sparseswaps.workflow.artifacts import new_weights, read_masks, read_model


def run(inputs, outputs, settings, context):
    model = read_model(inputs["model"])
    masks = read_masks(inputs["masks"], model)
    about = {"base": model.base, "pattern": settings["pattern"], "wildcards": dict(context.wildcards)}
    weights = new_weights(inputs["weights"], model) if inputs["weights"] else None
    with context.progress("matrices", "", [Part(len(masks))]) as (report,):
        write_pruned(model.checkpoint, masks, outputs["checkpoint"], about, weights, report)
    new = ", new values of their kept weights" if weights else ""
    return f"zeros in {len(masks)} matrices of {model.folder}{new}"
