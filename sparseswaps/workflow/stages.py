"""The table of stages. Rules, `snakemake plan` and `resources` all read it; nothing else knows the graph.

A stage is a class, and `Stage` explains its attributes and methods. An instance is the stage at one set of wildcards:
one job, or the jobs of all blocks, which have the same settings. `point` has the properties that stages look up.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from sparseswaps.calibration.settings import PrunedInputs
from sparseswaps.workflow.files import (
    embedded_task_files,
    identities,
    identities_of_text,
    identity,
    model_files,
    task_files,
)
from sparseswaps.workflow.grid import Cell, Dense, Grid
from sparseswaps.workflow.plan import needs
from sparseswaps.workflow.plan.needs import Needs
from sparseswaps.workflow.point import GridPoint, Where

DRAW = ("model", "calibration", "seed")
START = (*DRAW, "pattern", "warmstart")
CELL = (*START, "method")


class Stage(GridPoint):
    """A stage at one set of wildcards, `where`."""

    packages: ClassVar[tuple[str, ...]] = ("torch",)  # the libraries whose versions decide the result
    code: ClassVar[tuple[str, ...]] = ()  # the folders or modules of the package that the job imports and computes with
    after: ClassVar[tuple[str, ...]] = ()  # the stages whose artifacts a job may read
    wildcards: ClassVar[tuple[str, ...]] = ()  # the wildcards that the settings depend on

    def __init__(self, grid: Grid, where: Where) -> None:
        super().__init__(grid, {name: where[name] for name in self.wildcards if name in where})

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    def exists(self) -> bool:
        """Tell whether the study has the stage at these wildcards."""
        return True

    def settings(self) -> dict[str, Any]:
        """Return everything of the configuration, and of files from outside, that decides the result."""
        return {}

    def upstream(self) -> "list[Stage]":
        """Return the stages of `after` that the study has at these wildcards; one may also be above another."""
        stages = [STAGES[name](self.grid, self.all_wildcards) for name in self.after]
        placed = [stage for stage in stages if len(stage.where) == len(stage.wildcards)]  # a dense model has no masks
        return [stage for stage in placed if stage.exists()]

    def needs(self) -> Needs:
        """Return the memory, disk and time of one job."""
        return needs.small()

    @classmethod
    def jobs(cls, grid: Grid) -> Iterator[Where]:
        """Yield the wildcards of every job of the study."""
        points = grid.cells if "calibration" in cls.wildcards else grid.variants
        for values in dict.fromkeys(tuple(getattr(point, name) for name in cls.wildcards) for point in points):
            where = dict(zip(cls.wildcards, values, strict=True))
            if cls(grid, where).exists():
                yield where


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


class Samples(Stage):
    """Draw and tokenise calibration sequences and held-out sequences."""

    packages = ("torch", "transformers", "tokenizers", "datasets")
    code = ("calibration", "model")
    after = ("model",)
    wildcards = DRAW

    def settings(self):
        # The keys that are left out say what is done with the sequences.
        drawn = self.calibration.model_dump(exclude={"propagate", *PrunedInputs.model_fields})
        files = {"files of text": identities_of_text(self.calibration, "calibration")}
        return drawn | files | {"seed": int(self.where["seed"])}

    def needs(self):
        return needs.samples(self.draw)


class Capture(Stage):
    """Capture the Gram matrices of a dense model's inputs."""

    packages = ("torch", "transformers")
    code = ("calibration", "layer", "model")
    after = ("samples",)
    wildcards = DRAW

    def exists(self):
        return not self.chained

    def settings(self):
        return {"batch_size": self.study.batch_size, "activations": self.study.activations, **self.compute_model}

    def needs(self):
        return needs.capture(self.sizes, self.draw, self.study.batch_size, self.machine)


class Allocation(Stage):
    """Say how sparse each layer becomes, where a pattern is not the same for all layers."""

    code = ("layer", "model")
    after = ("model", "capture")
    wildcards = (*DRAW, "pattern")

    def exists(self):
        return not self.budget.uniform

    def settings(self):
        return {"pattern": self.budget.pattern.label, "layers": self.budget.layers, "owl": self.budget.owl}

    def upstream(self):
        before = Capture if self.budget.owl else Model
        return [before(self.grid, self.where)]

    def needs(self):
        return needs.allocation(self.sizes, self.draw)


