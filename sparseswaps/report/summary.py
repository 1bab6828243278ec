"""The summary of a study: its principal refinements, and its measures side by side as strings."""

import re
from collections.abc import Callable
from functools import partial

import pandas as pd

REDUCTIONS = {
    "error reduction, calibration (%)": "error_reduction",
    "error reduction, held out (%)": "held_out_error_reduction",
}
WARM_START = "warm start"  # the name of the refinement "none" in tables and figures
_one_decimal = "{:.1f}".format
# The measure's title, its value in every row of a table, and how a value is written.
Measure = tuple[str, pd.Series, Callable[[float], str]]


def refinement_families(cells: pd.DataFrame) -> pd.Series:
    """Return the refinements' names without their budget: "swaps-5" and "swaps-25" are "swaps" that end sooner."""
    return _remove_numbers(cells["refinement"], cells["max_swaps"])


def calibration_families(cells: pd.DataFrame) -> pd.Series:
    """Return the calibrations' names without their number of samples: "c4-16" and "c4-512" are both "c4"."""
    return _remove_numbers(cells["calibration"], cells["samples"])


def _remove_numbers(names: pd.Series, numbers: pd.Series) -> pd.Series:
    stripped = [
        re.sub(rf"^([^+]*)-{int(number)}(?=\+|$)", r"\1", name) if pd.notna(name) and pd.notna(number) else name
        for name, number in zip(names, numbers, strict=True)
    ]
    return pd.Series(stripped, index=names.index, dtype="str")


def headline_refinements(cells: pd.DataFrame) -> list[str]:
    """Return the refinement of each family that goes furthest: to the end, or with the largest budget."""
    refined = cells[(cells["pattern"] != "dense") & (cells["refinement"] != "none")]
    reach = refined["max_swaps"].astype("float64").fillna(float("inf"))
    furthest = reach == reach.groupby(refinement_families(refined)).transform("max")
    return list(refined.loc[furthest, "refinement"].unique())


def principal_refinement(cells: pd.DataFrame) -> str | None:
    """Return the one of `headline_refinements` that stands for the method; None when nothing was refined.

    Swaps to the local optimum come first, then swaps with another end, then any other refinement.
    """
    names = headline_refinements(cells)
    facts = cells.drop_duplicates("refinement").set_index("refinement")
    swaps = [name for name in names if facts["method"][name] == "swaps" and facts["reconstruction"][name] == "none"]
    return min(swaps or names, key=lambda name: not facts["optimum"][name], default=None)


