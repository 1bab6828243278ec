"""The study's tables: every evaluated model, every pruned matrix, and the summary that people read."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sparseswaps.base.errors import InputError
from sparseswaps.base.files import replacing

COORDINATES = ["model", "calibration", "seed", "pattern", "warmstart", "refinement"]
# What a cell's calibration, refinement and reconstruction were told, so that figures can tell what differs.
SETTINGS = ["samples", "propagate", "method", "stop", "freeze", "shrinkage", "between_rows", "reconstruction"]
CURVES = ["block", "layer", "budget", "loss", "held_out"]
PUBLISHED = ["model", "pattern", "warmstart", "refinement", "measure", "value", "source"]
LOSSES = ["block", "layer", "d_out", "d_in", "tokens", "unrouted", "kept"]
LOSSES += ["loss_before", "loss_after", "held_out_before", "held_out_after"]
LOSSES += ["swaps", "max_row_swaps", "rows", "rows_certified", "seconds"]
MISSING = "-"


def error_reduction(before: pd.Series, after: pd.Series, of_nothing: float = 0.0) -> pd.Series:
    """Percent of the error that was removed, element by element; `of_nothing` where it was and stays zero."""
    return 100 * (1 - after / before).mask((before == 0) & (after == 0), of_nothing)


def held_out_error_reduction(layers: pd.DataFrame) -> pd.Series:
    """The same on held-out text, missing where that has no token for an expert."""
    return error_reduction(layers["held_out_before"], layers["held_out_after"], float("nan"))


@dataclass(frozen=True)
class Measured:
    """Everything that was measured of one evaluated model: a dense model, or one cell of the study's grid."""

    facts: dict[str, Any]
    """The six COORDINATES, the SETTINGS and `max_swaps` (None: no limit). A dense model has `model` and `pattern`
    ("dense") only. The refinement "none" is the warm start itself; "swaps+ls" is a reconstruction after "swaps"."""
    losses: pd.DataFrame | None = None
    """The columns LOSSES, a row per pruned matrix. None for a dense model."""
    curves: pd.DataFrame | None = None
    """The columns CURVES, a row per matrix and swap budget; budgets rise. None where no swaps were made."""
    perplexities: dict[str, dict[str, Any]] = field(default_factory=dict)
    """For each text its "perplexity" and "seqlen"."""
    scores: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """For each lm-eval task its metrics."""

    def columns(self, kind: str, names: list[str]) -> pd.DataFrame:
        """Return the columns `names` of `losses` or `curves`. Raises InputError when one is missing."""
        table = getattr(self, kind)
        missing = [name for name in names if name not in table]
        if missing:
            cell = "/".join(str(self.facts[name]) for name in COORDINATES)
            raise InputError(f"{cell}: {kind} without the column {missing[0]!r}; delete them and run snakemake again")
        return table[names]


def cells_table(measured: list[Measured]) -> pd.DataFrame:
    """Return one row per evaluated model, in the order given.

    Raises InputError when a table of losses lacks a column.
    """
    rows = []
    for model in measured:
        row = {name: model.facts.get(name) for name in COORDINATES + SETTINGS} | _refinement_columns(model)
        for text, result in model.perplexities.items():
            row |= {f"perplexity/{text}": result["perplexity"], f"seqlen/{text}": result["seqlen"]}
        for task, metrics in model.scores.items():
            row |= {f"{task}/{metric}": value for metric, value in metrics.items()}
        rows.append(row)
    return _with_gaps(pd.DataFrame(rows))


