"""The grid of a study: every combination of its models, calibrations, seeds, patterns and methods."""

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from sparseswaps.base.errors import InputError
from sparseswaps.layer.pattern import Pattern, counting_rule, parse_pattern, slug_of
from sparseswaps.model.directory import read_config
from sparseswaps.workflow.config import PatternEntry, Study
from sparseswaps.workflow.plan.sizes import Sizes, sizes_of


@dataclass(frozen=True)
class Cell:
    """One point of the grid: one mask for every layer of one model. `pattern` is a slug."""

    model: str
    calibration: str
    seed: int
    pattern: str
    warmstart: str
    refinement: str
    reconstruction: str = "none"

    @property
    def method(self) -> str:
        return self.refinement if self.reconstruction == "none" else f"{self.refinement}+{self.reconstruction}"

    @property
    def variant(self) -> str:
        """The folder of the cell's artifacts below the model's."""
        return f"{self.calibration}/seed{self.seed}/{self.pattern}/{self.warmstart}/{self.method}"

    @property
    def folder(self) -> str:
        """The folder of the cell's artifacts below the results."""
        return f"{self.model}/{self.variant}"


@dataclass(frozen=True)
class Dense:
    """An unpruned model, for comparison."""

    model: str
    variant: str = "dense"

    @property
    def folder(self) -> str:
        return f"{self.model}/{self.variant}"


@dataclass(frozen=True)
class Budget:
    """An entry of a study's `patterns`; `layers` or `owl` divides it among the layers, as the configuration says."""

    label: str  # in tables
    pattern: Pattern  # of all layers; where they differ, of those that `layers` does not name, or of all together
    layers: dict[str, str | float] | None = None
    owl: dict[str, float] | None = None

    @property
    def uniform(self) -> bool:
        """Whether all layers have the same pattern."""
        return self.layers is None and self.owl is None


class Grid:
    """A study with everything that its stages look up, each computed once."""

    def __init__(self, study: Study) -> None:
        self.study = study

    @cached_property
    def patterns(self) -> dict[str, Budget]:
        """The entries of `patterns` by slug."""
        return {slug_of(budget.label): budget for budget in map(read_budget, self.study.patterns)}

    @cached_property
    def imported(self) -> dict[str, str | None]:
        """The path of imported masks by the name of the warm start; None for a criterion."""
        entries = self.study.warmstarts
        return {entry if isinstance(entry, str) else entry.name: getattr(entry, "path", None) for entry in entries}

    @cached_property
    def coordinates(self) -> dict[str, list[Any]]:
        """The values of each coordinate of the grid, in the order of `Cell`'s fields."""
        return {
            "model": list(self.study.models),
            "calibration": list(self.study.calibrations),
            "seed": self.study.seeds,
            "pattern": list(self.patterns),
            "warmstart": list(self.imported),
            "refinement": list(self.study.refinements),
            "reconstruction": ["none", *self.study.reconstructions],
        }

    @cached_property
    def cells(self) -> list[Cell]:
        """The cells of the grid, without the cells that `exclude` names."""
        excluded = [entry.choices() for entry in self.study.exclude]
        for choices in excluded:
            if "pattern" in choices:
                choices["pattern"] = list(map(self.pattern_slug, choices["pattern"]))

        def is_excluded(cell: Cell) -> bool:
            return any(all(getattr(cell, key) in values for key, values in choices.items()) for choices in excluded)

        cells = (Cell(*values) for values in product(*self.coordinates.values()))
        return [cell for cell in cells if not is_excluded(cell)]

    def pattern_slug(self, value: str | float) -> str:
        """Return the slug of a pattern by its name or in any notation, or the value itself if it is no pattern."""
        if value in [budget.label for budget in self.patterns.values()]:
            return slug_of(value)
        try:
            return slug_of(parse_pattern(value).label)
        except InputError:
            return str(value)

    @cached_property
    def variants(self) -> list[Dense | Cell]:
        """Every model as it is, then every cell: all that is evaluated and reported."""
        return [*map(Dense, self.study.models), *self.cells]

    @cached_property
    def sizes(self) -> dict[str, Sizes]:
        """The sizes by model, from its config.json."""
        return {name: sizes_of(read_config(source.folder)) for name, source in self.study.models.items()}

    @cached_property
    def blocks(self) -> dict[str, list[str]]:
        """The names of the decoder blocks by model."""
        return {name: [f"block{index:02d}" for index in range(sizes.blocks)] for name, sizes in self.sizes.items()}

    def counting_rule(self, warmstart: str, refinement: str | None = None) -> str:
        """Return where the kept weights of a warm start, or of a refinement of it, are counted (`masks.check_mask`)."""
        if self.imported[warmstart] is not None:
            return "roughly"
        return counting_rule(warmstart, refinement is not None and self.study.refinements[refinement].between_rows)

    def chained(self, calibration: str) -> bool:
        """Tell whether a calibration has pruned inputs, so that a cell's blocks are pruned one after the other."""
        return self.study.calibrations[calibration].propagate == "pruned"

    def has_checkpoint(self, variant: str) -> bool:
        """Tell whether a variant has a checkpoint; new weights are nowhere else."""
        return variant != "dense" and (self.study.checkpoints or "+" in variant)


def read_budget(entry: str | float | PatternEntry) -> Budget:
    """Read an entry of `patterns`. Raises InputError when it is no pattern."""
    if isinstance(entry, str | int | float):
        pattern = parse_pattern(entry)
        return Budget(pattern.label, pattern)
    owl = entry.owl and entry.owl.model_dump()
    return Budget(entry.name, parse_pattern(entry.sparsity), entry.layers, owl)
