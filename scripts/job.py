"""What every script does: log to its file, compute with its threads, and end bad input in one line."""

import ctypes
import fcntl
import json
import logging
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package may not be installed, as under conda

from sparseswaps.base.errors import BrokenFileError, InputError
from sparseswaps.base.files import read_json
from sparseswaps.base.progress import Part, Report, show_progress
from sparseswaps.layer.pattern import Pattern, parse_pattern

_MMAP_THRESHOLD = -3  # glibc's M_MMAP_THRESHOLD


def run(snakemake: Any, main: Callable[[Any, dict], str]) -> None:
    """Run `main(snakemake, settings)`, with the settings of the rule's key; log the line of result that it returns,
    the time that it took, the most memory that it held, and the device.

    On InputError the line goes to the log and to standard error, and the job fails without a traceback.
    """
    began = time.monotonic()
    _free_at_once()
    _tame_bars()
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        handlers=[logging.FileHandler(snakemake.log[0], mode="w", encoding="utf-8")],
        force=True,
    )
    if snakemake.resources.get("gpu"):
        _take_gpu()
    settings = json.loads(snakemake.params.key)["settings"]
    if "threads" in settings:
        import torch

        # As the study says, not as many cores as Snakemake found: sums in floating point depend on the threads.
        torch.set_num_threads(settings["threads"])
    try:
        result = main(snakemake, settings)
    except InputError as error:
        line = _set_aside(snakemake, error) if isinstance(error, BrokenFileError) else str(error)
        logging.error("error: %s", line)
        print(f"{snakemake.rule}: error: {line}", file=sys.stderr)
        sys.exit(1)
    except Exception:
        logging.exception("this is a defect; please report it with this log")
        raise
    logging.info("%s; %.1f s, %s, on %s", result, time.monotonic() - began, _peak_memory(), _device_name())


def _set_aside(snakemake: Any, error: BrokenFileError) -> str:
    """Put what a job made and is broken now out of the way, so that the same command has it made anew; say so."""
    for path in map(Path, snakemake.input):
        if path.parts[0] == "results" and path in (error.path, *error.path.parents):
            aside = path.with_name(f"{path.name}.broken")
            if path.exists():  # else another job that reads it was first
                if aside.is_dir():
                    shutil.rmtree(aside)
                path.replace(aside)
            return f"{error.path}: {error.what}; set aside as {aside}: run snakemake again to have it made anew"
    return str(error)


def _free_at_once() -> None:
    """Give large tensors back to the system when they are freed: glibc would keep up to 32 MB each for later, in pieces
    that the next do not fit into."""
    with suppress(AttributeError, OSError):  # another libc
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 8 * 2**20)


def _tame_bars() -> None:
    """Progress bars, of every library: none where standard error is a file, which would keep all states of them; on a
    terminal nothing is left of them at the end."""
    from tqdm import tqdm

    own, forced = tqdm.__init__, {"leave": False} if sys.stderr.isatty() else {"disable": True}
    tqdm.__init__ = lambda self, *args, **kwargs: own(self, *args, **kwargs | forced)


def _take_gpu() -> None:
    """Of several GPUs, take one that no other job of this user has, or wait for one; it is free again when the process
    ends, however that ends. Snakemake counts GPUs but does not say which is whose.

    The choice is among those of CUDA_VISIBLE_DEVICES where that is set, as it is by SLURM; a single one needs none.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        import torch

        named = ",".join(map(str, range(torch.cuda.device_count())))  # asks the driver; does not start CUDA
    devices = [name.strip() for name in named.split(",")]
    if len(devices) < 2:
        return
    # Within an allocation of SLURM, devices may be counted anew: their names are its own.
    owner = f"{os.getuid()}-{os.environ.get('SLURM_JOB_ID', 'local')}"
    folder = Path(tempfile.gettempdir()) / f"sparseswaps-gpus-{owner}"
    folder.mkdir(mode=0o700, exist_ok=True)
    while True:
        for device in devices:
            lease = os.open(folder / device.replace("/", "-"), os.O_CREAT | os.O_RDWR, 0o600)  # closed by nobody
            with suppress(BlockingIOError):
                fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.environ["CUDA_VISIBLE_DEVICES"] = device
                logging.info("GPU %s of %s", device, named)
                return
            os.close(lease)
        time.sleep(0.5)


def _peak_memory() -> str:
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = f"peak resident memory {resident // (2**20 if sys.platform == 'darwin' else 2**10)} MB"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        found += f", peak allocated on the GPU {torch.cuda.max_memory_allocated() // 2**20} MB"
    return found


def _device_name() -> str:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.get_device_name()
    with suppress(OSError, StopIteration):  # platform.processor() is empty on Linux
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith("model name")).partition(": ")[2]
    return platform.machine()


def device(settings: dict) -> str:
    """`cuda` when the study's `gpu` is true, else `cpu`. Raises InputError when the GPU is not there."""
    import torch

    if not settings["gpu"]:
        return "cpu"
    if not torch.cuda.is_available():
        raise InputError("config key gpu: is true, but torch finds no CUDA device here")
    return "cuda"


def progress(snakemake: Any, unit: str, makes: str, parts: Sequence[Part]) -> AbstractContextManager[list[Report]]:
    """`show_progress` under the name of the job's log."""
    return show_progress(Path(snakemake.log[0]).stem, unit, makes, parts)


def patterns(snakemake: Any, settings: dict) -> Callable[[int, str], Pattern]:
    """The pattern of a layer, by the number of its block and its name."""
    uniform = parse_pattern(settings["pattern"])
    if "allocation" not in snakemake.input.keys():  # noqa: SIM118
        return lambda block, layer: uniform
    allocation = read_json(snakemake.input.allocation)
    return lambda block, layer: parse_pattern(allocation[block][layer])


def block_of(snakemake: Any) -> int:
    """The number of the decoder block that a job is for."""
    return int(snakemake.wildcards.block.removeprefix("block"))
