"""Fork the jobs of a local run from one process, so that a job does not import torch and transformers again.

Snakemake starts a script for each job. The script sends its job, environment and streams to the server, and waits
(`run_forked`). The server imports what the job's stage needs, once, and forks a process for the job. A script that
finds no server runs the job itself (`workflow.run`).

The server ends when Snakemake ends, even by SIGKILL: Snakemake holds the other end of the server's standard input. A
forked job ends when its script or Snakemake ends.
"""

import atexit
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from sparseswaps.workflow.job import Job, run_job

VARIABLE = "SPARSESWAPS_JOB_SERVER"  # the environment variable with the path of the server's socket; empty for none
_STARTED, _KILLED = b"s", 137
_GRACE = 5  # seconds that an interrupted job has to delete its partial files
_LLAMA = ["transformers.models.llama.modeling_llama", "transformers.models.auto.tokenization_auto"]
# The modules of a stage that are imported only while a job runs.
_LATE_IMPORTS = {
    "model": _LLAMA,
    "samples": ["datasets", *_LLAMA],
    "capture": _LLAMA,
    "chain": _LLAMA,
    "perplexity": ["datasets", *_LLAMA],
    "drift": _LLAMA,
    "harness": ["datasets", *_LLAMA, "lm_eval.evaluator", "lm_eval.models.huggingface", "lm_eval.tasks"],
}
_servers: list[subprocess.Popen] = []  # keeps the pipes to the servers open


def start_server(workflow: Any) -> None:
    """Start a server for a workflow of Snakemake that runs its jobs on this machine, in the environment of Snakemake.

    Jobs of cluster executors and of `--sdm` start by themselves. So do all jobs on other systems than Linux, whose
    libraries do not survive a fork, and where there is no place for a socket.
    """
    main = workflow.exec_mode == type(workflow.exec_mode).DEFAULT and workflow.local_exec and not workflow.touch
    forks = sys.platform == "linux" and main and not workflow.deployment_settings.deployment_method
    if forks and VARIABLE not in os.environ:
        with suppress(OSError):
            os.environ[VARIABLE] = spawn_server().args[-1]


def spawn_server() -> subprocess.Popen:
    """Start a server that ends with this process. The last of its `args` is the path of its socket.

    Raises OSError when there is no folder for temporary files, or its path is too long for a socket.
    """
    folder = mkdtemp(prefix="sparseswaps-")  # open to its owner alone
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    root = str(Path(__file__).parents[2])  # the package need not be installed
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "PYTHONSAFEPATH": "1",  # no module of the current folder stands for a library or for this package
        "OMP_NUM_THREADS": "1",  # read by torch at import; each job then sets its own number of threads
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # to ask for GPUs starts no CUDA, which does not survive a fork
    }
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.join(folder, "jobs"))
        listener.listen(1024)  # jobs may ask before the server is ready
        server = subprocess.Popen(
            [sys.executable, "-m", "sparseswaps.workflow.server", str(listener.fileno()), listener.getsockname()],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            start_new_session=True,  # Ctrl-C is for Snakemake
            env=environment,
        )
    _servers.append(server)
    return server


def run_forked(job: Job) -> int | None:
    """Have the server run a job, with this process's environment and streams. Return the job's exit status.

    Returns None when there is no server; 1 when Snakemake has ended; 137 when the job was killed or crashed.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return None
    with socket.socket(socket.AF_UNIX) as connection:
        # Ctrl-C ends the script without a traceback, and the job with it.
        handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            connection.connect(path)
            request = json.dumps([os.getcwd(), dict(os.environ), asdict(job)]).encode()
            socket.send_fds(connection, [len(request).to_bytes(8, "big")], [1, 2])
            connection.sendall(request)
            started = connection.recv(1) == _STARTED
        except OSError:  # the server has ended
            started = False
        if not started:
            signal.signal(signal.SIGINT, handler)
            if os.path.exists(path):  # the server cannot fork the job, or was killed
                return None
            print(f"{job.stage}: error: not run, since Snakemake has ended", file=sys.stderr)
            return 1
        status = connection.recv(4)
        connection.recv(1)  # returns when the job's process has ended and its memory is free
    if not status:
        print(f"{job.stage}: error: the job was killed or crashed; see {job.log}", file=sys.stderr)
    return int(status or _KILLED)


def serve(listener: socket.socket) -> None:
    """Fork a process for each job that is asked for, until standard input ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # only scripts wait for jobs
    while 0 not in select.select([listener, 0], [], [])[0]:
        connection, _ = listener.accept()
        with connection, suppress(OSError, ValueError):  # the script was killed or stopped while it asked
            connection.settimeout(10)
            size, streams, _, _ = socket.recv_fds(connection, 8, 2)
            try:
                request = b""
                while len(request) < int.from_bytes(size, "big") and (part := connection.recv(1 << 20)):
                    request += part
                folder, environment, fields = json.loads(request)
                importable = _import_for(fields["stage"])
                if select.select([0], [], [], 0)[0]:
                    _delete_socket(listener)
                elif importable and _fork() == 0:
                    try:
                        listener.close()
                        connection.settimeout(None)
                        _work(connection, streams, folder, environment, Job(**fields))
                    finally:  # nothing of the server may run in the job's process
                        os._exit(1)
            finally:
                for stream in streams:
                    os.close(stream)


def _import_for(stage: str) -> bool:
    """Import what a stage needs. Return whether its jobs may be forked."""
    try:
        for name in [*_LATE_IMPORTS.get(stage, []), f"sparseswaps.workflow.jobs.{stage}"]:
            import_module(name)
        if stage in ("refine", "chain"):
            _load_kernels()
    except Exception:  # the job will meet the error itself, and log it
        return False
    torch = sys.modules.get("torch")
    return torch is None or not torch.cuda.is_initialized()


def _fork() -> int:
    """Fork without Python's warning of threads (3.12 and later): those of imported libraries wait for work."""
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        return os.fork()


def _delete_socket(listener: socket.socket) -> None:
    """Tell scripts that still wait that Snakemake has ended: they read the end of their connection after this."""
    shutil.rmtree(Path(listener.getsockname()).parent, ignore_errors=True)


def _load_kernels() -> None:
    """Make numba load the compiled kernels of the search, which it does at the first call."""
    import torch

    from sparseswaps.layer.pattern import parse_pattern
    from sparseswaps.layer.swaps.engine import refine_mask

    for pattern in ("50%", "2:4"):
        mask = torch.tensor([[True, True, False, False]])
        refine_mask(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.eye(4), mask, parse_pattern(pattern), backend="cpu")


def _work(connection: socket.socket, streams: list[int], folder: str, environment: dict[str, str], job: Job) -> None:
    """Run a job in the forked process, and tell the script its exit status."""
    os.setpgid(0, 0)  # with the processes that the job may start
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    snakemake = os.dup(0)
    for number, stream in enumerate([os.open(os.devnull, os.O_RDONLY), *streams]):
        os.dup2(stream, number)
    threading.Thread(target=_end_with, args=(connection, snakemake), daemon=True).start()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    connection.sendall(_STARTED)
    status = 0
    try:
        run_job(job)
    except (SystemExit, KeyboardInterrupt):  # bad input, which has its line, or the end of the script
        status = 1
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(str(status).encode())
    os._exit(0)


def _end_with(connection: socket.socket, snakemake: int) -> None:
    """End the job when its script or Snakemake ends: first by an interrupt, so that it deletes its partial files."""
    select.select([connection, snakemake], [], [])
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(_GRACE)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as jobs:
        serve(jobs)
        _delete_socket(jobs)
