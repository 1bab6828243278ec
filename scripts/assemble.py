"""Rule assemble: the pruned checkpoint."""

from job import progress, run

from sparseswaps.base.progress import Part
from sparseswaps.model.checkpoint import write_pruned
from sparseswaps.workflow.artifacts import new_weights, read_masks, read_model


def main(snakemake, settings):
    model = read_model(snakemake.input.model)
    masks = read_masks(snakemake.input.masks, model)
    about = {"base": model.base, "pattern": settings["pattern"], "wildcards": dict(snakemake.wildcards.items())}
    weights = new_weights(snakemake.input.weights, model) if snakemake.input.weights else None
    with progress(snakemake, "matrices", "", [Part(len(masks))]) as (report,):
        write_pruned(model.checkpoint, masks, snakemake.output[0], about, weights, report)
    return f"zeros in {len(masks)} matrices of {model.folder}" + (", new weights elsewhere in them" if weights else "")


run(snakemake, main)
