"""The machine that a job runs on: a GPU of its own, quiet progress bars, and what the job took."""

import fcntl
import logging
import os
import platform
import resource
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from threading import RLock


def tame_bars() -> None:
    """Switch off the progress bars of every library, our own too, in a file and where TQDM_DISABLE is set.

    On a terminal, bars are erased when they are done.
    """
    from tqdm import tqdm

    visible = sys.stderr.isatty() and "TQDM_DISABLE" not in os.environ
    init, forced = tqdm.__init__, {"leave": False} if visible else {"disable": True}
    tqdm.__init__ = lambda self, *args, **kwargs: init(self, *args, **kwargs | forced)
    tqdm.set_lock(RLock())  # tqdm's own lock also has a semaphore between processes, which a forked job would leak


def take_gpu() -> None:
    """Lease one of several GPUs until the process ends, or wait for one. Snakemake counts GPUs, but does not name them.

    The choice is among the GPUs of CUDA_VISIBLE_DEVICES where it is set, as SLURM does. A single GPU needs no lease.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        import torch

        visible = ",".join(map(str, range(torch.cuda.device_count())))  # asks the driver; does not start CUDA
    devices = [name.strip() for name in visible.split(",")]
    if len(devices) < 2:
        return
    # An allocation of SLURM may number its devices itself, so each allocation has its own names.
    owner = f"{os.getuid()}-{os.environ.get('SLURM_JOB_ID', 'local')}"
    folder = Path(tempfile.gettempdir()) / f"sparseswaps-gpus-{owner}"
    folder.mkdir(mode=0o700, exist_ok=True)
    while True:
        for device in devices:
            lease = os.open(folder / device.replace("/", "-"), os.O_CREAT | os.O_RDWR, 0o600)  # open to the end
            with suppress(BlockingIOError):
                fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.environ["CUDA_VISIBLE_DEVICES"] = device
                logging.info("GPU %s of %s", device, visible)
                return
            os.close(lease)
        time.sleep(0.5)


def usage_since(began: float) -> dict[str, float | str]:
    """Return what the job took since the monotonic time `began`: seconds, peak memory in MB, and its device."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    usage = {
        "seconds": round(time.monotonic() - began, 3),
        "cpu_seconds": round(own.ru_utime + own.ru_stime, 3),
        "peak_resident_mb": own.ru_maxrss // (2**20 if sys.platform == "darwin" else 2**10),
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        allocated = torch.cuda.max_memory_allocated() // 2**20
        return usage | {"peak_gpu_mb": allocated, "device": torch.cuda.get_device_name()}
    return usage | {"device": processor()}


def processor() -> str:
    """Return the name of the processor."""
    with suppress(OSError, StopIteration):  # platform.processor() is empty on Linux
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith("model name")).partition(": ")[2]
    return platform.machine()
