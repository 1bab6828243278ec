import re
from dataclasses import replace
from itertools import product

import pandas as pd
import pytest
from helpers import DENSE, LAYERS, make_study
from matplotlib.container import BarContainer
from matplotlib.lines import Line2D

from sparseswaps.report import figures, tables

WIDTH = 6.9
TYPES = [name.partition(".")[2] for name in LAYERS]


@pytest.fixture(scope="module")
def two_seeds() -> tuple[pd.DataFrame, pd.DataFrame]:
    study = make_study(2)
    return tables.cells_table(study), tables.layers_table(study).query("refinement == 'swaps'")


@pytest.fixture(scope="module")
def layers(layers) -> pd.DataFrame:
    return layers.query("refinement == 'swaps'")


def join(*frames: pd.DataFrame) -> pd.DataFrame:
    return pd.concat(frames, ignore_index=True)


def legend_texts(figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def curves(axis) -> dict[str, list[float]]:
    return {line.get_label(): [round(float(y), 6) for y in line.get_ydata()] for line in axis.get_lines()}


def test_by_layer_is_a_heat_map_of_types_and_blocks_per_warmstart_and_pattern(layers):
    figure = figures.error_reduction_by_layer(layers, WIDTH)
    *panels, bar = figure.axes
    titles = [re.findall(r"60%|2:4|magnitude|wanda", axis.get_title()) for axis in panels]
    assert titles == [["60%", "magnitude"], ["2:4", "magnitude"], ["60%", "wanda"], ["2:4", "wanda"]]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == TYPES
    (image,) = panels[2].get_images()
    assert image.get_array().tolist() == [pytest.approx([30 + 2 * k, 31 + 2 * k]) for k in range(len(TYPES))]
    assert [text.get_text() for text in panels[2].texts[:4]] == ["30", "31", "32", "33"]
    assert len({image.get_clim() for axis in panels for image in axis.get_images()}) == 1  # one scale
    assert bar.get_ylim() == (0, pytest.approx(63))
    deep = join(*(layers.assign(block=layers["block"] + 2 * k) for k in range(20)))
    assert not figures.error_reduction_by_layer(deep, WIDTH).axes[0].texts  # numbers would overlap


def test_by_layer_leaves_a_panel_empty_where_a_cell_was_excluded(layers):
    fewer = layers.query("not (warmstart == 'wanda' and pattern == '2:4')")
    *panels, _ = figures.error_reduction_by_layer(fewer, WIDTH).axes
    assert [len(axis.get_images()) for axis in panels] == [1, 1, 1, 0]


def test_several_seeds_are_a_mean_with_a_whisker(two_seeds):
    figure = figures.error_reduction_by_layer(two_seeds[1], WIDTH)
    assert figure.axes[2].get_images()[0].get_array()[0].tolist() == pytest.approx([30.5, 31.5])
    curve = figures.swaps_curve(two_seeds[0], "held_out", WIDTH)
    assert curves(curve.axes[0])["60%, wanda"][-1] == pytest.approx(8.02 * 1.4 * 1.5 + 0.5)
    assert len(curve.axes[0].collections) == 4
    axis = figures.perplexity_by_pattern(two_seeds[0], "held_out", WIDTH).axes[0]
    (x, low), (_, high) = axis.collections[-1].get_segments()[0]  # swaps from wanda
    assert high - low == pytest.approx(2**0.5)  # two seeds, one apart
    assert dots(axis)[x] == pytest.approx((low + high) / 2)


def test_by_type_bars_are_means_over_blocks(layers):
    figure = figures.error_reduction_by_type(layers, WIDTH)
    _, wanda = figure.axes
    assert [axis.get_title().rpartition(" ")[2] for axis in figure.axes] == ["magnitude", "wanda"]
    bars = [bars for bars in wanda.containers if isinstance(bars, BarContainer)]
    assert [text.split(" ")[0] for text in legend_texts(figure)] == ["60%", "2:4"]
    assert [bar.get_height() for bar in bars[0]] == pytest.approx([30.5, 32.5, 34.5, 36.5, 38.5, 40.5, 42.5])
    low, high = bars[0].errorbar.lines[2][0].get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx(0.5**0.5)  # of 30 and 31
    assert [label.get_text() for label in wanda.get_xticklabels()] == TYPES
    assert len({bar.get_hatch() for group in bars for bar in group}) == 2


def test_types_are_last_names_unless_ambiguous():
    names = ["attention.dense", "attention.query", "mlp.dense", "mlp.experts.0.up", "mlp.experts.1.up"]
    assert list(figures._layer_types(names).values()) == ["attention.dense", "query", "mlp.dense", "up", "up"]


def dots(axis) -> dict[float, float]:
    """Perplexity by the place of the markers, from left to right."""
    return {float(line.get_xdata()[0]): float(line.get_ydata()[0]) for line in markers_of(axis)}


def markers_of(axis) -> list[Line2D]:
    """The markers of a figure of perplexities, from left to right."""
    return sorted((line for line in axis.get_lines() if len(line.get_xdata()) == 1), key=Line2D.get_xdata)


def test_perplexity_by_pattern(cells):
    figure = figures.perplexity_by_pattern(cells, "held_out", WIDTH)
    (axis,) = figure.axes
    assert re.findall(r"held_out|\d+", axis.get_ylabel()) == ["held_out", "256"]
    assert [label.get_text().split(" ")[0] for label in axis.get_xticklabels()] == ["60%", "2:4"]
    assert legend_texts(figure) == ["warm start", "swaps", "magnitude", "wanda", "dense (8.02)"]
    expected = [DENSE * cost * factor**power for cost in (1.4, 1.6) for power in (2, 1) for factor in (3, 1.5)]
    assert list(dots(axis).values()) == pytest.approx(expected)
    assert axis.get_yscale() == "log"  # 8 to 115
    markers = markers_of(axis)
    assert [line.get_markerfacecolor() == "white" for line in markers[:4]] == [True, True, False, False]
    assert [line.get_marker() for line in markers[:4]] == ["o", "s"] * 2
    assert len({line.get_color() for line in markers}) == 2
    narrow = figures.perplexity_by_pattern(cells.query("warmstart != 'magnitude'"), "held_out", WIDTH)
    assert narrow.axes[0].get_yscale() == "linear"


def test_a_pattern_has_its_methods_and_numbers_for_what_is_far(cells):
    cells = cells.query("refinement not in ['swaps-1', 'swaps-5']")
    rival = cells.query("refinement == 'swaps' and warmstart == 'wanda'").assign(refinement="dsnot", method="dsnot")
    cells = join(cells, rival)
    cells.loc[(cells["warmstart"] == "magnitude") & (cells["refinement"] == "none"), "perplexity/held_out"] = 54321
    figure = figures.perplexity_by_pattern(cells, "held_out", WIDTH)
    (axis,) = figure.axes
    assert legend_texts(figure)[:3] == ["warm start", "swaps", "dsnot"]
    assert len(dots(axis)) == 2 * 5  # dsnot was not run from magnitude
    assert [text.get_text() for text in axis.texts] == ["54321"] * 2
    assert axis.get_ylim()[1] == pytest.approx(10 * DENSE * 1.6 * 1.5)
    many = [rival.assign(refinement=f"method-{k}") for k in range(10)]
    (axis,) = figures.perplexity_by_pattern(join(cells, *many), "held_out", WIDTH).axes
    assert len({(line.get_color(), line.get_fillstyle()) for line in markers_of(axis)}) == 3 + 10


def test_calibrations_of_other_families_are_methods_of_their_own(cells):
    cells = cells.query("refinement in ['none', 'swaps'] or pattern == 'dense'")
    less = cells.query("pattern != 'dense'").assign(calibration="c4-16", samples=16)
    names = legend_texts(figures.perplexity_by_pattern(join(cells, less), "held_out", WIDTH))
    assert names[:2] == ["warm start", "swaps"]
    other = cells.query("warmstart == 'wanda'").assign(calibration="c4-pruned", propagate="pruned")
    figure = figures.perplexity_by_pattern(join(cells, less, other), "held_out", WIDTH)
    both = [f"{name} ({calibration})" for calibration in ("c4", "c4-pruned") for name in ("warm start", "swaps")]
    assert legend_texts(figure)[:4] == both
    assert len(dots(figure.axes[0])) == 2 * (4 + 2)


def with_samples(cells: pd.DataFrame) -> pd.DataFrame:
    """The same cells for 16, 32 and 64 samples; every doubling divides perplexity by two."""
    dense, pruned = cells.query("pattern == 'dense'"), cells.query("pattern != 'dense'")
    parts = [
        pruned.assign(calibration=f"c4-{n}", samples=n, **{"perplexity/held_out": pruned["perplexity/held_out"] / n})
        for n in (16, 32, 64)
    ]
    return join(dense, *parts).astype({"samples": "Int64"})


def test_samples_curve(cells):
    figure = figures.samples_curve(with_samples(cells), "held_out", WIDTH)
    perplexity, error = figure.axes
    assert [label.get_text() for label in perplexity.get_xticklabels()] == ["16", "32", "64"]
    assert legend_texts(figure) == ["60%, magnitude", "60%, wanda", "2:4, magnitude", "2:4, wanda"]
    refined, starts = perplexity.get_lines()[:4], perplexity.get_lines()[4:8]
    for line, start in zip(refined, starts, strict=True):
        expected = line.get_ydata()[0] / 2.0 ** pd.Series(range(3))
        assert line.get_ydata() == pytest.approx(expected)
        assert start.get_ydata() == pytest.approx({"o": 3, "s": 1.5}[line.get_marker()] * expected)
        assert start.get_linewidth() < line.get_linewidth()
    assert len(error.get_lines()) == 2 * 4
    assert figures.samples_curve(cells, "held_out", WIDTH) is None


@pytest.mark.parametrize("setting", ["freeze", "shrinkage"])
def test_curves_of_refinements_with_all_else_equal(two_seeds, setting):
    cells, draw = two_seeds[0], getattr(figures, f"{setting}_curve")
    swaps = cells.query("refinement == 'swaps'")
    more = [swaps.assign(refinement=f"kept-{value}", **{setting: value}) for value in (0.1, 0.25)]
    more.append(swaps.assign(refinement="matrix", between_rows=True, **{"perplexity/held_out": 1e6}))
    figure = draw(join(cells, *more), "held_out", WIDTH)
    perplexity = figure.axes[0]
    assert [label.get_text() for label in perplexity.get_xticklabels()] == ["0", "0.1", "0.25"]
    wanda = curves(perplexity)["60%, wanda"]
    assert wanda == pytest.approx([DENSE * 1.4 * 1.5 + 0.5] * 3)  # means over seeds, without `matrix`
    low, high = perplexity.collections[1].get_segments()[0][:, 1]
    assert high - low == pytest.approx(2**0.5)
    assert len(perplexity.get_lines()) == 4 + 1
    assert draw(cells, "held_out", WIDTH) is None


def by_swaps(seeds: int = 1, held_out: float | None = 0.2) -> pd.DataFrame:
    """A table of curves, each seed's with an end of its own."""
    study = []
    for measured in make_study(seeds):
        if measured.facts.get("refinement") in ("swaps", "swaps-5"):
            seed, all_swaps = measured.facts["seed"], measured.facts["refinement"] == "swaps"
            budgets = [0, 1, 2, 5] + ([10, 30 + seed] if all_swaps else [])
            loss = [100.0 * 0.9**k + seed * (k > 0) for k in range(len(budgets))]
            curve = pd.DataFrame({"block": 0, "layer": "a", "budget": budgets, "loss": loss})
            study.append(replace(measured, curves=curve.assign(held_out=[held_out and held_out * y for y in loss])))
    return tables.curves_table(study)


def by_epochs() -> pd.DataFrame:
    """A table of epochs, of two blocks in two methods."""
    epochs = pd.DataFrame(product(range(2), range(4)), columns=["block", "epoch"])
    error = 0.5 - 0.1 * epochs["epoch"] + 0.02 * epochs["block"]
    epochs = epochs.assign(level=1, error=error, held_out=1.5 * error)
    methods = [measured for measured in make_study() if measured.facts.get("refinement") in ("swaps", "none")]
    return tables.epochs_table([replace(measured, epochs=epochs) for measured in methods])


def test_training_curve_is_the_mean_over_the_blocks():
    figure = figures.training_curve(by_epochs(), WIDTH)
    assert legend_texts(figure)[:2] == ["magnitude", "wanda"]
    calibration, held_out, *_ = (list(line.get_ydata()) for line in figure.axes[0].get_lines())
    assert calibration == pytest.approx([51, 41, 31, 21])
    assert held_out == pytest.approx([76.5, 61.5, 46.5, 31.5])


def by_blocks(seeds: int = 1) -> pd.DataFrame:
    """A table of drift over three blocks, of every cell."""
    study = []
    for measured in make_study(seeds):
        if measured.losses is not None:
            budget = measured.facts["max_swaps"]
            own = 0.0 if budget is None else (10 - budget + measured.facts["seed"]) / 100
            table = pd.DataFrame({"block": range(3), "dense_path": own})
            study.append(replace(measured, drift=table.assign(pruned_path=own * (1 + table["block"] / 2))))
    return tables.drift_table(study)


def test_error_by_block_is_drawn_on_both_paths():
    figure = figures.error_by_block(by_blocks(seeds=2).query("refinement != 'swaps'"), WIDTH)
    assert legend_texts(figure) == ["warm start", "swaps-5", "pruned path", "dense path"]  # swaps-1 went less far
    assert [axis.get_title().partition(" ")[0] for axis in figure.axes[:2]] == ["60%", "2:4"]
    assert [axis.get_ylabel().partition(":")[0] for axis in figure.axes] == ["magnitude", "", "wanda", ""]
    pruned, dense, *refined = figure.axes[3].get_lines()
    assert list(pruned.get_xdata()) == [0, 1, 2]
    assert list(pruned.get_ydata()) == pytest.approx([10.5, 15.75, 21])
    assert list(dense.get_ydata()) == pytest.approx([10.5] * 3)
    assert list(refined[0].get_ydata()) == pytest.approx([5.5, 8.25, 11])
    assert [line.get_markerfacecolor() == "white" for line in (pruned, dense)] == [False, True]
    assert len(figure.axes[3].collections) == 4  # two seeds
    assert {axis.get_yscale() for axis in figure.axes} == {"linear"}
    far = by_blocks().assign(pruned_path=lambda table: 10.0 ** table["block"])
    figure = figures.error_by_block(far, WIDTH)  # where an error of zero is on no scale
    figure.draw_without_rendering()
    assert {axis.get_yscale() for axis in figure.axes} == {"log"}


def test_the_front_holds_the_methods_that_beat_every_faster_one(cells):
    dense = cells.query("pattern == 'dense'")
    cell = cells.query("pattern == '60%' and warmstart == 'wanda' and refinement == 'swaps'")
    methods = {"a": (1, 30), "b": (20, 20), "c": (4, 29.9), "d": (3, 40), "e": (40, 10), "f": (0, 50)}
    cells = [
        cell.assign(**{"refinement": name, "seconds": float(seconds), "perplexity/held_out": float(perplexity)})
        for name, (seconds, perplexity) in methods.items()
    ]
    figure = figures.perplexity_by_seconds(join(dense, *cells), "held_out", WIDTH)
    front = figure.axes[0].get_lines()[1]
    assert list(zip(front.get_xdata(), front.get_ydata(), strict=True)) == [(0.01, 50), (1, 30), (20, 20), (40, 10)]
    assert legend_texts(figure) == ["1  wanda, f", "2  wanda, a", "3  wanda, b", "4  wanda, e"]
    long = join(dense, *cells).replace({"refinement": {"e": "e" * 80}})
    assert len(legend_texts(figures.perplexity_by_seconds(long, "held_out", 5))) == 4  # a name wider than the page
    assert figures.perplexity_by_seconds(dense, "held_out", WIDTH) is None


def test_held_out_curve():
    figure = figures.held_out_curve(by_swaps(), WIDTH)
    assert legend_texts(figure)[:2] == ["magnitude", "wanda"]
    lines = figure.axes[1].get_lines()
    assert len(lines) == 2 * 2  # of swaps: swaps-5 are only its beginning
    assert list(lines[0].get_xdata()) == [0, 1, 2, 5, 10, 30]
    assert list(lines[0].get_ydata()) == pytest.approx([100 * 0.9**k for k in range(6)])
    assert [line.get_markerfacecolor() for line in lines[:2]] == [lines[0].get_color(), "white"]
    seeds = figures.held_out_curve(by_swaps(seeds=2), WIDTH)
    assert list(seeds.axes[0].get_lines()[0].get_xdata()) == [0, 1, 2, 5, 10, 31]  # at 30 seed 1 was on its way
    assert len(seeds.axes[0].collections) == 4
    assert figures.held_out_curve(by_swaps(held_out=None), WIDTH) is None
    table = by_swaps().query("warmstart == 'wanda' and refinement == 'swaps'")  # one warm start, so refinements
    table = join(table, table.assign(refinement="early"))
    assert legend_texts(figures.held_out_curve(table, WIDTH))[:2] == ["swaps", "early"]


def test_swaps_curve(cells):
    figure = figures.swaps_curve(cells, "held_out", WIDTH)
    perplexity, error = figure.axes
    assert [label.get_text() for label in perplexity.get_xticklabels()] == ["0", "1", "5", "optimum"]
    assert legend_texts(figure) == ["60%, magnitude", "60%, wanda", "2:4, magnitude", "2:4, wanda"]
    assert len(perplexity.get_lines()) == 4 + 1  # and the dense model
    assert len(error.get_lines()) == 2 * 4  # calibration and held out
    calibration, held_out = (line.get_ydata() for line in error.get_lines()[2:4])
    assert calibration == pytest.approx([100, 100 - 0.3 * 36.5, 100 - 0.7 * 36.5, 100 - 36.5])
    assert held_out == pytest.approx([100, 100 - 0.24 * 36.5, 100 - 0.56 * 36.5, 100 - 0.8 * 36.5])
    few = cells[cells["refinement"].isin(["none", "swaps"]) | (cells["pattern"] == "dense")]
    assert figures.swaps_curve(few, "held_out", WIDTH) is None  # it needs three budgets
    assert figures.swaps_curve(cells[cells["warmstart"] != "wanda"], "held_out", WIDTH) is not None


def test_another_refinement_or_reconstruction_is_another_line(cells):
    other = cells[cells["refinement"].str.startswith("swaps", na=False)]
    other = other.assign(refinement=other["refinement"].str.replace("swaps", "frozen"))
    figure = figures.swaps_curve(join(cells, other), "held_out", WIDTH)
    assert legend_texts(figure)[:2] == ["60%, magnitude, swaps", "60%, magnitude, frozen"]
    cells = cells.query("warmstart == 'wanda'")
    new = cells.assign(refinement=(cells["refinement"] + "+ls").astype("str"), **{"perplexity/held_out": 1.0})
    figure = figures.swaps_curve(join(cells, new), "held_out", WIDTH)
    assert curves(figure.axes[0])["60%, wanda, swaps+ls"] == [1, 1, 1, 1]  # it begins at none+ls


def test_without_held_out_text_or_dense_model_or_refinement(cells, layers):
    less = cells.query("pattern != 'dense'").assign(held_out_error_reduction=float("nan"))
    assert len(figures.swaps_curve(less, "held_out", WIDTH).axes[1].get_lines()) == 4
    assert "dense" not in "".join(legend_texts(figures.perplexity_by_pattern(less, "held_out", WIDTH)))
    cells = cells.query("refinement == 'none' or pattern == 'dense'")  # of a study that refined nothing
    empty = {"layers": layers, "curves": by_swaps(), "epochs": by_epochs(), "drift": by_blocks()}
    empty = {name: table.iloc[:0] for name, table in empty.items()}
    drawn = dict(figures.draw_all({"cells": cells} | empty, WIDTH))
    assert list(drawn) == ["pico/perplexity_by_pattern-held_out"]
    assert legend_texts(*drawn.values())[-1] == "dense (8.02)"


def test_no_figure_is_wider_than_the_page_nor_its_legend_than_the_figure(cells, layers):
    width = 5.5
    dense, cells = (cells.query(f"pattern {sign} 'dense'") for sign in ("==", "!="))
    for name, more in (("warmstart", ("ria", "greedy", "sparsegpt", "admm")), ("pattern", ("50%", "70%", "4:8"))):
        first = cells[name].iloc[0]
        cells = join(cells, *(cells[cells[name] == first].assign(**{name: value}) for value in more))
        layers = join(layers, *(layers[layers[name] == first].assign(**{name: value}) for value in more))
    cells = join(dense, cells)
    drawn = [
        figures.error_reduction_by_layer(layers, width),
        figures.error_reduction_by_type(layers, width),
        figures.perplexity_by_pattern(cells, "held_out", width),
        figures.swaps_curve(cells, "held_out", width),
        figures.samples_curve(with_samples(cells), "held_out", width),
        figures.held_out_curve(by_swaps(), width),
        figures.error_by_block(by_blocks(), width),
    ]
    for figure in drawn:
        assert figure.get_figwidth() <= width
        if not figure.legends:
            continue
        figure.draw_without_rendering()  # places the legend
        legend = figure.legends[0].get_window_extent()
        assert 0 <= legend.x0 < legend.x1 <= figure.bbox.x1


def test_saved_files(cells, tmp_path):
    for name in ("first", "second"):
        figures.save(figures.perplexity_by_pattern(cells, "held_out", WIDTH), tmp_path / name, dpi=150)
    assert {path.name for path in tmp_path.iterdir()} == {"first.pdf", "first.png", "second.pdf", "second.png"}
    pdf = (tmp_path / "first.pdf").read_bytes()
    assert pdf == (tmp_path / "second.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert b"CreationDate" not in pdf
    assert not re.search(rb"/Subtype /Image", pdf)
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf.replace(b" ", b"")
    assert (tmp_path / "first.png").read_bytes().startswith(b"\x89PNG")
    cells = cells.assign(warmstart=cells["warmstart"].str.replace("wanda", "a$b^c$_{"))  # no formula
    figures.save(figures.perplexity_by_pattern(cells, "held_out", WIDTH), tmp_path / "figure", dpi=150)


def test_all_figures_of_a_study(cells, layers):
    """Two models; calibrations that differ in their samples, and another one; refinements that differ in a setting."""
    swaps = cells.query("refinement == 'swaps'")
    kept = [swaps.assign(refinement=f"kept-{value}", freeze=value, shrinkage=0.0) for value in (0.1, 0.2)]
    other = cells.query("pattern != 'dense'").assign(calibration="wiki")
    study = join(with_samples(join(cells, *kept)), other)
    study = pd.concat([study, study.query("pattern == 'dense' or calibration == 'wiki'").assign(model="nano")])
    of_study = {"cells": study, "layers": layers.assign(calibration="c4-16")}
    for name, table in (("curves", by_swaps()), ("epochs", by_epochs()), ("drift", by_blocks())):
        of_study[name] = table.assign(calibration="wiki")
    paths = [path for path, _ in figures.draw_all(of_study, WIDTH)]
    expected = {f"{name}-held_out" for name in ("pico/perplexity_by_pattern", "pico/samples_curve")}
    expected |= {"nano/perplexity_by_pattern-held_out"}
    for folder in ("pico/c4-16", "pico/c4-32", "pico/c4-64", "pico/wiki", "nano/wiki"):
        expected |= {f"{folder}/swaps_curve-held_out"}
        expected |= {f"{folder}/freeze_curve-held_out"} if "c4" in folder else set()
    expected |= {f"pico/c4-16/error_reduction_by_{name}" for name in ("layer", "type")}
    expected |= {f"{model}/perplexity_by_seconds-held_out" for model in ("pico", "nano")}
    expected |= {f"pico/wiki/{name}" for name in ("held_out_curve", "training_curve", "error_by_block")}
    assert sorted(paths) == sorted(expected)
    assert {path.rpartition("/")[2].partition("-")[0] for path in paths} <= figures.KINDS.keys()
