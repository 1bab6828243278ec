"""Copy the figures of the last run of config.yaml into README.md and docs/, with a picture of its report (taken by
Chromium), and the tables of configs/quality and configs/ablations, where there are such, into docs/quality.md."""

import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import pandas

REPORT = Path("results/reports/embedded")
BEGIN, END = "<!-- begin: results of config.yaml, written by `make readme` -->", "<!-- end -->"
COMPARED = [f"quality-{model}" for model in ("embedded", "stories260k", "babyllama105")]
COMPARED += [f"ablation-{path.stem}" for path in sorted(Path("configs/ablations").glob("*.yaml"))]
PICTURES = {
    "perplexity_by_pattern-held_out": "Perplexity of every warm start, before and after refinement",
    "swaps_curve-held_out": "Perplexity and error against the number of swaps",
}


def main() -> None:
    cells = pandas.read_csv(REPORT / "tables" / "cells.csv")
    put(Path("README.md"), BEGIN, short(cells))
    put(Path("docs/quality.md"), "<!-- begin: embedded -->", [*whole(cells), *pictures()])
    for study in COMPARED:
        table = REPORT.parent / study / "tables" / "comparison.md"
        if table.is_file():
            put(Path("docs/quality.md"), f"<!-- begin: {study} -->", table.read_text(encoding="utf-8").splitlines())
    photograph(REPORT / "report.html", Path("docs/report.png"))


def short(cells: pandas.DataFrame) -> list[str]:
    """What README says in one screen: from Wanda, before, after, and with refitted weights."""
    dense = cells[cells["pattern"] == "dense"].iloc[0]
    at = cells[cells["warmstart"] == "wanda"].set_index(["pattern", "refinement"])
    lines = [
        f"| perplexity (dense {dense['perplexity/held_out']:.2f}) | Wanda's mask | refined | and weights refitted "
        "| layers' error, refined | on held-out text |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for pattern in at.index.unique("pattern"):
        values = [at.loc[(pattern, name), "perplexity/held_out"] for name in ("none", "swaps", "swaps+ls")]
        errors = [at.loc[(pattern, "swaps"), f"{text}error_reduction"] for text in ("", "held_out_")]
        row = [pattern, *(f"{value:.2f}" for value in values), *(f"-{error:.1f} %" for error in errors)]
        lines.append(f"| {' | '.join(row)} |")
    about = (
        "The model that comes with the project, on held-out text (sources of Python "
        f"{platform.python_version()}, windows of {dense['seqlen/held_out']:.0f} tokens),",
        "every row at its local optimum; errors are means over the layers. Other warm starts and tasks:",
        "[docs/quality.md](docs/quality.md#the-default-study).",
    )
    return [*lines, "", *about]


def whole(cells: pandas.DataFrame) -> list[str]:
    """Every warm start, and the tasks."""
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
    about = "Error is the mean over all layers of the relative change. The warm start's own values stand first."
    return [*lines, "", about]


def pictures() -> list[str]:
    """The figures of PICTURES, copied to docs/, and the lines that show them."""
    lines = []
    for name, text in PICTURES.items():
        copy = Path("docs", f"{name.partition('-')[0]}.png")
        shutil.copyfile(REPORT / "figures" / "embedded" / "stdlib" / f"{name}.png", copy)
        lines += ["", f"![{text}]({copy.name})"]
    return lines


def photograph(page: Path, picture: Path) -> None:
    """The top of a page, as headless Chromium shows it."""
    with tempfile.TemporaryDirectory() as profile:
        flags = ["headless", "no-sandbox", "disable-gpu", "hide-scrollbars", "no-first-run", "window-size=1200,1500"]
        flags += ["disable-background-networking", "disable-component-update", "disable-sync"]
        flags += [f"user-data-dir={profile}", f"screenshot={picture.resolve()}"]
        command = ["chromium", *(f"--{flag}" for flag in flags), page.resolve().as_uri()]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=120)


def put(path: Path, begin: str, lines: list[str]) -> None:
    """Write lines between a marker and the end that follows it."""
    before, _, rest = path.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(END)
    path.write_text(before + "\n".join([begin, "", *lines, "", END]) + after, encoding="utf-8")


main()
