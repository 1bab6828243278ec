"""Rule figures: the study's figures, drawn from its tables, as PDF and PNG."""

from pathlib import Path

from job import run

from sparseswaps import figures
from sparseswaps.files import replacing
from sparseswaps.tables import read_table, select


def main(snakemake, settings):
    cells, layers = read_table(snakemake.input.cells), read_table(snakemake.input.layers)
    drawn = []
    with replacing(snakemake.output[0]) as folder:
        folder.mkdir()
        studies = cells.loc[cells["pattern"] != "dense", ["model", "calibration"]].drop_duplicates()
        for model, calibration in studies.itertuples(index=False):
            mine, mine_by_layer = (select(frame, model, calibration) for frame in (cells, layers))
            found = {
                "error_reduction_by_layer": figures.error_reduction_by_layer(mine_by_layer),
                "error_reduction_by_type": figures.error_reduction_by_type(mine_by_layer),
            }
            for text in settings["texts"]:
                found[f"perplexity_by_pattern-{text}"] = figures.perplexity_by_pattern(mine, text)
                found[f"swaps_curve-{text}"] = figures.swaps_curve(mine, text)
            for name, figure in found.items():
                if figure is not None:
                    figures.save(figure, folder / f"{model}-{calibration}-{name}")
                    drawn.append(name)
    return f"{len(drawn)} figures"


run(snakemake, main)
