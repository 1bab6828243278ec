"""Snakemake in processes forked from one that has imported it; all its runs share one server of jobs."""

import multiprocessing
import os
import signal
import sys
from functools import cache
from pathlib import Path

_SNAKEMAKE = multiprocessing.get_context("forkserver")
_LATE = ["snakemake.report.html_reporter", "snakemake_logger_plugin_rich", "smart_open"]  # imported as Snakemake starts
_SNAKEMAKE.set_forkserver_preload(["snakemake.cli", *_LATE])
# What libraries read when they are imported: runs with other values of these start a server of their own.
_READ_AT_IMPORT = ("HF_", "TRANSFORMERS_", "TORCH", "TRITON", "CUDA", "PYTHON")


def _read_at_import() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(_READ_AT_IMPORT)}


@cache
def _server() -> tuple[str, dict[str, str]]:
    """The path of the server's socket, and the variables that the server was started with."""
    from sparseswaps.workflow.server import spawn_server

    return spawn_server().args[-1], _read_at_import()


def snakemake(arguments: list[str], output: Path) -> int:
    """Run snakemake with the environment of the caller, and its output in a file; what it exits with."""
    # Not imported with this module, which Snakemake's processes import: a copy of the project has its own package.
    from sparseswaps.workflow.server import VARIABLE

    environment = dict(os.environ)
    path, variables = _server()
    local = not {"--executor", "--workflow-profile"}.intersection(arguments)
    if local and _read_at_import() == variables and VARIABLE not in environment:
        environment[VARIABLE] = path
    process = _SNAKEMAKE.Process(target=_main, args=(arguments, str(output), environment))
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
