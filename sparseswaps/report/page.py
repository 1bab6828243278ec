"""The study's report: one HTML page that holds everything it shows."""

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml

from sparseswaps.report.figures import KINDS
from sparseswaps.report.formats import format_values, numeric_columns, split_by_measure
from sparseswaps.report.summary import (
    WARM_START,
    comparison,
    headline_cells,
    mark_best_of_comparison,
    mark_best_of_summary,
    perplexity_texts,
    principal_refinement,
    summary,
)
from sparseswaps.report.tables import COORDINATES, SETTINGS, error_reduction, held_out_error_reduction

SIZES = {"dense": "dense weights (MB)", "checkpoint": "pruned checkpoint (MB)", "masks": "mask file (MB)"}
NOUNS = {name: name for name in COORDINATES} | {"warmstart": "warm start"}
CASE = ["model", "calibration", "pattern", "warmstart"]
USAGE = {"seconds": "seconds, all jobs", "peak_memory_mb": "peak memory (MB)", "peak_gpu_mb": "peak GPU memory (MB)"}
PUBLISHED = ["published", "measured", "difference"]
REDUCTIONS = ["error_reduction", "held_out_error_reduction"]


@dataclass(frozen=True)
class Picture:
    """A figure as the page shows it."""

    kind: str  # one of `figures.KINDS`
    subject: str  # the model, and the calibration and the evaluation text if the figure has one of each alone
    png: bytes

    @property
    def title(self) -> str:
        return f"{KINDS[self.kind].title} ({self.subject})"

    @property
    def caption(self) -> str:
        return KINDS[self.kind].caption

    @property
    def base64(self) -> str:
        return base64.b64encode(self.png).decode()

    def size(self) -> tuple[int, int]:
        """Return the width and the height in pixels, from the header of the PNG."""
        return int.from_bytes(self.png[16:20]), int.from_bytes(self.png[20:24])


@dataclass(frozen=True)
class Report:
    """Everything that the page shows."""

    config: dict[str, Any]  # the checked configuration of the study
    cells: pd.DataFrame  # `tables.cells_table`
    layers: pd.DataFrame  # `tables.layers_table`
    pictures: list[Picture]
    links: list[dict[str, str]]  # for each pruned model of `cells`, the links to its files by their name
    usage: pd.DataFrame  # seconds and memory of the jobs by stage, from `usage_table`
    sizes: dict[str, dict[str, int]]  # bytes of the files that SIZES names, by model
    provenance: dict[str, str]  # the versions, machine and models of the study, by name
    published: pd.DataFrame | None = None  # `tables.compare_published`


def read_pictures(folder: str | Path) -> list[Picture]:
    """Read the pictures that `figures.draw_all` was saved to: `folder`/<model>/<calibration>/<kind>-<text>.png."""
    pictures = []
    for path in sorted(Path(folder).rglob("*.png")):
        name, _, text = path.stem.partition("-")
        subject = ", ".join([*path.relative_to(folder).parts[:-1], *filter(None, [text])])
        pictures.append(Picture(name, subject, path.read_bytes()))
    return pictures


def usage_table(jobs: list[dict[str, Any]], stages: Iterable[str]) -> pd.DataFrame:
    """Return the columns stage, jobs, seconds (sum), peak_memory_mb, peak_gpu_mb (maxima) and device: a row per stage.

    `jobs` are records with "stage", "seconds", "peak_resident_mb", "device", and on a GPU "peak_gpu_mb": without a GPU
    there is no such column. `stages` is the order of the rows.
    """
    frame = pd.DataFrame(jobs, columns=["stage", "seconds", "peak_resident_mb", "peak_gpu_mb", "device"])
    table = frame.groupby("stage").agg(
        jobs=("seconds", "size"),
        seconds=("seconds", "sum"),
        peak_memory_mb=("peak_resident_mb", "max"),
        peak_gpu_mb=("peak_gpu_mb", "max"),
        device=("device", lambda names: ", ".join(sorted(set(names)))),
    )
    table = table.reindex([stage for stage in stages if stage in table.index]).reset_index()
    return table if table["peak_gpu_mb"].notna().any() else table.drop(columns="peak_gpu_mb")


