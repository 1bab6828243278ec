"""Draw the study's figures from its tables, as PDF and PNG."""

from sparseswaps.base.files import replacing
from sparseswaps.report import figures
from sparseswaps.report.tables import principal, read_table, select


def run(inputs, outputs, settings, context):
    cells, layers, curves = (read_table(inputs[name]) for name in ("cells", "layers", "curves"))
    drawn = 0
    with replacing(outputs["figures"]) as folder:
        folder.mkdir()
        for place, name, figure in found(cells, layers, curves, settings["texts"], settings["width"]):
            if figure is not None:  # nothing was refined, no series of budgets, ...
                figures.save(figure, folder / place / name, settings["dpi"])
                drawn += 1
    return f"{drawn} figures"


def found(cells, layers, curves, texts, width):
    """The folder and name of every figure that a study can have, and the figure, or None."""
    studies = cells.loc[cells["pattern"] != "dense", ["model", "calibration"]].drop_duplicates()
    for model in studies["model"].unique():
        of_model = cells[cells["model"] == model]
        for text in texts:
            yield model, f"perplexity_by_calibration-{text}", figures.perplexity_by_calibration(of_model, text, width)
            yield model, f"samples_curve-{text}", figures.settings_curve(of_model, text, "samples", width)
    for model, calibration in studies.itertuples(index=False):
        mine, mine_by_layer, mine_by_swaps = (select(frame, model, calibration) for frame in (cells, layers, curves))
        mine_by_layer = mine_by_layer[mine_by_layer["refinement"] == principal(mine)]
        place = f"{model}/{calibration}"
        for name in ("error_reduction_by_layer", "error_reduction_by_type"):
            yield place, name, getattr(figures, name)(mine_by_layer, width)
        yield place, "held_out_curve", figures.held_out_curve(mine_by_swaps, width)
        for text in texts:
            for name in ("perplexity_by_pattern", "swaps_curve"):
                yield place, f"{name}-{text}", getattr(figures, name)(mine, text, width)
            for setting in ("freeze", "shrinkage"):
                yield place, f"{setting}_curve-{text}", figures.settings_curve(mine, text, setting, width)
