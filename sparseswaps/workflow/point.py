"""The wildcards of a stage, and what the study says about them."""

from functools import cached_property
from typing import Any

from sparseswaps.layer.pattern import PerRow
from sparseswaps.model.directory import mask_files
from sparseswaps.workflow.files import identities
from sparseswaps.workflow.grid import Budget, Grid
from sparseswaps.workflow.plan.needs import Draw, Machine, Mask
from sparseswaps.workflow.plan.sizes import Sizes

Where = dict[str, Any]  # values of wildcards by name


class GridPoint:
    """The values of some wildcards, `where`, in the grid of a study. Each property needs some of these wildcards."""

    def __init__(self, grid: Grid, where: Where) -> None:
        self.grid, self.study, self.where = grid, grid.study, where
        # Floating-point sums differ between threads and devices: every stage that computes has these settings.
        self.compute = {"threads": self.study.threads, "gpu": self.study.gpu}
        self.compute_model = {**self.compute, "dtype": self.study.run_dtype}
        self.machine = Machine(**self.compute_model, on_disk=self.study.activations == "disk")

    @cached_property
    def all_wildcards(self) -> Where:
        """The wildcards, with the coordinates of a variant and the parts of a method."""
        where = dict(self.where)
        if where.get("variant", "dense") != "dense":
            calibration, seed, pattern, warmstart, method = where["variant"].split("/")
            where |= {"calibration": calibration, "seed": int(seed.removeprefix("seed"))}
            where |= {"pattern": pattern, "warmstart": warmstart, "method": method}
        if "method" in where:
            refinement, _, reconstruction = where["method"].partition("+")
            where |= {"refinement": refinement, "reconstruction": reconstruction or "none"}
        return where

    @property
    def sizes(self) -> Sizes:
        return self.grid.sizes[self.where["model"]]

    @property
    def calibration(self) -> Any:
        return self.study.calibrations[self.where["calibration"]]

    @property
    def chained(self) -> bool:
        return self.grid.chained(self.where["calibration"])

    @property
    def draw(self) -> Draw:
        entry = self.calibration
        return Draw(entry.samples, entry.held_out, entry.seqlen)

    @property
    def budget(self) -> Budget:
        return self.grid.patterns[self.where["pattern"]]

    @property
    def refinement(self) -> Any:
        return self.study.refinements.get(self.all_wildcards.get("refinement"))

    @property
    def reconstruction(self) -> Any:
        return self.study.reconstructions.get(self.all_wildcards.get("reconstruction"))

    @property
    def counts(self) -> dict[str, Any]:
        """The settings of a mask: its pattern, and where its kept weights are counted."""
        counted = self.grid.counting_rule(self.where["warmstart"], self.all_wildcards.get("refinement"))
        return {"pattern": self.budget.pattern.label, "counted": counted}

    @property
    def start(self) -> dict[str, Any]:
        """The settings of the first masks: a criterion, or the files of imported masks."""
        path = self.grid.imported[self.where["warmstart"]]
        if path is None:
            return {"criterion": self.where["warmstart"], "from": None, "files": {}}
        return {"criterion": None, "from": path, "files": identities(mask_files(path))}

    @property
    def mask(self) -> Mask:
        """The facts of a mask that decide the time to make it."""
        pattern, name = self.budget.pattern, self.where["warmstart"]
        per_row = isinstance(pattern, PerRow)
        sparsity = float(pattern.sparsity) if per_row else 1 - pattern.n / pattern.m
        max_swaps = self.refinement.max_swaps if self.refinement else 0
        refit = self.refinement is not None and self.refinement.refit
        return Mask(per_row, sparsity, None if self.grid.imported[name] else name, max_swaps, refit)