def _with_gaps(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns with gaps as what they are: plain integers would be written as 0.0, 5.0, ..."""
    whole = [name for name in frame if name in ("seed", "samples", "max_swaps", "seqlen") or name.startswith("seqlen/")]
    kinds = dict.fromkeys(whole, "Int64") | ({"between_rows": "boolean"} if "between_rows" in frame else {})
    return frame.astype(kinds)


def _refinement_columns(model: Measured) -> dict[str, Any]:
    """Return the columns of one row that say how far refinement went and what it changed."""
    budget = model.facts.get("max_swaps")
    to_the_end = model.facts.get("method") == "swaps" and model.facts.get("stop") != "held_out"
    row = {"max_swaps": budget, "optimum": to_the_end and budget is None}
    if model.losses is None:
        measures = ["error_reduction", "held_out_error_reduction", "swaps_per_row", "certified", "seconds"]
        return row | {"sparsity": 0.0} | dict.fromkeys(measures, float("nan"))
    losses = model.columns("losses", LOSSES)
    return row | {
        "sparsity": 1 - losses["kept"].sum() / (losses["d_out"] * losses["d_in"]).sum(),
        "error_reduction": error_reduction(losses["loss_before"], losses["loss_after"]).mean(),
        "held_out_error_reduction": held_out_error_reduction(losses).mean(),
        "swaps_per_row": losses["swaps"].sum() / losses["rows"].sum(),
        "certified": losses["rows_certified"].sum() / losses["rows"].sum(),
        "seconds": losses["seconds"].sum(),
    }


def layers_table(measured: list[Measured]) -> pd.DataFrame:
    """Return one row per pruned matrix and refined cell: the six COORDINATES, then LOSSES.

    Dense models and the refinement "none" have no rows.
    """
    refined = [model for model in measured if model.losses is not None and model.facts["refinement"] != "none"]
    columns = COORDINATES + LOSSES
    parts = [_at_coordinates(model, model.columns("losses", LOSSES), COORDINATES) for model in refined]
    return pd.concat(parts or [pd.DataFrame(columns=columns)], ignore_index=True)[columns]


def curves_table(measured: list[Measured]) -> pd.DataFrame:
    """Return the error of every refinement by swaps at each swap budget: the six COORDINATES, max_swaps, and

    budget: swaps that a row could make so far;
    error, held_out_error: percent of the warm start's on the calibration text and on held-out text, means over layers.

    A layer whose refinement ended sooner counts with its last error. A budget is left out where some layer has no
    value at it and has not ended. Raises InputError when a column is missing.
    """
    columns = [*COORDINATES, "max_swaps", "budget", "error", "held_out_error"]
    parts = [
        _at_coordinates(model, _mean_curve(model.columns("curves", CURVES)), [*COORDINATES, "max_swaps"])
        for model in measured
        if model.curves is not None
    ]
    return _with_gaps(pd.concat(parts or [pd.DataFrame(columns=columns)], ignore_index=True)[columns])


def _at_coordinates(model: Measured, table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    return table.assign(**{name: model.facts[name] for name in names})


def _mean_curve(curve: pd.DataFrame) -> pd.DataFrame:
    """Return the columns budget, error and held_out_error of one cell."""
    curve = curve.drop_duplicates(["block", "layer", "budget"], keep="last")
    means = {}
    for name, losses, of_nothing in (("error", "loss", 0.0), ("held_out_error", "held_out", float("nan"))):
        by_layer = curve.pivot(index=["block", "layer"], columns="budget", values=losses).astype("float64")
        by_layer = side_by_side(by_layer)
        means[name] = 100 - by_layer.apply(partial(error_reduction, by_layer[0], of_nothing=of_nothing)).mean()
    return pd.DataFrame(means).dropna(subset="error").rename_axis("budget").reset_index()


def side_by_side(curves: pd.DataFrame) -> pd.DataFrame:
    """Curves that end at different budgets, a row each, at the budgets (columns) where they can be compared: at which
    each was looked at or had ended, and then counts with its last value."""
    known = curves.notna()
    ended = ~known.loc[:, ::-1].cummax(axis=1).loc[:, ::-1]
    return curves.ffill(axis=1).loc[:, (known | ended).all()]


def select(frame: pd.DataFrame, model: str, calibration: str) -> pd.DataFrame:
    """The rows of one model and one calibration, with those of the dense model, which has no calibration."""
    of_study = (frame["calibration"] == calibration) | (frame["pattern"] == "dense")
    return frame[(frame["model"] == model) & of_study]


def families(cells: pd.DataFrame) -> pd.Series:
    """The refinements' names without their budget: "swaps-5" and "swaps-25" are "swaps" that end sooner."""
    return _without_number(cells["refinement"], cells["max_swaps"])


def calibration_families(cells: pd.DataFrame) -> pd.Series:
    """The calibrations' names without their number of samples: "c4-16" and "c4-512" are more and less of one text."""
    return _without_number(cells["calibration"], cells["samples"])


def _without_number(names: pd.Series, numbers: pd.Series) -> pd.Series:
    stripped = [
        re.sub(rf"^([^+]*)-{int(number)}(?=\+|$)", r"\1", name) if pd.notna(name) and pd.notna(number) else name
        for name, number in zip(names, numbers, strict=True)
    ]
    return pd.Series(stripped, index=names.index, dtype="str")


def headline(cells: pd.DataFrame) -> list[str]:
    """Of each family of refinements the one that goes furthest: as far as it can, or with the largest budget."""
    refined = cells[(cells["pattern"] != "dense") & (cells["refinement"] != "none")]
    reach = refined["max_swaps"].astype("float64").fillna(float("inf"))
    furthest = reach == reach.groupby(families(refined)).transform("max")
    return list(refined.loc[furthest, "refinement"].unique())


def principal(cells: pd.DataFrame) -> str | None:
    """The refinement of `headline` that stands for the method where there is room for one: by swaps, to the local
    optimum rather than less far, with the weights as they are; None when nothing was refined."""
    names = headline(cells)
    of = cells.drop_duplicates("refinement").set_index("refinement")
    plain = [name for name in names if of["method"][name] == "swaps" and of["reconstruction"][name] == "none"]
    return min(plain or names, key=lambda name: not of["optimum"][name], default=None)


def perplexity_texts(cells: pd.DataFrame) -> list[str]:
    """The evaluation texts that perplexity was measured on."""
    return [name.removeprefix("perplexity/") for name in cells if name.startswith("perplexity/")]


def summary(cells: pd.DataFrame) -> pd.DataFrame:
    """The table that people read: strings, one row per (model, calibration, pattern, warm start).

    A column is called "<measure>: <which>", `which` being dense, warm start, or a refinement of `headline`. Perplexity
    names its seqlen; accuracies are percent, and their mean over tasks precedes them when there are several. Over
    several seeds a value reads "mean ± standard deviation".
    """
    dense = cells["pattern"] == "dense"
    refinements = headline(cells)
    every = ["dense", "warm start", *refinements]
    measures = [(*measure, every) for measure in _perplexities(cells)]
    measures += [(title, cells[column], _tenths, refinements) for title, column in REDUCTIONS.items()]
    swapped = [name for name in refinements if "+" not in name]  # a reconstruction makes no swaps of its own
    measures.append(("swaps per row", cells["swaps_per_row"], _tenths, swapped))
    measures += [(*measure, every) for measure in _accuracies(cells)]

    keys = ["model", "calibration", "pattern", "warmstart"]
    rows = []
    for key, group in cells[~dense].groupby(keys, sort=False, dropna=False):
        chosen = {name: group.index[group["refinement"] == name] for name in refinements}
        chosen["warm start"] = group.index[group["refinement"] == "none"]
        chosen["dense"] = cells.index[dense & (cells["model"] == key[0])]
        row = dict(zip(keys, key, strict=True))
        for title, values, text, columns in measures:
            row |= {f"{title}: {name}": _over_seeds(values[chosen[name]], text) for name in columns}
        rows.append(row)
    frame = pd.DataFrame(rows, columns=None if rows else keys)
    empty = [name for name in frame.columns[len(keys) :] if frame[name].isna().all()]
    return frame.drop(columns=empty).rename(columns={"warmstart": "warm start"})


REDUCTIONS = {
    "error reduction, calibration (%)": "error_reduction",
    "error reduction, held out (%)": "held_out_error_reduction",
}


def _perplexities(cells: pd.DataFrame) -> list[tuple[str, pd.Series, Callable[[float], str]]]:
    # numbers at another seqlen are another measure, never to stand in the same column
    return [
        (f"perplexity on {text} (seqlen {int(seqlen)})", values.where(lengths == seqlen), _two_decimals)
        for text in perplexity_texts(cells)
        for values, lengths in [(cells[f"perplexity/{text}"], cells[f"seqlen/{text}"])]
        for seqlen in lengths.dropna().unique()
    ]


def _accuracies(cells: pd.DataFrame) -> list[tuple[str, pd.Series, Callable[[float], str]]]:
    tasks = _tasks(cells)
    accuracies = [(f"{name.removesuffix('/acc')} acc (%)", 100 * cells[name], _tenths) for name in tasks]
    if len(tasks) > 1:
        accuracies.insert(0, (f"mean of {len(tasks)} tasks, acc (%)", _mean_accuracy(cells), _tenths))
    return accuracies


def _tasks(cells: pd.DataFrame) -> list[str]:
    return [name for name in cells if name.endswith("/acc") and not name.startswith(("perplexity/", "seqlen/"))]


def _mean_accuracy(cells: pd.DataFrame) -> pd.Series:
    """Percent, the tasks unweighted; missing where one is, or where there is none."""
    return 100 * cells[_tasks(cells)].astype("float64").mean(axis=1, skipna=False)


def _over_seeds(values: pd.Series, text: Callable[[float], str]) -> str | None:
    values = values.dropna()
    if values.empty:
        return None
    mean = text(values.mean())
    return f"{mean} ± {text(values.std())}" if len(values) > 1 else mean


def _tenths(value: float) -> str:
    return f"{value:.1f}"


def _two_decimals(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:.0f}" if value < 1e6 else f"{value:.2e}"


def best(summary: pd.DataFrame) -> pd.DataFrame:
    """True, in the shape of `summary`, at the best value of every measure for each (model, calibration, pattern).

    Only perplexity and accuracy have one: error reductions from different warm starts cannot be compared. The dense
    model does not compete.
    """
    marks = pd.DataFrame(False, index=summary.index, columns=summary.columns)
    groups = summary.groupby(["model", "calibration", "pattern"], sort=False, dropna=False).groups.values()
    measures = {name: name.rpartition(": ")[0] for name in summary.columns if not name.endswith(": dense")}
    for measure in sorted({title for title in measures.values() if title.startswith("perplexity") or "acc (" in title}):
        names = [name for name, title in measures.items() if title == measure]
        values = summary[names].apply(lambda column: column.str.split(" ± ").str[0].astype("float64"))
        for rows in groups:
            part = values.loc[rows]
            extreme = part.min(axis=None) if measure.startswith("perplexity") else part.max(axis=None)
            marks.loc[rows, names] = part == extreme
    return marks


def comparison(cells: pd.DataFrame) -> pd.DataFrame:
    """Perplexity of every method by pattern: strings, one row per (model, calibration, warm start, refinement), columns
    "<measure>: <pattern>" as those of `summary`; the dense models' rows have the same value at every pattern."""
    dense = cells["pattern"] == "dense"
    keys = ["model", "calibration", "warmstart", "refinement"]
    rows = []
    for key, group in cells.groupby(keys, sort=False, dropna=False):
        row = dict(zip(keys, key, strict=True))
        for title, values, text in _perplexities(cells):
            for pattern in cells.loc[~dense, "pattern"].unique():
                of_pattern = group.index[group["pattern"].isin([pattern, "dense"])]
                row[f"{title}: {pattern}"] = _over_seeds(values[of_pattern], text)
        rows.append(row)
    frame = pd.DataFrame(rows, columns=None if rows else keys)
    frame["refinement"] = frame["refinement"].mask(frame["warmstart"].isna(), "dense")
    empty = [name for name in frame.columns[len(keys) :] if frame[name].isna().all()]
    return frame.drop(columns=empty).rename(columns={"warmstart": "warm start"})


def lowest(comparison: pd.DataFrame) -> pd.DataFrame:
    """True, in the shape of `comparison`, at the best of the pruned models in each column of a model."""
    marks = pd.DataFrame(False, index=comparison.index, columns=comparison.columns)
    pruned = comparison[comparison["warm start"].notna()]
    for rows in pruned.groupby("model", sort=False).groups.values():
        for name in (name for name in comparison if ": " in name):
            values = pruned.loc[rows, name].str.split(" ± ").str[0].astype("float64")
            marks.loc[rows, name] = values == values.min()
    return marks


def by_measure(summary: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """A summary, or its marks, as a table for each measure: with the columns that name the rows, and its own."""
    summary = summary.rename(columns={"warm start": "from"})  # there is a measured column of that name
    keys = [name for name in summary if ": " not in name]
    measures = dict.fromkeys(name.rpartition(": ")[0] for name in summary if ": " in name)
    return {
        measure: summary[keys + [name for name in summary if name.rpartition(": ")[0] == measure]]
        for measure in measures
    }


def read_published(path: str | Path) -> pd.DataFrame:
    """Read a CSV table with the columns PUBLISHED, as `beside_published` takes it.

    Raises InputError when it is missing or broken, lacks a column, or has a `value` that is no number.
    """
    frame = read_table(path)
    missing = [name for name in PUBLISHED if name not in frame]
    if missing:
        raise InputError(f"{path}: without the column {missing[0]!r}; it needs {', '.join(PUBLISHED)}")
    values = pd.to_numeric(frame["value"], errors="coerce")
    if values.isna().any():
        wrong = frame.loc[values.isna(), "value"].iloc[0]
        raise InputError(f"{path}: column 'value': {MISSING if pd.isna(wrong) else wrong!r} is no number")
    return frame[PUBLISHED].assign(value=values)


def beside_published(cells: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """The measured value beside each published one, for each calibration that it was measured with.

    `published` has the columns PUBLISHED; a `measure` is "perplexity/<text>", or "accuracy": percent, the unweighted
    mean of all tasks' acc. Returns its rows with the calibration, `seqlen` and mean over seeds of what was measured,
    and the difference, all missing where there is no such cell.
    """
    keys = ["model", "calibration", "pattern", "warmstart", "refinement"]
    parts = [cells[keys].assign(measure="accuracy", seqlen=pd.NA, measured=_mean_accuracy(cells))]
    for text in perplexity_texts(cells):
        name, seqlens = f"perplexity/{text}", cells[f"seqlen/{text}"]
        parts.append(cells[keys].assign(measure=name, seqlen=seqlens, measured=cells[name]))
    measured = pd.concat(parts, ignore_index=True).dropna(subset="measured")
    groups = measured.groupby([*keys, "measure", "seqlen"], sort=False, dropna=False, as_index=False)
    found = published.merge(groups["measured"].mean(), "left", [name for name in PUBLISHED if name in measured])
    found = found.rename(columns={"value": "published"})
    found["difference"] = found["measured"] - found["published"]
    return _with_gaps(found[[*keys, "measure", "seqlen", "published", "measured", "difference", "source"]])


def display(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` as strings to look at: four significant digits, yes and no, a dash for what is missing."""
    return pd.DataFrame({name: [_shown(value) for value in frame[name]] for name in frame}, dtype="str")


def _shown(value: Any) -> str:
    if pd.isna(value):
        return MISSING
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:.4g}"
    return str(value)


def numeric(shown: pd.DataFrame) -> list[bool]:
    """For each column of `display`'s result, whether it holds numbers (to be set flush right)."""
    return [bool(shown[name].str.match(rf"{MISSING}$|[-+]?(\d|inf)").all()) for name in shown]


def write_table(frame: pd.DataFrame, stem: str | Path) -> None:
    """Write `stem`.csv (full precision), `stem`.md (GitHub) and `stem`.tex (booktabs), each complete or not at all."""
    shown = display(frame)
    _write(stem, frame, _markdown(shown), _latex(shown))


def write_measures(frame: pd.DataFrame, best: pd.DataFrame, stem: str | Path) -> None:
    """The same for a summary or a comparison; `stem`.md and `stem`.tex have a table a measure, `best` in bold."""
    marks = by_measure(best)
    markdown, latex = [], []
    for measure, part in by_measure(frame).items():
        shown = display(part)
        markdown.append(f"### {measure}\n\n{_markdown(shown, measure, marks[measure])}")
        latex.append(_latex(shown, measure, marks[measure]))
    _write(stem, frame, "\n".join(markdown), "\n".join(latex))


def _write(stem: str | Path, frame: pd.DataFrame, markdown: str, latex: str) -> None:
    texts = {".csv": frame.to_csv(index=False, lineterminator="\n"), ".md": markdown, ".tex": latex}
    for suffix, text in texts.items():
        with replacing(f"{stem}{suffix}") as unfinished:
            unfinished.write_text(text, encoding="utf-8")


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a table as written by `write_table`. Raises InputError when it is missing or broken."""
    # names are text whatever they look like ("128"), and only an empty field is missing (a name may be "NA")
    named = [*COORDINATES, "propagate", "method", "stop", "reconstruction", "layer", "measure", "source"]
    text = {name: "str" for name in named if name != "seed"}
    try:
        frame = pd.read_csv(path, dtype=text, keep_default_na=False, na_values=[""])
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a CSV table ({error}); delete it and run snakemake again") from None
    return _with_gaps(frame)


def _markdown(shown: pd.DataFrame, measure: str = "", bold: pd.DataFrame | None = None) -> str:
    columns = []
    for name, right in zip(shown, numeric(shown), strict=True):
        heading = name.removeprefix(f"{measure}: ")
        texts = [re.sub(r"\s+", " ", text).replace("|", r"\|") for text in [heading, *shown[name]]]
        if bold is not None:
            texts[1:] = [f"**{text}**" if mark else text for text, mark in zip(texts[1:], bold[name], strict=True)]
        width = max(3, *map(len, texts))
        texts = [text.rjust(width) if right else text.ljust(width) for text in texts]
        rule = "-" * (width - 1) + ":" if right else "-" * width
        columns.append([texts[0], rule, *texts[1:]])
    return "".join(f"| {' | '.join(line)} |\n" for line in zip(*columns, strict=True))


def _latex(shown: pd.DataFrame, measure: str = "", bold: pd.DataFrame | None = None) -> str:
    layout = "".join("r" if right else "l" for right in numeric(shown))
    if bold is not None:  # in characters of no text, which escaping leaves alone
        shown = shown.mask(bold, "\ue000" + shown + "\ue001")
    if measure:  # stands above its columns
        parts = [name.rpartition(": ") for name in shown]
        shown = shown.set_axis(pd.MultiIndex.from_tuples([(group, name) for group, _, name in parts]), axis=1)
    text = shown.to_latex(index=False, escape=True, column_format=layout, multicolumn_format="c")
    for character, command in {"±": r"$\pm$", "\ue000": r"\textbf{", "\ue001": "}"}.items():
        text = text.replace(character, command)
    return text
