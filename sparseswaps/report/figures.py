"""The study's figures: tables in, matplotlib figures out, readable in print and without colour.

A function takes the rows of one model and one calibration (`tables.select`), or of one model where it compares
calibrations, and the width of the page in inches, which no figure exceeds; over several seeds it draws the mean and the
standard deviation. It returns None when there is nothing to draw. CAPTIONS says in words what each figure shows.
"""

import math
import re
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.colors
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from sparseswaps.base.errors import InputError
from sparseswaps.base.files import replacing
from sparseswaps.report.tables import (
    SETTINGS,
    calibration_families,
    error_reduction,
    families,
    headline,
    perplexity_texts,
    side_by_side,
)

CAPTIONS = {  # file name up to its first dash: (title, caption)
    "error_reduction_by_layer": (
        "Error reduction by layer",
        "How much refinement lowers each layer's error on the calibration text, from the first block to the last.",
    ),
    "error_reduction_by_type": (
        "Error reduction by layer type",
        "How much refinement lowers the error on the calibration text: mean and standard deviation over the blocks.",
    ),
    "perplexity_by_pattern": (
        "Perplexity by sparsity pattern",
        "A row for each method and in it a marker for each warm start, hollow where nothing was done to it. Lower is "
        "better. What lies far outside of a panel stands at its edge as a number.",
    ),
    "perplexity_by_calibration": (
        "Perplexity by calibration",
        "A row for each warm start and method, and in it a marker for each calibration. Lower is better.",
    ),
    "swaps_curve": (
        "Perplexity and error against the swap budget",
        "The layers' error relative to the warm start is a mean over layers; where it falls on the calibration text "
        "but not on held-out text, refinement overfits.",
    ),
    "held_out_curve": (
        "Error on held-out text against the number of swaps",
        "The layers' error relative to the warm start, a mean over layers, as refinement goes on; where it falls on "
        "the calibration text but not on held-out text, refinement overfits.",
    ),
    "samples_curve": (
        "Perplexity and error against the number of calibration samples",
        "The layers' error is relative to the warm start of the same calibration, a mean over layers; the distance of "
        "calibration and held-out text is what refinement overfits by.",
    ),
    "freeze_curve": (
        "Perplexity and error against the frozen part",
        "Of each row the weights of highest Wanda score, this part of all, that refinement has to keep.",
    ),
    "shrinkage_curve": (
        "Perplexity and error against shrinkage",
        "The factor by which refinement takes the Gram matrix's off-diagonal entries for smaller; errors are those of "
        "the Gram matrix as it is.",
    ),
}

STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.8,
    "lines.linewidth": 1.1,
    "lines.markersize": 4,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "0.88",
    "grid.linewidth": 0.5,
    "hatch.linewidth": 0.5,
    "text.parse_math": False,  # names of texts and layers are no formulas
    "pdf.fonttype": 42,  # TrueType: text in the PDF stays text, and publishers accept it
}
# Okabe and Ito's palette, without its yellow; the three lists differ in length, so that no combination repeats early
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#D55E00"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
LINES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1))]
HATCHES = ["", "////", "....", "xxxx", "----", "\\\\\\\\"]
GREY = {"color": "0.3", "marker": "o"}
PITCH = 0.085  # inches between two markers, one above the other
NEAR = 10  # perplexities up to so many times a panel's best are told apart; beyond, a number says it
LADDER = (0, 1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000)  # ticks of a number of swaps
WARM_START = "warm start"
UNREFINED = {"linestyle": (0, (3, 2)), "linewidth": 0.6}
NUMBERS = {  # a setting that has a curve: what its axis is called
    "samples": "calibration samples",
    "freeze": "frozen part of each row",
    "shrinkage": "shrinkage",
}


