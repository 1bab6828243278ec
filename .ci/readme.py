"""Copy the figures of the last run of config.yaml into README.md and docs/, and the tables of configs/quality and
configs/ablations, where there are such, into docs/quality.md."""

import platform
import shutil
from pathlib import Path

import pandas

REPORT = Path("results/reports/embedded")
BEGIN, END = "<!-- begin: results of config.yaml, written by `make readme` -->", "<!-- end -->"
COMPARED = [f"quality-{model}" for model in ("embedded", "stories260k", "babyllama105")]
COMPARED += [f"ablation-{path.stem}" for path in sorted(Path("configs/ablations").glob("*.yaml"))]
PERPLEXITY = {"perplexity/held_out": "perplexity"}
PICTURES = {
    "perplexity_by_pattern-held_out": "Perplexity of every warm start, before and after refinement",
    "swaps_curve-held_out": "Perplexity and error against the number of swaps",
}


def main() -> None:
    cells = pandas.read_csv(REPORT / "tables" / "cells.csv")
    dense = cells[cells["pattern"] == "dense"].iloc[0]
    at = cells.set_index(["pattern", "warmstart", "refinement"])
    lines = [
        f"The embedded model (dense perplexity {dense['perplexity/held_out']:.2f} on held-out text, "
        f"{dense['seqlen/held_out']:.0f}-token windows; accuracy {dense['embedded_cloze/acc']:.1%} on the cloze task, "
        f"{dense['embedded_choice/acc']:.1%} on the multiple-choice task; the text is the sources of Python "
        f"{platform.python_version()}), every row refined to its local optimum:",
        "",
        "| pattern | warm start | perplexity | refined | error | error, held out | swaps per row | cloze | refined "
        "| choice | refined |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for pattern in cells.loc[cells["pattern"] != "dense", "pattern"].unique():
        for warmstart in cells.loc[cells["pattern"] == pattern, "warmstart"].unique():
            before, after = at.loc[(pattern, warmstart, "none")], at.loc[(pattern, warmstart, "swaps")]
            values = [f"{row['perplexity/held_out']:.2f}" for row in (before, after)]
            values += [f"-{after[name]:.1f} %" for name in ("error_reduction", "held_out_error_reduction")]
            values += [f"{after['swaps_per_row']:.1f}"]
            values += [f"{row[f'embedded_{t}/acc']:.1%}" for t in ("cloze", "choice") for row in (before, after)]
            lines.append(f"| {pattern} | {warmstart} | " + " | ".join(values) + " |")
    refitted = cells[(cells["warmstart"] == "wanda") & (cells["refinement"] == "swaps+ls")]
    values = [f"{row.pattern} {row.perplexity:.2f}" for row in refitted.rename(columns=PERPLEXITY).itertuples()]
    lines += ["", "Error is the mean over all layers of the relative change. The warm start's own values stand first."]
    lines += [f"With kept weights refitted by least squares (`swaps+ls`, from wanda): perplexity {', '.join(values)}."]
    docs = Path("docs")
    docs.mkdir(exist_ok=True)
    for name, text in PICTURES.items():
        shutil.copyfile(
            REPORT / "figures" / "embedded" / "stdlib" / f"{name}.png", docs / f"{name.partition('-')[0]}.png"
        )
        lines += ["", f"![{text}](docs/{name.partition('-')[0]}.png)"]
    put(Path("README.md"), BEGIN, lines)
    for study in COMPARED:
        table = REPORT.parent / study / "tables" / "comparison.md"
        if table.is_file():
            put(Path("docs/quality.md"), f"<!-- begin: {study} -->", table.read_text(encoding="utf-8").splitlines())


def put(path: Path, begin: str, lines: list[str]) -> None:
    """Write lines between a marker and the end that follows it."""
    before, _, rest = path.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(END)
    path.write_text(before + "\n".join([begin, "", *lines, "", END]) + after, encoding="utf-8")


main()
