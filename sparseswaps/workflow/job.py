"""A job: everything that it is given, and its run with a log, a record, and errors in one line."""

import json
import logging
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from sparseswaps.base.errors import BrokenFileError, InputError
from sparseswaps.base.files import write_json
from sparseswaps.workflow import machine
from sparseswaps.workflow.context import Context


@dataclass(frozen=True)
class Job:
    """Everything that a job is given.

    Attributes:
        stage: the name of the stage.
        inputs, outputs: a path, or a list of paths, by name.
        params: the values of the rule's parameters, each `name=value` (`workflow.provenance`).
        wildcards: the wildcards of the rule.
        log: the path of the log.
        gpu: whether the job was given a GPU.
        estimate: the seconds that the plan expects.
    """

    stage: str
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    params: list[str]
    wildcards: dict[str, str]
    log: str
    gpu: bool
    estimate: float = 0

    @property
    def record(self) -> Path:
        """The path of the job's record, beside its log."""
        return Path(self.log).with_suffix(".json")


def run_job(job: Job) -> None:
    """Run a job with its own log; end bad input in one line on standard error, with exit status 1.

    The job's record is written before the work, and again after it with the time and memory that it took.
    """
    from sparseswaps.workflow.provenance import settings_of

    began = time.monotonic()
    machine.tame_bars()
    write_json(job.record, asdict(job))
    handler = logging.FileHandler(job.log, mode="w", encoding="utf-8")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=[handler], force=True)
    if job.gpu:
        machine.take_gpu()
    settings = settings_of(job.params, job.stage)
    if "threads" in settings and job.stage != "report":  # the report's settings are the whole configuration
        import torch

        # Sums in floating point depend on the number of threads, so the study sets it and not the machine.
        torch.set_num_threads(settings["threads"])
    context = Context(job.stage, job.wildcards, json.dumps(sorted(job.params)))
    try:
        result = import_module(f"sparseswaps.workflow.jobs.{job.stage}").run(job.inputs, job.outputs, settings, context)
    except InputError as error:
        line = _set_aside(job.inputs, error) if isinstance(error, BrokenFileError) else str(error)
        logging.error("error: %s", line)
        print(f"{job.stage}: error: {line}", file=sys.stderr)
        sys.exit(1)
    except Exception:
        logging.exception("this is a defect; please report it with this log")
        raise
    usage = machine.usage_since(began)
    write_json(job.record, asdict(job) | usage)
    logging.info("%s; %s", result, ", ".join(f"{name} {value}" for name, value in usage.items()))


def _set_aside(inputs: Mapping[str, Any], error: BrokenFileError) -> str:
    """Rename a broken artifact, so that the same command makes it again; return the line that says so."""
    for paths in inputs.values():
        for path in map(Path, [paths] if isinstance(paths, str) else paths):
            if path.parts[0] == "results" and path in (error.path, *error.path.parents):
                aside = path.with_name(f"{path.name}.broken")
                if path.exists():  # else another job that reads it was first
                    if aside.is_dir():
                        shutil.rmtree(aside)
                    path.replace(aside)
                return f"{error.path}: {error.what}; it is now {aside}: run snakemake again to make a new one"
    return str(error)
