"""Rule figures: the study's figures, drawn from its tables, as PDF and PNG."""

from job import run

from sparseswaps import figures
from sparseswaps.files import replacing
from sparseswaps.tables import read_table, select

BY_LAYER = ("error_reduction_by_layer", "error_reduction_by_type")
BY_CELL = ("perplexity_by_pattern", "swaps_curve")


def main(snakemake, settings):
    cells, layers = read_table(snakemake.input.cells), read_table(snakemake.input.layers)
    drawn = []
    with replacing(snakemake.output[0]) as folder:
        folder.mkdir()
        studies = cells.loc[cells["pattern"] != "dense", ["model", "calibration"]].drop_duplicates()
        for model, calibration in studies.itertuples(index=False):
            mine, mine_by_layer = (select(frame, model, calibration) for frame in (cells, layers))
            found = {(name, ""): getattr(figures, name)(mine_by_layer) for name in BY_LAYER}
            for text in settings["texts"]:
                found |= {(name, f"-{text}"): getattr(figures, name)(mine, text) for name in BY_CELL}
            for (name, suffix), figure in found.items():
                if figure is not None:  # nothing was refined, or no series of budgets
                    figures.save(figure, folder / model / calibration / f"{name}{suffix}")
                    drawn.append(name)
    return f"{len(drawn)} figures"


run(snakemake, main)
