"""The study's tables: every evaluated model, every pruned matrix, and the summary that people read."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sparseswaps.errors import InputError
from sparseswaps.files import replacing

COORDINATES = ["model", "calibration", "seed", "pattern", "warmstart", "refinement"]
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


def cells_table(
    cells: list[dict[str, Any]],
    losses: list[pd.DataFrame | None],
    perplexities: list[dict[str, dict[str, Any]]],
    harness: list[dict[str, Any] | None],
) -> pd.DataFrame:
    """One row per evaluated model, in the order given.

    `cells[i]` holds the six COORDINATES and `max_swaps` (None: until the local optimum); a dense model's holds `model`
    and `pattern` ("dense") only. `losses[i]` has the columns LOSSES and a row per pruned matrix (None for a dense
    model), `perplexities[i]` maps a text to its "perplexity" and "seqlen", and `harness[i]["results"]` maps a task to
    its metrics (None: not evaluated). Raises InputError when a table of losses lacks a column.
    """
    rows = []
    for cell, table, texts, tasks in zip(cells, losses, perplexities, harness, strict=True):
        row = {name: cell.get(name) for name in COORDINATES} | _refined(cell, table)
        for text, measured in texts.items():
            row |= {f"perplexity/{text}": measured["perplexity"], f"seqlen/{text}": measured["seqlen"]}
        for task, metrics in (tasks["results"] if tasks else {}).items():
            row |= {f"{task}/{metric}": value for metric, value in metrics.items()}
        rows.append(row)
    frame = pd.DataFrame(rows)
    # these have gaps, and a plain column of integers with gaps would be written as 0.0, 5.0, ...
    whole = ["seed", "max_swaps", *(name for name in frame if name.startswith("seqlen/"))]
    return frame.astype(dict.fromkeys(whole, "Int64"))


def _refined(cell: dict[str, Any], table: pd.DataFrame | None) -> dict[str, Any]:
    dense = cell["pattern"] == "dense"
    refined = not dense and cell["refinement"] != "none"
    row = {
        "max_swaps": cell["max_swaps"] if refined else None if dense else 0,
        "optimum": refined and cell["max_swaps"] is None,
    }
    if table is None:
        measured = ["error_reduction", "held_out_error_reduction", "swaps_per_row", "certified", "seconds"]
        return row | {"sparsity": 0.0} | dict.fromkeys(measured, float("nan"))
    table = _checked(cell, table)
    return row | {
        "sparsity": 1 - table["kept"].sum() / (table["d_out"] * table["d_in"]).sum(),
        "error_reduction": error_reduction(table["loss_before"], table["loss_after"]).mean(),
        "held_out_error_reduction": held_out_error_reduction(table).mean(),
        "swaps_per_row": table["swaps"].sum() / table["rows"].sum(),
        "certified": table["rows_certified"].sum() / table["rows"].sum(),
        "seconds": table["seconds"].sum(),
    }


def layers_table(cells: list[dict[str, Any]], losses: list[pd.DataFrame | None]) -> pd.DataFrame:
    """One row per pruned matrix and refined cell: the six COORDINATES, then LOSSES.

    Takes the same lists as `cells_table`; leaves out dense models and the refinement "none".
    """
    tables = [
        _checked(cell, table).assign(**{name: cell[name] for name in COORDINATES})
        for cell, table in zip(cells, losses, strict=True)
        if table is not None and cell["refinement"] != "none"
    ]
    return pd.concat(tables or [pd.DataFrame(columns=COORDINATES + LOSSES)], ignore_index=True)[COORDINATES + LOSSES]


def _checked(cell: dict[str, Any], table: pd.DataFrame) -> pd.DataFrame:
    missing = [name for name in LOSSES if name not in table]
    if missing:
        where = "/".join(str(cell[name]) for name in COORDINATES)
        raise InputError(f"{where}: losses without the column {missing[0]!r}; delete them and run snakemake again")
    return table[LOSSES]


def select(frame: pd.DataFrame, model: str, calibration: str) -> pd.DataFrame:
    """The rows of one model and one calibration, with those of the dense model, which has no calibration."""
    of_study = (frame["calibration"] == calibration) | (frame["pattern"] == "dense")
    return frame[(frame["model"] == model) & of_study]


def families(cells: pd.DataFrame) -> pd.Series:
    """The refinements' names without their budget: "swaps-5" and "swaps-25" are "swaps" that end sooner."""
    names = [
        re.sub(rf"-{int(budget)}$", "", name) if pd.notna(name) and pd.notna(budget) else name
        for name, budget in zip(cells["refinement"], cells["max_swaps"], strict=True)
    ]
    return pd.Series(names, index=cells.index, dtype="str")


def headline(cells: pd.DataFrame) -> list[str]:
    """Of each family of refinements the one that goes furthest: to the local optimum, or with the largest budget."""
    refined = cells[(cells["pattern"] != "dense") & (cells["refinement"] != "none")]
    reach = refined["max_swaps"].astype("float64").mask(refined["optimum"].astype(bool), float("inf"))
    furthest = reach == reach.groupby(families(refined)).transform("max")
    return list(refined.loc[furthest, "refinement"].unique())


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
    "swaps per row": "swaps_per_row",
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
    tasks = [name for name in cells if name.endswith("/acc") and not name.startswith(("perplexity/", "seqlen/"))]
    accuracies = [(f"{name.removesuffix('/acc')} acc (%)", 100 * cells[name], _tenths) for name in tasks]
    if len(tasks) > 1:
        mean = 100 * cells[tasks].mean(axis=1, skipna=False)
        accuracies.insert(0, (f"mean of {len(tasks)} tasks, acc (%)", mean, _tenths))
    return accuracies


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
    texts = {
        ".csv": frame.to_csv(index=False, lineterminator="\n"),
        ".md": _markdown(shown),
        ".tex": _latex(shown),
    }
    for suffix, text in texts.items():
        with replacing(f"{stem}{suffix}") as partial:
            partial.write_text(text, encoding="utf-8")


def read_table(path: str | Path) -> pd.DataFrame:
    """Read cells.csv or layers.csv as written by `write_table`. Raises InputError when it is missing or broken."""
    # names are text whatever they look like ("128"), and only an empty field is missing (a name may be "NA")
    text = {name: "str" for name in COORDINATES if name != "seed"} | {"layer": "str"}
    try:
        frame = pd.read_csv(path, dtype=text, keep_default_na=False, na_values=[""])
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a CSV table ({error}); delete it and run snakemake again") from None
    whole = [name for name in frame if name in ("seed", "max_swaps") or name.startswith("seqlen/")]
    return frame.astype(dict.fromkeys(whole, "Int64"))


def _markdown(shown: pd.DataFrame) -> str:
    columns = []
    for name, right in zip(shown, numeric(shown), strict=True):
        texts = [re.sub(r"\s+", " ", text).replace("|", r"\|") for text in [name, *shown[name]]]
        width = max(3, *map(len, texts))
        texts = [text.rjust(width) if right else text.ljust(width) for text in texts]
        rule = "-" * (width - 1) + ":" if right else "-" * width
        columns.append([texts[0], rule, *texts[1:]])
    return "".join(f"| {' | '.join(line)} |\n" for line in zip(*columns, strict=True))


def _latex(shown: pd.DataFrame) -> str:
    layout = "".join("r" if right else "l" for right in numeric(shown))
    text = shown.to_latex(index=False, escape=True, column_format=layout)
    return text.replace("±", r"$\pm$")
