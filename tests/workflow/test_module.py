"""The workflow as a module of another one, in another folder."""

import subprocess
import sys

import pytest
import yaml
from helpers import REPOSITORY, tiny_study

OUTER = f"""
module pruning:
    snakefile: "{REPOSITORY}/Snakefile"
    config: config["pruning"]

use rule * from pruning as pruning_*

rule mine:
    default_target: True
    input: rules.pruning_all.input
"""


def snakemake(folder, *arguments):
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--directory", folder, *arguments]
    return subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture
def outer(tmp_path, tiny_model):
    """A folder with a workflow of another kind, which takes this one's rules under names of its own."""
    (tmp_path / "Snakefile").write_text(f'configfile: "own.yaml"\n{OUTER}')
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"pruning": tiny_study(tiny_model), "own": 1}))
    return tmp_path


def test_its_rules_run_under_other_names(outer):
    done = snakemake(outer, "--quiet", "rules", "-n")
    assert done.returncode == 0, done.stdout
    assert {"pruning_refine", "pruning_report", "mine"} <= {line.split(" ")[0] for line in done.stdout.splitlines()}
    done = snakemake(outer, "--quiet", "all", "--", "results/tiny/stdlib/seed0/samples.safetensors")
    assert done.returncode == 0, done.stdout
    assert (outer / "results/tiny/stdlib/seed0/samples.safetensors").exists()


def test_a_wrong_configuration_is_an_error_of_the_workflow_and_not_its_end(outer):
    (outer / "own.yaml").write_text(yaml.safe_dump({"pruning": {"paterns": []}}))
    done = snakemake(outer, "-n")
    assert done.returncode == 1
    assert "WorkflowError" in done.stdout
    assert "paterns" in done.stdout
    assert "Traceback" not in done.stdout
