"""What makes an artifact, as the parameters of its rule: settings, code, versions, and the stages before it.

Snakemake reruns a job when its parameters change. It compares them as a set of values, and prints those that changed.
So each parameter is one text that carries its own name: `max_swaps=5`, `code=1a2b`, `torch=2.13.0`,
`upstream refine=3c4d`. No swap of two values can hide, and `snakemake -n` says what changed, and in which stage.

A change of a stage is a parameter of every stage below it, since Snakemake records the changed parameters of a job that
fails: without it, old artifacts of the stages below would pass for current.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sparseswaps.workflow.code import code_digest
from sparseswaps.workflow.grid import Grid
from sparseswaps.workflow.stages import STAGES, Stage

ALWAYS = ("base.memory", "workflow.artifacts")  # code that every stage computes with, where its job imports it
WORDS = ("report",)  # folders whose words are their results


class Provenance:
    """The parameters of every rule of a study."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self._records: dict[tuple, dict[str, str]] = {}

    def __call__(self, name: str) -> dict[str, Callable[[Any], str]]:
        """Return a rule's `params`: for each parameter a function of the job's wildcards.

        Every job of a stage has the same names of parameters, so one job of the study tells them.
        """
        stage = STAGES[name]
        example = next(iter(stage.jobs(self.grid)), None)
        if example is None:
            return {}
        return {
            identifier(key): (lambda wildcards, key=key: self.record(stage(self.grid, dict(wildcards.items())))[key])
            for key in self.record(stage(self.grid, example))
        }

    def record(self, stage: Stage) -> dict[str, str]:
        """Return all parameters of a stage at its wildcards by their names: each value is `name=value`."""
        key = (stage.name, *stage.where.items())
        if key not in self._records:
            upstream = self._upstream(stage)
            digests = {f"upstream {name}": digest(upstream.get(name, ())) for name in names_above(stage.name)}
            self._records[key] = self._own(stage) | {name: f"{name}={value}" for name, value in digests.items()}
        return self._records[key]

    def _own(self, stage: Stage) -> dict[str, str]:
        values = {name: json.dumps(value, sort_keys=True) for name, value in stage.settings().items()}
        values |= {name: package_version(name) for name in stage.packages}
        values["code"] = code_digest(f"workflow.jobs.{stage.name}", (*stage.code, *ALWAYS), WORDS)
        return {name: f"{name}={value}" for name, value in values.items()}

    def _upstream(self, stage: Stage) -> dict[str, set[str]]:
        """Return the parameters of all stages above a stage, by the stage's name."""
        above: dict[str, set[str]] = {}
        for before in stage.upstream():
            key = ("own", before.name, *before.where.items())
            if key not in self._records:
                self._records[key] = {"own": digest(self._own(before).values())}
            above.setdefault(before.name, set()).add(self._records[key]["own"])
            key = ("above", before.name, *before.where.items())
            if key not in self._records:
                self._records[key] = self._upstream(before)
            for name, digests in self._records[key].items():
                above.setdefault(name, set()).update(digests)
        return above


def names_above(name: str) -> list[str]:
    """Return the names of all stages that may come before a stage, in the order of the table."""
    above, waiting = set(), list(STAGES[name].after)
    while waiting:
        before = waiting.pop()
        if before not in above:
            above.add(before)
            waiting.extend(STAGES[before].after)
    return [stage for stage in STAGES if stage in above]


def settings_of(params: Iterable[str], name: str) -> dict[str, Any]:
    """Return a stage's settings from the values of its rule's parameters, which alone a job goes by."""
    pairs = (value.partition("=")[::2] for value in params)
    others = {"code", *STAGES[name].packages}
    return {key: json.loads(text) for key, text in pairs if key not in others and not key.startswith("upstream ")}


def identifier(name: str) -> str:
    """Return a name as an identifier of Python, which names of parameters must be."""
    return "".join(character if character.isalnum() else "_" for character in name)


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
