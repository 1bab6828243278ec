"""Snakemake in processes forked from one that has imported it, which takes as long as most of its runs do here."""

import multiprocessing
import os
import signal
import sys
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["snakemake.cli"])


def snakemake(arguments: list[str], output: Path) -> int:
    """Run snakemake with the environment of the caller, and its output in a file; what it exits with."""
    process = _SERVER.Process(target=_main, args=(arguments, str(output), dict(os.environ)))
    process.start()
    process.join()
    return process.exitcode


def _main(arguments: list[str], output: str, environment: dict[str, str]) -> None:
    from snakemake.cli import main

    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    file = os.open(output, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.argv = ["snakemake", *arguments]
    main(arguments)
