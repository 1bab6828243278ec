"""The table of stages: of each, its settings, the stages before it, the code and packages it runs, and what it needs.

Rules, `snakemake plan` and `resources` all read this table; nothing else knows the graph. A stage is a class. An
instance is the stage at one set of wildcards: what one job of the stage is, or several jobs with the same settings.
"""

from collections.abc import Iterator
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

from sparseswaps import embedded
from sparseswaps.calibration.settings import is_file
from sparseswaps.layer.pattern import PerRow
from sparseswaps.model.directory import companion_files, mask_files, weight_files
from sparseswaps.workflow.grid import Cell, Dense, Grid, cell_of
from sparseswaps.workflow.plan import needs
from sparseswaps.workflow.plan.needs import Draw, Machine, Mask, Needs

Where = dict[str, Any]


class Stage:
    """A stage at one set of wildcards.

    Attributes:
        packages: the libraries whose versions decide the result.
        code: the folders or modules of the package that the stage computes with, as far as its job imports them.
        after: the names of the stages whose artifacts the stage may read.
        wildcards: the names of the wildcards that the settings depend on.
    """

    packages: ClassVar[tuple[str, ...]] = ("torch",)
    code: ClassVar[tuple[str, ...]] = ()
    after: ClassVar[tuple[str, ...]] = ()
    wildcards: ClassVar[tuple[str, ...]] = ()

    def __init__(self, grid: Grid, where: Where) -> None:
        self.grid, self.study = grid, grid.study
        self.where = {name: where[name] for name in self.wildcards if name in where}

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    def settings(self) -> dict[str, Any]:
        """Return everything of the configuration, and of files from outside, that decides the result."""
        return {}

    def upstream(self) -> "list[Stage]":
        """Return the stages whose artifacts are read here, each at its own wildcards."""
        return []

    def needs(self) -> Needs:
        """Return the memory, disk and time of one job."""
        return needs.small()

    @classmethod
    def jobs(cls, grid: Grid) -> Iterator[Where]:
        """Yield the wildcards of every job of the study."""
        yield {}

    def at(self, stage: "type[Stage]") -> "Stage":
        """Return another stage at the same wildcards."""
        return stage(self.grid, self.where)

    # What several stages look up.

    @property
    def compute(self) -> dict[str, Any]:
        """What every stage that computes depends on: floating-point sums differ between threads and devices."""
        return {"threads": self.study.threads, "gpu": self.study.gpu}

    @property
    def machine(self) -> Machine:
        return Machine(self.study.gpu, self.study.threads)

    @property
    def sizes(self) -> Any:
        return self.grid.sizes[self.where["model"]]

    @cached_property
    def calibration(self) -> Any:
        return self.study.calibrations[self.where["calibration"]]

    @property
    def draw(self) -> Draw:
        entry = self.calibration
        return Draw(entry.samples, entry.held_out, entry.seqlen, self.study.activations == "disk")

    @property
    def budget(self) -> Any:
        return self.grid.patterns[self.where["pattern"]]

    def counts(self, refinement: str | None = None) -> dict[str, Any]:
        """Return what a mask has to keep, and where its kept weights are counted."""
        counted = self.grid.counting_rule(self.where["warmstart"], refinement)
        return {"pattern": self.budget.pattern.label, "counted": counted}

    def start(self) -> dict[str, Any]:
        """Return what makes the first masks: a criterion, or the files of imported masks."""
        name = self.where["warmstart"]
        path = self.grid.imported[name]
        if path is None:
            return {"criterion": name, "from": None, "files": {}}
        return {"criterion": None, "from": path, "files": identities(mask_files(path))}

    def mask_needs(self, max_swaps: int | None) -> Mask:
        pattern, name = self.budget.pattern, self.where["warmstart"]
        per_row = isinstance(pattern, PerRow)
        sparsity = float(pattern.sparsity) if per_row else 1 - pattern.n / pattern.m
        return Mask(per_row, sparsity, None if self.grid.imported[name] else name, max_swaps)

    def allocations(self) -> "list[Stage]":
        """Return the stage that divides the sparsity among the layers, where the pattern is not the same for all."""
        return [] if self.budget.uniform else [self.at(Allocation)]


