"""What jobs took on this machine, against what the plan expected of them: the records of jobs say both."""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple


class Pace(NamedTuple):
    """How many times as long as expected the finished jobs of a stage took, and how many jobs there are."""

    factor: float
    jobs: int


UNKNOWN: Mapping[str, Pace] = MappingProxyType({})


def read_paces(logs: Path) -> dict[str, Pace]:
    """Return the pace of each stage that has finished jobs, from all studies that ran with this folder of logs."""
    took: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for path in logs.rglob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.get("estimate") and "seconds" in record:  # the record of a job that did not end has no time
            took[record["stage"]].append((record["seconds"], record["estimate"]))
    return {
        stage: Pace(sum(seconds for seconds, _ in jobs) / sum(estimate for _, estimate in jobs), len(jobs))
        for stage, jobs in took.items()
    }
