"""SIGKILLs at random moments over a whole study: of jobs, of Snakemake and of the server of jobs."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
import yaml
from helpers import REPOSITORY, STUDY, Workflow

WHOLE = STUDY == "config.yaml"
KILLS = 30 if WHOLE else 9


def in_folder(folder: Path) -> list[psutil.Process]:
    """The processes that run in a folder."""
    processes = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                processes.append(process)
    return processes


def still_running(folder: Path) -> list[psutil.Process]:
    """The processes that run in a folder and do not end by themselves; a server takes a moment."""
    return psutil.wait_procs(in_folder(folder), timeout=20)[1]


def victim(kind: str, snakemake: subprocess.Popen, folder: Path) -> psutil.Process | None:
    """A process to kill: Snakemake, its server, or a job at random."""
    processes = in_folder(folder)
    if kind == "snakemake":
        return psutil.Process(snakemake.pid) if snakemake.poll() is None else None
    servers = [p for p in processes if "sparseswaps.workflow.server" in p.cmdline() and p.ppid() == snakemake.pid]
    if kind == "server":
        return servers[0] if servers else None
    jobs = [p for p in processes if servers and p.ppid() == servers[0].pid]
    return random.choice(jobs) if jobs else None


@pytest.mark.slow
def test_kills_at_random_moments_leave_nothing_behind_and_change_nothing(tmp_path):
    """Compare the results after all kills with the results of `make run`."""
    random.seed(0)
    disturbed = tmp_path / "disturbed"
    disturbed.mkdir()
    config = yaml.safe_load((REPOSITORY / STUDY).read_text())
    start = partial(Workflow(disturbed).start, config, "--quiet", "all", "--cores", "2", "--rerun-incomplete")
    killed = dict.fromkeys(("job", "snakemake", "server"), 0)
    while sum(killed.values()) < KILLS:
        kind = min(killed, key=killed.get)
        process = start()
        time.sleep(random.uniform(4, 10))
        target = victim(kind, process, disturbed)
        if target is not None:
            with suppress(psutil.NoSuchProcess):
                target.kill()
                killed[kind] += 1
        if process.poll() is None and kind != "snakemake":
            time.sleep(random.uniform(0, 2))  # the others go on
            os.killpg(process.pid, signal.SIGINT)
        process.wait(120)
        assert not still_running(disturbed), kind
        start("--unlock").wait()
        if process.returncode == 0:  # all done: the next kills are of a part of the study that is made again
            for made in disturbed.glob("results/embedded/stdlib/seed0/60pct/*"):
                subprocess.run(["rm", "-r", made], check=True)
    assert start().wait() == 0
    assert not still_running(disturbed)
    compare = [sys.executable, REPOSITORY / ".ci/compare_results.py", disturbed / "results", REPOSITORY / "results"]
    assert subprocess.run(compare if WHOLE else [*compare, "--part"], check=False).returncode == 0
    assert not [path for path in disturbed.rglob("*.partial") if "results" in path.parts]