DRAW = ("model", "calibration", "seed")
START = (*DRAW, "pattern", "warmstart")
CELL = (*START, "method")


class Model(Stage):
    """Check a model's files and describe them."""

    packages = ("torch", "transformers")
    code = ("model",)
    wildcards = ("model",)

    def settings(self):
        source = self.study.models[self.where["model"]]
        return source.model_dump() | {"files": identities(model_files(source))}

    def needs(self):
        return needs.model(self.sizes)

    @classmethod
    def jobs(cls, grid):
        yield from ({"model": name} for name in grid.study.models)


class Samples(Stage):
    """Draw and tokenise calibration sequences and held-out sequences."""

    packages = ("torch", "transformers", "tokenizers", "datasets")
    code = ("calibration", "model")
    after = ("model",)
    wildcards = DRAW

    def settings(self):
        drawn = self.calibration.model_dump()
        del drawn["propagate"]  # which says what capture does with the sequences
        files = {"files of text": text_identities(self.calibration, "calibration")}
        return drawn | files | {"seed": int(self.where["seed"])}

    def upstream(self):
        return [self.at(Model)]

    def needs(self):
        return needs.samples(self.draw)

    @classmethod
    def jobs(cls, grid):
        yield from distinct(grid.cells, DRAW)


class Capture(Stage):
    """Capture the Gram matrices of a dense model's inputs."""

    packages = ("torch", "transformers")
    code = ("calibration", "layer", "model")
    after = ("samples",)
    wildcards = DRAW

    def settings(self):
        return {"batch_size": self.study.batch_size, "activations": self.study.activations, **self.compute}

    def upstream(self):
        return [self.at(Samples)]

    def needs(self):
        return needs.capture(self.sizes, self.draw, self.study.batch_size, self.machine)

    @classmethod
    def jobs(cls, grid):
        yield from distinct(on_dense_inputs(grid), DRAW)


class Allocation(Stage):
    """Say how sparse each layer becomes, where a pattern is not the same for all layers."""

    code = ("layer", "model")
    after = ("model", "capture")
    wildcards = (*DRAW, "pattern")

    def settings(self):
        return {"pattern": self.budget.pattern.label, "layers": self.budget.layers, "owl": self.budget.owl}

    def upstream(self):
        return [self.at(Capture if self.budget.owl else Model)]

    def needs(self):
        return needs.allocation(self.sizes, self.draw)

    @classmethod
    def jobs(cls, grid):
        uneven = (cell for cell in grid.cells if not grid.patterns[cell.pattern].uniform)
        yield from distinct(uneven, cls.wildcards)


class Warmstart(Stage):
    """Make the first masks of one block."""

    packages = ("torch", "numba")
    code = ("layer", "model", "pruning")
    after = ("capture", "allocation")
    wildcards = START

    def settings(self):
        return {**self.counts(), **self.start(), **self.compute}

    def upstream(self):
        return [self.at(Capture), *self.allocations()]

    def needs(self):
        return needs.warmstart(self.sizes, self.draw, self.mask_needs(0), self.machine)

    @classmethod
    def jobs(cls, grid):
        yield from each_block(grid, distinct(on_dense_inputs(grid), START))


class Refine(Stage):
    """Refine the masks of one block."""

    packages = ("torch", "numba")
    code = ("layer", "model", "pruning")
    after = ("warmstart", "allocation")
    wildcards = (*START, "refinement")

    @property
    def refinement(self):
        return self.study.refinements[self.where["refinement"]]

    def settings(self):
        return {**self.counts(self.where["refinement"]), **self.refinement.model_dump(), **self.compute}

    def upstream(self):
        return [self.at(Warmstart), *self.allocations()]

    def needs(self):
        return needs.refine(self.sizes, self.draw, self.mask_needs(self.refinement.max_swaps), self.machine)

    @classmethod
    def jobs(cls, grid):
        yield from each_block(grid, distinct(on_dense_inputs(grid), cls.wildcards))


