"""Names, paths and input functions that the stages share.

A path says what an artifact depends on, and nothing else. Everything else that decides it is in its rule's one
parameter, the key (see rules/keys.smk). No output is `update(...)`: Snakemake 9.27 brings back what was there
before a job that failed, and from then on takes it for what that job made.
"""

import platform
from functools import cache, partial
from hashlib import sha256
from itertools import product
from math import ceil
from pathlib import Path

from sparseswaps.workflow import config as study
from sparseswaps.calibration.documents import is_file
from sparseswaps.base.files import read_json
from sparseswaps.model.directory import companion_files, locate, mask_files, weight_files
from sparseswaps.workflow.plan.plan import Planner
from sparseswaps.workflow.provenance import stage_key

ENVIRONMENT = "../envs/sparseswaps.yaml"
GPU = int(config["gpu"])
COMPUTE = {"threads": config["threads"], "gpu": config["gpu"]}  # what computing stages are told
ACTIVATIONS = {"activations": config["activations"]}

PATTERNS = study.patterns(config)
STARTS = study.warmstarts(config)
BLOCKS = study.blocks(config)
PLANNER = Planner(config)
# What is evaluated and reported: every model as it is, and every cell of the grid.
VARIANTS = [study.Dense(name) for name in config["models"]] + list(study.cells(config))
DRAWS = list(dict.fromkeys(f"{v.model}/{v.calibration}/seed{v.seed}" for v in VARIANTS if isinstance(v, study.Cell)))
TEXTS = list(config["evaluation"]["perplexity"])
PUBLISHED = [config["published"]] if config["published"] else []
HARNESS = bool(config["evaluation"]["lm_eval"]["tasks"])


# Where the logs and benchmarks of the study's jobs lie, below the logs.
FOLDERS = sorted({str(f) for v in VARIANTS for f in (Path(v.folder), *Path(v.folder).parents)} - {"."})

# The names of the calibrations whose inputs propagate in either way, for the rules that are for one of them.
PROPAGATES = {
    way: "|".join(re.escape(name) for name, entry in config["calibrations"].items() if entry["propagate"] == way)
    or "(?!)"  # matches nothing
    for way in ("dense", "pruned")
}


def chained(model, method):
    """The outputs of a chain: artifacts for each decoder block of a model, in a cell's folder."""
    endings = {"masks": "safetensors", "losses": "csv", "curves": "csv"}
    if "+" in method:
        endings["weights"] = "safetensors"
    folder = f"<results>/{model}/{{calibration}}/seed{{seed}}/{{pattern}}/{{warmstart}}/{method}"
    return {kind: [f"{folder}/{kind}/{block}.{ending}" for block in BLOCKS[model]] for kind, ending in endings.items()}


def masks_of_blocks(wildcards):
    """An input function: a cell's masks of each decoder block. A reconstruction has those of its refinement, but where
    it has made the inputs of later blocks others, its own."""
    refinement = wildcards.method.partition("+")[0]
    own = config["calibrations"][wildcards.calibration]["propagate"] == "pruned"
    folder = f"<results>/<start>/{wildcards.method if own else refinement}/masks"
    return [f"{folder}/{block}.safetensors" for block in BLOCKS[wildcards.model]]


def weights_of_blocks(wildcards):
    """An input function: the new weights of each decoder block of a reconstructed cell."""
    blocks = BLOCKS[wildcards.model] if "+" in wildcards.method else []
    return [f"<results>/<cell>/weights/{block}.safetensors" for block in blocks]


def allocated(wildcards, model="{model}"):
    """An input function: where the pattern is not the same for all layers, what it is for each."""
    folder = f"<results>/{model}/{{calibration}}/seed{{seed}}/{{pattern}}"
    return {} if PATTERNS[wildcards.pattern].uniform else {"allocation": f"{folder}/allocation.json"}


def text_file(settings):
    """An input list: the text's file, if it is a local one."""
    return [settings["text"]] if is_file(settings["text"]) else []


