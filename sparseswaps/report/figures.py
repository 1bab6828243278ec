"""The study's figures: tables in, matplotlib figures out, readable in print and without colour.

To add a figure, write a function below `@figure(rows, title, caption)`; `draw_all` draws it and the report shows it.
The function takes the rows of a table (cells with the evaluation text) and the width of the page in inches, which no
figure exceeds. It returns None when there is nothing to draw. Over several seeds a figure shows the mean and the
standard deviation.
"""

import math
import re
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import matplotlib.colors
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from sparseswaps.base.files import write_atomically
from sparseswaps.report.summary import (
    WARM_START,
    calibration_families,
    headline_cells,
    headline_refinements,
    perplexity_texts,
    principal_refinement,
    refinement_families,
)
from sparseswaps.report.tables import SETTINGS, align_curves, error_reduction

STYLE: dict[str, Any] = {"font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8}
STYLE |= {"legend.fontsize": 7, "xtick.labelsize": 7, "ytick.labelsize": 7}
STYLE |= {"lines.linewidth": 1.1, "lines.markersize": 4, "axes.linewidth": 0.6, "hatch.linewidth": 0.5}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "legend.handlelength": 2.8}
STYLE |= {"axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "grid.color": "0.88", "grid.linewidth": 0.5}
STYLE |= {"figure.constrained_layout.use": True, "errorbar.capsize": 1.5}
STYLE["text.parse_math"] = False  # names of texts and layers are no formulas
STYLE["pdf.fonttype"] = 42  # TrueType: text in the PDF stays text, and publishers accept it
# Okabe and Ito's palette without its yellow. The lists differ in length, so that no combination repeats early.
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#D55E00"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
LINES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1))]
FILLINGS = ["full", "left", "bottom"]
HATCHES = ["", "////", "....", "xxxx", "----", "\\\\\\\\"]
LEGEND_PITCH = 0.16  # inches between two rows of a legend
NEAR = 10  # perplexities up to this multiple of the best ones are drawn where they are, larger ones as numbers
SWAP_TICKS = (0, 1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000)
OVERFITS = "The error is relative to the warm start, a mean over the layers. Refinement overfits where the error falls "
OVERFITS += "on the calibration text but not on held-out text."

Style = dict[str, Any]  # keywords of a line
Lines = dict[tuple[str, ...], pd.DataFrame]  # rows by (pattern, warm start) and what else tells lines apart
HOLLOW: Style = {"markerfacecolor": "white"}  # white, so that no line shows through the marker
UNREFINED = HOLLOW | {"linestyle": (0, (3, 2)), "linewidth": 0.6}
BAR = {"edgecolor": "black", "linewidth": 0.5, "error_kw": {"elinewidth": 0.7}}
GREY: Style = {"color": "0.3", "marker": "o"}
THIN = HOLLOW | {"linewidth": 0.6}
TEXTS: dict[str, Style] = {"calibration text": {}, "held-out text": THIN}
PATHS: dict[str, Style] = {"pruned path": {}, "dense path": THIN}


class Kind(NamedTuple):
    """A kind of figure: what the report says about it, and the function that draws it.

    `rows` are "layers" (of the principal refinement), "curves", "epochs", "drift" or "cells" of one model and
    calibration, or "calibrations", which are the cells of all calibrations of a model.
    """

    rows: str
    title: str
    caption: str
    draw: Callable[..., Figure | None]


KINDS: dict[str, Kind] = {}  # by the name of the function, with which the file's name begins


def figure(rows: str, title: str, caption: str) -> Callable[[Callable], Callable]:
    """Register a function as a kind of figure that is drawn with `STYLE`."""

    def register(function: Callable[..., Figure | None]) -> Callable[..., Figure | None]:
        draw = matplotlib.rc_context(STYLE)(function)
        KINDS[function.__name__] = Kind(rows, title, caption, draw)
        return draw

    return register