class Reconstruct(Stage):
    """Fit the kept weights of one block to its refined masks."""

    code = ("layer", "model", "pruning")
    after = ("refine",)
    wildcards = (*START, "refinement", "reconstruction")

    @property
    def reconstruction(self):
        return self.study.reconstructions[self.where["reconstruction"]]

    def settings(self):
        return {"pattern": self.budget.pattern.label, **self.reconstruction.model_dump(), **self.compute}

    def upstream(self):
        return [self.at(Refine)]

    def needs(self):
        return needs.reconstruct(self.sizes, self.draw, self.reconstruction.iterations, self.machine)

    @classmethod
    def jobs(cls, grid):
        rebuilt = (cell for cell in on_dense_inputs(grid) if cell.reconstruction != "none")
        yield from each_block(grid, distinct(rebuilt, cls.wildcards))


class OfCell(Stage):
    """A stage at the wildcards of a cell, whose method is `{refinement}` or `{refinement}+{reconstruction}`."""

    wildcards = CELL

    @cached_property
    def cell(self) -> Cell:
        return cell_of(**self.where)

    @cached_property
    def parts(self) -> Where:
        """The wildcards of the stages before, with refinement and reconstruction apart."""
        return self.where | {"refinement": self.cell.refinement, "reconstruction": self.cell.reconstruction}

    def mask_makers(self) -> list[Stage]:
        """Return the stage that made the cell's masks."""
        chained = self.grid.chained(self.cell.calibration)
        return [self.at(Chain) if chained else Refine(self.grid, self.parts)]

    def weight_makers(self) -> list[Stage]:
        """Return the stage that made the cell's new weights, if another stage than that of its masks made any."""
        if self.cell.reconstruction == "none" or self.grid.chained(self.cell.calibration):
            return []
        return [Reconstruct(self.grid, self.parts)]

    @classmethod
    def jobs(cls, grid):
        yield from (place(cell, CELL) for cell in grid.cells)


class Chain(OfCell):
    """Prune all blocks of a cell, each on the outputs of the pruned blocks before it."""

    packages = ("torch", "transformers", "numba")
    code = ("calibration", "layer", "model", "pruning")
    after = ("samples", "allocation")

    def settings(self):
        reconstruction = self.study.reconstructions.get(self.cell.reconstruction)
        return {
            **self.counts(self.cell.refinement),
            **self.start(),
            "batch_size": self.study.batch_size,
            "refinement": self.study.refinements[self.cell.refinement].model_dump(),
            "reconstruction": reconstruction and reconstruction.model_dump(),
            "activations": self.study.activations,
            **self.compute,
        }

    def upstream(self):
        return [self.at(Samples), *self.allocations()]

    def needs(self):
        mask = self.mask_needs(self.study.refinements[self.cell.refinement].max_swaps)
        reconstruction = self.study.reconstructions.get(self.cell.reconstruction)
        iterations = reconstruction.iterations if reconstruction else 0
        return needs.chain(self.sizes, self.draw, mask, iterations, self.study.batch_size, self.machine)

    @classmethod
    def jobs(cls, grid):
        yield from (place(cell, CELL) for cell in grid.cells if grid.chained(cell.calibration))


class Masks(OfCell):
    """Put the masks of all blocks into one file."""

    packages = ("torch", "safetensors")
    code = ("layer", "model")
    after = ("refine", "chain", "allocation")

    def settings(self):
        return self.counts(self.cell.refinement)

    def upstream(self):
        return [*self.mask_makers(), *self.allocations()]

    def needs(self):
        return needs.masks(self.sizes)


class Assemble(OfCell):
    """Write the pruned checkpoint."""

    packages = ("torch", "safetensors")
    code = ("model",)
    after = ("masks", "reconstruct", "chain")

    def settings(self):
        return {"pattern": self.budget.pattern.label}

    def upstream(self):
        return [self.at(Masks), *self.weight_makers()]

    def needs(self):
        return needs.assemble(self.sizes)

    @classmethod
    def jobs(cls, grid):
        yield from (place(cell, CELL) for cell in grid.cells if grid.has_checkpoint(cell.method))


