"""Say how sparse each layer becomes, where a pattern is not the same for all layers."""

from sparseswaps.base.files import write_json
from sparseswaps.base.progress import Part
from sparseswaps.layer.criteria import wanda_scores
from sparseswaps.layer.pattern import parse_pattern
from sparseswaps.workflow.allocation import by_outliers, by_table, outlier_share
from sparseswaps.workflow.artifacts import block_file, read_grams, read_model


def run(inputs, outputs, settings, context):
    model = read_model(inputs["model"])
    base, owl = parse_pattern(settings["pattern"]), settings["owl"]
    if owl is None:
        allocation = by_table(base, settings["layers"], model.blocks)
    else:
        shares, blocks = [], []
        with context.progress("blocks", "", [Part(len(model.blocks))]) as (report,):
            for block, layers in enumerate(model.blocks):
                grams = read_grams(f"{inputs['grams'][0]}/{block_file(block)}", model)
                blocks.append(grams.readers(layers))
                scores = [
                    wanda_scores(model.weight(layer), grams.inputs(layer.name, "cpu").gram) for layer in blocks[-1]
                ]
                shares.append(outlier_share(scores, owl["threshold"]))
                report(len(blocks), 0)
        allocation = by_outliers(base, shares, owl["spread"], blocks)
    labels = [{name: pattern.label for name, pattern in layers.items()} for layers in allocation]
    write_json(outputs["allocation"], labels)
    return ", ".join(
        f"block {block}: {'/'.join(dict.fromkeys(layers.values()))}" for block, layers in enumerate(labels)
    )