def draw_all(tables: dict[str, pd.DataFrame], width: float) -> Iterator[tuple[str, Figure]]:
    """Yield the path ("<model>/<calibration>/<kind>-<text>") and the figure, for every figure that has data.

    `tables` are the study's tables cells, layers, curves, epochs and drift, and `width` is the width of the page in
    inches.
    """
    cells = tables["cells"]
    studies = cells.loc[cells["pattern"] != "dense", ["model", "calibration"]].drop_duplicates()
    for model in studies["model"].unique():
        yield from _draw_kinds(model, {"calibrations": cells[cells["model"] == model]}, width)
    for model, calibration in studies.itertuples(index=False):
        drawn = {}
        for name, table in tables.items():
            of_calibration = table["calibration"].eq(calibration) | table["pattern"].eq("dense")
            drawn[name] = table[of_calibration & (table["model"] == model)]
        principal = drawn["layers"]["refinement"] == principal_refinement(drawn["cells"])
        drawn["layers"] = drawn["layers"][principal]
        yield from _draw_kinds(f"{model}/{calibration}", drawn, width)


def _draw_kinds(folder: str, tables: dict[str, pd.DataFrame], width: float) -> Iterator[tuple[str, Figure]]:
    for name, kind in KINDS.items():
        if kind.rows not in tables or tables[kind.rows].empty:
            continue
        of_cells = kind.rows in ("cells", "calibrations")
        for text in [[text] for text in perplexity_texts(tables[kind.rows])] if of_cells else [[]]:
            if drawing := kind.draw(tables[kind.rows], *text, width):
                yield f"{folder}/{'-'.join([name, *text])}", drawing


def save(drawing: Figure, stem: str | Path, dpi: int) -> None:
    """Write `stem`.pdf (vector, the same bytes for the same figure) and `stem`.png with `dpi` pixels per inch."""
    for ending, option in (("pdf", {"metadata": {"CreationDate": None}}), ("png", {"dpi": dpi})):
        with matplotlib.rc_context(STYLE), write_atomically(f"{stem}.{ending}") as unfinished:
            drawing.savefig(unfinished, format=ending, **option)


# ----------------------------------------------------------------------------------------------------------------------
# The figures.


@figure(
    "layers",
    "Error reduction by layer",
    "How much refinement lowers the error of each layer on the calibration text, from the first block to the last.",
)
def error_reduction_by_layer(layers: pd.DataFrame, width: float) -> Figure:
    """Draw a heat map of blocks and layer types, a panel per warm start (row) and pattern (column)."""
    layers = _add_types(layers)
    starts, patterns, types = (list(layers[name].unique()) for name in ("warmstart", "pattern", "type"))
    means = layers.groupby(["warmstart", "pattern", "type", "block"])["error_reduction"].mean()
    low, high = min(0.0, means.min()), means.max()
    drawing = Figure(figsize=(width, 0.5 + (0.3 + 0.16 * len(types)) * len(starts)))
    axes = drawing.subplots(len(starts), len(patterns), sharex=True, sharey=True, squeeze=False)
    for (start, pattern), axis in zip(product(starts, patterns), axes.flat, strict=True):
        axis.grid(False)
        axis.set_xlabel("decoder block" if start == starts[-1] else "")
        axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axis.set_title(f"{pattern} sparsity, from {start}")
        axis.set_yticks(range(len(types)), types)
        if (start, pattern) not in means.index.droplevel([2, 3]):
            continue
        table = means[start, pattern].unstack("block").reindex(types)
        image = axis.imshow(table, aspect="auto", cmap="Blues", vmin=low, vmax=high, interpolation="none")
        if table.shape[1] * 0.22 * len(patterns) < width - 1.5:  # a number has room in its field
            for (y, x), value in np.ndenumerate(table.to_numpy()):
                colour = "white" if value > low + 0.6 * (high - low) else "black"
                axis.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=6, color=colour)
    drawing.colorbar(image, ax=list(axes.flat), label="error reduction (%)", aspect=30, pad=0.01)
    return drawing


