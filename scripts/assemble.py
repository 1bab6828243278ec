"""Rule assemble: the pruned checkpoint."""

from job import progress, run

from sparseswaps.artifacts import new_weights, read_masks, read_model
from sparseswaps.checkpoint import write_pruned
from sparseswaps.progress import Part


def main(snakemake, settings):
    model = read_model(snakemake.input.model)
    masks = read_masks(snakemake.input.masks, model)
    about = {"base": model.base, "pattern": settings["pattern"], "wildcards": dict(snakemake.wildcards.items())}
    weights = new_weights(snakemake.input.weights, model) if snakemake.input.weights else None
    with progress(snakemake, "matrices", "", [Part(len(masks))]) as (report,):
        write_pruned(model.checkpoint, masks, snakemake.output[0], about, weights, report)
    return f"zeros in {len(masks)} matrices of {model.folder}" + (", new weights elsewhere in them" if weights else "")


run(snakemake, main)
