"""The parameters of each rule: settings, code, versions, and the stages before. Each is a text with its own name:
`max_swaps=5`, `code=1a2b`, `torch=2.13.0`, `upstream refine=3c4d` (docs/decisions.md says why).
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sparseswaps.workflow.code import code_digest
from sparseswaps.workflow.grid import Grid
from sparseswaps.workflow.stages import STAGES, Stage

ALWAYS = ("base.memory", "workflow.artifacts", "workflow.context")  # code of every stage whose job imports it
WORDS = ("report",)  # folders whose words are their results


class Provenance:
    """The parameters of every rule of a study."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self._records: dict[tuple, dict[str, str]] = {}
        self._digests: dict[tuple, dict[str, set[str]]] = {}

    def __call__(self, name: str) -> dict[str, Callable[[Any], str]]:
        """Return a rule's `params`: for each parameter a function of the job's wildcards.

        All jobs of a stage have the same names of parameters, which are taken from one job of the study.
        """
        stage = STAGES[name]
        example = next(iter(stage.jobs(self.grid)), None)
        if example is None:
            return {}
        return {  # names of parameters must be identifiers
            re.sub(r"\W", "_", key): (
                lambda wildcards, key=key: self.record(stage(self.grid, dict(wildcards.items())))[key]
            )
            for key in self.record(stage(self.grid, example))
        }

    def record(self, stage: Stage) -> dict[str, str]:
        """Return all parameters of a stage at its wildcards by their names: each value is `name=value`."""
        key = (stage.name, *stage.where.items())
        if key not in self._records:
            above = self._digests_above(stage)
            digests = {f"upstream {name}": digest(above.get(name, ())) for name in names_above(stage.name)}
            self._records[key] = own_parameters(stage) | {name: f"{name}={value}" for name, value in digests.items()}
        return self._records[key]

    def _digests_above(self, stage: Stage) -> dict[str, set[str]]:
        """Return the digests of the own parameters of all stages above a stage, by the stage's name."""
        above: dict[str, set[str]] = {}
        for before in stage.upstream():
            key = (before.name, *before.where.items())
            if key not in self._digests:
                own = {before.name: {digest(own_parameters(before).values())}}
                self._digests[key] = self._digests_above(before) | own
            for name, digests in self._digests[key].items():
                above.setdefault(name, set()).update(digests)
        return above


def own_parameters(stage: Stage) -> dict[str, str]:
    """Return the parameters of a stage without the stages above it."""
    values = {name: json.dumps(value, sort_keys=True) for name, value in stage.settings().items()}
    values |= {name: package_version(name) for name in stage.packages}
    values["code"] = code_digest(f"workflow.jobs.{stage.name}", (*stage.code, *ALWAYS), WORDS)
    return {name: f"{name}={value}" for name, value in values.items()}


def names_above(name: str) -> list[str]:
    """Return the names of all stages that may come before a stage, in the order of the table."""
    above = set(STAGES[name].after)
    for before in STAGES[name].after:
        above.update(names_above(before))
    return [stage for stage in STAGES if stage in above]


def settings_of(params: Iterable[str], name: str) -> dict[str, Any]:
    """Return a stage's settings from the values of its rule's parameters."""
    pairs = (value.partition("=")[::2] for value in params)
    others = {"code", *STAGES[name].packages}
    return {key: json.loads(text) for key, text in pairs if key not in others and not key.startswith("upstream ")}


def digest(values: Iterable[str]) -> str:
    """Return eight digits of the SHA-256 of texts in any order; `none` for no text."""
    texts = sorted(values)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:8] if texts else "none"


@cache
def package_version(package: str) -> str:
    """Return the installed version of a package; `none` where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