def error_reduction_by_layer(layers: pd.DataFrame, width: float) -> Figure | None:
    """Error reduction (%) against block index: a line per layer type, a panel per warm start (row) and pattern.

    Takes the rows of one refinement.
    """
    if layers.empty:
        return None
    layers = _reductions(layers)
    warmstarts, patterns = layers["warmstart"].unique(), layers["pattern"].unique()
    types = layers["type"].unique()
    with matplotlib.rc_context(STYLE):
        width = min(width, 1.2 + 2.9 * len(patterns))
        # the legend hangs outside the panels: its rows cost height too
        columns = _in_a_row(len(types), width, 0.95)
        height = 0.5 + 1.75 * len(warmstarts) + 0.16 * -(-len(types) // columns)
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(len(warmstarts), len(patterns), sharex=True, sharey="row", squeeze=False)
        for i, warmstart in enumerate(warmstarts):
            for j, pattern in enumerate(patterns):
                panel = layers[(layers["warmstart"] == warmstart) & (layers["pattern"] == pattern)]
                axis = axes[i, j]
                axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
                for k, kind in enumerate(types):
                    line = _over_seeds(panel[panel["type"] == kind], "block", "error_reduction")
                    step = max(1, len(line) // 8)  # in deep models few markers, none above another
                    _curve(axis, line, _look(k, k, k), label=kind, markevery=(k % step, step))
            axes[i, 0].set_ylabel(f"from {warmstart}:\nerror reduction (%)")
        for j, pattern in enumerate(patterns):
            axes[0, j].set_title(_sparsity(pattern))
            axes[-1, j].set_xlabel("decoder block")
        figure.legend(handles=axes[0, 0].get_lines(), loc="outside lower center", ncols=columns)
    return figure


def error_reduction_by_type(layers: pd.DataFrame, width: float) -> Figure | None:
    """Error reduction (%) as bars per layer type and pattern, a panel per warm start.

    A bar is the mean over blocks, its whisker the standard deviation over blocks. Takes the rows of one refinement.
    """
    if layers.empty:
        return None
    layers = _reductions(layers)
    layers = layers.groupby(["warmstart", "pattern", "type", "block"], sort=False, as_index=False)[
        "error_reduction"
    ].mean()
    warmstarts, patterns, types = (layers[name].unique() for name in ("warmstart", "pattern", "type"))
    thickness = 0.8 / len(patterns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, 0.7 + 1.6 * len(warmstarts)), layout="constrained")
        axes = figure.subplots(len(warmstarts), 1, sharex=True, squeeze=False)[:, 0]
        for axis, warmstart in zip(axes, warmstarts, strict=True):
            for k, pattern in enumerate(patterns):
                panel = layers[(layers["warmstart"] == warmstart) & (layers["pattern"] == pattern)]
                bars = panel.groupby("type")["error_reduction"].agg(["mean", "std"]).reindex(types)
                axis.bar(
                    [x + (k - (len(patterns) - 1) / 2) * thickness for x in range(len(types))],
                    bars["mean"],
                    thickness,
                    yerr=bars["std"].fillna(0),
                    label=_sparsity(pattern),
                    color=_lighter(COLOURS[k % len(COLOURS)]),
                    hatch=HATCHES[k % len(HATCHES)],
                    edgecolor="black",
                    linewidth=0.5,
                    error_kw={"elinewidth": 0.7, "capsize": 1.5},
                )
            axis.set_title(f"warm start: {warmstart}")
            axis.set_ylabel("error reduction (%)")
        crowded = width < 0.75 * len(types) or max(map(len, types)) > 12
        axes[-1].set_xticks(
            range(len(types)), types, rotation=30 if crowded else 0, ha="right" if crowded else "center"
        )
        columns = _in_a_row(len(patterns), width, 1.14)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns)
    return figure