class OfBlock(Stage):
    """A stage with a job for each decoder block."""

    packages = ("torch", "numba")
    code = ("layer", "model", "pruning")

    @classmethod
    def jobs(cls, grid):
        yield from (where | {"block": block} for where in super().jobs(grid) for block in grid.blocks[where["model"]])


class OfDenseInputs(OfBlock):
    """A stage of cells whose blocks all have the dense model's inputs."""

    def exists(self):
        return not self.chained


class Warmstart(OfDenseInputs):
    """Make the first masks of one block."""

    after = ("capture", "allocation")
    wildcards = START

    def settings(self):
        return {**self.counts, **self.start, **self.compute}

    def needs(self):
        return needs.warmstart(self.sizes, self.draw, self.mask, self.machine)


class Refine(OfDenseInputs):
    """Refine the masks of one block."""

    after = ("warmstart", "allocation")
    wildcards = (*START, "refinement")

    def settings(self):
        return {**self.counts, **self.refinement.model_dump(), **self.compute}

    def needs(self):
        return needs.refine(self.sizes, self.draw, self.mask, self.machine)


class Reconstruct(OfDenseInputs):
    """Fit the kept weights of one block to its refined masks."""

    packages = ("torch",)
    after = ("refine",)
    wildcards = (*START, "refinement", "reconstruction")

    def exists(self):
        return super().exists() and self.reconstruction is not None

    def settings(self):
        return {"pattern": self.budget.pattern.label, **self.reconstruction.model_dump(), **self.compute}

    def needs(self):
        return needs.reconstruct(self.sizes, self.draw, self.reconstruction.iterations, self.machine)


class Chain(OfBlock):
    """Prune one block of a cell on the outputs of the pruned blocks before it."""

    packages = ("torch", "transformers", "numba")
    code = ("calibration", "layer", "model", "pruning")
    after = ("samples", "allocation")
    wildcards = CELL

    def exists(self):
        return self.chained

    def settings(self):
        return {
            **self.counts,
            **self.start,
            "batch_size": self.study.batch_size,
            "refinement": self.refinement.model_dump(),
            "reconstruction": self.reconstruction and self.reconstruction.model_dump(),
            **self.calibration.model_dump(include=set(PrunedInputs.model_fields)),
            "activations": self.study.activations,
            **self.compute_model,
        }

    def needs(self):
        size, sizes = self.study.batch_size, self.sizes
        return needs.chain(sizes, self.draw, self.mask, self.calibration, self.reconstruction, size, self.machine)


class Masks(Stage):
    """Put the masks of all blocks into one file."""

    packages = ("torch", "safetensors")
    code = ("layer", "model")
    after = ("refine", "chain", "allocation")
    wildcards = CELL

    def settings(self):
        return self.counts

    def needs(self):
        return needs.masks(self.sizes)


class Assemble(Stage):
    """Write the pruned checkpoint."""

    packages = ("torch", "safetensors")
    code = ("model",)
    after = ("masks", "reconstruct", "chain")
    wildcards = CELL

    def exists(self):
        return self.grid.has_checkpoint(self.where["method"])

    def settings(self):
        return {"pattern": self.budget.pattern.label}

    def needs(self):
        return needs.assemble(self.sizes)


class OfVariant(Stage):
    """A stage that evaluates a model as it is, or a cell's pruned model: `variant` is `dense` or the cell's path."""

    after = ("model", "masks", "assemble")
    wildcards = ("model", "variant")

    def settings(self):
        return {
            "checkpoint": self.grid.has_checkpoint(self.where["variant"]),
            "activations": self.study.activations,
            **self.compute_model,
        }


class Perplexity(OfVariant):
    """Measure the perplexity of a model on one text."""

    packages = ("torch", "transformers", "tokenizers", "datasets")
    code = ("calibration", "evaluation", "layer", "model")
    wildcards = ("model", "variant", "text")

    @property
    def text(self):
        return self.study.evaluation.perplexity[self.where["text"]]

    def settings(self):
        about = {"files of text": identities_of_text(self.text, "evaluation"), "batch_size": self.study.batch_size}
        return {**self.text.model_dump(), **about, **super().settings()}

    def needs(self):
        return needs.perplexity(self.sizes, self.text.seqlen, self.text.windows, self.study.batch_size, self.machine)

    @classmethod
    def jobs(cls, grid):
        yield from (w | {"text": text} for w in OfVariant.jobs(grid) for text in grid.study.evaluation.perplexity)


