"""What every script does: log to its file, compute with its threads, and end bad input in one line."""

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package may not be installed, as under conda

from sparseswaps.errors import InputError
from sparseswaps.files import read_json


def run(snakemake: Any, main: Callable[[Any, dict], str]) -> None:
    """Run `main(snakemake, settings)`, with the settings of the rule's key; log the line of result that it returns.

    On InputError the line goes to the log and to standard error, and the job fails without a traceback.
    """
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        handlers=[logging.FileHandler(snakemake.log[0], mode="w", encoding="utf-8")],
        force=True,
    )
    settings = json.loads(snakemake.params.key)["settings"]
    if "threads" in settings:
        import torch

        # As the study says, not as many cores as Snakemake found: sums in floating point depend on the threads.
        torch.set_num_threads(settings["threads"])
    try:
        result = main(snakemake, settings)
    except InputError as error:
        logging.error("error: %s", error)
        print(f"{snakemake.rule}: error: {error}", file=sys.stderr)
        sys.exit(1)
    except Exception:
        logging.exception("this is a defect; please report it with this log")
        raise
    logging.info(result)


def device(settings: dict) -> str:
    """`cuda` when the study's `gpu` is true, else `cpu`. Raises InputError when the GPU is not there."""
    import torch

    if not settings["gpu"]:
        return "cpu"
    if not torch.cuda.is_available():
        raise InputError("config key gpu: is true, but torch finds no CUDA device here")
    return "cuda"


def block_of(snakemake: Any) -> int:
    """The number of the decoder block that a job is for."""
    return int(snakemake.wildcards.block.removeprefix("block"))


def evaluated(snakemake: Any) -> tuple[str, bool]:
    """The model directory that an evaluation job is for, and whether code in it may run.

    It is a checkpoint, or the folder that a description names.
    """
    if snakemake.wildcards.variant != "dense":
        folder = snakemake.input.model
        return folder, read_json(Path(folder) / "sparseswaps.json")["base"]["trust_remote_code"]
    from sparseswaps.artifacts import read_model

    model = read_model(snakemake.input.model)
    return model.folder, model.trust_remote_code
