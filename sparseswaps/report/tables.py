"""The tables of numbers: a row per evaluated model, per pruned matrix, per number of swaps, per published value.

`write_all` makes every table of a study from one `Measured` per evaluated model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

from sparseswaps.base.errors import BrokenFileError, InputError, one_line
from sparseswaps.report.formats import MISSING, write_measures, write_table
from sparseswaps.report.summary import (
    comparison,
    mark_best_of_comparison,
    mark_best_of_summary,
    mean_accuracy,
    perplexity_texts,
    summary,
)

COORDINATES = ["model", "calibration", "seed", "pattern", "warmstart", "refinement"]
# The settings of a cell's calibration, refinement and reconstruction, by which figures tell cells apart.
SETTINGS = ["samples", "propagate", "method", "stop", "freeze", "shrinkage", "between_rows", "refit", "reconstruction"]
LOSSES = ["block", "layer", "d_out", "d_in", "tokens", "unrouted", "kept"]
LOSSES += ["loss_before", "loss_after", "held_out_before", "held_out_after"]
LOSSES += ["swaps", "max_row_swaps", "rows", "rows_certified", "seconds"]
PUBLISHED = ["model", "pattern", "warmstart", "refinement", "measure", "value", "source"]
NAMES = [name for name in COORDINATES if name != "seed"]  # read as text: a name may look like a number
NAMES += ["propagate", "method", "stop", "reconstruction", "layer", "measure", "source"]


@dataclass(frozen=True)
class Measured:
    """Everything that was measured of one evaluated model: a dense model, or one cell of the study's grid.

    Attributes:
        facts: the six COORDINATES, the SETTINGS and `max_swaps` (None: no limit). A dense model has `model` and
            `pattern` ("dense") only. The refinement "none" is the warm start itself, "swaps+ls" is a reconstruction.
        losses: the columns LOSSES, a row per pruned matrix. None for a dense model.
        curves: the columns block, layer, budget, loss and held_out, a row per matrix and swap budget; budgets rise.
            None where no swaps were made.
        perplexities: for each text its "perplexity" and "seqlen".
        scores: for each lm-eval task its metrics.
        epochs: the columns block, epoch, level, error and held_out, a row per block and epoch of its training. None
            where no blocks were trained.
        drift: the columns block, dense_path and pruned_path, a row per block. None where it was not measured.
    """

    facts: dict[str, Any]
    losses: pd.DataFrame | None = None
    curves: pd.DataFrame | None = None
    perplexities: dict[str, dict[str, Any]] = field(default_factory=dict)
    scores: dict[str, dict[str, float | None]] = field(default_factory=dict)
    epochs: pd.DataFrame | None = None
    drift: pd.DataFrame | None = None


def error_reduction(before: pd.Series, after: pd.Series, if_zero: float = 0.0) -> pd.Series:
    """Return the percent of the error that was removed, by element; `if_zero` where the error was and stays zero."""
    return 100 * (1 - after / before).mask((before == 0) & (after == 0), if_zero)


def held_out_error_reduction(layers: pd.DataFrame) -> pd.Series:
    """Return `error_reduction` on held-out text, missing where that text has no token for an expert."""
    return error_reduction(layers["held_out_before"], layers["held_out_after"], float("nan"))


def cells_table(measured: list[Measured]) -> pd.DataFrame:
    """Return one row per evaluated model, in the order given."""
    rows = []
    for model in measured:
        budget = model.facts.get("max_swaps")
        to_the_end = model.facts.get("method") == "swaps" and model.facts.get("stop") != "held_out"
        row = {name: model.facts.get(name) for name in COORDINATES + SETTINGS}
        row |= {"max_swaps": budget, "optimum": to_the_end and budget is None} | _measures(model.losses)
        for text, result in model.perplexities.items():
            row |= {f"perplexity/{text}": result["perplexity"], f"seqlen/{text}": result["seqlen"]}
        for task, metrics in model.scores.items():
            row |= {f"{task}/{metric}": value for metric, value in metrics.items()}
        rows.append(row)
    return _set_types(pd.DataFrame(rows))


def _measures(losses: pd.DataFrame | None) -> dict[str, float]:
    """Return the columns of one row that say what pruning and refinement changed."""
    if losses is None:
        names = ["error_reduction", "held_out_error_reduction", "swaps_per_row", "certified", "seconds"]
        return {"sparsity": 0.0, **dict.fromkeys(names, float("nan"))}
    return {
        "sparsity": 1 - losses["kept"].sum() / (losses["d_out"] * losses["d_in"]).sum(),
        "error_reduction": error_reduction(losses["loss_before"], losses["loss_after"]).mean(),
        "held_out_error_reduction": held_out_error_reduction(losses).mean(),
        "swaps_per_row": losses["swaps"].sum() / losses["rows"].sum(),
        "certified": losses["rows_certified"].sum() / losses["rows"].sum(),
        "seconds": losses["seconds"].sum(),
    }


def layers_table(measured: list[Measured]) -> pd.DataFrame:
    """Return one row per pruned matrix and refined cell ("none" is not refined): the six COORDINATES, then LOSSES."""
    refined = [(m, m.losses) for m in measured if m.losses is not None and m.facts["refinement"] != "none"]
    return _join(refined, COORDINATES, LOSSES)


def curves_table(measured: list[Measured]) -> pd.DataFrame:
    """Return the error of every refinement by swaps at each swap budget: the six COORDINATES, max_swaps, budget (swaps
    that a row could make so far), error and held_out_error (percent of the warm start's, means over layers).

    A layer whose refinement ended sooner counts with its last error. A budget is left out where some layer has no
    value at it and has not ended.
    """
    means = [(model, _mean_curve(model.curves)) for model in measured if model.curves is not None]
    return _set_types(_join(means, [*COORDINATES, "max_swaps"], ["budget", "error", "held_out_error"]))


def epochs_table(measured: list[Measured]) -> pd.DataFrame:
    """Return the errors of trained blocks by epoch: the six COORDINATES, epoch (0 is before the training), error and
    held_out_error (of a block's output, in percent of the dense output's mean square, means over the blocks)."""
    means = []
    for model in measured:
        if model.epochs is not None:
            errors = model.epochs[["error", "held_out"]].astype("float64").mul(100)
            by_epoch = errors.rename(columns={"held_out": "held_out_error"}).groupby(model.epochs["epoch"]).mean()
            means.append((model, by_epoch.reset_index()))
    return _set_types(_join(means, COORDINATES, ["epoch", "error", "held_out_error"]))


def drift_table(measured: list[Measured]) -> pd.DataFrame:
    """Return the errors of each block's output: the six COORDINATES, max_swaps, block, dense_path and pruned_path (in
    percent of the sum of squares of the dense block's output)."""
    errors = ["dense_path", "pruned_path"]
    drifts = [(m, m.drift.assign(**100 * m.drift[errors])) for m in measured if m.drift is not None]
    return _set_types(_join(drifts, [*COORDINATES, "max_swaps"], ["block", *errors]))


def _join(tables: list[tuple[Measured, pd.DataFrame]], facts: list[str], columns: list[str]) -> pd.DataFrame:
    """Return the tables of several models as one, with columns for the `facts` of each model."""
    parts = [table.assign(**{name: model.facts[name] for name in facts}) for model, table in tables]
    return pd.concat(parts or [pd.DataFrame(columns=facts + columns)], ignore_index=True)[facts + columns]


def _mean_curve(curve: pd.DataFrame) -> pd.DataFrame:
    """Return the columns budget, error and held_out_error of one cell."""
    curve = curve.drop_duplicates(["block", "layer", "budget"], keep="last")
    means = {}
    for name, losses, if_zero in (("error", "loss", 0.0), ("held_out_error", "held_out", float("nan"))):
        by_layer = curve.pivot(index=["block", "layer"], columns="budget", values=losses)
        by_layer = align_curves(by_layer.astype("float64"))
        means[name] = 100 - by_layer.apply(partial(error_reduction, by_layer[0], if_zero=if_zero)).mean()
    return pd.DataFrame(means).dropna(subset="error").rename_axis("budget").reset_index()


def align_curves(curves: pd.DataFrame) -> pd.DataFrame:
    """Return the budgets (columns) at which each curve (row) has a value, or has ended: its last value stays."""
    known = curves.notna()
    ended = ~known.loc[:, ::-1].cummax(axis=1).loc[:, ::-1]
    return curves.ffill(axis=1).loc[:, (known | ended).all()]


def read_published(path: str | Path) -> pd.DataFrame:
    """Read the user's CSV table of published values, with the columns PUBLISHED.

    Raises InputError when the table is missing or broken, lacks a column, or has a `value` that is no number.
    """
    try:
        frame = _parse(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a CSV table ({one_line(error)})") from None
    missing = [name for name in PUBLISHED if name not in frame]
    if missing:
        raise InputError(f"{path}: without the column {missing[0]!r}; it needs {', '.join(PUBLISHED)}")
    values = pd.to_numeric(frame["value"], errors="coerce")
    if values.isna().any():
        wrong = frame.loc[values.isna(), "value"].iloc[0]
        raise InputError(f"{path}: column 'value': {MISSING if pd.isna(wrong) else wrong!r} is no number")
    return frame[PUBLISHED].assign(value=values)


def compare_published(cells: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """Return the measured value (mean over seeds) beside each published one, for each calibration it was measured with.

    `published` has the columns PUBLISHED. A `measure` is "perplexity/<text>", or "accuracy": percent, the unweighted
    mean of all tasks' acc. Calibration, `seqlen`, value and difference are missing where there is no such cell.
    """
    keys = ["model", "calibration", "pattern", "warmstart", "refinement"]
    parts = [cells[keys].assign(measure="accuracy", seqlen=pd.NA, measured=mean_accuracy(cells))]
    for text in perplexity_texts(cells):
        name, seqlens = f"perplexity/{text}", cells[f"seqlen/{text}"]
        parts.append(cells[keys].assign(measure=name, seqlen=seqlens, measured=cells[name]))
    measured = pd.concat(parts, ignore_index=True).dropna(subset="measured")
    groups = measured.groupby([*keys, "measure", "seqlen"], sort=False, dropna=False, as_index=False)
    table = published.merge(groups["measured"].mean(), "left", [name for name in PUBLISHED if name in measured])
    table = table.rename(columns={"value": "published"})
    table["difference"] = table["measured"] - table["published"]
    return _set_types(table[[*keys, "measure", "seqlen", "published", "measured", "difference", "source"]])


def write_all(measured: list[Measured], folder: str | Path, published: str | Path | None = None) -> pd.DataFrame:
    """Write all tables of a study to `folder`, beside the published values of a CSV file. Return the table of cells."""
    folder, cells = Path(folder), cells_table(measured)
    write_table(cells, folder / "cells")
    write_table(layers_table(measured), folder / "layers")
    write_table(curves_table(measured), folder / "curves")
    write_table(epochs_table(measured), folder / "epochs")
    write_table(drift_table(measured), folder / "drift")
    summarised, compared = summary(cells), comparison(cells)
    write_measures(summarised, mark_best_of_summary(summarised), folder / "summary")
    write_measures(compared, mark_best_of_comparison(compared), folder / "comparison")
    if published:
        write_table(compare_published(cells, read_published(published)), folder / "published")
    return cells


def read_tables(paths: Sequence[str | Path]) -> pd.DataFrame | None:
    """Read the tables of a cell's blocks as one; None where there are no blocks. Raises what `read_table` raises."""
    return pd.concat([read_table(path) for path in paths], ignore_index=True) if paths else None


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a CSV table that a job wrote. Raises InputError when it is missing, BrokenFileError when it is not whole."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        if not text.endswith("\n"):
            raise ValueError("it ends within a line")
        return _parse(text)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except ValueError as error:  # also undecodable text, and every error of pandas
        raise BrokenFileError(path, f"not a whole table ({one_line(error)})") from None


def _parse(text: str) -> pd.DataFrame:
    # Only an empty field is missing: a name may be "NA".
    types = dict.fromkeys(NAMES, "str")
    return _set_types(
        pd.read_csv(StringIO(text), dtype=types, keep_default_na=False, na_values=[""], float_precision="round_trip")
    )


def _set_types(frame: pd.DataFrame) -> pd.DataFrame:
    """Return `frame` with types that allow gaps. A plain integer column with a gap would be written as 0.0, 5.0, ..."""
    whole = [name for name in frame if name in ("seed", "samples", "max_swaps", "seqlen") or name.startswith("seqlen/")]
    flags = [name for name in frame if name in ("between_rows", "refit")]
    return frame.astype(dict.fromkeys(whole, "Int64") | dict.fromkeys(flags, "boolean"))