class OfVariant(Stage):
    """A stage that evaluates a model as it is, or a cell's pruned model."""

    wildcards = ("model", "variant")
    after = ("model", "masks", "assemble")

    def evaluated(self) -> Stage:
        """Return the stage that made what is evaluated."""
        variant = self.grid.variant(self.where["model"], self.where["variant"])
        if isinstance(variant, Dense):
            return self.at(Model)
        made_by = Assemble if self.grid.has_checkpoint(self.where["variant"]) else Masks
        return made_by(self.grid, place(variant, CELL))

    @property
    def from_checkpoint(self) -> dict[str, Any]:
        return {"checkpoint": self.grid.has_checkpoint(self.where["variant"])}

    @property
    def masked(self) -> bool:
        """Whether the plan reckons with masks beside the model, as if dense models had some, too."""
        return not self.study.checkpoints

    @classmethod
    def jobs(cls, grid):
        yield from (variant_of(variant) for variant in grid.variants)


class Perplexity(OfVariant):
    """Measure the perplexity of a model on one text."""

    packages = ("torch", "transformers", "tokenizers", "datasets")
    code = ("calibration", "evaluation", "layer", "model")
    wildcards = ("model", "variant", "text")

    @property
    def text(self):
        return self.study.evaluation.perplexity[self.where["text"]]

    def settings(self):
        files = {"files of text": text_identities(self.text, "evaluation")}
        return {
            **self.text.model_dump(),
            **files,
            "batch_size": self.study.batch_size,
            **self.from_checkpoint,
            **self.compute,
        }

    def upstream(self):
        return [self.evaluated()]

    def needs(self):
        text = self.text
        return needs.perplexity(self.sizes, self.masked, text.seqlen, text.windows, self.study.batch_size, self.machine)

    @classmethod
    def jobs(cls, grid):
        yield from (w | {"text": text} for w in super().jobs(grid) for text in grid.study.evaluation.perplexity)


class Harness(OfVariant):
    """Score a model on the configured lm-eval tasks."""

    packages = ("torch", "transformers", "lm_eval", "datasets", "accelerate")
    code = ("embedded", "evaluation", "layer", "model")

    @property
    def lm_eval(self):
        return self.study.evaluation.lm_eval

    def settings(self):
        files = [*shipped_task_files(self.lm_eval.tasks), *task_files(self.lm_eval.include)]
        settings = self.lm_eval.model_dump() | {"files of tasks": identities(files)}
        return {**settings, **self.from_checkpoint, **self.compute}

    def upstream(self):
        return [self.evaluated()]

    def needs(self):
        lm_eval = self.lm_eval
        return needs.harness(
            self.sizes, self.masked, len(lm_eval.tasks), lm_eval.limit, lm_eval.batch_size, self.machine
        )

    @classmethod
    def jobs(cls, grid):
        yield from super().jobs(grid) if grid.study.evaluation.lm_eval.tasks else ()


class Tables(Stage):
    """Gather every measurement of the study."""

    packages = ("pandas", "tabulate")
    code = ("report",)
    after = ("refine", "reconstruct", "chain", "perplexity", "harness")

    def settings(self):
        cells = {f"cell {variant.folder}": facts(self.grid, variant) for variant in self.grid.variants}
        published = identities([self.study.published] if self.study.published else [])
        return {**cells, "published": published}

    def upstream(self):
        stages: list[Stage] = [Perplexity(self.grid, where) for where in Perplexity.jobs(self.grid)]
        stages += [Harness(self.grid, where) for where in Harness.jobs(self.grid)]
        for where in OfCell.jobs(self.grid):
            cell = OfCell(self.grid, where)
            stages += [*cell.mask_makers(), *cell.weight_makers()]
        return stages


class Figures(Stage):
    """Draw the study's figures."""

    packages = ("matplotlib",)
    code = ("report",)
    after = ("tables",)

    def settings(self):
        return self.study.figures.model_dump()

    def upstream(self):
        return [self.at(Tables)]


class Report(Stage):
    """Write the HTML report."""

    packages = ("sparseswaps", "torch", "transformers", "datasets", "lm_eval", "snakemake")
    code = ("report",)
    after = ("figures",)

    def settings(self):
        template = Path(__file__).parent.parent / "report" / "report.html.j2"
        folders = sorted(
            {str(folder) for v in self.grid.variants for folder in (Path(v.folder), *Path(v.folder).parents)}
        )
        return {**self.study.dump(), "template": identity(template), "log folders": folders}

    def upstream(self):
        return [self.at(Figures)]