@figure(
    "layers",
    "Error reduction by layer type",
    "How much refinement lowers the error on the calibration text. A bar is the mean over the blocks, a whisker the "
    "standard deviation over the blocks.",
)
def error_reduction_by_type(layers: pd.DataFrame, width: float) -> Figure:
    """Draw a panel per warm start, with a group of bars per layer type and a bar per pattern."""
    blocks = _add_types(layers).groupby(["warmstart", "pattern", "type", "block"], sort=False, as_index=False)
    means = blocks["error_reduction"].mean()
    starts, patterns, types = (means[name].unique() for name in ("warmstart", "pattern", "type"))
    thickness = 0.8 / len(patterns)
    drawing = Figure(figsize=(width, 0.54 + 1.6 * len(starts)))
    axes = drawing.subplots(len(starts), 1, sharex=True, squeeze=False)[:, 0]
    for axis, start in zip(axes, starts, strict=True):
        for k, pattern in enumerate(patterns):
            panel = means[(means["warmstart"] == start) & (means["pattern"] == pattern)]
            bars = panel.groupby("type")["error_reduction"].agg(["mean", "std"]).reindex(types)
            colour = matplotlib.colors.to_rgb(COLOURS[k % len(COLOURS)])
            light = [0.35 + 0.65 * channel for channel in colour]  # enough for a black hatch to show on it
            looks = {"color": light, "hatch": HATCHES[k % len(HATCHES)], "label": f"{pattern} sparsity"} | BAR
            centres = [x + (k - (len(patterns) - 1) / 2) * thickness for x in range(len(types))]
            axis.bar(centres, bars["mean"], thickness, yerr=bars["std"].fillna(0), **looks)
        axis.set_title(f"warm start: {start}")
        axis.set_ylabel("error reduction (%)")
    crowded = width < 0.75 * len(types) or max(map(len, types)) > 12
    turn = {"rotation": 30, "ha": "right"} if crowded else {}
    axes[-1].set_xticks(range(len(types)), types, **turn)
    _add_legend(drawing, axes[0].get_legend_handles_labels()[0], 1.14)
    return drawing


