"""The time that jobs took on this machine, compared with the plan's estimate, by the records in `logs/`."""

import json
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from sparseswaps.base.errors import InputError
from sparseswaps.base.files import read_json

_SHORTEST = 1  # seconds; most of a shorter job may be other than arithmetic, and tells nothing about larger models


class Pace(NamedTuple):
    """How many times as long as expected the finished jobs of a stage took, and how many jobs there are."""

    factor: float
    jobs: int


UNKNOWN: Mapping[str, Pace] = MappingProxyType({})


def read_paces(logs: Path, gpu: bool) -> dict[str, Pace]:
    """Return the pace of each stage that has finished jobs, on a GPU or without, from all studies with this `logs`."""
    took: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for path in logs.rglob("*.json"):
        with suppress(InputError, KeyError, TypeError):  # a job that did not end has no time; files may be foreign
            record = read_json(path)
            times = record["seconds"], record["estimate"]
            if times[0] >= _SHORTEST and times[1] and f"gpu={json.dumps(not gpu)}" not in record["params"]:
                took[record["stage"]].append(times)
    return {
        stage: Pace(sum(seconds for seconds, _ in jobs) / sum(estimate for _, estimate in jobs), len(jobs))
        for stage, jobs in took.items()
    }
