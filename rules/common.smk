"""Names, paths and input functions that the stages share.

A path says what an artifact depends on, and nothing else. Everything else that decides it is in its rule's one
parameter, the key (see sparseswaps/provenance.py). Outputs are `update(...)` where a job may fail on what it is given:
Snakemake then brings back what was there before.
"""

import platform
from functools import cache
from pathlib import Path

from sparseswaps import study
from sparseswaps.documents import is_file
from sparseswaps.modeldir import companion_files, locate, weight_files
from sparseswaps.provenance import stage_key

ENVIRONMENT = "../envs/sparseswaps.yaml"
GPU = int(config["gpu"])
COMPUTE = {"threads": config["threads"], "gpu": config["gpu"]}  # what computing stages are told

PATTERNS = study.patterns(config)
BLOCKS = study.blocks(config)
# What is evaluated and reported: every model as it is, and every cell of the grid.
VARIANTS = [study.Dense(name) for name in config["models"]] + list(study.cells(config))
DRAWS = list(dict.fromkeys(f"{v.model}/{v.calibration}/seed{v.seed}" for v in VARIANTS if isinstance(v, study.Cell)))
TEXTS = list(config["evaluation"]["perplexity"])
HARNESS = bool(config["evaluation"]["lm_eval"]["tasks"])


# Where the logs and benchmarks of the study's jobs lie, below the logs.
FOLDERS = sorted({str(f) for v in VARIANTS for f in (Path(v.folder), *Path(v.folder).parents)} - {"."})

# The names of the calibrations whose inputs propagate in either way, for the rules that are for one of them.
PROPAGATES = {
    way: "|".join(re.escape(name) for name, entry in config["calibrations"].items() if entry["propagate"] == way)
    or "(?!)"  # matches nothing
    for way in ("dense", "pruned")
}


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


def chained(model, ending):
    """The outputs of a chain: an artifact for each decoder block of a model, in a cell's folder."""
    folder = (
        f"<results>/{model}/{{{{calibration}}}}/seed{{{{seed}}}}/{{{{pattern}}}}/{{{{warmstart}}}}/{{{{refinement}}}}"
    )
    return expand(f"{folder}/{ending}", block=BLOCKS[model])


def of_blocks(folder, ending):
    """An input function: a folder's artifact of each decoder block of the wildcards' model."""
    return lambda wildcards: [f"{folder}/{block}.{ending}" for block in BLOCKS[wildcards.model]]


def text_file(settings):
    """An input list: the text's file, if it is a local one."""
    return [settings["text"]] if is_file(settings["text"]) else []


def task_files(include):
    """An input list: all files of a folder of lm-eval tasks."""
    return sorted(str(path) for path in Path(include).rglob("*") if path.is_file()) if include else []


def of_text(settings):
    """The settings of a text, for a key: the embedded one is the running Python's own sources."""
    drawn = {name: value for name, value in settings.items() if name != "propagate"}  # that is what captures do with it
    return drawn | ({"python": platform.python_version()} if settings["text"] == "embedded" else {})


def evaluated(wildcards):
    """What a variant's evaluation loads: its checkpoint, or the dense model's description."""
    folder = f"<results>/{wildcards.model}"
    return f"{folder}/model.json" if wildcards.variant == "dense" else f"{folder}/{wildcards.variant}/checkpoint"


def losses(variant):
    """The refinement tables of all blocks of a cell; none for a dense model."""
    blocks = [] if isinstance(variant, study.Dense) else BLOCKS[variant.model]
    return [f"<results>/{variant.folder}/losses/{block}.csv" for block in blocks]


def described(variant):
    """What the tables say of a variant beyond its measurements."""
    if isinstance(variant, study.Dense):
        return {"model": variant.model, "pattern": "dense"}
    budget = config["refinements"][variant.refinement]["max_swaps"]
    named = variant.coordinates() | {"pattern": PATTERNS[variant.pattern].label, "max_swaps": budget}
    return named | {"refinement": "none"} if budget == 0 else named


@cache
def model_files(model):
    """An input list: a model's files; none of the hub's, which a commit hash in the key stands for."""
    if config["models"][model]["revision"] is not None:
        return []
    folder = locate(config["models"][model])
    return [str(folder / name) for name in companion_files(folder) + weight_files(folder)]


@cache
def checkpoint_mb(model):
    folder = locate(config["models"][model])
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) // 2**20


def memory(weights, model=None):
    """Memory in MB: an interpreter with its libraries, and so many times the checkpoint; half as much again a retry."""

    def needed(wildcards, attempt):
        once = 1500 + weights * checkpoint_mb(model or wildcards.model)
        return int(once * 1.5 ** (attempt - 1))

    return needed
