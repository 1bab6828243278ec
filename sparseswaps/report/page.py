"""The study's report: one HTML page that holds everything it shows."""

import base64
import json
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml

from sparseswaps.report import tables

EXAMPLES = 4  # in the opening paragraph; the summary table has all cases
SIZES = {"dense": "dense weights (MB)", "checkpoint": "pruned checkpoint (MB)", "masks": "mask file (MB)"}
NOUNS = {name: name for name in tables.COORDINATES} | {"warmstart": "warm start"}


def render(
    config: dict[str, Any],
    summary: pd.DataFrame,
    cells: pd.DataFrame,
    layers: pd.DataFrame,
    figures: list[tuple[str, str, bytes]],
    stages: pd.DataFrame,
    provenance: dict[str, str],
    sizes: pd.DataFrame,
    published: pd.DataFrame | None = None,
) -> str:
    """The report as HTML text, without a reference to anything outside it.

    `summary`, `cells`, `layers` and `published` are those of `tables`; `figures` holds (title, caption, PNG), `stages`
    the columns stage, jobs, seconds and peak_memory_mb, and `provenance` what made the study (versions, machine,
    models); `sizes` the bytes of what `SIZES` names by model.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    principal = tables.principal(cells)
    layers = layers[layers["refinement"] == principal]  # every refinement would be too much for a page
    summary_shared, layers_shared, cells_shared = (_shared(frame) for frame in (summary, layers, cells))
    parts, marks = (
        tables.by_measure(frame.drop(columns=list(summary_shared))) for frame in (summary, tables.best(summary))
    )
    return environment.get_template("report.html.j2").render(
        models=list(cells["model"].unique()),
        overview=overview(cells),
        config=_yaml(config),
        summary=[_view(part, marks[measure]) for measure, part in parts.items()],
        summary_shared=summary_shared,
        sizes=_view((sizes.set_index("model").rename(columns=SIZES) / 1e6).reset_index()),
        published=None if published is None else _view(_two_decimals(published)),
        figures=[(title, caption, base64.b64encode(png).decode(), *_size(png)) for title, caption, png in figures],
        layers=_view(_layers_view(layers).drop(columns=list(layers_shared))),
        layers_shared=layers_shared,
        principal=principal,
        cells=_view(cells.drop(columns=list(cells_shared))),
        cells_shared=cells_shared,
        stages=_view(stages.rename(columns={"peak_memory_mb": "peak memory (MB)", "seconds": "seconds, all jobs"})),
        provenance=provenance,
    )


def overview(cells: pd.DataFrame) -> str:
    """What the study found, in a paragraph: how often refinement helps, and the best case of every pattern."""
    pruned = cells[cells["pattern"] != "dense"]
    size = [_count(pruned[name].where(pruned[name] != "none").nunique(), noun) for name, noun in NOUNS.items()]
    sentences = [f"{_count(len(pruned), 'pruned model')}: {', '.join(size)}."]
    principal = tables.principal(cells)
    if principal is None:
        return sentences[0]
    cases = _cases(cells, principal)
    held_out = cases["held_out_error_reduction"].mean()
    error = f"{cases['error_reduction'].mean():.1f}% on average"
    if pd.notna(held_out):
        error += f" ({held_out:.1f}% on held-out text)"
    sentences.append(f"Refinement ({principal}) lowers the layers' error by {error}")
    compared = cases.dropna(subset=["before", "after"])
    if compared.empty:
        return " ".join(sentences) + "."
    lower = (compared["after"] < compared["before"]).sum()
    text = tables.perplexity_texts(cells)[0]
    sentences[-1] += f", and perplexity on {text} in {lower} of {_count(len(compared), 'case')}."

    by_pattern = compared.groupby(["model", "calibration", "pattern"], sort=False)["after"].idxmin()
    several = by_pattern.index.droplevel("pattern").nunique() > 1
    for case in by_pattern.iloc[:EXAMPLES]:
        model, calibration, pattern, warmstart = case
        row = compared.loc[case]
        where = f"For {model} ({calibration}) at {pattern}" if several else f"At {pattern}"
        verb = "and perplexity" if row["after"] < row["before"] else "but raises perplexity"
        dense = f" (dense {row['dense']:.2f})" if pd.notna(row["dense"]) else ""
        sentences.append(
            f"{where} from {warmstart}, refinement lowers the layers' error by {row['error_reduction']:.1f}% on average"
            f" {verb} (seqlen {row['seqlen']:.0f}) from {row['before']:.2f} to {row['after']:.2f}{dense}."
        )
        others = _others(cells, principal, case[:3])
        if others and min(others.values()) < row["after"]:
            method, start = min(others, key=others.get)
            sentences[-1] = sentences[-1][:-1] + f"; {method} from {start} ends at {others[method, start]:.2f}."
    if len(by_pattern) > EXAMPLES:
        sentences.append("The summary table has the other patterns and models.")
    return " ".join(sentences)


def _others(cells: pd.DataFrame, principal: str, where: tuple[str, str, str]) -> dict[tuple[str, str], float]:
    """Perplexity, mean over seeds, of the other methods of a (model, calibration, pattern) by method and warm start."""
    of_case = (cells[["model", "calibration", "pattern"]] == list(where)).all(axis=1)
    others = cells[of_case & ~cells["refinement"].isin(["none", principal])]
    name = f"perplexity/{tables.perplexity_texts(cells)[0]}"
    return others.groupby(["refinement", "warmstart"], sort=False)[name].mean().dropna().to_dict()


def _cases(cells: pd.DataFrame, refinement: str) -> pd.DataFrame:
    """Means over seeds, indexed by (model, calibration, pattern, warmstart): error reductions and perplexities."""
    keys = ["model", "calibration", "pattern", "warmstart"]
    measures = {name: name for name in ("error_reduction", "held_out_error_reduction")}
    texts = tables.perplexity_texts(cells)
    if texts:
        measures |= {"perplexity": f"perplexity/{texts[0]}", "seqlen": f"seqlen/{texts[0]}"}
    values = pd.DataFrame({name: cells[column].astype("float64") for name, column in measures.items()})
    values = values.reindex(columns=["error_reduction", "held_out_error_reduction", "perplexity", "seqlen"])
    of = {
        name: pd.concat([cells[keys], values], axis=1)[cells["refinement"] == name].groupby(keys, sort=False).mean()
        for name in ("none", refinement)
    }
    dense = values["perplexity"][cells["pattern"] == "dense"].groupby(cells["model"]).first()
    cases = of[refinement].rename(columns={"perplexity": "after"})
    models = cases.index.get_level_values("model")
    return cases.assign(before=of["none"]["perplexity"], dense=dense.reindex(models).to_numpy())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _yaml(config: dict[str, Any]) -> str:
    # through JSON: whatever a workflow hands over (paths, ordered or shared mappings) becomes plain YAML
    return yaml.safe_dump(json.loads(json.dumps(config, default=str)), sort_keys=False, allow_unicode=True)


def _size(png: bytes) -> tuple[int, int]:
    """Width and height in pixels, from the file's header."""
    return int.from_bytes(png[16:20]), int.from_bytes(png[20:24])


