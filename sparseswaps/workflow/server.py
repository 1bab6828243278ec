"""Fork the jobs of a local run from one process, so that a job does not import torch and transformers again.

Snakemake starts a script for each job. The script sends its job, environment and streams to the server, and waits
(`run_forked`). The server imports what the job's stage needs, once, and forks a process for the job. A script that
finds no server runs the job itself (`workflow.run`).

The server ends when Snakemake ends, however that happens: Snakemake holds the other end of the server's standard input.
A job ends when its script or Snakemake ends.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from sparseswaps.workflow.job import Job, run_job

VARIABLE = "SPARSESWAPS_JOB_SERVER"  # the environment variable with the path of the server's socket
_STARTED, _KILLED = b"s", 137
# The modules that a package imports only when a job uses them.
_LAZY = {
    "transformers": ["transformers.models.llama.modeling_llama", "transformers.models.auto.tokenization_auto"],
    "lm_eval": ["lm_eval.evaluator", "lm_eval.models.huggingface", "lm_eval.tasks"],
    "numba": ["sparseswaps.layer.swaps.cpu"],
}


def start_server(workflow: Any) -> None:
    """Start a server for a workflow of Snakemake that runs its jobs on this machine, in the environment of Snakemake.

    Jobs of cluster executors and of `--sdm conda` start by themselves. So do all jobs on other systems than Linux,
    whose libraries do not survive a fork.
    """
    settings = workflow.deployment_settings.deployment_method
    local = workflow.local_exec and workflow.exec_mode == type(workflow.exec_mode).DEFAULT and not settings
    if sys.platform != "linux" or not local or workflow.touch or VARIABLE in os.environ:
        return
    os.environ[VARIABLE] = spawn_server().args[-1]


def spawn_server() -> subprocess.Popen:
    """Start a server that ends with this process. The last of its `args` is the path of its socket."""
    path = os.path.join(mkdtemp(prefix="sparseswaps-"), "jobs")  # a folder that is open to its owner alone
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1024)  # jobs may ask before the server is ready
        descriptor = listener.fileno()
        root = str(Path(__file__).parents[2])  # the package need not be installed
        # OMP_NUM_THREADS: torch takes it at import. Each job then sets its own number of threads.
        # PYTORCH_NVML_BASED_CUDA_CHECK: no import may start CUDA, which does not survive a fork.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "sparseswaps.workflow.server", str(descriptor), path],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[descriptor],
            start_new_session=True,  # Ctrl-C is for Snakemake
            env=environment | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))},
        )


def run_forked(job: Job) -> int | None:
    """Have the server run a job, with this process's environment and streams. Return the job's exit status.

    Returns None when there is no server; 137 when the job was killed.
    """
    path = os.environ.get(VARIABLE)
    if path is None:
        return None
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(path)
            request = json.dumps([os.getcwd(), dict(os.environ), asdict(job)]).encode()
            socket.send_fds(connection, [len(request).to_bytes(8, "big")], [0, 1, 2])
            connection.sendall(request)
            if connection.recv(1) != _STARTED:
                return None
        except OSError:  # the server has ended
            return None
        return int(connection.recv(4) or _KILLED)


def serve(listener: socket.socket) -> None:
    """Fork a process for each job that is asked for, until standard input ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the jobs but their scripts
    while True:
        ready, _, _ = select.select([listener, 0], [], [])
        if 0 in ready:
            return
        connection, _ = listener.accept()
        with connection:
            size, streams, _, _ = socket.recv_fds(connection, 8, 3)
            request = b""
            while len(request) < int.from_bytes(size, "big") and (part := connection.recv(1 << 20)):
                request += part
            with suppress(ValueError):  # the script was killed while it asked
                folder, environment, fields = json.loads(request)
                _import_for(fields["stage"])
                if os.fork() == 0:
                    try:
                        _work(connection, streams, folder, environment, Job(**fields))
                    finally:  # nothing of the server may run in the job's process
                        os._exit(1)
            for stream in streams:
                os.close(stream)


def _import_for(stage: str) -> None:
    from sparseswaps.workflow.stages import STAGES

    for package in STAGES[stage].packages:
        for name in _LAZY.get(package, [package]):
            import_module(name)
    import_module(f"sparseswaps.workflow.jobs.{stage}")


def _work(connection: socket.socket, streams: list[int], folder: str, environment: dict[str, str], job: Job) -> None:
    """Run a job in the forked process, tell the script its exit status, and end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    snakemake = os.dup(0)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    threading.Thread(target=_end_with, args=(connection, snakemake), daemon=True).start()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    connection.sendall(_STARTED)
    status = 0
    try:
        run_job(job)
    except SystemExit:  # bad input, which has its line
        status = 1
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(str(status).encode())


def _end_with(connection: socket.socket, snakemake: int) -> None:
    """End this process when its script or Snakemake ends."""
    select.select([connection, snakemake], [], [])
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    socket_path = Path(sys.argv[2])
    try:
        serve(socket.socket(fileno=int(sys.argv[1])))
    finally:
        socket_path.unlink(missing_ok=True)
        socket_path.parent.rmdir()
