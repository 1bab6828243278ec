"""The study's figures: tables in, matplotlib figures out, readable in print and without colour.

Every function takes the rows of one model and one calibration (`tables.select`); over several seeds it draws the mean
and the standard deviation. CAPTIONS says in words what each figure shows.
"""

import math
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.colors
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from sparseswaps.errors import InputError
from sparseswaps.files import replacing
from sparseswaps.tables import error_reduction, families, headline, perplexity_texts

CAPTIONS = {  # function: (title, caption)
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
        "The warm starts as they are (hollow) and refined (filled). Lower is better.",
    ),
    "swaps_curve": (
        "Perplexity and error against the swap budget",
        "The layers' error relative to the warm start is a mean over layers; where it falls on the calibration text "
        + "but not on held-out text, refinement overfits.",
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
WIDTH = 6.9  # inches: the text width of a two-column paper
# Okabe and Ito's palette, without its yellow; the three lists differ in length, so that no combination repeats early
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#D55E00"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
LINES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1))]
HATCHES = ["", "////", "....", "xxxx", "----", "\\\\\\\\"]
FILLS = ["full", "left", "top", "right", "bottom"]
GREY = {"color": "0.3", "marker": "o"}


def error_reduction_by_layer(layers: pd.DataFrame) -> Figure | None:
    """Error reduction (%) against block index: a line per layer type, a panel per warm start (row) and pattern.

    Of the refinement that goes furthest; None when no layer was refined.
    """
    if layers.empty:
        return None
    layers = _furthest(layers)
    warmstarts, patterns = layers["warmstart"].unique(), layers["pattern"].unique()
    types = layers["type"].unique()
    with matplotlib.rc_context(STYLE):
        width = min(WIDTH, 1.2 + 2.9 * len(patterns))
        # the legend hangs outside the panels: its rows cost height too
        columns = min(len(types), max(3, int(width / 0.95)))
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


def error_reduction_by_type(layers: pd.DataFrame) -> Figure | None:
    """Error reduction (%) as bars per layer type and pattern, a panel per warm start.

    A bar is the mean over blocks, its whisker the standard deviation over blocks. Of the refinement that goes furthest;
    None when no layer was refined.
    """
    if layers.empty:
        return None
    layers = _furthest(layers)
    layers = layers.groupby(["warmstart", "pattern", "type", "block"], sort=False, as_index=False)[
        "error_reduction"
    ].mean()
    warmstarts, patterns, types = (layers[name].unique() for name in ("warmstart", "pattern", "type"))
    thickness = 0.8 / len(patterns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.7 + 1.6 * len(warmstarts)), layout="constrained")
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
        crowded = len(types) > 9 or max(map(len, types)) > 12
        axes[-1].set_xticks(
            range(len(types)), types, rotation=30 if crowded else 0, ha="right" if crowded else "center"
        )
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(patterns))
    return figure


