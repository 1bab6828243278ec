"""The benchmarks run to their end, and what they compare agrees; the speeds that they print here mean nothing."""

import json
import os
import subprocess
import sys

import pytest
from helpers import REPOSITORY


@pytest.mark.parametrize("part", [["cpu", "--quick"], ["gpu", "--rehearse"]])
def test_engine(part, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "SPARSESWAPS_ASSETS"}
    command = [sys.executable, REPOSITORY / "benchmarks" / "engine.py", *part, "--out", tmp_path / "figures.json"]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout  # it fails where searches disagree or a row is not certified
    found = json.loads((tmp_path / "figures.json").read_text())
    if part[0] == "cpu":
        assert {case["name"] for case in found["cases"]} >= {"embedded down_proj", "synthetic 512"}
    else:
        assert found["model"]["matrices_done"] == found["model"]["matrices"]


def run(script, *arguments, out):
    command = [sys.executable, REPOSITORY / "benchmarks" / script, *arguments, "--out", out]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return json.loads(out.read_text())


def test_capture(tmp_path):
    found = run("capture.py", "cpu", "--quick", "--repeats", "1", out=tmp_path / "figures.json")
    assert all(seconds > 0 for seconds in found["seconds"].values())


def test_memory(tmp_path):
    found = run("memory.py", "--quick", "--work", tmp_path, out=tmp_path / "figures.json")
    assert {"model", "capture", "warmstart", "refine", "masks", "assemble"} <= set(found["peak_resident_mb"])
    assert found["bound_mb"] == sum(found["terms_mb"].values())


def test_documents_quote_the_committed_figures():
    cases = json.loads((REPOSITORY / "benchmarks" / "results" / "engine-cpu.json").read_text())["cases"]
    at = {case["d_in"]: case for case in cases if case["name"].startswith("synthetic") and case["pattern"] == "60%"}
    readme, engine, study = (
        " ".join((REPOSITORY / name).read_text().split()) for name in ("README.md", "docs/engine.md", "docs/study.md")
    )
    plain, tuned = ([round(at[d_in][key]["median"]) for d_in in (1536, 4096)] for key in ("ratio_plain", "ratio"))
    for page in (readme, engine):
        assert all(f"{ratio} times" in page for ratio in plain)
    assert f"{tuned[0]} and {tuned[1]} times" in engine
    for key in ("engine_us", "plain_us", "dense_us"):
        assert f"| {at[1536][key]['median']:,.0f} | {at[4096][key]['median']:,.0f} |" in engine
    memory = json.loads((REPOSITORY / "benchmarks" / "results" / "memory-cpu.json").read_text())
    most = max(memory["peak_resident_mb"].values())
    assert most < memory["bound_mb"]
    assert f"{most:,} MB" in study
    capture = json.loads((REPOSITORY / "benchmarks" / "results" / "capture-cpu.json").read_text())
    assert capture["ratio"] < 1.5
    assert f"{capture['ratio']:.2f} times" in study
