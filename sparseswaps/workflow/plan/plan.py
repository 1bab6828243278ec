"""What a study needs, stage by stage, before anything is spent: its jobs by its grid, their needs by `needs`."""

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from itertools import product
from typing import Any

from sparseswaps.layer.pattern import PerRow
from sparseswaps.model.directory import locate, read_config
from sparseswaps.workflow import config as study
from sparseswaps.workflow.plan import needs
from sparseswaps.workflow.plan.needs import Draw, Machine, Mask, Needs
from sparseswaps.workflow.plan.sizes import sizes_of

_FOR_ALL = ("tables", "figures", "report")
_STAGES = ("model", "samples", "capture", "allocation", "warmstart", "refine", "reconstruct", "chain")
_STAGES += ("masks", "assemble", "perplexity", "tasks", "harness")


class Planner:
    """The needs of a checked configuration's jobs, by their stage and the wildcards of its rule."""

    def __init__(self, config: dict[str, Any]) -> None:
        """Reads each model's config.json and nothing else of it. Raises InputError when it does not say enough."""
        self.config = config
        self.sizes = {name: sizes_of(read_config(locate(settings))) for name, settings in config["models"].items()}
        self.draws = {
            name: Draw(entry["samples"], entry["held_out"], entry["seqlen"], config["activations"] == "disk")
            for name, entry in config["calibrations"].items()
        }
        self.patterns, self.starts = study.patterns(config), study.warmstarts(config)
        self.machine = Machine(config["gpu"], config["threads"])

    def needs(self, stage: str, where: dict[str, Any]) -> Needs:
        """What one job of a stage needs; `where` are the wildcards of its rule."""
        config, machine, batch = self.config, self.machine, self.config["batch_size"]
        if stage in ("tasks", *_FOR_ALL):
            return needs.small("python" if stage == "tasks" else "torch")
        sizes = self.sizes[where["model"]]
        if stage in ("model", "masks", "assemble"):
            return getattr(needs, stage)(sizes)
        masked = not config["checkpoints"]  # as if dense models were, too
        if stage == "perplexity":
            text = config["evaluation"]["perplexity"][where["text"]]
            return needs.perplexity(sizes, masked, text["seqlen"], text["windows"], batch, machine)
        if stage == "harness":
            asked = config["evaluation"]["lm_eval"]
            return needs.harness(sizes, masked, len(asked["tasks"]), asked["limit"], asked["batch_size"], machine)
        draw = self.draws[where["calibration"]]
        if stage == "samples":
            return needs.samples(draw)
        if stage == "capture":
            return needs.capture(sizes, draw, batch, machine)
        if stage == "allocation":
            return needs.allocation(sizes, draw)
        how = config["reconstructions"].get(where.get("reconstruction"))
        iterations = how["iterations"] if how else 0
        if stage == "reconstruct":
            return needs.reconstruct(sizes, draw, iterations, machine)
        pattern = self.patterns[where["pattern"]].pattern
        sparsity = float(pattern.sparsity) if isinstance(pattern, PerRow) else 1 - pattern.n / pattern.m
        budget = config["refinements"][where["refinement"]]["max_swaps"] if "refinement" in where else 0
        criterion = None if self.starts.get(where["warmstart"]) else where["warmstart"]
        mask = Mask(isinstance(pattern, PerRow), sparsity, criterion, budget)
        if stage == "chain":
            return needs.chain(sizes, draw, mask, iterations, batch, machine)
        return getattr(needs, stage)(sizes, draw, mask, machine)

    def jobs(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every job of the study, from nothing, but for its target: its stage and wildcards."""
        cells = [cell.coordinates() for cell in study.cells(self.config)]
        of = {
            way: [cell for cell in cells if self.config["calibrations"][cell["calibration"]]["propagate"] == way]
            for way in ("dense", "pruned")
        }
        draw = ("model", "calibration", "seed")
        start = (*draw, "pattern", "warmstart")
        yield from (("model", {"model": name}) for name in self.config["models"])
        yield from (("samples", where) for where in _distinct(cells, draw))
        yield from (("capture", where) for where in _distinct(of["dense"], draw))
        budgets = (*draw, "pattern")
        uneven = [cell for cell in cells if not self.patterns[cell["pattern"]].uniform]
        yield from (("allocation", where) for where in _distinct(uneven, budgets))
        dense, rebuilt = of["dense"], [cell for cell in of["dense"] if cell["reconstruction"] != "none"]
        refined = _distinct(dense, (*start, "refinement"))
        for stage, found in (("warmstart", _distinct(dense, start)), ("refine", refined), ("reconstruct", rebuilt)):
            for where in found:
                yield from ((stage, where) for _ in range(self.sizes[where["model"]].blocks))
        yield from (("chain", where) for where in of["pruned"])
        yield from (("masks", where) for where in cells)
        kept = cells if self.config["checkpoints"] else [c for c in cells if c["reconstruction"] != "none"]
        yield from (("assemble", where) for where in kept)
        texts, tasks = self.config["evaluation"]["perplexity"], self.config["evaluation"]["lm_eval"]["tasks"]
        evaluated = [{"model": name} for name in self.config["models"]] + cells
        for where, text in product(evaluated, texts):
            yield "perplexity", where | {"text": text}
        if tasks:
            yield "tasks", {}
            yield from (("harness", where) for where in evaluated)
        yield from ((stage, {}) for stage in _FOR_ALL)

    def rows(self) -> "list[Row]":
        """The study's jobs by stage and model, in the order of the stages."""
        found: dict[tuple[str, str], Row] = {}
        for stage, where in self.jobs():
            one = self.needs(stage, where)
            key = (stage, where.get("model", ""))
            found[key] = found[key].plus(one) if key in found else Row(*key, 1, one, one.seconds, one.disk)
        return sorted(found.values(), key=lambda row: (_STAGES + _FOR_ALL).index(row.stage))


def _distinct(cells: list[dict[str, Any]], names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The cells' values of these coordinates, each once."""
    found = dict.fromkeys(tuple(cell[name] for name in names) for cell in cells)
    return [dict(zip(names, values, strict=True)) for values in found]


@dataclass(frozen=True)
class Row:
    """The jobs of a stage for a model ("" where it is for all)."""

    stage: str
    model: str
    jobs: int
    most: Needs
    """Of one job, each at its most."""
    seconds: float
    """Of all jobs, one after the other."""
    disk: float
    """Of all jobs."""

    def plus(self, one: Needs) -> "Row":
        most = Needs(*map(max, astuple(self.most), astuple(one)))
        return Row(self.stage, self.model, self.jobs + 1, most, self.seconds + one.seconds, self.disk + one.disk)


def table(planner: Planner) -> str:
    """The plan of a study for people: a line for each stage and model, the sums, and what was assumed."""
    rows = planner.rows()
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
    return "\n".join([printed[0], rule, *printed[1:-1], rule, printed[-1], "", *_assumed(planner)])


def _assumed(planner: Planner) -> Iterator[str]:
    """What the figures rest on, in lines."""
    config = planner.config
    yield "The whole study, from nothing: what is there already is not done again. Memory and the time of a job are"
    yield "those of the stage's largest. Time in all is one job after the other; side by side it is less."
    if config["gpu"]:
        yield "GPU times are estimates: not measured yet."
    else:
        threads = config["threads"]
        yield f"Times are those of a machine like the benchmarks' with {threads} thread{'s' * (threads > 1)} a job;"
        yield "expect them within a factor of three."
    if any(row.get("max_swaps") is None for row in config["refinements"].values()):
        yield f"To the optimum, a row is taken to need {needs.SWAPS:g} swaps for each of its weights."
    evaluation = config["evaluation"]
    if any(text["windows"] is None for text in evaluation["perplexity"].values()):
        yield f"Evaluation texts without `windows` are taken to have {needs.TEXT:,} tokens."
    if evaluation["lm_eval"]["tasks"] and evaluation["lm_eval"]["limit"] is None:
        yield f"lm-eval tasks without `limit` are taken to have {needs.ITEMS:,} items."


def _size(size: float) -> str:
    """Bytes for people; "-" for none."""
    for unit, name in ((1e12, "TB"), (1e9, "GB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{max(size / 1e6, 0.1):.1f} MB" if size else "-"


def _time(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} d"
