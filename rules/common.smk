"""Names, paths and input functions that the stages share.

A path says what an artifact depends on, and nothing else. Everything else that decides it is in its rule's one
parameter, the key (see sparseswaps/provenance.py).
"""

import os
from functools import cache
from pathlib import Path

from sparseswaps import study
from sparseswaps.provenance import stage_key

MODEL = "results/{model}"
DRAW = MODEL + "/{calibration}/seed{seed}"
START = DRAW + "/{pattern}/{warmstart}"
CELL = START + "/{refinement}"
VARIANT = MODEL + "/{variant}"  # what is evaluated: a cell, or the dense model
REPORT = "results/reports/" + config["name"]

ENVIRONMENT = "../envs/sparseswaps.yaml"
GPU = int(config["gpu"])
THREADS = {"threads": config["threads"]}

PATTERNS = study.patterns(config)
CELLS = list(study.cells(config))
BLOCKS = study.blocks(config)

# Scripts find the package also where it is not installed, and nothing asks a hub for what a local folder holds.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [workflow.basedir, os.environ.get("PYTHONPATH")]))


wildcard_constraints:
    model="|".join(map(re.escape, config["models"])),
    calibration=r"[^/]+",
    seed=r"\d+",
    pattern="|".join(map(re.escape, PATTERNS)),
    warmstart=r"[^/]+",
    refinement=r"[^/]+",
    block=r"block\d+",
    variant=r"dense|[^/]+/seed\d+/[^/]+/[^/]+/[^/]+",
    text=r"[^/]+",


def key(script, settings, packages=("torch", "transformers")):
    """The one parameter of a rule: what its stage was told, the code that it runs, and the versions that matter."""
    return stage_key(Path(workflow.basedir) / "scripts" / f"{script}.py", settings, packages)


def blocks(path):
    """An input function: `path` for each decoder block of the wildcards' model."""
    return lambda wildcards: [path.format(**{**wildcards, "block": block}) for block in BLOCKS[wildcards.model]]


@cache
def checkpoint_mb(model):
    folder = study.model_folder(config["models"][model])
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) // 2**20


def memory(weights, retry=1.5):
    """Memory in MB: an interpreter with its libraries, and so many times the checkpoint; more after a failure."""
    return lambda wildcards, attempt: int((1500 + weights * checkpoint_mb(wildcards.model)) * retry ** (attempt - 1))