def render(report: Report) -> str:
    """Return the report as HTML text, without a reference to anything outside it."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    options = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    template = jinja2.Environment(loader=loader, autoescape=True, **options).get_template("report.html.j2")
    cells, principal = report.cells, principal_refinement(report.cells)
    layers = report.layers[report.layers["refinement"] == principal]  # all refinements would be too much for a page
    table, first = summary(cells), _first_table(cells)
    summary_constants, layer_constants, cell_constants = map(_constants, (table, layers, cells))
    parts, best = (
        split_by_measure(frame.drop(columns=list(summary_constants))) for frame in (table, mark_best_of_summary(table))
    )
    sizes = pd.DataFrame.from_dict(report.sizes, orient="index").rename_axis("model") / 1e6
    sizes = sizes.reindex(columns=[name for name in SIZES if name in sizes]).rename(columns=SIZES)
    headline = [picture for picture in report.pictures if picture.kind == "perplexity_by_pattern"][:1]
    return template.render(
        study=report.config.get("name"),
        headline=headline,
        first=first,
        links=[{} for _ in range(len(cells) - len(report.links))] + report.links,  # dense models come first
        models=list(cells["model"].unique()),
        overview=overview(cells),
        # paths, ordered and shared mappings of a workflow become plain YAML by way of JSON
        config=yaml.safe_dump(json.loads(json.dumps(report.config, default=str)), sort_keys=False, allow_unicode=True),
        summary=[_view(part, best[measure]) for measure, part in parts.items()],
        summary_constants=summary_constants,
        sizes=_view(sizes.reset_index()),
        published=None if report.published is None else _view(_round(report.published, "{:.2f}", PUBLISHED)),
        pictures=[picture for picture in report.pictures if picture not in headline],
        layers=_view(_layers_view(layers).drop(columns=list(layer_constants))),
        layer_constants=layer_constants,
        principal=principal,
        cells=_view(cells.drop(columns=list(cell_constants))),
        cell_constants=cell_constants,
        usage=_view(report.usage.rename(columns=USAGE)),
        provenance=report.provenance,
    )


def _first_table(cells: pd.DataFrame) -> dict[str, Any] | None:
    """Return the first measure, perplexity if there is any: a row for each method, a column for each pattern."""
    table = comparison(pd.concat([cells[cells["pattern"] == "dense"], headline_cells(cells).drop(columns="which")]))
    parts, best = (split_by_measure(frame) for frame in (table, mark_best_of_comparison(table)))
    measure = next(iter(parts), None)
    if measure is None:
        return None
    part = parts[measure].replace({"refinement": {"none": WARM_START}})
    constant = [name for name in part if ": " not in name and part[name].nunique() < 2]
    part = part.drop(columns=constant).rename(columns={"refinement": "method"})
    return _view(part, best[measure].drop(columns=constant))


def overview(cells: pd.DataFrame) -> list[str]:
    """Return up to three sentences: what was pruned, how often refinement helps, and the best case of each pattern."""
    pruned = cells[cells["pattern"] != "dense"]
    names = {name: pruned[name].where(pruned[name] != "none").dropna().unique() for name in NOUNS}
    counted = [name for name in NOUNS if name not in ("model", "pattern") and len(names[name]) > 1]
    counts = _enumerate([_count(len(names[name]), NOUNS[name]) for name in counted])
    what = f"This study pruned {_enumerate(names['model'])} to {_enumerate(names['pattern'])} sparsity"
    sentences = [f"{what}: {_count(len(pruned), 'pruned model')}{counts and f' ({counts})'}."]
    text = next(iter(perplexity_texts(cells)), None)
    values = pruned.rename(columns={f"perplexity/{text}": "perplexity"})
    values = values.reindex(columns=[*CASE, "refinement", "perplexity", *REDUCTIONS])
    means = values.groupby([*CASE, "refinement"], sort=False).mean()  # over seeds
    principal = principal_refinement(cells)
    if principal is not None:
        refined = means.xs(principal, level="refinement")
        error, held_out = refined[REDUCTIONS].mean()
        on_held_out = f" ({held_out:.1f}% on held-out text)" if pd.notna(held_out) else ""
        sentence = f"Refinement ({principal}) lowers the error of the layers by {error:.1f}% on average{on_held_out}"
        after = refined["perplexity"]
        before = means["perplexity"].unstack().get("none", after * float("nan"))
        compared = (before - after).dropna()
        if len(compared):
            sentence += f", and perplexity on {text} in {(compared > 0).sum()} of {_count(len(compared), 'case')}"
        sentences.append(f"{sentence}.")
    if means["perplexity"].notna().any():
        sentences.append(_lowest(means["perplexity"].dropna(), cells, text))
    return sentences


def _lowest(perplexities: pd.Series, cells: pd.DataFrame, text: str) -> str:
    """Return a sentence on the lowest perplexity of one model at each pattern. The index is CASE and the refinement."""
    model = perplexities.index[0][0]
    of_model = perplexities.loc[[model]]
    cases = [
        f"{lowest:.2f} at {pattern} ({'' if method == 'none' else f'{method} '}from {start})"
        for (_, _, pattern, start, method), lowest in of_model[of_model.groupby("pattern", sort=False).idxmin()].items()
    ]
    dense = cells.loc[(cells["pattern"] == "dense") & (cells["model"] == model), f"perplexity/{text}"].dropna()
    of_dense = "".join(f" (dense: {value:.2f})" for value in dense)
    return f"The lowest perplexity of {model} on {text}{of_dense} is {_enumerate(cases)}."


def _enumerate(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _constants(frame: pd.DataFrame) -> dict[str, str]:
    """Return the coordinates and settings that all rows share. The page names them once, above the table."""
    names = [name for name in COORDINATES + SETTINGS if name in frame and frame[name].nunique() == 1]
    return format_values(frame[names].bfill().iloc[:1]).to_dict("records")[0] if names else {}


def _layers_view(layers: pd.DataFrame) -> pd.DataFrame:
    percent = ["error reduction (%)", "held out (%)"]
    reductions = error_reduction(layers["loss_before"], layers["loss_after"]), held_out_error_reduction(layers)
    tokens = layers["tokens"].astype("str")
    unrouted = layers["unrouted"].astype(bool)  # an expert with too few tokens gets all tokens of its layer
    view = layers[[*COORDINATES, "block", "layer", "d_out", "d_in", "loss_before", "loss_after"]].assign(
        tokens=tokens.mask(unrouted, tokens + " (unrouted)"),
        **dict(zip(percent, reductions, strict=True)),
        **{"swaps per row": layers["swaps"] / layers["rows"], "most in a row": layers["max_row_swaps"]},
        certified=layers["rows_certified"] / layers["rows"],
        seconds=layers["seconds"],
    )
    return _round(view, "{:.1f}", [*percent, "swaps per row"])


def _round(frame: pd.DataFrame, form: str, names: list[str]) -> pd.DataFrame:
    """Return a table with some columns as strings."""
    return frame.assign(**{name: frame[name].map(form.format, na_action="ignore") for name in names})


def _view(frame: pd.DataFrame, best: pd.DataFrame | None = None) -> dict[str, Any]:
    """Return a table for the template. Columns called "<measure>: <name>" have the measure as a heading above them."""
    strings = format_values(frame)
    headings = [name.rpartition(": ") for name in strings]
    marks = best.to_numpy() if best is not None else [[False] * len(headings)] * len(strings)
    return {
        "groups": [(group, len(list(members))) for group, members in groupby(headings, key=lambda part: part[0])],
        "columns": list(zip((name for *_, name in headings), numeric_columns(strings), strict=True)),
        "rows": [list(zip(*row, strict=True)) for row in zip(strings.to_numpy().tolist(), marks, strict=True)],
    }