class Harness(OfVariant):
    """Score a model on the configured lm-eval tasks."""

    packages = ("torch", "transformers", "lm_eval", "datasets", "accelerate")
    code = ("calibration", "embedded", "evaluation", "layer", "model")

    def exists(self):
        return bool(self.study.evaluation.lm_eval.tasks)

    def settings(self):
        lm_eval = self.study.evaluation.lm_eval
        files = identities([*embedded_task_files(lm_eval.tasks), *task_files(lm_eval.include)])
        return {**lm_eval.model_dump(), "files of tasks": files, **super().settings()}

    def needs(self):
        lm_eval = self.study.evaluation.lm_eval
        return needs.harness(self.sizes, len(lm_eval.tasks), lm_eval.limit, lm_eval.batch_size, self.machine)


class Drift(Stage):
    """Measure the relative error of every block's output in a cell."""

    packages = ("torch", "transformers")
    code = ("calibration", "evaluation", "layer", "model")
    after = ("model", "samples", "masks", "assemble")
    wildcards = CELL

    def exists(self):
        return self.study.evaluation.drift > 0

    def settings(self):
        return {
            "sequences": self.study.evaluation.drift,
            "batch_size": self.study.batch_size,
            "checkpoint": self.grid.has_checkpoint(self.where["method"]),
            "activations": self.study.activations,
            **self.compute_model,
        }

    def needs(self):
        draw = self.draw._replace(samples=0, held_out=self.study.evaluation.drift)
        return needs.drift(self.sizes, draw, self.study.batch_size, self.machine)


class Tables(Stage):
    """Gather every measurement of the study."""

    packages = ("pandas", "tabulate")
    code = ("report",)
    after = ("refine", "reconstruct", "chain", "perplexity", "harness", "drift")

    def settings(self):
        cells = {f"cell {variant.folder}": self.facts(variant) for variant in self.grid.variants}
        return {**cells, "published": identities([self.study.published] if self.study.published else [])}

    def facts(self, variant: Dense | Cell) -> dict[str, Any]:
        """Return what tables say of a variant beside its measurements."""
        if isinstance(variant, Dense):
            return {"model": variant.model, "pattern": "dense"}
        calibration = self.study.calibrations[variant.calibration]
        refinement = self.study.refinements[variant.refinement]
        name = "none" if refinement.max_swaps == 0 else variant.refinement
        labels = {"pattern": self.grid.patterns[variant.pattern].label}
        labels["refinement"] = name + variant.method.removeprefix(variant.refinement)
        labels |= {"samples": calibration.samples, "propagate": calibration.propagate}
        return asdict(variant) | labels | refinement.model_dump()

    def upstream(self):
        stages = [STAGES[name] for name in self.after]
        return [stage(self.grid, where) for stage in stages for where in stage.jobs(self.grid)]


class Figures(Stage):
    """Draw the study's figures."""

    packages = ("matplotlib",)
    code = ("report",)
    after = ("tables",)

    def settings(self):
        return self.study.figures.model_dump()


class Report(Stage):
    """Write the HTML report."""

    packages = ("sparseswaps", "torch", "transformers", "datasets", "lm_eval", "snakemake")
    code = ("report",)
    after = ("figures",)

    def settings(self):
        template = identity(Path(__file__).parent.parent / "report" / "report.html.j2")
        paths = [Path(variant.folder) for variant in self.grid.variants]
        folders = {str(folder) for path in paths for folder in (path, *path.parents)}
        return {**self.study.dump(), "template": template, "log folders": sorted(folders)}


IN_ORDER = [Model, Samples, Capture, Allocation, Warmstart, Refine, Reconstruct, Chain, Masks, Assemble]
IN_ORDER += [Perplexity, Harness, Drift, Tables, Figures, Report]
STAGES: dict[str, type[Stage]] = {stage.__name__.lower(): stage for stage in IN_ORDER}