def task_files(include):
    """An input list: all files of a folder of lm-eval tasks."""
    return sorted(str(path) for path in Path(include).rglob("*") if path.is_file()) if include else []


def has_checkpoint(variant):
    """Whether a variant, by its name as a wildcard, is evaluated from a checkpoint of its own; reconstructed weights
    are nowhere else."""
    return variant != "dense" and (config["checkpoints"] or "+" in variant)


def evaluated(wildcards):
    """What a variant's evaluation loads: its checkpoint, or the base model by its description, and a cell's masks."""
    folder = f"<results>/{wildcards.model}"
    if has_checkpoint(wildcards.variant):
        return {"model": f"{folder}/{wildcards.variant}/checkpoint"}
    masks = {} if wildcards.variant == "dense" else {"masks": f"{folder}/{wildcards.variant}/masks.safetensors"}
    return {"model": f"{folder}/model.json", **masks}


def pruned(ending):
    """An input list: what every cell has of that name."""
    return [f"<results>/{v.folder}/{ending}" for v in VARIANTS if not isinstance(v, study.Dense)]


def checkpoints():
    """An input list: the checkpoints that the study has."""
    cells = [variant for variant in VARIANTS if not isinstance(variant, study.Dense)]
    return [f"<results>/{cell.folder}/checkpoint" for cell in cells if has_checkpoint(cell.method)]


def losses(variant, kind="losses"):
    """The refinement tables of all blocks of a cell; none for a dense model."""
    blocks = [] if isinstance(variant, study.Dense) else BLOCKS[variant.model]
    return [f"<results>/{variant.folder}/{kind}/{block}.csv" for block in blocks]


def curves(variant):
    """The tables of the error by the number of swaps of all blocks of a cell; none where no swaps were made last."""
    if isinstance(variant, study.Dense) or variant.reconstruction != "none":
        return []
    how = config["refinements"][variant.refinement]
    return losses(variant, "curves") if how["method"] == "swaps" and how["max_swaps"] != 0 else []


def described(variant):
    """What the tables say of a variant beyond its measurements."""
    if isinstance(variant, study.Dense):
        return {"model": variant.model, "pattern": "dense"}
    calibration, how = config["calibrations"][variant.calibration], config["refinements"][variant.refinement]
    refinement = "none" if how["max_swaps"] == 0 else variant.refinement
    method = refinement + variant.method.removeprefix(variant.refinement)
    named = variant.coordinates() | {"pattern": PATTERNS[variant.pattern].label, "refinement": method}
    named |= {name: calibration[name] for name in ("samples", "propagate")}
    return named | how


@cache
def start_files(warmstart):
    """An input list: the files of a warm start that was made elsewhere."""
    path = STARTS.get(warmstart)
    return [str(file) for file in mask_files(path)] if path else []


@cache
def model_files(model):
    """An input list: a model's files; none of the hub's, which a commit hash in the key stands for."""
    if config["models"][model]["revision"] is not None:
        return []
    folder = locate(config["models"][model])
    return [str(folder / name) for name in companion_files(folder) + weight_files(folder)]


def resources(stage, **known):
    """A rule's resources: what `snakemake plan` says of its jobs; of memory and time half as much again a retry.

    The limit on a job's time, in minutes, is three times its estimate, and never below ten.
    """

    def needs(wildcards):
        return PLANNER.needs(stage, {**dict(wildcards.items()), **known})

    def megabytes(which):
        return lambda wildcards, attempt: ceil(getattr(needs(wildcards), which) / 1e6 * 1.5 ** (attempt - 1))

    return {
        "mem_mb": megabytes("host"),
        "gpu_mb": megabytes("gpu"),
        "disk_mb": lambda wildcards: ceil(needs(wildcards).disk / 1e6),
        "runtime": lambda wildcards, attempt: ceil(max(10, needs(wildcards).seconds / 20) * 1.5 ** (attempt - 1)),
    }
