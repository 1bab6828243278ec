"""Snakemake in processes forked from one that has imported it, and its jobs from a server that has imported torch."""

import atexit
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["snakemake.cli"])
# What libraries read when they are imported: jobs with other values of these start by themselves.
_READ_AT_IMPORT = ("HF_", "TRANSFORMERS_", "TORCH", "TRITON", "CUDA", "OMP_", "PYTHON", "TO_DIE")


def _relevant(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_READ_AT_IMPORT)}


@cache
def _job_client() -> tuple[str, dict[str, str]]:
    """An executable that stands for Python in Snakemake's jobs, and the variables that its server was started with."""
    folder, script = Path(mkdtemp()), Path(__file__).with_name("job_server.py")
    server = subprocess.Popen([sys.executable, script, folder / "socket"])
    atexit.register(server.kill)
    client = folder / "python"
    client.write_text(f'#!/bin/sh\nexec {sys.executable} -IS {script} {folder / "socket"} "$@"\n')
    client.chmod(0o700)
    while not (folder / "socket").exists():
        assert server.poll() is None
        time.sleep(0.1)
    return str(client), _relevant(dict(os.environ))


def snakemake(arguments: list[str], output: Path) -> int:
    """Run snakemake with the environment of the caller, and its output in a file; what it exits with."""
    environment = dict(os.environ)
    client, variables = _job_client()
    local = not {"--executor", "--workflow-profile"}.intersection(arguments)
    executable = client if local and _relevant(environment) == variables else sys.executable
    process = _SERVER.Process(target=_main, args=(arguments, str(output), environment, executable))
    process.start()
    process.join()
    return process.exitcode


def _main(arguments: list[str], output: str, environment: dict[str, str], executable: str) -> None:
    from snakemake.cli import main

    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    file = os.open(output, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.argv, sys.executable = ["snakemake", *arguments], executable
    main(arguments)
