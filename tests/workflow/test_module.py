"""The workflow as a module of another one, in another folder."""

import sys

import pytest
import yaml
from helpers import DRAW, REPOSITORY, execute, tiny_study

OUTER = f"""
module pruning:
    snakefile: "{REPOSITORY}/Snakefile"
    config: config["pruning"]

use rule * from pruning as pruning_*

rule mine:
    default_target: True
    input: rules.pruning_all.input
"""


def snakemake(folder, *arguments, status=0):
    return execute(sys.executable, "-m", "snakemake", "--cores", "1", *arguments, cwd=folder, status=status)


@pytest.fixture
def outer(tmp_path, tiny_model):
    """A folder with a workflow of another kind, which takes this one's rules under names of its own."""
    (tmp_path / "Snakefile").write_text(f'configfile: "own.yaml"\n{OUTER}')
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"pruning": tiny_study(tiny_model), "own": 1}))
    return tmp_path


def test_its_rules_run_under_other_names(outer):
    rules = {line.split(" ")[0] for line in snakemake(outer, "--quiet", "rules", "-n").splitlines()}
    assert {"pruning_refine", "pruning_report", "mine"} <= rules
    snakemake(outer, "--quiet", "all", "--", DRAW / "samples.safetensors")
    assert (outer / DRAW / "samples.safetensors").exists()


def test_a_wrong_configuration_is_an_error_of_the_workflow_and_not_its_end(outer):
    (outer / "own.yaml").write_text(yaml.safe_dump({"pruning": {"paterns": []}}))
    said = snakemake(outer, "-n", status=1)
    assert "WorkflowError" in said
    assert "paterns" in said
    assert "Traceback" not in said
