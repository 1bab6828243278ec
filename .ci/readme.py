"""Copy the figures of the last run of config.yaml into README.md and docs/, with a screenshot of its report.

README.md also has the real model of configs/smollm2-pip.yaml. The tables of that study, configs/recipes,
configs/quality and configs/ablations go into docs/quality.md, as far as those studies were run, and the pictures of
configs/recipes beside it. Chromium takes the screenshot.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

import pandas

from sparseswaps.embedded import RELEASE

REPORT = Path("results/reports/embedded")
BEGIN, END = "<!-- begin: results of config.yaml, written by `make readme` -->", "<!-- end -->"
MODELS = ("embedded", "stories260k", "babyllama105")
REAL = "smollm2-pip"
REAL_BEGIN = "<!-- begin: results of configs/smollm2-pip.yaml, written by `make readme` -->"
RECIPES = {  # warm start and method, by their names in README
    "magnitude": ("magnitude", "none"),
    "Wanda": ("wanda", "none"),
    "RIA": ("ria", "none"),
    "swaps from Wanda's mask": ("wanda", "swaps"),
    "SparseGPT (new weights)": ("sparsegpt", "none+sparsegpt"),
    "ADMM (new weights)": ("admm", "none+admm"),
    "swaps, weights refitted": ("wanda", "swaps+ls"),
    "blocks trained while masks tighten": ("wanda", "swaps+gradual"),
}
ZEROSHOT = "smollm2-zeroshot"
STUDIES = [REAL, "smollm2-more", "smollm2-patterns", "smollm2-targets", "smollm2-seeds"]
STUDIES += [f"{folder}-{model}" for folder in ("recipes", "quality") for model in MODELS]
STUDIES += [f"ablation-{path.stem}" for path in sorted(Path("configs/ablations").glob("*.yaml"))]
PICTURES = {
    "perplexity_by_pattern": "Perplexity of every warm start, before and after refinement",
    "swaps_curve": "Perplexity and error against the number of swaps",
}
RECIPE_PICTURES = {"perplexity_by_seconds": "Perplexity against time", "training_curve": "Error by epoch"}
CELL = ["pattern", "warmstart", "refinement"]


def main() -> None:
    cells = pandas.read_csv(REPORT / "tables" / "cells.csv")
    replace_section(Path("README.md"), BEGIN, wanda_section(cells))
    if (real := REPORT.parent / REAL / "tables" / "cells.csv").is_file():
        replace_section(Path("README.md"), REAL_BEGIN, real_section(pandas.read_csv(real)))
    pictures = copy_pictures("embedded", "embedded", PICTURES)
    replace_section(Path("docs/quality.md"), "<!-- begin: embedded -->", [*default_section(cells), *pictures])
    if (tasks := REPORT.parent / ZEROSHOT / "tables" / "cells.csv").is_file():
        section = zeroshot_section(pandas.read_csv(tasks))
        replace_section(Path("docs/quality.md"), f"<!-- begin: {ZEROSHOT} -->", section)
    for study in STUDIES:
        table = REPORT.parent / study / "tables" / "comparison.md"
        if table.is_file():
            lines = table.read_text(encoding="utf-8").splitlines()
            if study.startswith("recipes-"):
                model = study.partition("-")[2]
                lines += copy_pictures(study, model, RECIPE_PICTURES, f"-{model}")
            replace_section(Path("docs/quality.md"), f"<!-- begin: {study} -->", lines)
    take_screenshot(REPORT / "report.html", Path("docs/report.png"))


def wanda_section(cells: pandas.DataFrame) -> list[str]:
    """Return the table of README: Wanda's masks, refined masks, and refined masks with refitted weights."""
    dense = cells[cells["pattern"] == "dense"].iloc[0]
    named = cells[cells["warmstart"] == "wanda"].set_index(CELL)
    rows = []
    for pattern in named.index.unique("pattern"):
        start, refined, refitted = (named.loc[(pattern, "wanda", name)] for name in ("none", "swaps", "swaps+ls"))
        rows.append(
            {
                f"perplexity (dense {dense['perplexity/held_out']:.2f})": pattern,
                "Wanda's mask": f"{start['perplexity/held_out']:.2f}",
                "refined": f"{refined['perplexity/held_out']:.2f}",
                "and weights refitted": f"{refitted['perplexity/held_out']:.2f}",
                "layers' error, refined": f"-{refined['error_reduction']:.1f} %",
                "on held-out text": f"-{refined['held_out_error_reduction']:.1f} %",
            }
        )
    note = (
        "The model that comes with the project, on held-out text (sources of Python "
        f"{RELEASE}, windows of {dense['seqlen/held_out']:.0f} tokens),",
        "every row at its local optimum. Errors are means over the layers. Other warm starts and tasks:",
        "[docs/quality.md](docs/quality.md#the-default-study).",
    )
    return [*markdown(rows, names=1), "", *note]


