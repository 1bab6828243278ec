"""Rule allocation: the pattern of every layer."""

from job import progress, run

from sparseswaps.base.files import write_json
from sparseswaps.base.progress import Part
from sparseswaps.layer.criteria import wanda_scores
from sparseswaps.layer.pattern import parse_pattern
from sparseswaps.workflow.allocation import by_outliers, by_table, outlier_share
from sparseswaps.workflow.artifacts import read_grams, read_model


def main(snakemake, settings):
    model = read_model(snakemake.input.model)
    base, owl = parse_pattern(settings["pattern"]), settings["owl"]
    if owl is None:
        allocation = by_table(base, settings["layers"], model.blocks)
    else:
        shares, blocks = [], []
        with progress(snakemake, "blocks", "", [Part(len(model.blocks))]) as (report,):
            for layers, path in zip(model.blocks, snakemake.input.grams, strict=True):
                grams = read_grams(path, model)
                blocks.append(grams.readers(layers))
                scores = [wanda_scores(model.weight(layer), grams.of(layer.name, "cpu").gram) for layer in blocks[-1]]
                shares.append(outlier_share(scores, owl["threshold"]))
                report(len(blocks), 0)
        allocation = by_outliers(base, shares, owl["spread"], blocks)
    named = [{name: pattern.label for name, pattern in layers.items()} for layers in allocation]
    write_json(snakemake.output[0], named)
    return ", ".join(f"block {index}: {'/'.join(dict.fromkeys(layers.values()))}" for index, layers in enumerate(named))


run(snakemake, main)