def perplexity_by_pattern(cells: pd.DataFrame, text: str, width: float) -> Figure:
    """Perplexity on `text`, a panel per pattern: a row per method of `headline`, and in it a marker per warm start.

    Raises InputError when no perplexity was measured on `text`.
    """
    label = _perplexity_label(cells, text)
    names = {"none": WARM_START} | {name: name for name in headline(cells)}
    pruned = cells[(cells["pattern"] != "dense") & cells["refinement"].isin(list(names))]
    points = pruned.assign(row=pruned["refinement"].map(names), item=pruned["warmstart"])
    return _dots(points, list(names.values()), cells, text, label, width)


def perplexity_by_calibration(cells: pd.DataFrame, text: str, width: float) -> Figure | None:
    """Perplexity on `text`, a panel per pattern: a row per warm start and method, and in it a marker per calibration.

    Takes the rows of one model; None when no cell has calibrations that differ in more than the number of samples.
    Raises InputError when no perplexity was measured on `text`.
    """
    label = _perplexity_label(cells, text)
    pruned = cells[(cells["pattern"] != "dense") & cells["refinement"].isin(["none", *headline(cells)])]
    cell = [pruned[name] for name in ("pattern", "warmstart", "refinement")]
    pruned = pruned[calibration_families(pruned).groupby(cell).transform("nunique") > 1]
    if pruned.empty:
        return None
    method = pruned["refinement"].map(lambda name: "" if name == "none" else f", {name}")
    points = pruned.assign(row=pruned["warmstart"] + method, item=pruned["calibration"])
    return _dots(points, list(points["row"].unique()), cells, text, label, width)