def real_section(cells: pandas.DataFrame) -> list[str]:
    """Return the table of README of a real language model: WikiText-2 and C4 by recipe and pattern."""
    dense = cells[cells["pattern"] == "dense"].iloc[0]
    named = cells.dropna(subset="warmstart").set_index(["warmstart", "refinement", "pattern"])
    columns = [(pattern, text) for pattern in named.index.unique("pattern") for text in ("wikitext2", "c4")]
    heading = {"wikitext2": "WikiText-2", "c4": "C4"}
    rows = [{"perplexity": "dense"} | {f"{p}, {heading[t]}": f"{dense[f'perplexity/{t}']:.1f}" for p, t in columns}]
    for name, (start, method) in RECIPES.items():
        row = {"perplexity": name}
        for pattern, text in columns:
            key = (start, method, pattern)
            value = named[f"perplexity/{text}"].get(key)
            row[f"{pattern}, {heading[text]}"] = "-" if value is None else f"{value:,.{0 if value >= 1000 else 1}f}"
        rows.append(row)
    return markdown(rows, names=1)


def zeroshot_section(cells: pandas.DataFrame) -> list[str]:
    """Return the table of docs/quality.md of tasks: the accuracy of each recipe in percent, with its standard error."""
    tasks = [name.removesuffix("/acc") for name in cells if name.endswith("/acc")]
    named = cells.fillna({"warmstart": "", "refinement": ""}).set_index(["warmstart", "refinement"])
    rows = []
    for name, key in {"dense": ("", ""), **RECIPES}.items():
        if key in named.index:
            values, errors = (
                [100 * float(named.loc[key, f"{task}/{measure}"]) for task in tasks]
                for measure in ("acc", "acc_stderr")
            )
            row = {task: f"{value:.1f} ± {error:.1f}" for task, value, error in zip(tasks, values, errors, strict=True)}
            rows.append({"accuracy, %": name, "mean": f"{sum(values) / len(values):.1f}"} | row)
    return markdown(rows, names=1)


def default_section(cells: pandas.DataFrame) -> list[str]:
    """Return the table of docs/quality.md: every warm start, and the tasks."""
    dense = cells[cells["pattern"] == "dense"].iloc[0]
    named = cells.set_index(CELL)
    rows = []
    for pattern, start in cells.dropna(subset="warmstart").groupby(CELL[:2], sort=False).groups:
        before, after = named.loc[(pattern, start, "none")], named.loc[(pattern, start, "swaps")]
        row = {"pattern": pattern, "warm start": start}
        row |= {"perplexity": f"{before['perplexity/held_out']:.2f}"}
        row |= {"perplexity, refined": f"{after['perplexity/held_out']:.2f}"}
        row |= {"error": f"-{after['error_reduction']:.1f} %"}
        row |= {"error, held out": f"-{after['held_out_error_reduction']:.1f} %"}
        row |= {"swaps per row": f"{after['swaps_per_row']:.1f}"}
        for task in ("cloze", "choice"):
            row |= {task: f"{before[f'embedded_{task}/acc']:.1%}"}
            row |= {f"{task}, refined": f"{after[f'embedded_{task}/acc']:.1%}"}
        rows.append(row)
    head = (
        f"The embedded model (dense perplexity {dense['perplexity/held_out']:.2f} on held-out text, "
        f"{dense['seqlen/held_out']:.0f}-token windows; accuracy {dense['embedded_cloze/acc']:.1%} on the cloze task, "
        f"{dense['embedded_choice/acc']:.1%} on the multiple-choice task; the text is the sources of Python "
        f"{RELEASE}), every row refined to its local optimum:"
    )
    return [head, "", *markdown(rows, names=2), "", "Error is the mean over all layers of the relative change."]


def markdown(rows: list[dict[str, str]], names: int) -> list[str]:
    """Return a table in Markdown, with the numbers flush right after `names` columns of names."""
    alignment = ["left"] * names + ["right"] * (len(rows[0]) - names)
    table = pandas.DataFrame(rows)
    return table.to_markdown(index=False, tablefmt="pipe", colalign=alignment, disable_numparse=True).splitlines()


def copy_pictures(study: str, model: str, texts: dict[str, str], ending: str = "") -> list[str]:
    """Copy a study's figures of the kinds in `texts` to docs/, and return the lines that show them."""
    lines = []
    for kind, text in texts.items():
        figures = (REPORT.parent / study / "figures" / model).rglob(f"{kind}*.png")
        (picture,) = [path for path in figures if path.parent.name != "ordered"]
        copy = Path("docs", f"{kind}{ending}.png")
        shutil.copyfile(picture, copy)
        lines += ["", f"![{text}]({copy.name})"]
    return lines


def take_screenshot(page: Path, picture: Path) -> None:
    """Save the top of a page as headless Chromium shows it."""
    with tempfile.TemporaryDirectory() as profile:
        flags = ["headless", "no-sandbox", "disable-gpu", "hide-scrollbars", "no-first-run", "window-size=1200,1500"]
        flags += ["disable-background-networking", "disable-component-update", "disable-sync"]
        flags += [f"user-data-dir={profile}", f"screenshot={picture.resolve()}"]
        command = ["chromium", *(f"--{flag}" for flag in flags), page.resolve().as_uri()]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=120)


def replace_section(path: Path, begin: str, lines: list[str]) -> None:
    """Replace the lines between a marker and the next END."""
    before, _, rest = path.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(END)
    path.write_text(before + "\n".join([begin, "", *lines, "", END]) + after, encoding="utf-8")


main()
