"""The study's grid, the parameters and resources of every rule, and the input functions that rules share.

A path says what an artifact depends on, and nothing else. Everything else that decides it is in its rule's parameters
(`sparseswaps/workflow/provenance.py`). No output is `update(...)`: Snakemake 9.27 restores the old output of a job that
failed, and from then on takes it for what the job made.
"""

import re
from math import ceil
from pathlib import Path

from sparseswaps.model.directory import mask_files
from sparseswaps.workflow.files import model_files, task_files, text_files
from sparseswaps.workflow.grid import Grid
from sparseswaps.workflow.provenance import Provenance
from sparseswaps.workflow.stages import STAGES

ENVIRONMENT = "../envs/sparseswaps.yaml"
REPORT_ENVIRONMENT = "../envs/report.yaml"  # without torch
GPU = int(STUDY.gpu)
GRID = Grid(STUDY)
provenance = Provenance(GRID)

TEXTS = list(STUDY.evaluation.perplexity)
HARNESS = bool(STUDY.evaluation.lm_eval.tasks)
PUBLISHED = [STUDY.published] if STUDY.published else []
DRAWS = list(dict.fromkeys(f"{cell.model}/{cell.calibration}/seed{cell.seed}" for cell in GRID.cells))

# The names of the calibrations with dense inputs and with pruned inputs, for rules that are for one of them.
PROPAGATES = {
    way: "|".join(re.escape(name) for name, entry in STUDY.calibrations.items() if entry.propagate == way)
    or "(?!)"  # matches nothing
    for way in ("dense", "pruned")
}


def resources(stage):
    """A rule's resources, as `snakemake plan` prints them. Each retry asks for half as much memory and time again.

    The limit on a job's time, in minutes, is three times its estimate, and at least ten. The estimate itself limits
    nothing: a job's record keeps it, and later plans compare (`workflow/plan/measured.py`).
    """

    def needs(wildcards):
        return STAGES[stage](GRID, dict(wildcards.items())).needs()

    def megabytes(kind):
        return lambda wildcards, attempt: ceil(getattr(needs(wildcards), kind) / 1e6 * 1.5 ** (attempt - 1))

    return {
        "mem_mb": megabytes("host"),
        "gpu_mb": megabytes("gpu"),
        "disk_mb": lambda wildcards: ceil((needs(wildcards).disk + needs(wildcards).scratch) / 1e6),
        "estimate_ms": lambda wildcards: ceil((needs(wildcards).start + needs(wildcards).seconds) * 1000),
        "runtime": lambda wildcards, attempt: ceil(max(10, needs(wildcards).seconds / 20) * 1.5 ** (attempt - 1)),
    }


def artifacts(folder, kind, model):
    """The artifacts of a cell's blocks: one file for each block."""
    ending = "csv" if kind in ("losses", "curves", "epochs") else "safetensors"
    return [f"<results>/{folder}/{kind}/{block}.{ending}" for block in GRID.blocks[model]]


def masks_of_blocks(wildcards):
    """A cell's masks. In a chain, a reconstruction changes the inputs of later blocks, and training may change masks."""
    chained = GRID.chained(wildcards.calibration)
    method = wildcards.method if chained else wildcards.method.partition("+")[0]
    return artifacts(f"<start>/{method}", "masks", wildcards.model)


def weights_of_blocks(wildcards):
    """A cell's new weights, if it has any."""
    return artifacts("<cell>", "weights", wildcards.model) if "+" in wildcards.method else []


def hidden_states(wildcards):
    """The hidden states that the block before handed on. The first block has none before it."""
    blocks = GRID.blocks[wildcards.model]
    before = blocks.index(wildcards.block) - 1
    return {} if before < 0 else {"hidden": f"<results>/<cell>/hidden/{blocks[before]}"}


def allocation_file(wildcards):
    """The pattern of each layer, where the pattern is not the same for all layers."""
    uniform = GRID.patterns[wildcards.pattern].uniform
    return {} if uniform else {"allocation": "<results>/<draw>/{pattern}/allocation.json"}


def start_files(wildcards):
    """The files of imported masks."""
    path = GRID.imported.get(wildcards.warmstart)
    return list(map(str, mask_files(path))) if path else []


def checkpoint_or_masks(variant, folder):
    """The files of an evaluated model beside its base: its checkpoint if it has one, else its masks if it is pruned."""
    if GRID.has_checkpoint(variant):
        return {"checkpoint": f"{folder}/checkpoint"}
    return {} if variant == "dense" else {"masks": f"{folder}/masks.safetensors"}


def evaluation_inputs(wildcards):
    """The inputs of an evaluation: a checkpoint, or the base model's description and a cell's masks."""
    files = checkpoint_or_masks(wildcards.variant, "<results>/{model}/{variant}")
    return files if "checkpoint" in files else {"model": "<results>/{model}/model.json", **files}


def of_cells(ending):
    """The artifact of that name of every cell."""
    return [f"<results>/{cell.folder}/{ending}" for cell in GRID.cells]


def checkpoints():
    """The checkpoints of the study."""
    return [f"<results>/{cell.folder}/checkpoint" for cell in GRID.cells if GRID.has_checkpoint(cell.method)]


def losses():
    """The losses of all cells."""
    return [path for c in GRID.cells for path in artifacts(c.folder, "losses", c.model)]


def curves():
    """The curves of the error by the number of swaps, of all cells whose last step makes swaps."""
    swapped = (
        cell
        for cell in GRID.cells
        if cell.reconstruction == "none"
        and STUDY.refinements[cell.refinement].method == "swaps"
        and STUDY.refinements[cell.refinement].max_swaps != 0
    )
    return [path for c in swapped for path in artifacts(c.folder, "curves", c.model)]


def epochs():
    """The errors by epoch of all cells whose blocks are trained."""
    trained = [name for name, reconstruction in STUDY.reconstructions.items() if reconstruction.block]
    return [p for c in GRID.cells if c.reconstruction in trained for p in artifacts(c.folder, "epochs", c.model)]


def table_files(name):
    """The files of one of the study's tables. `snakemake --report` shows the CSV file."""
    caption = f"../docs/captions/{name}.rst"
    csv = report(f"<report>/tables/{name}.csv", caption=caption, category="Tables", labels={"table": name})
    return [csv, *multiext(f"<report>/tables/{name}", ".md", ".tex")]
