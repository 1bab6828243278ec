"""The plan of a study before it runs: its jobs by the table of stages, their needs, and the sums."""

from collections.abc import Iterable, Iterator, Mapping
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from sparseswaps.workflow.config import Study
from sparseswaps.workflow.grid import Grid
from sparseswaps.workflow.plan.measured import UNKNOWN, Pace, read_paces
from sparseswaps.workflow.plan.needs import ITEMS, SWAPS, TEXT, Needs
from sparseswaps.workflow.stages import STAGES, OfDenseInputs


class Row(NamedTuple):
    """The jobs of a stage for one model."""

    stage: str
    model: str  # empty where the stage is for all models
    jobs: int
    most: Needs  # the largest need of one job, each kind by itself
    seconds: float  # of all jobs, one after the other
    disk: float  # bytes of all jobs
    start: float  # seconds until the jobs begin, of `seconds`


def plan_rows(grid: Grid, paces: Mapping[str, Pace] = UNKNOWN) -> list[Row]:
    """Return the study's jobs, from nothing, by stage and model, in the order of the stages."""
    jobs: dict[tuple[str, str], list[Needs]] = {}
    for name, stage in STAGES.items():
        factor = paces[name].factor if name in paces else 1
        for where in stage.jobs(grid):
            needs = stage(grid, where).needs()
            whole = needs._replace(seconds=needs.start + needs.seconds * factor)
            jobs.setdefault((name, where.get("model", "")), []).append(whole)
    sums = {key: [sum(getattr(n, kind) for n in each) for kind in Row._fields[4:]] for key, each in jobs.items()}
    return [Row(*key, len(each), _most(each), *sums[key]) for key, each in jobs.items()]


def _most(jobs: Iterable[Needs]) -> Needs:
    return Needs(*map(max, zip(*jobs, strict=True)))


def print_plan(config: dict[str, Any]) -> None:
    """Print the plan of a study, from the checked configuration as plain types."""
    grid = Grid(Study.model_validate(config))
    print(table(grid, read_paces(Path("logs"), grid.study.gpu)), flush=True)


def table(grid: Grid, paces: Mapping[str, Pace] = UNKNOWN) -> str:
    """Return the plan of a study for people: a line for each stage and model, the sums, and the assumptions.

    The times of stages in `paces` are scaled by them.
    """
    rows = plan_rows(grid, paces)
    jobs, most, *sums = zip(*(row[2:] for row in rows), strict=True)
    rows.append(Row("in all", "", sum(jobs), _most(most), *map(sum, sums)))
    lines = [("stage", "model", "jobs", "GPU memory", "host memory", "disk, all", "time, a job", "time, all")]
    for row in rows:
        sizes = map(_size, (row.most.gpu, row.most.host, row.disk))
        times = map(duration, (row.most.seconds, row.seconds))
        lines.append((row.stage, row.model, str(row.jobs), *sizes, *times))
    columns = ["left", "left", *["right"] * 6]
    heading, *printed, total = tabulate(lines, tablefmt="plain", colalign=columns, disable_numparse=True).splitlines()
    rule = "-" * len(heading)
    return "\n".join([heading, rule, *printed, rule, total, "", *_assumptions(grid, paces, rows)])


def _assumptions(grid: Grid, paces: Mapping[str, Pace], rows: list[Row]) -> Iterator[str]:
    study, whole = grid.study, rows[-1]
    yield "The whole study, from nothing; results that exist are not computed again. Memory and the time of a job are"
    yield "those of the stage's largest job. Time in all is for one job after the other; side by side it is less."
    share = whole.start / whole.seconds
    yield f"The start of the jobs, where they are forked, takes {duration(whole.start)} of it ({share:.1%})."
    if several := [f"{row.stage}={blocks}" for row in rows if (blocks := _blocks_in_a_minute(row)) > 1]:
        yield f"On a cluster, as many blocks fill an allocation of a minute: {', '.join(several)} (docs/slurm.md)."
    if scratch := whole.most.scratch:
        yield f"Hidden states that wait for the next block take {_size(scratch)} of disk a job, until they are read."
    measured = [f"{name} {paces[name].factor:.2g} ({paces[name].jobs})" for name in STAGES if name in paces]
    if measured:
        yield "Times of these stages are scaled by the jobs recorded in logs/: stage, factor (number of jobs)"
        yield f"{', '.join(measured)}."
        yield "For the other stages:"
    if study.gpu:
        yield "GPU times are estimates: not measured yet."
    else:
        threads = study.threads
        yield f"Times are those of a machine like the benchmarks' with {threads} thread{'s' * (threads > 1)} a job;"
        yield "expect them within a factor of three."
    if any(refinement.max_swaps is None for refinement in study.refinements.values()):
        yield f"To the optimum, a row is taken to need {SWAPS:g} swaps for each of its weights."
    evaluation = study.evaluation
    if any(text.windows is None for text in evaluation.perplexity.values()):
        yield f"Evaluation texts without `windows` are taken to have {TEXT:,} tokens."
    if evaluation.lm_eval.tasks and evaluation.lm_eval.limit is None:
        yield f"lm-eval tasks without `limit` are taken to have {ITEMS:,} items."


def _blocks_in_a_minute(row: Row) -> int:
    """Return the number of blocks that are worth a minute; 1 for a stage whose jobs are not blocks by themselves."""
    most = min(row.jobs, ceil(60 * row.jobs / row.seconds))
    return most if issubclass(STAGES.get(row.stage, object), OfDenseInputs) else 1


def _size(size: float) -> str:
    for unit, name in ((1e12, "TB"), (1e9, "GB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{max(size / 1e6, 0.1):.1f} MB" if size else "-"


def duration(seconds: float) -> str:
    """Return a time for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} d"