def perplexity_by_pattern(cells: pd.DataFrame, text: str) -> Figure:
    """Perplexity on `text` against the pattern: per warm start a hollow marker, and a filled one after refinement.

    Raises InputError when no perplexity was measured on `text`.
    """
    label = _perplexity_label(cells, text)
    pruned = cells[cells["pattern"] != "dense"]
    patterns, warmstarts, refinements = pruned["pattern"].unique(), pruned["warmstart"].unique(), headline(cells)
    fills = {"none": "none"} | {name: FILLS[k % len(FILLS)] for k, name in enumerate(refinements)}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(min(WIDTH, 2.2 + 1.1 * len(patterns)), 2.8), layout="constrained")
        axis = figure.subplots()
        for k, warmstart in enumerate(warmstarts):
            offset = 0.6 * ((k + 0.5) / len(warmstarts) - 0.5)
            for x, pattern in enumerate(patterns):
                group = pruned[(pruned["warmstart"] == warmstart) & (pruned["pattern"] == pattern)]
                points = (
                    _over_seeds(group, "refinement", f"perplexity/{text}").reindex(list(fills)).dropna(subset="mean")
                )
                axis.plot([x + offset] * len(points), points["mean"], color="0.6", linewidth=0.8, zorder=2)
                axis.errorbar(
                    [x + offset] * len(points),
                    points["mean"],
                    points["std"].where(points["std"] > 0),
                    fmt="none",
                    ecolor="black",
                    elinewidth=0.7,
                    capsize=2,
                    zorder=2,
                )
                for name, mean in points["mean"].items():
                    axis.plot(x + offset, mean, markersize=5, **_look(k, k, fill=fills[name]) | {"linestyle": "none"})
        dense = _dense_line(axis, cells, text)
        axis.set_xticks(range(len(patterns)), patterns)
        axis.set_xlim(-0.6, len(patterns) - 0.4)
        axis.set_xlabel("sparsity pattern")
        axis.set_ylabel(label)
        _log_if_wide(axis)
        looks = {name: _look(k, k) for k, name in enumerate(warmstarts)}
        looks |= {
            "warm start" if name == "none" else f"after {name}": GREY | _fill(fill, "0.3")
            for name, fill in fills.items()
        }
        looks = {name: look | {"linestyle": "none", "markersize": 5} for name, look in looks.items()}
        handles = [Line2D([], [], label=name, **look) for name, look in looks.items()]
        figure.legend(handles=handles + dense, loc="outside right upper")
    return figure


