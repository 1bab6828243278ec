"""The plan of a study before it runs: its jobs by the table of stages, their needs, and the sums."""

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Any

from sparseswaps.workflow.grid import Grid
from sparseswaps.workflow.plan import needs
from sparseswaps.workflow.plan.needs import Needs
from sparseswaps.workflow.stages import STAGES


@dataclass(frozen=True)
class Row:
    """The jobs of a stage for one model.

    Attributes:
        stage: the name of the stage.
        model: the name of the model; empty where the stage is for all models.
        jobs: how many jobs there are.
        most: the largest need of one job, each kind by itself.
        seconds: of all jobs, one after the other.
        disk: bytes of all jobs.
    """

    stage: str
    model: str
    jobs: int
    most: Needs
    seconds: float
    disk: float

    def plus(self, one: Needs) -> "Row":
        """Return the row with one job more."""
        most = Needs(*map(max, astuple(self.most), astuple(one)))
        return Row(self.stage, self.model, self.jobs + 1, most, self.seconds + one.seconds, self.disk + one.disk)


def plan_rows(grid: Grid) -> list[Row]:
    """Return the study's jobs, from nothing, by stage and model, in the order of the stages."""
    rows: dict[tuple[str, str], Row] = {}
    for name, stage in STAGES.items():
        for where in stage.jobs(grid):
            need, key = stage(grid, where).needs(), (name, where.get("model", ""))
            rows[key] = rows[key].plus(need) if key in rows else Row(*key, 1, need, need.seconds, need.disk)
    return list(rows.values())


def print_plan(config: dict[str, Any]) -> None:
    """Print the plan of a study, from the checked configuration as plain types."""
    from sparseswaps.workflow.config import Study

    print(table(Grid(Study.model_validate(config))), flush=True)


def table(grid: Grid) -> str:
    """Return the plan of a study for people: a line for each stage and model, the sums, and the assumptions."""
    rows = plan_rows(grid)
    lines = [("stage", "model", "jobs", "GPU memory", "host memory", "disk, all", "time, a job", "time, all")]
    for row in rows:
        most = row.most
        sizes = (_size(most.gpu), _size(most.host), _size(row.disk))
        lines.append((row.stage, row.model, str(row.jobs), *sizes, _time(most.seconds), _time(row.seconds)))
    jobs, disk = sum(row.jobs for row in rows), sum(row.disk for row in rows)
    memory = [_size(max(getattr(row.most, name) for row in rows)) for name in ("gpu", "host")]
    longest = _time(max(row.most.seconds for row in rows))
    lines.append(("in all", "", str(jobs), *memory, _size(disk), longest, _time(sum(row.seconds for row in rows))))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    printed = [
        "  ".join(
            c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    rule = "-" * len(printed[0])
    return "\n".join([printed[0], rule, *printed[1:-1], rule, printed[-1], "", *_assumptions(grid)])


def _assumptions(grid: Grid) -> Iterator[str]:
    """Yield the lines that say what the figures assume."""
    study = grid.study
    yield "The whole study, from nothing; results that exist are not computed again. Memory and the time of a job are"
    yield "those of the stage's largest job. Time in all is for one job after the other; side by side it is less."
    if study.gpu:
        yield "GPU times are estimates: not measured yet."
    else:
        threads = study.threads
        yield f"Times are those of a machine like the benchmarks' with {threads} thread{'s' * (threads > 1)} a job;"
        yield "expect them within a factor of three."
    if any(refinement.max_swaps is None for refinement in study.refinements.values()):
        yield f"To the optimum, a row is taken to need {needs.SWAPS:g} swaps for each of its weights."
    evaluation = study.evaluation
    if any(text.windows is None for text in evaluation.perplexity.values()):
        yield f"Evaluation texts without `windows` are taken to have {needs.TEXT:,} tokens."
    if evaluation.lm_eval.tasks and evaluation.lm_eval.limit is None:
        yield f"lm-eval tasks without `limit` are taken to have {needs.ITEMS:,} items."


def _size(size: float) -> str:
    """Return bytes for people; "-" for none."""
    for unit, name in ((1e12, "TB"), (1e9, "GB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{max(size / 1e6, 0.1):.1f} MB" if size else "-"


def _time(seconds: float) -> str:
    """Return seconds for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} d"
