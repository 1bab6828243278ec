"""The server of jobs: what a forked job takes from its script, and that kills leave nothing running."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from helpers import REPOSITORY, Workflow
from snakemake_interface_executor_plugins.settings import ExecMode

from sparseswaps.base.files import read_json
from sparseswaps.workflow.job import Job
from sparseswaps.workflow.server import VARIABLE, spawn_server, start_server

# The script of a rule, which gets its job from the command line.
SCRIPT = """
import json, sys
from sparseswaps.workflow.server import run_forked
status = run_forked(__import__("sparseswaps.workflow.job").workflow.job.Job(**json.loads(sys.argv[1])))
sys.exit(99 if status is None else status)
"""


@pytest.fixture
def server():
    process = spawn_server()
    yield process
    process.stdin.close()  # as Snakemake's end does
    assert process.wait(20) == -signal.SIGKILL or not Path(process.args[-1]).parent.exists()


@pytest.fixture
def job(tiny_model, tmp_path) -> Job:
    """A job of stage model."""
    params = [f"source={json.dumps(str(tiny_model))}", "revision=null", "trust_remote_code=false"]
    return Job("model", {}, {"model": "model.json"}, params, {"model": "tiny"}, "logs/model.log", gpu=False)


def script(server: subprocess.Popen, job: Job, folder: Path, **environment: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), VARIABLE: server.args[-1]} | environment
    command = [sys.executable, "-P", "-c", SCRIPT, json.dumps(asdict(job))]
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def job_process(
    server: subprocess.Popen | psutil.Process, waiting: subprocess.Popen, job: Job, folder: Path
) -> psutil.Process:
    """The process of the job that a script waits for."""
    while not (folder / job.record).exists():
        assert waiting.poll() is None
        time.sleep(0.01)
    [worker] = psutil.Process(server.pid).children()
    return worker


def test_a_forked_job_has_the_folder_the_streams_and_the_exit_status_of_its_script(server, job, tmp_path):
    process = script(server, job, tmp_path)
    assert (process.communicate()[1], process.returncode) == ("", 0)
    assert read_json(tmp_path / "model.json")["source"] in job.params[0]
    record = read_json(tmp_path / "logs/model.json")
    assert 0 < record["cpu_seconds"] < record["seconds"] + 1
    (tmp_path / "broken.json").write_text("{")
    process = script(server, replace(job, stage="samples", inputs={"model": "broken.json"}), tmp_path)
    said = process.communicate()[1]
    assert process.returncode == 1
    assert "broken.json" in said
    assert said.count("\n") == 1


@pytest.fixture
def endless(job, tmp_path) -> Job:
    """A job that waits for ever: its input is a pipe that nobody writes to."""
    os.mkfifo(tmp_path / "cells.csv")
    inputs = dict.fromkeys(["cells", "layers", "curves", "epochs", "drift"], "cells.csv")
    return replace(job, stage="figures", inputs=inputs, outputs={"figures": "figures"}, params=[])


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_job_ends_with_its_script(server, endless, tmp_path, ending):
    process = script(server, endless, tmp_path)
    worker = job_process(server, process, endless, tmp_path)
    process.send_signal(ending)
    worker.wait(20)
    assert process.wait(20) == -ending
    assert server.poll() is None


def test_a_killed_job_is_a_failed_script(server, endless, tmp_path):
    process = script(server, endless, tmp_path)
    job_process(server, process, endless, tmp_path).kill()
    assert endless.log in process.communicate(timeout=20)[1]
    assert process.returncode == 137


def test_the_server_takes_no_module_from_the_folder_of_the_run(job, tmp_path, monkeypatch):
    for name in ("sparseswaps", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(5)")
    monkeypatch.chdir(tmp_path)
    server = spawn_server()
    assert script(server, job, tmp_path).wait(60) == 0
    server.stdin.close()
    server.wait(20)


def test_without_a_place_for_the_socket_jobs_start_by_themselves(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("long" * 40)))
    (tmp_path / ("long" * 40)).mkdir()
    mode = ExecMode.DEFAULT
    deployment = SimpleNamespace(deployment_method=set())
    start_server(SimpleNamespace(local_exec=True, exec_mode=mode, touch=False, deployment_settings=deployment))
    assert VARIABLE not in os.environ


def test_jobs_outlive_their_server_and_later_ones_find_none(server, endless, job, tmp_path):
    process = script(server, endless, tmp_path)
    worker = job_process(server, process, endless, tmp_path)
    server.kill()
    server.wait()
    assert script(server, job, tmp_path).wait(20) == 99
    assert worker.is_running()
    process.kill()
    worker.wait(20)


@pytest.fixture
def snakemake():
    """A Python that stands for Snakemake, and its server."""
    code = "from sparseswaps.workflow.server import spawn_server; print(spawn_server().args[-1], flush=True)"
    command = [sys.executable, "-c", f"{code}; import time; time.sleep(600)"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    path = process.stdout.readline().strip()
    [server] = psutil.Process(process.pid).children()
    yield process, server, subprocess.Popen(["true", path])
    process.kill()
    server.wait(20)
    assert not Path(path).parent.exists()


def test_server_and_jobs_end_with_snakemake(snakemake, endless, tmp_path):
    process, server, place = snakemake
    waiting = script(place, endless, tmp_path)
    worker = job_process(server, waiting, endless, tmp_path)
    process.kill()
    worker.wait(20)
    assert waiting.wait(20) == 1


def test_no_script_that_waits_for_the_server_runs_its_job_after_the_end_of_snakemake(snakemake, job, tmp_path):
    """As at a SIGKILL of Snakemake while the server imports torch; here the server is stopped meanwhile."""
    process, server, place = snakemake
    server.suspend()
    waiting = [script(place, job, tmp_path) for _ in range(2)]
    while not all(psutil.Process(one.pid).net_connections("unix") for one in waiting):
        assert all(one.poll() is None for one in waiting)
    process.kill()
    server.resume()
    for one in waiting:
        assert "Snakemake has ended" in one.communicate(timeout=20)[1]
        assert one.returncode == 1


def test_a_run_of_snakemake_starts_a_server_for_its_jobs(tiny_model, finished, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # so that the tests' own server is not taken
    workflow = Workflow(tmp_path)
    workflow.run(finished[1], "--cores", "1", "--", "results/tiny/model.json")
    assert workflow.planned(finished[1], "results/tiny/model.json") == {}
