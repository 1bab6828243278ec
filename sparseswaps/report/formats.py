"""Tables as text: values as strings, and files in CSV, Markdown (GitHub) and LaTeX (booktabs).

A column called "<measure>: <name>" is the column <name> of the table of <measure>.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sparseswaps.base.files import write_atomically

MISSING = "-"


def format_values(frame: pd.DataFrame) -> pd.DataFrame:
    """Return `frame` as strings for readers: four significant digits, yes and no, a dash for a missing value."""
    return pd.DataFrame({name: [_format_value(value) for value in frame[name]] for name in frame}, dtype="str")


def _format_value(value: Any) -> str:
    if pd.isna(value):
        return MISSING
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:.4g}"
    return str(value)


def numeric_columns(strings: pd.DataFrame) -> list[bool]:
    """Return for each column of `format_values` whether it holds numbers, which are set flush right."""
    return [bool(strings[name].str.match(rf"{MISSING}$|[-+]?(\d|inf)").all()) for name in strings]


def split_by_measure(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return a table for each measure of `frame`: the columns that name the rows, then the columns of the measure."""
    frame = frame.rename(columns={"warm start": "from"})  # a measured column is called "warm start", too
    measures = {name: name.rpartition(": ")[0] for name in frame}
    return {
        measure: frame[[name for name in frame if measures[name] in ("", measure)]]
        for measure in dict.fromkeys(measures.values())
        if measure
    }


def write_table(frame: pd.DataFrame, stem: str | Path) -> None:
    """Write `stem`.csv (full precision), `stem`.md and `stem`.tex, each complete or not at all."""
    _write(stem, frame, _markdown(frame), _latex(frame))


def write_measures(frame: pd.DataFrame, best: pd.DataFrame, stem: str | Path) -> None:
    """Write `stem`.csv, and `stem`.md and `stem`.tex with one table per measure. Values marked by `best` are bold."""
    marks = split_by_measure(best)
    parts = split_by_measure(frame)
    markdown = [f"### {measure}\n\n{_markdown(part, marks[measure])}" for measure, part in parts.items()]
    latex = [_latex(part, marks[measure]) for measure, part in parts.items()]
    _write(stem, frame, "\n".join(markdown), "\n".join(latex))


def _write(stem: str | Path, frame: pd.DataFrame, markdown: str, latex: str) -> None:
    texts = {".csv": frame.to_csv(index=False, lineterminator="\n"), ".md": markdown, ".tex": latex}
    for suffix, text in texts.items():
        with write_atomically(f"{stem}{suffix}") as unfinished:
            unfinished.write_text(text, encoding="utf-8")


def _markdown(frame: pd.DataFrame, best: pd.DataFrame | None = None) -> str:
    strings = format_values(frame)
    alignment = ["right" if number else "left" for number in numeric_columns(strings)]
    if best is not None:
        strings = strings.mask(best.to_numpy(), "**" + strings + "**")
    strings = strings.map(_escape_markdown)
    strings.columns = [_escape_markdown(name.rpartition(": ")[2]) for name in strings]
    return strings.to_markdown(index=False, tablefmt="pipe", colalign=alignment, disable_numparse=True) + "\n"


def _escape_markdown(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", r"\|")


def _latex(frame: pd.DataFrame, best: pd.DataFrame | None = None) -> str:
    strings = format_values(frame)
    alignment = "".join("r" if number else "l" for number in numeric_columns(strings))
    headings = [name.rpartition(": ") for name in strings]
    if any(measure for measure, *_ in headings):
        strings.columns = pd.MultiIndex.from_tuples([(measure, name) for measure, _, name in headings])
    style = strings.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis="columns")
    if best is not None:
        style = style.apply(lambda _: np.where(best, "textbf:--rwrap;", ""), axis=None)
    return style.to_latex(hrules=True, column_format=alignment, multicol_align="c").replace("±", r"$\pm$")