def swaps_curve(cells: pd.DataFrame, text: str) -> Figure | None:
    """Perplexity on `text`, and the layers' error relative to the warm start (%), against the swap budget per row.

    One line per (pattern, warm start) with at least three budgets, the warm start (0) and the local optimum included;
    None when there is no such line. Raises InputError when no perplexity was measured on `text`.
    """
    label = _perplexity_label(cells, text)
    series = _budget_series(cells)
    if not series:
        return None
    budgets = sorted({budget for rows in series.values() for budget in rows["budget"]})
    place = {budget: x for x, budget in enumerate(budgets)}
    with matplotlib.rc_context(STYLE):
        patterns, starts = ([*dict.fromkeys(key[k] for key in series)] for k in (0, slice(1, None)))
        columns = min(len(series), max(4, len(patterns))) if len(starts) == 1 else len(patterns)
        figure = Figure(figsize=(WIDTH, 2.5 + 0.16 * -(-len(series) // columns)), layout="constrained")
        left, right = figure.subplots(1, 2)
        for key, rows in series.items():
            rows = rows.assign(x=rows["budget"].map(place))
            # a pattern is a colour and a dash, a warm start (and kind of refinement) a marker
            look = _look(patterns.index(key[0]), starts.index(key[1:]), patterns.index(key[0]))
            _curve(left, _over_seeds(rows, "x", f"perplexity/{text}"), look, label=", ".join(key))
            for column, fill in (("error_reduction", "full"), ("held_out_error_reduction", "none")):
                relative = rows.assign(relative=100 - rows[column]).dropna(subset="relative")
                if len(relative):
                    look |= _fill(fill, look["color"]) | {"linewidth": 1.1 if fill == "full" else 0.6}
                    _curve(right, _over_seeds(relative, "x", "relative"), look)
        handles = left.get_lines()
        left.legend(handles=_dense_line(left, cells, text), loc="best")
        _log_if_wide(left)
        left.set_ylabel(label)
        right.set_ylabel("error relative to warm start (%)")
        texts = {"calibration text": _fill("full", "0.3"), "held-out text": _fill("none", "0.3") | {"linewidth": 0.6}}
        right.legend(handles=[Line2D([], [], label=name, **GREY | look) for name, look in texts.items()], loc="best")
        ticks = ["optimum" if budget == float("inf") else f"{budget:.0f}" for budget in budgets]
        for axis in (left, right):
            axis.set_xticks(range(len(budgets)), ticks)
            axis.set_xlabel("swaps per row, at most")
        figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    return figure


def save(figure: Figure, stem: str | Path) -> None:
    """Write `stem`.pdf (vector, the same bytes for the same figure) and `stem`.png (150 dpi)."""
    options: dict[str, dict[str, Any]] = {"pdf": {"metadata": {"CreationDate": None}}, "png": {"dpi": 150}}
    with matplotlib.rc_context(STYLE):
        for kind, option in options.items():
            with replacing(f"{stem}.{kind}") as partial:
                figure.savefig(partial, format=kind, **option)


def _furthest(layers: pd.DataFrame) -> pd.DataFrame:
    """The rows of the refinement that goes furthest, with the layer's `type` and `error_reduction` (%)."""
    reach = layers.assign(certified=layers["rows_certified"] / layers["rows"], swaps=layers["swaps"] / layers["rows"])
    order = reach.groupby("refinement", sort=False)[["certified", "swaps"]].mean()
    name = order.sort_values(["certified", "swaps"], kind="stable").index[-1]
    layers = layers[layers["refinement"] == name]
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
    """Rows with their `budget` (infinite: until the optimum) for every line of `swaps_curve`.

    The key is (pattern, warm start), and the family of refinements where there are several.
    """
    pruned = cells[cells["pattern"] != "dense"]
    pruned = pruned.assign(
        family=families(pruned),
        budget=pruned["max_swaps"].astype("float64").mask(pruned["optimum"].astype(bool), float("inf")),
    )
    kinds = [name for name in pruned["family"].unique() if name != "none"]
    lines = {}
    for (pattern, warmstart), group in pruned.groupby(["pattern", "warmstart"], sort=False):
        for kind in kinds:
            rows = group[group["family"].isin(["none", kind])]
            if (rows["family"] == kind).any() and rows["budget"].nunique() >= 3:
                lines[pattern, warmstart, kind] = rows
    several = len({kind for *_, kind in lines}) > 1
    return {key if several else key[:2]: rows for key, rows in lines.items()}


def _over_seeds(rows: pd.DataFrame, by: str, column: str) -> pd.DataFrame:
    """Columns `mean` and `std` over the seeds at each value of `by`; one seed has the deviation zero."""
    seeds = rows.groupby([by, "seed"], dropna=False)[column].mean()
    return seeds.groupby(level=by).agg(["mean", "std"]).fillna({"std": 0.0})


def _curve(axis: Axes, line: pd.DataFrame, look: dict[str, Any], **options: Any) -> None:
    axis.plot(line.index, line["mean"], **look, **options)
    if (line["std"] > 0).any():
        low, high = line["mean"] - line["std"], line["mean"] + line["std"]
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
        else {"fillstyle": fill, "markerfacecolor": colour, "markerfacecoloralt": "white"}
    )


def _perplexity_label(cells: pd.DataFrame, text: str) -> str:
    if f"perplexity/{text}" not in cells:
        known = ", ".join(map(repr, perplexity_texts(cells))) or "nothing"
        raise InputError(f"figures: no perplexity was measured on {text!r}, only on {known}")
    seqlens = " and ".join(str(int(seqlen)) for seqlen in cells[f"seqlen/{text}"].dropna().unique())
    return f"perplexity on {text} (seqlen {seqlens})"


def _dense_line(axis: Axes, cells: pd.DataFrame, text: str) -> list[Line2D]:
    values = cells.loc[cells["pattern"] == "dense", f"perplexity/{text}"].dropna()
    if values.empty:
        return []
    value = values.iloc[0]
    return [axis.axhline(value, color="black", linestyle=(0, (4, 3)), linewidth=0.9, label=f"dense ({value:.2f})")]


def _log_if_wide(axis: Axes) -> None:
    values = [y for line in axis.get_lines() for y in line.get_ydata() if pd.notna(y)]
    if max(values, default=1) > 6 * min(values, default=1):
        axis.set_yscale("log")
        # about five labels, whether the range is one decade or six
        decades = math.log10(max(values) / min(values))
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1, 3) if decades < 3 else (1,)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())


def _sparsity(pattern: str) -> str:
    return f"{pattern} sparsity"


def _lighter(colour: str) -> tuple[float, ...]:
    """Light enough for a black hatch to show on it."""
    return tuple(0.35 + 0.65 * channel for channel in matplotlib.colors.to_rgb(colour))