def headline_cells(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the pruned cells without shorter refinements and smaller calibrations of a family.

    The new column `which` is the refinement, with its calibration where calibrations of several families were used.
    """
    kept = cells[(cells["pattern"] != "dense") & cells["refinement"].isin(["none", *headline_refinements(cells)])]
    families = calibration_families(kept)
    samples = kept["samples"].astype("float64")
    largest = samples == samples.groupby([kept["model"], families]).transform("max")
    which = kept["refinement"].replace("none", WARM_START)
    if families.nunique() > 1:
        which = which + " (" + kept["calibration"] + ")"
    return kept.assign(which=which)[largest | samples.isna()]


def perplexity_texts(cells: pd.DataFrame) -> list[str]:
    """Return the texts on which perplexity was measured."""
    return [name.removeprefix("perplexity/") for name in cells if name.startswith("perplexity/")]


def mean_accuracy(cells: pd.DataFrame) -> pd.Series:
    """Return the unweighted mean of all tasks' accuracy in percent, missing where a task is missing."""
    return 100 * cells[_accuracy_columns(cells)].astype("float64").mean(axis=1, skipna=False)


def _accuracy_columns(cells: pd.DataFrame) -> list[str]:
    return [name for name in cells if name.endswith("/acc") and not name.startswith(("perplexity/", "seqlen/"))]


def summary(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the main table as strings, one row per (model, calibration, pattern, warm start).

    A column is called "<measure>: <which>", where `which` is dense, warm start, or one of `headline_refinements`.
    Accuracies are percent, after their mean. Over several seeds a value reads "mean ± standard deviation".
    """
    keys = ["model", "calibration", "pattern", "warmstart"]
    is_dense = cells["pattern"] == "dense"
    pruned = cells[~is_dense]
    dense = pruned[keys].drop_duplicates().merge(cells[is_dense].drop(columns=keys[1:]), on="model")
    pruned = pruned.assign(which=pruned["refinement"].replace("none", WARM_START))
    rows = pd.concat([pruned, dense.assign(which="dense")], ignore_index=True)

    refinements = headline_refinements(cells)
    swapped = [name for name in refinements if "+" not in name]  # a reconstruction makes no swaps of its own
    every = ["dense", WARM_START, *refinements]
    measures = [(measure, every) for measure in _perplexities(rows)]
    measures += [((title, rows[column], _one_decimal), refinements) for title, column in REDUCTIONS.items()]
    measures.append((("swaps per row", rows["swaps_per_row"], _one_decimal), swapped))
    measures += [(measure, every) for measure in _accuracies(rows)]
    return _spread(rows, keys, "which", measures)


def comparison(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the perplexities and accuracies of every method as strings, one row per (model, calibration, warm start,
    refinement).

    A column is called "<measure>: <pattern>". A dense model has the same value at every pattern.
    """
    keys = ["model", "calibration", "warmstart", "refinement"]
    is_dense = cells["pattern"] == "dense"
    patterns = cells.loc[~is_dense, "pattern"].unique()
    dense = cells[is_dense].assign(refinement="dense").drop(columns="pattern")
    dense = dense.merge(pd.Series(patterns, name="pattern"), how="cross")
    rows = pd.concat([dense, cells[~is_dense]], ignore_index=True)
    measures = [*_perplexities(rows), *_accuracies(rows)]
    return _spread(rows, keys, "pattern", [(measure, list(patterns)) for measure in measures])


def _spread(
    rows: pd.DataFrame, keys: list[str], column: str, measures: list[tuple[Measure, list[str]]]
) -> pd.DataFrame:
    """Return one row per value of `keys`; each measure has a column for each of its values of `column`."""
    records = []
    for key, group in rows.groupby(keys, sort=False, dropna=False):
        record = dict(zip(keys, key, strict=True))
        for (title, values, write), names in measures:
            for name in names:
                record[f"{title}: {name}"] = _over_seeds(values[group.index[group[column] == name]], write)
        records.append(record)
    frame = pd.DataFrame(records, columns=None if records else keys)
    empty = [name for name in frame.columns[len(keys) :] if frame[name].isna().all()]
    return frame.drop(columns=empty).rename(columns={"warmstart": "warm start"})


def _perplexities(rows: pd.DataFrame) -> list[Measure]:
    # Perplexities at different sequence lengths cannot be compared: each length is a measure of its own.
    return [
        (f"perplexity on {text} (seqlen {int(seqlen)})", values.where(lengths == seqlen), _two_decimals)
        for text in perplexity_texts(rows)
        for values, lengths in [(rows[f"perplexity/{text}"], rows[f"seqlen/{text}"])]
        for seqlen in lengths.dropna().unique()
    ]


def _accuracies(rows: pd.DataFrame) -> list[Measure]:
    names = _accuracy_columns(rows)
    accuracies = [(f"{name.removesuffix('/acc')} acc (%)", 100 * rows[name], _one_decimal) for name in names]
    if len(names) > 1:
        accuracies.insert(0, (f"mean of {len(names)} tasks, acc (%)", mean_accuracy(rows), _one_decimal))
    return accuracies


def _over_seeds(values: pd.Series, write: Callable[[float], str]) -> str | None:
    values = values.dropna()
    if values.empty:
        return None
    mean = write(values.mean())
    return f"{mean} ± {write(values.std())}" if len(values) > 1 else mean


def _two_decimals(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:.0f}" if value < 1e6 else f"{value:.2e}"


def _mark_best(table: pd.DataFrame, keys: list[str], axis: int | None) -> pd.DataFrame:
    """Mark the best values of pruned models among rows of equal `keys`: by column (axis 0), or by measure (None)."""
    marks = pd.DataFrame(False, index=table.index, columns=table.columns)
    columns = pd.Series({name: name.rpartition(": ")[0] for name in table if not name.endswith(": dense")})
    for measure, names in columns.groupby(columns).groups.items():
        if not (measure.startswith("perplexity") or "acc (" in measure):
            continue
        values = table[names].apply(lambda column: column.str.split(" ± ").str[0].astype("float64"))
        values = values[table["warm start"].notna()]
        for _, part in values.groupby([table[key] for key in keys], sort=False, dropna=False):
            best = part.min(axis=axis) if measure.startswith("perplexity") else part.max(axis=axis)
            marks.loc[part.index, names] = part == best
    return marks


# Error reductions from different warm starts cannot be compared, and no best one is marked.
mark_best_of_summary = partial(_mark_best, keys=["model", "calibration", "pattern"], axis=None)
mark_best_of_comparison = partial(_mark_best, keys=["model"], axis=0)
