"""Measure what the start of jobs costs: the default study with and without the server of jobs, in one run.

    python benchmarks/overhead.py [STUDY.yaml]

Without the server every job starts a Python that imports torch and the rest; with it a job is a forked process
(`sparseswaps/workflow/server.py`). Work is the CPU time of the jobs themselves, from the forked run. Prints a table and
writes results/overhead-cpu.json. Needs the project installed, and the machine for itself.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
from engine import machine, save

from sparseswaps.workflow.server import VARIABLE

REPOSITORY = Path(__file__).resolve().parent.parent


def seconds(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime


def run(study: Path, server: bool) -> dict[str, float]:
    """Run a study from nothing. Return its wall and CPU seconds, the CPU seconds of the jobs, and their number."""
    environment = dict(os.environ) if server else os.environ | {VARIABLE: ""}
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--quiet", "all"]
    command += ["--configfile", str(study), "--cores", "2", "--scheduler", "greedy"]
    with tempfile.TemporaryDirectory() as folder:
        before, began, own = seconds(resource.getrusage(resource.RUSAGE_CHILDREN)), time.monotonic(), 0.0
        process = subprocess.Popen(command, cwd=folder, env=environment)
        while process.poll() is None:
            with suppress(psutil.Error):
                children = psutil.Process(process.pid).children()
                servers = [child for child in children if "sparseswaps.workflow.server" in child.cmdline()]
                own = max(own, sum(sum(server.cpu_times()[:2]) for server in servers))
            time.sleep(0.2)
        if process.returncode:
            sys.exit(process.returncode)
        wall = time.monotonic() - began
        waited = seconds(resource.getrusage(resource.RUSAGE_CHILDREN)) - before
        records = [json.loads(path.read_text()) for path in Path(folder, "logs").rglob("*.json")]
        jobs = sum(record["cpu_seconds"] for record in records)
        # Nobody waits for the server and its jobs: the system does not add their time to that of Snakemake's children.
        return {
            "wall_s": wall,
            "cpu_s": waited + own + jobs if server else waited,
            "jobs_cpu_s": jobs,
            "jobs": len(records),
        }


def main() -> None:
    study = Path(sys.argv[1] if len(sys.argv) > 1 else REPOSITORY / "config.yaml").resolve()
    forked, started = run(study, server=True), run(study, server=False)
    work = forked["jobs_cpu_s"]
    print(f"\n{study.name}, {forked['jobs']} jobs, work {work:.0f} CPU seconds, {os.cpu_count()} cores")
    print("| jobs | wall time (s) | CPU time (s) | share of work |\n|---|---:|---:|---:|")
    for name, row in (("processes that import", started), ("forked from a server", forked)):
        print(f"| {name} | {row['wall_s']:.0f} | {row['cpu_s']:.0f} | {work / row['cpu_s']:.0%} |")
    about = machine("cpu") | {"cores": os.cpu_count(), "study": study.name}
    save({"about": about, "forked": forked, "started": started}, REPOSITORY / "benchmarks/results/overhead-cpu.json")


if __name__ == "__main__":
    main()