@figure(
    "calibrations",
    "Perplexity by sparsity pattern",
    "A colour is a method, and a marker is a warm start. A hollow marker is a warm start without refinement. Lower is "
    "better. A number at the upper edge is a perplexity far above it.",
)
def perplexity_by_pattern(cells: pd.DataFrame, text: str, width: float) -> Figure:
    """Draw the `headline_cells`: a group of markers for each pattern, in it one for each method and warm start."""
    points = headline_cells(cells).rename(columns={f"perplexity/{text}": "perplexity"})
    patterns, methods, starts = (list(points[name].unique()) for name in ("pattern", "which", "warmstart"))
    drawn = set(zip(points["which"], points["warmstart"], strict=True))
    slots = [slot for slot in product(methods, starts) if slot in drawn]
    offsets = {slot: k + 1.5 * methods.index(slot[0]) for k, slot in enumerate(slots)}  # a gap between two methods
    last = max(offsets.values())
    pitch = last + 5  # from one pattern to the next

    values = points.groupby(["pattern", "which", "warmstart"], sort=False)["perplexity"].agg(["mean", "std"])
    values = values.dropna(subset="mean")
    edge = NEAR * values.groupby("pattern")["mean"].min().max()
    drawing = Figure(figsize=(min(width, max(5.2, 0.06 * pitch * len(patterns))), 2.8))
    axis = drawing.subplots()
    dense = _draw_dense(axis, cells, text)
    colours, markers = {}, {}
    for k, method in enumerate(methods):
        filling = FILLINGS[k // len(COLOURS) % len(FILLINGS)]  # another one when all colours were used once
        colours[method] = {"color": COLOURS[k % len(COLOURS)], "fillstyle": filling}
        colours[method] |= HOLLOW if method.startswith(WARM_START) else {}
    for k, start in enumerate(starts):
        markers[start] = GREY | {"marker": MARKERS[k % len(MARKERS)], "linestyle": "none"}
    for (pattern, method, start), mean, std in values.itertuples():
        x = patterns.index(pattern) * pitch + offsets[method, start]
        axis.plot(x, min(mean, edge), clip_on=False, **markers[start] | colours[method])
        if mean > edge:
            offset = {"xytext": (0, -5), "textcoords": "offset points", "ha": "center", "va": "top", "rotation": 90}
            axis.annotate(f"{mean:.0f}", (x, edge), fontsize=6, **offset)
        elif std > 0:
            axis.vlines(x, mean - std, mean + std, color="black", linewidth=0.7)
    axis.set_xticks([last / 2 + k * pitch for k in range(len(patterns))], [f"{name} sparsity" for name in patterns])
    axis.set_xlim(-3, len(patterns) * pitch - 2)
    axis.tick_params(axis="x", length=0)
    axis.set_ylabel(_perplexity_label(cells, text))
    shown = [*values["mean"].clip(upper=edge), *(line.get_ydata()[0] for line in dense)]
    _use_log_scale_if_wide(axis, "y", shown)
    if max(shown) == edge:
        axis.set_ylim(top=edge)
    _add_legend(drawing, _handles(colours, {"marker": "o", "linestyle": "none"}) + _handles(markers) + dense, 1.3)
    return drawing


@figure(
    "calibrations",
    "Perplexity against time",
    "Each marker is a method: warm start, refinement and reconstruction. The line and the numbers show the methods "
    "that are 2 % better than every faster one. The time is the sum over the layers of refinement and reconstruction "
    "on this machine. It leaves out the capture of Gram matrices and the making of warm starts.",
)
def perplexity_by_seconds(cells: pd.DataFrame, text: str, width: float) -> Figure | None:
    """Draw a panel per pattern with a marker per method, and a line along the Pareto front, if masks were refined."""
    pruned = cells[cells["pattern"] != "dense"].rename(columns={f"perplexity/{text}": "perplexity"})
    if pruned["refinement"].isin(["none"]).all():
        return None
    pruned = pruned.assign(seconds=pruned["seconds"].clip(lower=0.01))
    several = pruned["calibration"].nunique() > 1
    method = pruned[["warmstart", "refinement", *(["calibration"] if several else [])]].agg(", ".join, axis=1)
    points = pruned.assign(method=method).groupby(["pattern", "method"], sort=False)[["seconds", "perplexity"]]
    panels = dict(iter(points.mean().dropna().sort_values("seconds").groupby("pattern", sort=False)))
    panels = {pattern: panels[pattern].droplevel(0) for pattern in pruned["pattern"].unique() if pattern in panels}
    fronts = {pattern: _pareto_front(panel) for pattern, panel in panels.items()}
    if max(map(len, fronts.values()), default=0) < 2:
        return None
    numbers = {name: k for k, name in enumerate(dict.fromkeys(n for front in fronts.values() for n in front.index), 1)}
    down = math.ceil(len(panels) / int(width / 2.2))  # a panel takes 2.2 inches
    across = math.ceil(len(panels) / down)
    drawing = Figure(figsize=(width, 2.5 * down))
    axes = list(drawing.subplots(down, across, squeeze=False).flat)
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis, (pattern, panel) in zip(axes, panels.items(), strict=False):
        front = fronts[pattern]
        axis.plot(panel["seconds"], panel["perplexity"], color="0.6", marker="o", linestyle="none", markersize=3)
        axis.plot(front["seconds"], front["perplexity"], color=COLOURS[0], marker="o", drawstyle="steps-post")
        for name, point in front.iterrows():
            offset = {"xytext": (3, 3), "textcoords": "offset points"}
            axis.annotate(str(numbers[name]), (point["seconds"], point["perplexity"]), fontsize=7, **offset)
        axis.set(title=f"{pattern} sparsity", xlabel="seconds")
        _use_log_scale_if_wide(axis, "x", list(panel["seconds"]))
        _use_log_scale_if_wide(axis, "y", list(panel["perplexity"]))
        axis.legend(handles=_draw_dense(axis, cells, text), loc="upper right")
    for axis in axes[: len(panels) : across]:
        axis.set_ylabel(_perplexity_label(cells, text))
    handles = [Line2D([], [], linestyle="none", label=f"{k}  {name}") for name, k in numbers.items()]
    _add_legend(drawing, handles, 0.5 + 0.07 * max(map(len, numbers)))
    return drawing


@figure("cells", "Perplexity and error against the swap budget", OVERFITS)
def swaps_curve(cells: pd.DataFrame, text: str, width: float) -> Figure | None:
    """Draw perplexity and error against the swaps per row. The warm start (0) and the optimum are budgets, too."""
    pruned = cells[cells["pattern"] != "dense"]
    budgets = pruned["max_swaps"].astype("float64").mask(pruned["optimum"].astype(bool), float("inf"))
    pruned = pruned.assign(family=refinement_families(pruned), x=budgets).dropna(subset="x")
    parts = []
    for family in pruned["family"].unique():
        start = re.sub(r"^[^+]*", "none", family)  # the line of "swaps+ls" begins at "none+ls"
        if family != start:
            parts.append(pruned[pruned["family"].isin([family, start])].assign(family=family))
    lines = _group_lines(pd.concat(parts or [pruned]), ["family"])
    return _draw_perplexity_and_error(lines, {}, "swaps per row, at most", cells, text, width)


@figure("curves", "Error on held-out text against the number of swaps", OVERFITS)
def held_out_curve(curves: pd.DataFrame, width: float) -> Figure | None:
    """Draw a panel per refinement (row) and pattern (column), with a line per warm start, if there is held-out text.

    With a single warm start, the refinements are the lines of one row.
    """
    curves = curves[curves["refinement"].isin(headline_refinements(curves))]
    if curves["held_out_error"].isna().all():
        return None
    drawing = _draw_both_texts(curves, "budget", "swaps per row, at most", "relative to warm start (%)", width)
    axis = drawing.axes[0]
    axis.set_xscale("symlog", linthresh=1, linscale=0.4)
    ticks = [budget for budget in SWAP_TICKS if budget <= curves["budget"].max()]
    axis.set_xticks(ticks, map(str, ticks))
    axis.set_xticks([], minor=True)
    return drawing


@figure(
    "epochs",
    "Error of the trained blocks by epoch",
    "The squared error of a block's output, in percent of the dense block's output, a mean over the blocks. It rises "
    "while masks tighten. The epoch of least error on held-out text is kept, of the epochs with the final masks.",
)
def training_curve(epochs: pd.DataFrame, width: float) -> Figure:
    """Draw a panel per method (row) and pattern (column), with a line per warm start, as `held_out_curve` does."""
    drawing = _draw_both_texts(epochs, "epoch", "epoch", "of a block's output (%)", width)
    drawing.axes[0].xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    return drawing


@figure(
    "drift",
    "Error by block",
    "The squared error of each block's output on held-out text, in percent of the squared output of the dense block. "
    "On the dense path a pruned block reads the dense model's hidden states, so the error is the block's own. On the "
    "pruned path it reads the outputs of the pruned blocks before it, so the errors of all blocks accumulate.",
)
def error_by_block(drift: pd.DataFrame, width: float) -> Figure:
    """Draw a panel per warm start (row) and pattern (column), with a line per method and path."""
    drift = drift[drift["refinement"].isin(["none", *headline_refinements(drift)])]
    drift = drift.replace({"refinement": {"none": WARM_START}})
    columns = {"block": "decoder block", "pruned_path": "pruned path", "dense_path": "dense path"}
    drift, names = drift.rename(columns=columns), ("warmstart", "refinement")
    drawing, panels = _draw_pairs(drift, names, "decoder block", PATHS, "of a block's output (%)", width)
    for (start, _), axis in panels.items():
        errors = drift.loc[drift["warmstart"] == start, list(PATHS)].to_numpy()
        _use_log_scale_if_wide(axis, "y", list(errors[errors > 0]))  # panels of a row share the y axis
        axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    return drawing


@figure(
    "calibrations",
    "Perplexity and error against the number of calibration samples",
    "The error is relative to the warm start of the same calibration, a mean over the layers. The distance between "
    "calibration text and held-out text is how much refinement overfits.",
)
def samples_curve(cells: pd.DataFrame, text: str, width: float) -> Figure | None:
    """Draw perplexity and error against the number of samples, of calibrations that differ in it only.

    Thin lines are the warm starts themselves.
    """
    cells = cells.assign(calibrations=calibration_families(cells), x=cells["samples"])
    refined = cells[cells["refinement"].isin(headline_refinements(cells))]
    lines, starts = _group_lines(refined, ["calibrations", "refinement"]), {}
    keys = ["pattern", "warmstart", "calibrations"]
    unrefined = dict(iter(cells[cells["refinement"] == "none"].groupby(keys)))
    for key, rows in lines.items():
        start = tuple(rows[keys].iloc[0])
        if start in unrefined:  # a warm start is drawn once where it is refined in several ways
            starts[key] = unrefined.pop(start)
    return _draw_perplexity_and_error(lines, starts, "calibration samples", cells, text, width)


@figure(
    "cells",
    "Perplexity and error against the frozen part",
    "Refinement has to keep this part of each row: the weights with the highest Wanda scores.",
)
def freeze_curve(cells: pd.DataFrame, text: str, width: float) -> Figure | None:
    return _draw_setting(cells, "freeze", "frozen part of each row", text, width)


@figure(
    "cells",
    "Perplexity and error against shrinkage",
    "Refinement sees the off-diagonal entries of the Gram matrix times 1 - shrinkage. The errors are measured with the "
    "whole Gram matrix.",
)
def shrinkage_curve(cells: pd.DataFrame, text: str, width: float) -> Figure | None:
    return _draw_setting(cells, "shrinkage", "shrinkage", text, width)


# ----------------------------------------------------------------------------------------------------------------------
# What several figures share.


def _draw_setting(cells: pd.DataFrame, setting: str, label: str, text: str, width: float) -> Figure | None:
    """Draw perplexity and error against a setting of refinements that are equal in all other settings."""
    equal = [name for name in [*SETTINGS, "max_swaps", "optimum"] if name != setting]
    refined = cells[(cells["pattern"] != "dense") & (cells["refinement"] != "none")]
    lines = _group_lines(refined.assign(x=refined[setting]), equal)
    return _draw_perplexity_and_error(lines, {}, label, cells, text, width)


def _draw_both_texts(rows: pd.DataFrame, along: str, label: str, unit: str, width: float) -> Figure:
    """Draw the error on calibration text and on held-out text, in panels that share the x axis."""
    several = rows["warmstart"].nunique() > 1
    names = ("refinement", "warmstart") if several else ("warmstart", "refinement")
    rows = rows.rename(columns={along: label, "error": "calibration text", "held_out_error": "held-out text"})
    drawing, _ = _draw_pairs(rows, names, label, TEXTS, unit, width)
    return drawing


def _draw_pairs(
    rows: pd.DataFrame, names: tuple[str, str], along: str, pair: dict[str, Style], unit: str, width: float
) -> tuple[Figure, dict[tuple[str, str], Axes]]:
    """Draw two errors for each line of a panel. Return the figure, and its panels by row and pattern.

    `names` are the columns that tell the rows of panels and the lines of a panel apart. `along` and the keys of `pair`
    are columns, under the names that the figure shows.
    """
    row, line = names
    starts, patterns = rows[row].unique(), rows["pattern"].unique()
    drawing = Figure(figsize=(min(width, 1.2 + 2.9 * len(patterns)), 0.4 + 1.75 * len(starts)))
    axes = drawing.subplots(len(starts), len(patterns), sharex=True, sharey="row", squeeze=False)
    panels = dict(zip(product(starts, patterns), axes.flat, strict=True))
    for (name, pattern), axis in panels.items():
        axis.set_ylabel(f"{name}: error\n{unit}" if pattern == patterns[0] else "")
        axis.set_title(f"{pattern} sparsity" if name == starts[0] else "")
        axis.set_xlabel(along if name == starts[-1] else "")
    styles = {name: _line_style(k, k) for k, name in enumerate(rows[line].unique())}
    for (name, pattern, kind), points in rows.groupby([row, "pattern", line], sort=False):
        axis = panels[name, pattern]
        for column, style in pair.items():
            by_seed = align_curves(points.pivot(index="seed", columns=along, values=column))
            mean, deviation = by_seed.mean(), by_seed.std().fillna(0.0)
            axis.plot(mean.index, mean, **styles[kind] | style)
            if deviation.any():
                shade = {"color": styles[kind]["color"], "alpha": 0.15, "linewidth": 0}
                axis.fill_between(mean.index, mean - deviation, mean + deviation, **shade)
    _add_legend(drawing, _handles(styles) + _handles(pair, GREY), 1.3)
    return drawing, panels


def _pareto_front(points: pd.DataFrame) -> pd.DataFrame:
    """Return the points, sorted by `seconds`, whose `perplexity` is 2 % lower than at every point before."""
    least, front = math.inf, []
    for name, perplexity in points["perplexity"].items():
        if perplexity < 0.98 * least:
            least = perplexity
            front.append(name)
    return points.loc[front]


def _group_lines(rows: pd.DataFrame, equal: list[str]) -> Lines:
    """Return the rows of each line with at least three values of `x`, where all columns of `equal` have one value.

    A line's name is its pattern, its warm start, and its values of the columns in which lines differ.
    """
    start = ["pattern", "warmstart"]
    lengths = rows.groupby([*start, *equal], dropna=False)["x"].transform("nunique")
    rows = rows[lengths >= 3]
    rows = rows.iloc[rows.groupby(start, sort=False).ngroup().argsort(kind="stable")]
    names = start + [name for name in equal if rows[name].nunique(dropna=False) > 1]
    lines = {}
    for key, group in rows.groupby(names, sort=False, dropna=False):
        values = zip(names, key, strict=True)
        lines[tuple(value if isinstance(value, str) else f"{name} {value}" for name, value in values)] = group
    return lines


def _draw_perplexity_and_error(
    lines: Lines, starts: Lines, label: str, cells: pd.DataFrame, text: str, width: float
) -> Figure | None:
    """Draw perplexity (left), also of warm starts, and the error relative to the warm start (right) against `x`."""
    if not lines:
        return None
    values = sorted({value for rows in lines.values() for value in rows["x"]})
    position = {value: index for index, value in enumerate(values)}
    patterns, others = (list(dict.fromkeys(key[part] for key in lines)) for part in (0, slice(1, None)))
    drawing = Figure(figsize=(width, 2.5))
    left, right = drawing.subplots(1, 2)
    for key, rows in lines.items():
        rows = rows.assign(x=rows["x"].map(position))
        # a pattern is a colour and a dash, a warm start (and kind of refinement) a marker
        style = _line_style(patterns.index(key[0]), others.index(key[1:]), patterns.index(key[0]))
        _draw_line(left, rows, f"perplexity/{text}", style | {"label": ", ".join(key)})
        reductions = ("error_reduction", "held_out_error_reduction")
        for reduction, style_of_text in zip(reductions, TEXTS.values(), strict=True):
            error = rows.assign(error=100 - rows[reduction]).dropna(subset="error")
            if len(error):
                _draw_line(right, error, "error", style | style_of_text)
    handles = left.get_lines()
    for key, rows in starts.items():
        rows = rows.assign(x=rows["x"].map(position)).dropna(subset="x")
        style = _line_style(patterns.index(key[0]), others.index(key[1:])) | UNREFINED
        _draw_line(left, rows, f"perplexity/{text}", style)
    start_handles = _handles({WARM_START: UNREFINED}, GREY) if starts else []
    left.legend(handles=start_handles + _draw_dense(left, cells, text), loc="best")
    _use_log_scale_if_wide(left, "y", [y for line in left.get_lines() for y in line.get_ydata()])
    left.set_ylabel(_perplexity_label(cells, text))
    right.set_ylabel("error relative to warm start (%)")
    right.legend(handles=_handles(TEXTS, GREY), loc="best")
    for axis in (left, right):
        axis.set_xticks(range(len(values)), ["optimum" if x == float("inf") else f"{x:g}" for x in values])
        axis.set_xlabel(label)
    most = len(patterns) if len(others) > 1 else max(4, len(patterns))
    _add_legend(drawing, handles, 1.7, most)
    return drawing


def _add_legend(drawing: Figure, handles: list[Any], entry_width: float, most: int | None = None) -> None:
    """Add a legend below the panels, with at most `most` entries in a row, and the height that it takes."""
    fitting = max(1, int(drawing.get_figwidth() / entry_width))
    columns = min(len(handles), most or len(handles), fitting)
    drawing.set_figheight(drawing.get_figheight() + LEGEND_PITCH * math.ceil(len(handles) / columns))
    drawing.legend(handles=handles, loc="outside lower center", ncols=columns)


def _handles(styles: dict[str, Style], shared: Style | None = None) -> list[Line2D]:
    return [Line2D([], [], label=name, **(shared or {}) | style) for name, style in styles.items()]


def _line_style(colour: int, marker: int, dashes: int = 0) -> Style:
    """Return the keywords of a line, from an index into each of the lists above."""
    style = {"color": COLOURS[colour % len(COLOURS)], "marker": MARKERS[marker % len(MARKERS)]}
    return style | {"linestyle": LINES[dashes % len(LINES)]}


def _add_types(layers: pd.DataFrame) -> pd.DataFrame:
    """Return `layers` with the columns `type` and `error_reduction` (%)."""
    return layers.assign(
        type=layers["layer"].map(_layer_types(list(layers["layer"].unique()))),
        error_reduction=error_reduction(layers["loss_before"], layers["loss_after"]),
    )


def _layer_types(names: list[str]) -> dict[str, str]:
    """Return a type for each layer name: its last part, or all parts where that is ambiguous. Experts have one type."""
    full = {name: ".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names}
    last = {kind: kind.rpartition(".")[2] for kind in full.values()}
    ends = list(last.values())
    return {name: last[kind] if ends.count(last[kind]) == 1 else kind for name, kind in full.items()}


def _draw_line(axis: Axes, rows: pd.DataFrame, column: str, style: Style) -> None:
    """Draw the means of a column over the seeds at each `x`, and their standard deviations as bars."""
    seeds = rows.groupby(["x", "seed"], dropna=False)[column].mean()
    line = seeds.groupby(level="x").agg(["mean", "std"]).fillna({"std": 0.0})
    axis.plot(line.index, line["mean"], **style)
    if line["std"].any():
        low, high = line["mean"] - line["std"], line["mean"] + line["std"]
        axis.vlines(line.index, low, high, color=style["color"], linewidth=0.7)


def _draw_dense(axis: Axes, cells: pd.DataFrame, text: str) -> list[Line2D]:
    """Draw the dense model's perplexity as a line across the axis, if it was measured."""
    values = cells.loc[cells["pattern"] == "dense", f"perplexity/{text}"].dropna()
    style = {"color": "black", "linestyle": (0, (4, 3)), "linewidth": 0.9, "zorder": 1}
    return [axis.axhline(value, label=f"dense ({value:.2f})", **style) for value in values.iloc[:1]]


def _perplexity_label(cells: pd.DataFrame, text: str) -> str:
    seqlens = " and ".join(str(int(seqlen)) for seqlen in cells[f"seqlen/{text}"].dropna().unique())
    return f"perplexity on {text} (seqlen {seqlens})"


def _use_log_scale_if_wide(axis: Axes, along: str, values: list[float]) -> None:
    """Give an axis a logarithmic scale where the values span more than a factor of six."""
    values = [value for value in values if pd.notna(value)]
    if max(values, default=1) > 6 * min(values, default=1):
        axis.set(**{f"{along}scale": "log"})
        scaled = axis.yaxis if along == "y" else axis.xaxis
        # about five labels, whether the range is one decade or six
        decades = math.log10(max(values) / min(values))
        scaled.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1, 3) if decades < 3 else (1,)))
        scaled.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        scaled.set_minor_formatter(NullFormatter())
