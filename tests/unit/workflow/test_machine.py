import os
import subprocess
import sys

import pytest
from helpers import REPOSITORY

# A job that says which GPU it took, and holds it until its input ends. The number of GPUs is the test's to say.
HOLDER = """
import os, sys, types
torch = types.ModuleType("torch")
torch.cuda = types.SimpleNamespace(device_count=lambda: int(sys.argv[1]))
sys.modules["torch"] = torch
from sparseswaps.workflow import machine
machine.take_gpu()
print(os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start a job on a machine with a number of GPUs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    started = []

    def begin(gpus, **environment):
        ours = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(REPOSITORY)} | environment
        command = [sys.executable, "-c", HOLDER, str(gpus)]
        started.append(subprocess.Popen(command, env=ours, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        return started[-1]

    yield begin
    for job in started:
        with job:
            job.kill()


def taken(job):
    return job.stdout.readline().strip()


def test_no_two_jobs_have_the_same_gpu(start):
    """Three hold one each at the same time; a fourth and a fifth wait, and get what is given back or left by a kill."""
    holders = {taken(job): job for job in [start(3) for _ in range(3)]}
    assert set(holders) == {"0", "1", "2"}
    waiting = [start(3), start(3)]
    for job in waiting:
        with pytest.raises(subprocess.TimeoutExpired):
            job.wait(1)
    holders["1"].kill()
    holders["2"].stdin.close()
    assert {taken(job) for job in waiting} == {"1", "2"}
    assert holders["0"].poll() is None


def test_a_job_keeps_to_the_gpus_that_it_was_given(start):
    several = [start(8, CUDA_VISIBLE_DEVICES="5, GPU-7"), start(8, CUDA_VISIBLE_DEVICES="5, GPU-7")]
    assert {taken(job) for job in several} == {"5", "GPU-7"}
    # Two jobs that were given the same single GPU share it.
    assert [taken(start(8, CUDA_VISIBLE_DEVICES="5")) for _ in range(2)] == ["5", "5"]
    assert taken(start(1)) == "None"
    # Allocations of SLURM count their devices from zero, each its own.
    allocations = [start(8, CUDA_VISIBLE_DEVICES="0,1", SLURM_JOB_ID=job) for job in ("7", "8")]
    assert [taken(job) for job in allocations] == ["0", "0"]