def _dots(points: pd.DataFrame, rows: list[str], cells: pd.DataFrame, text: str, label: str, width: float) -> Figure:
    """Perplexity along the x axis, a panel per pattern: in each of `rows` a marker per item, one above the other."""
    patterns, items = points["pattern"].unique(), list(points["item"].unique())
    heights, ticks, below = {}, {}, 0.0
    for row in rows:
        in_row = set(points.loc[points["row"] == row, "item"])
        there = [item for item in items if item in in_row]
        heights |= {(row, item): below + k for k, item in enumerate(there)}
        ticks[row] = below + (len(there) - 1) / 2
        below += len(there) + 1
    looks = {item: _look(k, k) | {"linestyle": "none"} for k, item in enumerate(items)}
    down = -(-len(patterns) // _in_a_row(len(patterns), width, 1.7))
    across = -(-len(patterns) // down)
    with matplotlib.rc_context(STYLE | {"axes.grid.axis": "x"}):
        columns = _in_a_row(len(items) + 1, width, 1.14)
        height = 0.35 + down * (0.45 + PITCH * below) + 0.16 * -(-(len(items) + 1) // columns)
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = list(figure.subplots(down, across, sharey=True, squeeze=False).flat)
        for axis in axes[len(patterns) :]:
            axis.remove()
        for axis, pattern in zip(axes, patterns, strict=False):
            panel = points[points["pattern"] == pattern]
            found = {row: _over_seeds(group, "item", f"perplexity/{text}") for row, group in panel.groupby("row")}
            dense = _panel_of_dots(axis, found, heights, looks, cells, text)
            axis.set_title(_sparsity(pattern))
        axes[0].set_yticks(list(ticks.values()), list(ticks))
        axes[0].set_ylim(below - 1, -1)
        handles = [Line2D([], [], label=item, **look) for item, look in looks.items()]
        # the label of all x axes: as the legend's title it has the width of the page
        figure.legend(
            handles=handles + dense,
            title=label,
            title_fontsize=STYLE["axes.labelsize"],
            loc="outside lower center",
            ncols=columns,
        )
    return figure


def _panel_of_dots(
    axis: Axes,
    found: dict[str, pd.DataFrame],
    heights: dict[tuple[str, str], float],
    looks: dict[str, dict[str, Any]],
    cells: pd.DataFrame,
    text: str,
) -> list[Line2D]:
    """Markers and whiskers at their heights, by the means and deviations of each row's items."""
    means = pd.concat([line["mean"] for line in found.values()]).dropna()
    most = NEAR * means.min()
    for row, line in found.items():
        for item, mean, std in line.dropna(subset="mean").itertuples():
            y, colour = heights[row, item], looks[item]["color"]
            look = looks[item] | _fill("none" if row == WARM_START else "full", colour)
            axis.plot(min(mean, most), y, clip_on=False, **look)
            if mean > most:
                place = {"xytext": (-4, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
                axis.annotate(f"{mean:.0f}", (most, y), fontsize=5.5, **place)
            elif std > 0:
                axis.hlines(y, mean - std, mean + std, color="black", linewidth=0.7)
    dense = _dense_line(axis, cells, text, "x")
    near = [*means.clip(upper=most), *(line.get_xdata()[0] for line in dense)]
    near = [value for value in near if value > means.min() / 3]  # a dense model that is far off gets no room
    _log_if_wide(axis, near, "x")
    scale, back = (math.log, math.exp) if axis.get_xscale() == "log" else (float, float)
    low, high = scale(min(near)), scale(max(near))
    margin = 0.06 * (high - low)
    axis.set_xlim(back(low - margin), back(high if max(near) == most else high + margin))
    return dense


def swaps_curve(cells: pd.DataFrame, text: str, width: float) -> Figure | None:
    """Perplexity on `text`, and the layers' error relative to the warm start (%), against the swap budget per row.

    One line per (pattern, warm start) with at least three budgets, the warm start (0) and the local optimum included.
    Raises InputError when no perplexity was measured on `text`.
    """
    labels = _perplexity_label(cells, text), "swaps per row, at most"
    return _perplexity_and_error(_budget_series(cells), {}, "budget", labels, cells, text, width)


def settings_curve(cells: pd.DataFrame, text: str, setting: str, width: float) -> Figure | None:
    """Perplexity on `text`, and the layers' error relative to the warm start (%), against a setting of NUMBERS.

    One line per (pattern, warm start) that has at least three values of it with all else equal. For "samples", this
    takes the rows of one model: calibrations are compared whose names differ in their number of samples only, and thin
    lines are the warm starts themselves. Raises InputError when no perplexity was measured on `text`.
    """
    labels = _perplexity_label(cells, text), NUMBERS[setting]
    cells = cells.assign(calibrations=calibration_families(cells))
    pruned, starts = cells[cells["pattern"] != "dense"], {}
    if setting == "samples":
        refined = pruned[pruned["refinement"].isin(headline(cells))]
        series = _series(refined, setting, ["calibrations", "refinement"])
        place = ["pattern", "warmstart", "calibrations"]
        own = dict(iter(pruned[pruned["refinement"] == "none"].groupby(place)))
        for key, rows in series.items():  # once, where a warm start is refined in several ways
            where = tuple(rows[place].iloc[0])
            if where in own:
                starts[key] = own.pop(where)
    else:
        equal = [name for name in [*SETTINGS, "max_swaps", "optimum"] if name != setting]
        series = _series(pruned[pruned["refinement"] != "none"], setting, equal)
    return _perplexity_and_error(series, starts, setting, labels, cells, text, width)


def _perplexity_and_error(
    series: dict[tuple[str, ...], pd.DataFrame],
    starts: dict[tuple[str, ...], pd.DataFrame],
    by: str,
    labels: tuple[str, str],
    cells: pd.DataFrame,
    text: str,
    width: float,
) -> Figure | None:
    """Two panels, with a line per series against the values of column `by`, which are set at equal distances.

    A key is (pattern, warm start) and what else tells series apart; `starts` has the rows of warm starts themselves.
    """
    if not series:
        return None
    values = sorted({value for rows in series.values() for value in rows[by]})
    place = {value: x for x, value in enumerate(values)}
    with matplotlib.rc_context(STYLE):
        patterns, others = ([*dict.fromkeys(key[k] for key in series)] for k in (0, slice(1, None)))
        columns = min(len(series), max(4, len(patterns))) if len(others) == 1 else len(patterns)
        columns = _in_a_row(columns, width, 1.7)
        figure = Figure(figsize=(width, 2.5 + 0.16 * -(-len(series) // columns)), layout="constrained")
        left, right = figure.subplots(1, 2)
        for key, rows in series.items():
            rows = rows.assign(x=rows[by].map(place))
            # a pattern is a colour and a dash, a warm start (and kind of refinement) a marker
            look = _look(patterns.index(key[0]), others.index(key[1:]), patterns.index(key[0]))
            _curve(left, _over_seeds(rows, "x", f"perplexity/{text}"), look, bars=True, label=", ".join(key))
            for column, fill in (("error_reduction", "full"), ("held_out_error_reduction", "none")):
                relative = rows.assign(relative=100 - rows[column]).dropna(subset="relative")
                if len(relative):
                    line = _over_seeds(relative, "x", "relative")
                    _curve(right, line, look | _of_text(fill, look["color"]), bars=True)
        handles = left.get_lines()
        for key, rows in starts.items():
            look = _look(patterns.index(key[0]), others.index(key[1:]), fill="none")
            line = _over_seeds(rows.assign(x=rows[by].map(place)).dropna(subset="x"), "x", f"perplexity/{text}")
            _curve(left, line, look | UNREFINED, bars=True)
        of_starts = [Line2D([], [], label="warm start", **GREY | _fill("none", "0.3") | UNREFINED)] if starts else []
        left.legend(handles=of_starts + _dense_line(left, cells, text), loc="best")
        _log_if_wide(left, [y for line in left.get_lines() for y in line.get_ydata()])
        left.set_ylabel(labels[0])
        right.set_ylabel("error relative to warm start (%)")
        right.legend(handles=_texts(), loc="best")
        for axis in (left, right):
            axis.set_xticks(range(len(values)), ["optimum" if v == float("inf") else f"{v:g}" for v in values])
            axis.set_xlabel(labels[1])
        figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    return figure


def held_out_curve(curves: pd.DataFrame, width: float) -> Figure | None:
    """The layers' error relative to the warm start (%) as swaps go on, on the calibration text and on held-out text.

    A panel per pattern, with a line per refinement of `headline`; with several warm starts a row of panels per
    refinement, with a line per warm start. None without held-out text.
    """
    curves = curves[curves["refinement"].isin(headline(curves))]
    if curves["held_out_error"].isna().all():
        return None
    curves = curves.assign(panels=curves["refinement"], line=curves["warmstart"])
    if curves["warmstart"].nunique() == 1:
        curves = curves.assign(panels=curves["warmstart"], line=curves["refinement"])
    rows, patterns, lines = (list(curves[name].unique()) for name in ("panels", "pattern", "line"))
    looks = {name: _look(k, k) for k, name in enumerate(lines)}
    with matplotlib.rc_context(STYLE):
        columns = _in_a_row(len(lines) + 2, width, 1.3)
        height = 0.3 + 1.8 * len(rows) + 0.16 * -(-(len(lines) + 2) // columns)
        figure = Figure(figsize=(min(width, 1.2 + 2.9 * len(patterns)), height), layout="constrained")
        axes = figure.subplots(len(rows), len(patterns), sharex=True, sharey="row", squeeze=False)
        for (row, pattern, line), found in curves.groupby(["panels", "pattern", "line"], sort=False):
            axis = axes[rows.index(row), patterns.index(pattern)]
            for column, fill in (("error", "full"), ("held_out_error", "none")):
                by_seed = side_by_side(found.pivot(index="seed", columns="budget", values=column))
                means = pd.DataFrame({"mean": by_seed.mean(), "std": by_seed.std().fillna(0.0)})
                _curve(axis, means, looks[line] | _of_text(fill, looks[line]["color"]))
        axes[0, 0].set_xscale("symlog", linthresh=1, linscale=0.4)
        ticks = [budget for budget in LADDER if budget <= curves["budget"].max()]
        axes[0, 0].set_xticks(ticks, map(str, ticks))
        axes[0, 0].set_xticks([], minor=True)
        for row, of_row in zip(rows, axes, strict=True):
            of_row[0].set_ylabel(f"{row}: error\nrelative to warm start (%)")
        for pattern, top, bottom in zip(patterns, axes[0], axes[-1], strict=True):
            top.set_title(_sparsity(pattern))
            bottom.set_xlabel("swaps per row, at most")
        handles = [Line2D([], [], label=name, **look) for name, look in looks.items()]
        figure.legend(handles=[*handles, *_texts()], loc="outside lower center", ncols=columns)
    return figure


def save(figure: Figure, stem: str | Path, dpi: int) -> None:
    """Write `stem`.pdf (vector, the same bytes for the same figure) and `stem`.png, of `dpi` pixels an inch."""
    options: dict[str, dict[str, Any]] = {"pdf": {"metadata": {"CreationDate": None}}, "png": {"dpi": dpi}}
    with matplotlib.rc_context(STYLE):
        for kind, option in options.items():
            with replacing(f"{stem}.{kind}") as partial:
                figure.savefig(partial, format=kind, **option)


def _reductions(layers: pd.DataFrame) -> pd.DataFrame:
    """With columns for the layer's `type` and `error_reduction` (%)."""
    return layers.assign(
        type=layers["layer"].map(_types(list(layers["layer"].unique()))),
        error_reduction=error_reduction(layers["loss_before"], layers["loss_after"]),
    )


def _types(names: list[str]) -> dict[str, str]:
    """Layer name to type: its last component, or all of it where that is ambiguous; experts are of one type."""
    full = {name: ".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names}
    last = {kind: kind.rpartition(".")[2] for kind in full.values()}
    ends = list(last.values())
    return {name: last[kind] if ends.count(last[kind]) == 1 else kind for name, kind in full.items()}


def _budget_series(cells: pd.DataFrame) -> dict[tuple[str, ...], pd.DataFrame]:
    """Rows with their `budget` (infinite: until the optimum) for every line of `swaps_curve`."""
    pruned = cells[cells["pattern"] != "dense"]
    pruned = pruned.assign(
        family=families(pruned),
        budget=pruned["max_swaps"].astype("float64").mask(pruned["optimum"].astype(bool), float("inf")),
    ).dropna(subset="budget")
    kinds = pruned["family"].unique()
    starts = {kind: re.sub(r"^[^+]*", "none", kind) for kind in kinds}  # "none+ls" is where "swaps+ls" begins
    own = {kind: pruned[pruned["family"].isin([kind, start])] for kind, start in starts.items() if kind != start}
    return _series(
        pd.concat([rows.assign(family=kind) for kind, rows in own.items()] or [pruned]), "budget", ["family"]
    )


def _series(rows: pd.DataFrame, by: str, equal: list[str]) -> dict[tuple[str, ...], pd.DataFrame]:
    """The rows of each line with at least three values of column `by`, and one of each of the columns `equal`.

    The key is (pattern, warm start) and the values of those columns that tell lines apart.
    """
    names = ["pattern", "warmstart", *equal]
    groups = rows.groupby(names, sort=False, dropna=False)
    lines = {
        tuple(
            value if isinstance(value, str) else f"{name} {value}" for name, value in zip(names, key, strict=True)
        ): of
        for key, of in groups
        if of[by].nunique() >= 3
    }
    telling = [k for k in range(len(names)) if k < 2 or len({key[k] for key in lines}) > 1]
    first = list(dict.fromkeys(key[:2] for key in lines))
    return {tuple(key[k] for k in telling): lines[key] for key in sorted(lines, key=lambda key: first.index(key[:2]))}


def _in_a_row(number: int, width: float, each: float) -> int:
    """How many of a number of panels, or of a legend's entries, stand in a row that has `each` inches for one."""
    return min(number, int(width / each))


def _over_seeds(rows: pd.DataFrame, by: str, column: str) -> pd.DataFrame:
    """Columns `mean` and `std` over the seeds at each value of `by`; one seed has the deviation zero."""
    seeds = rows.groupby([by, "seed"], dropna=False)[column].mean()
    return seeds.groupby(level=by).agg(["mean", "std"]).fillna({"std": 0.0})


def _curve(axis: Axes, line: pd.DataFrame, look: dict[str, Any], bars: bool = False, **options: Any) -> None:
    axis.plot(line.index, line["mean"], **look, **options)
    if (line["std"] > 0).any():
        low, high = line["mean"] - line["std"], line["mean"] + line["std"]
        if bars:
            axis.vlines(line.index, low, high, color=look["color"], linewidth=0.7)
        else:
            axis.fill_between(line.index, low, high, color=look["color"], alpha=0.15, linewidth=0)


def _look(colour: int, marker: int, dashes: int = 0, fill: str = "full") -> dict[str, Any]:
    """Keywords of a line, from an index into each of the lists above."""
    name = COLOURS[colour % len(COLOURS)]
    style = {"color": name, "marker": MARKERS[marker % len(MARKERS)], "linestyle": LINES[dashes % len(LINES)]}
    return style | _fill(fill, name)


def _fill(fill: str, colour: str) -> dict[str, Any]:
    # a hollow marker is white inside, so that no line shows through it
    return (
        {"fillstyle": "full", "markerfacecolor": "white"}
        if fill == "none"
        else {"fillstyle": "full", "markerfacecolor": colour}
    )


def _of_text(fill: str, colour: str) -> dict[str, Any]:
    """Keywords of a line that is told from another by its text: full is calibration, hollow and thin is held out."""
    return _fill(fill, colour) | {"linewidth": 1.1 if fill == "full" else 0.6}


def _texts() -> list[Line2D]:
    fills = {"calibration text": "full", "held-out text": "none"}
    return [Line2D([], [], label=name, **GREY | _of_text(fill, "0.3")) for name, fill in fills.items()]


def _perplexity_label(cells: pd.DataFrame, text: str) -> str:
    if f"perplexity/{text}" not in cells:
        known = ", ".join(map(repr, perplexity_texts(cells))) or "nothing"
        raise InputError(f"figures: no perplexity was measured on {text!r}, only on {known}")
    seqlens = " and ".join(str(int(seqlen)) for seqlen in cells[f"seqlen/{text}"].dropna().unique())
    return f"perplexity on {text} (seqlen {seqlens})"


def _dense_line(axis: Axes, cells: pd.DataFrame, text: str, along: str = "y") -> list[Line2D]:
    values = cells.loc[cells["pattern"] == "dense", f"perplexity/{text}"].dropna()
    if values.empty:
        return []
    value = values.iloc[0]
    draw = axis.axhline if along == "y" else axis.axvline
    return [draw(value, color="black", linestyle=(0, (4, 3)), linewidth=0.9, label=f"dense ({value:.2f})", zorder=1)]


def _log_if_wide(axis: Axes, values: list[float], along: str = "y") -> None:
    values = [value for value in values if pd.notna(value)]
    if max(values, default=1) > 6 * min(values, default=1):
        scaled, scale = (axis.yaxis, axis.set_yscale) if along == "y" else (axis.xaxis, axis.set_xscale)
        scale("log")
        # about five labels, whether the range is one decade or six
        decades = math.log10(max(values) / min(values))
        scaled.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1, 3) if decades < 3 else (1,)))
        scaled.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        scaled.set_minor_formatter(NullFormatter())


def _sparsity(pattern: str) -> str:
    return f"{pattern} sparsity"


def _lighter(colour: str) -> tuple[float, ...]:
    """Light enough for a black hatch to show on it."""
    return tuple(0.35 + 0.65 * channel for channel in matplotlib.colors.to_rgb(colour))