def _shared(frame: pd.DataFrame) -> dict[str, str]:
    """Coordinates and settings that are the same in all rows: said once above a table, they need no column."""
    names = [name for name in tables.COORDINATES + tables.SETTINGS if name in frame]
    single = [name for name in names if frame[name].nunique() == 1]
    return tables.display(frame[single].bfill().iloc[:1]).to_dict("records")[0] if single else {}


def _two_decimals(published: pd.DataFrame) -> pd.DataFrame:
    values = ["published", "measured", "difference"]
    return published.assign(**{name: published[name].map("{:.2f}".format, na_action="ignore") for name in values})


def _layers_view(layers: pd.DataFrame) -> pd.DataFrame:
    tenths = {
        "error reduction (%)": tables.error_reduction(layers["loss_before"], layers["loss_after"]),
        "held out (%)": tables.held_out_error_reduction(layers),
        "swaps per row": layers["swaps"] / layers["rows"],
    }
    tokens = layers["tokens"].astype("str")
    all_of_layer = layers["unrouted"].astype(bool)  # an expert that too few tokens are routed to
    return layers[[*tables.COORDINATES, "block", "layer", "d_out", "d_in", "loss_before", "loss_after"]].assign(
        tokens=tokens.mask(all_of_layer, tokens + " (unrouted)"),
        **{name: values.map("{:.1f}".format, na_action="ignore") for name, values in tenths.items()},
        **{"most in a row": layers["max_row_swaps"], "certified": layers["rows_certified"] / layers["rows"]},
        seconds=layers["seconds"],
    )


def _view(frame: pd.DataFrame, best: pd.DataFrame | None = None) -> dict[str, Any]:
    """A table as the template wants it; columns called "<group>: <name>" stand under their group's heading."""
    shown = tables.display(frame)
    parts = [name.rpartition(": ") for name in shown]
    marks = best.to_numpy() if best is not None else [[False] * len(parts)] * len(shown)
    return {
        "groups": [(group, len(list(members))) for group, members in groupby(parts, key=lambda part: part[0])],
        "columns": list(zip((name for *_, name in parts), tables.numeric(shown), strict=True)),
        "rows": [list(zip(*row, strict=True)) for row in zip(shown.to_numpy().tolist(), marks, strict=True)],
    }
