import re

import pandas as pd
import pytest
from matplotlib.container import BarContainer
from test_tables import DENSE, LAYERS, make_study

from sparseswaps import figures, tables
from sparseswaps.errors import InputError

TYPES = [name.partition(".")[2] for name in LAYERS]


def frames(seeds: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    study = make_study(seeds)
    return tables.cells_table(*study), tables.layers_table(*study[:2])


@pytest.fixture(scope="module")
def one_seed():
    return frames(1)


@pytest.fixture(scope="module")
def two_seeds():
    return frames(2)


def legend_texts(figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def curves(axis) -> dict[str, list[float]]:
    return {line.get_label(): [round(float(y), 6) for y in line.get_ydata()] for line in axis.get_lines()}


def test_by_layer_has_a_panel_per_warmstart_and_pattern(one_seed):
    figure = figures.error_reduction_by_layer(one_seed[1])
    assert [axis.get_title() for axis in figure.axes] == ["60% sparsity", "2:4 sparsity", "", ""]
    assert [axis.get_ylabel() for axis in figure.axes] == [
        "from magnitude:\nerror reduction (%)",
        "",
        "from wanda:\nerror reduction (%)",
        "",
    ]
    assert legend_texts(figure) == TYPES
    wanda = curves(figure.axes[2])
    assert wanda["q_proj"] == [30, 31]  # run to the optimum, not the larger number of smaller budgets
    assert wanda["down_proj"] == [42, 43]
    looks = {(line.get_marker(), line.get_linestyle(), line.get_color()) for line in figure.axes[0].get_lines()}
    assert len({marker for marker, *_ in looks}) == len(LAYERS)
    assert not figure.axes[0].collections  # one seed has no band


def test_several_seeds_are_a_mean_with_a_band(two_seeds):
    figure = figures.error_reduction_by_layer(two_seeds[1])
    assert curves(figure.axes[2])["q_proj"] == [30.5, 31.5]
    assert len(figure.axes[0].collections) == len(LAYERS)
    curve = figures.swaps_curve(two_seeds[0], "held_out")
    assert curves(curve.axes[0])["60%, wanda"][-1] == pytest.approx(8.02 * 1.4 * 1.5 + 0.5)
    assert len(curve.axes[0].collections) == 4


def test_by_type_bars_are_means_over_blocks(one_seed):
    figure = figures.error_reduction_by_type(one_seed[1])
    magnitude, wanda = figure.axes
    assert (magnitude.get_title(), wanda.get_title()) == ("warm start: magnitude", "warm start: wanda")
    bars = [bars for bars in wanda.containers if isinstance(bars, BarContainer)]
    assert [bars.get_label() for bars in bars] == legend_texts(figure) == ["60% sparsity", "2:4 sparsity"]
    assert [bar.get_height() for bar in bars[0]] == pytest.approx([30.5, 32.5, 34.5, 36.5, 38.5, 40.5, 42.5])
    low, high = bars[0].errorbar.lines[2][0].get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx(0.5**0.5)  # of 30 and 31
    assert [label.get_text() for label in wanda.get_xticklabels()] == TYPES
    assert len({bar.get_hatch() for group in bars for bar in group}) == 2


def test_types_are_last_names_unless_ambiguous():
    names = ["attention.dense", "attention.query", "mlp.dense", "mlp.experts.0.up", "mlp.experts.1.up"]
    assert list(figures._types(names).values()) == ["attention.dense", "query", "mlp.dense", "up", "up"]


def test_perplexity_by_pattern(one_seed):
    figure = figures.perplexity_by_pattern(one_seed[0], "held_out")
    (axis,) = figure.axes
    assert axis.get_ylabel() == "perplexity on held_out (seqlen 256)"
    assert [label.get_text() for label in axis.get_xticklabels()] == ["60%", "2:4"]
    assert axis.get_yscale() == "log"  # 8 to 115
    assert legend_texts(figure) == ["magnitude", "wanda", "warm start", "after swaps", "dense (8.02)"]
    dots = sorted(float(line.get_ydata()[0]) for line in axis.get_lines() if line.get_marker() in ("o", "s"))
    expected = [DENSE * cost * factor**power for cost in (1.4, 1.6) for factor in (3, 1.5) for power in (1, 2)]
    assert dots == pytest.approx(sorted(expected))
    narrow = figures.perplexity_by_pattern(one_seed[0].query("warmstart != 'magnitude'"), "held_out")
    assert narrow.axes[0].get_yscale() == "linear"


def test_swaps_curve(one_seed):
    figure = figures.swaps_curve(one_seed[0], "held_out")
    perplexity, error = figure.axes
    assert [label.get_text() for label in perplexity.get_xticklabels()] == ["0", "1", "5", "optimum"]
    assert legend_texts(figure) == ["60%, magnitude", "60%, wanda", "2:4, magnitude", "2:4, wanda"]
    assert len(perplexity.get_lines()) == 4 + 1  # and the dense model
    assert len(error.get_lines()) == 2 * 4  # calibration and held out
    calibration, held_out = (line.get_ydata() for line in error.get_lines()[2:4])
    assert calibration == pytest.approx([100, 100 - 0.3 * 36.5, 100 - 0.7 * 36.5, 100 - 36.5])
    assert held_out == pytest.approx([100, 100 - 0.24 * 36.5, 100 - 0.56 * 36.5, 100 - 0.8 * 36.5])


def test_swaps_curve_needs_three_budgets(one_seed):
    cells = one_seed[0]
    few = cells[cells["refinement"].isin(["none", "swaps"]) | (cells["pattern"] == "dense")]
    assert figures.swaps_curve(few, "held_out") is None
    assert figures.swaps_curve(cells[cells["warmstart"] != "wanda"], "held_out") is not None


def test_another_refinement_is_another_line(one_seed):
    cells = one_seed[0]
    other = cells[cells["refinement"].str.startswith("swaps", na=False)]
    other = other.assign(refinement=other["refinement"].str.replace("swaps", "frozen"))
    figure = figures.swaps_curve(pd.concat([cells, other], ignore_index=True), "held_out")
    assert legend_texts(figure)[:2] == ["60%, magnitude, swaps", "60%, magnitude, frozen"]


def test_without_held_out_and_dense(one_seed):
    cells = one_seed[0].query("pattern != 'dense'").assign(held_out_error_reduction=float("nan"))
    assert len(figures.swaps_curve(cells, "held_out").axes[1].get_lines()) == 4
    assert "dense" not in "".join(legend_texts(figures.perplexity_by_pattern(cells, "held_out")))


def test_bad_input_is_named(one_seed):
    with pytest.raises(InputError, match="'wikitext2', only on 'held_out'"):
        figures.swaps_curve(one_seed[0], "wikitext2")


def test_nothing_refined_is_no_figure(one_seed):
    assert figures.error_reduction_by_layer(one_seed[1].iloc[:0]) is None
    assert figures.error_reduction_by_type(one_seed[1].iloc[:0]) is None


def test_saved_files(one_seed, tmp_path):
    for name in ("first", "second"):
        figures.save(figures.perplexity_by_pattern(one_seed[0], "held_out"), tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.pdf", "first.png", "second.pdf", "second.png"]
    pdf = (tmp_path / "first.pdf").read_bytes()
    assert pdf == (tmp_path / "second.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert b"CreationDate" not in pdf
    assert not re.search(rb"/Subtype /Image", pdf)
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf.replace(b" ", b"")
    assert (tmp_path / "first.png").read_bytes().startswith(b"\x89PNG")


def test_names_are_no_formulas(one_seed, tmp_path):
    cells = one_seed[0].assign(warmstart=one_seed[0]["warmstart"].str.replace("wanda", "a$b^c$_{"))
    figures.save(figures.perplexity_by_pattern(cells, "held_out"), tmp_path / "figure")


def test_every_figure_has_a_caption():
    assert all(callable(getattr(figures, name)) for name in figures.CAPTIONS)
