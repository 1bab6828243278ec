"""The benchmarks run to their end, and what they compare agrees; the speeds that they print here mean nothing."""

import json
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY


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