TABLE = (
    *(Model, Samples, Capture, Allocation, Warmstart, Refine, Reconstruct, Chain),
    *(Masks, Assemble, Perplexity, Harness, Tables, Figures, Report),
)
STAGES: dict[str, type[Stage]] = {stage.__name__.lower(): stage for stage in TABLE}


def place(cell: Cell, names: tuple[str, ...]) -> Where:
    """Return a cell's values of these wildcards."""
    return {name: getattr(cell, name) for name in names}


def distinct(cells: Any, names: tuple[str, ...]) -> list[Where]:
    """Return the cells' values of these wildcards, each combination once."""
    values = dict.fromkeys(tuple(getattr(cell, name) for name in names) for cell in cells)
    return [dict(zip(names, row, strict=True)) for row in values]


def each_block(grid: Grid, places: list[Where]) -> Iterator[Where]:
    """Yield the wildcards once for each decoder block of their model."""
    yield from (where | {"block": block} for where in places for block in grid.blocks[where["model"]])


def on_dense_inputs(grid: Grid) -> list[Cell]:
    """Return the cells whose blocks are calibrated on the dense model's inputs."""
    return [cell for cell in grid.cells if not grid.chained(cell.calibration)]


def variant_of(variant: Dense | Cell) -> Where:
    """Return the wildcards `model` and `variant` of what is evaluated."""
    model, _, rest = variant.folder.partition("/")
    return {"model": model, "variant": rest}


def facts(grid: Grid, variant: Dense | Cell) -> dict[str, Any]:
    """Return what tables say of a variant beside its measurements."""
    if isinstance(variant, Dense):
        return {"model": variant.model, "pattern": "dense"}
    calibration, refinement = grid.study.calibrations[variant.calibration], grid.study.refinements[variant.refinement]
    name = "none" if refinement.max_swaps == 0 else variant.refinement
    labels = {"pattern": grid.patterns[variant.pattern].label}
    labels["refinement"] = name + variant.method.removeprefix(variant.refinement)
    labels |= {"samples": calibration.samples, "propagate": calibration.propagate}
    return variant.coordinates() | labels | refinement.model_dump()


def text_files(text: Any) -> list[str]:
    """Return the file of a text, if the text is a local file."""
    return [text.text] if is_file(text.text) else []


def text_identities(text: Any, use: str) -> dict[str, Any]:
    """Return what tells a text's file from its other versions. The embedded text has a file for each `use`."""
    if text.text == "embedded":
        path = embedded.TEXT / f"{use}.jsonl"
        return {path.name: sha256(path.read_bytes()).hexdigest()}
    return identities(text_files(text))


def shipped_task_files(tasks: list[str]) -> list[Path]:
    """Return the files of those tasks that come with the project."""
    shipped = [embedded.TASKS_FOLDER / task for task in tasks if task in embedded.TASKS]
    return [path.with_suffix(ending) for path in shipped for ending in (".yaml", ".jsonl")]


def task_files(include: str | None) -> list[str]:
    """Return all files of a folder of lm-eval tasks."""
    return sorted(str(path) for path in Path(include).rglob("*") if path.is_file()) if include else []


def model_files(source: Any) -> list[str]:
    """Return a model's files; none for a model of the hub, whose commit hash stands for its files."""
    if source.revision is not None:
        return []
    return [str(source.folder / name) for name in companion_files(source.folder) + weight_files(source.folder)]


_identities: dict[tuple[str, int, int], Any] = {}


def identity(path: str | Path) -> Any:
    """Return what tells a file from its other versions: the SHA-256 of its content, or size and time of change where
    the file is larger than what Snakemake compares by content (1 MB)."""
    status = Path(path).stat()
    if status.st_size > 1e6:
        return [status.st_size, status.st_mtime_ns]
    key = (str(path), status.st_size, status.st_mtime_ns)
    if key not in _identities:
        _identities[key] = sha256(Path(path).read_bytes()).hexdigest()
    return _identities[key]


def identities(paths: Any) -> dict[str, Any]:
    """Return the identity of each file by its name."""
    return {Path(path).name: identity(path) for path in paths}
