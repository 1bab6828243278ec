"""What docs/interoperation.md tells its readers to run, run as it stands there on the workflow's own results."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers import REPOSITORY, tiny_study
from transformers import AutoModelForCausalLM

from sparseswaps.evaluation.harness import plain_metrics
from sparseswaps.model.masked import apply_masks
from sparseswaps.workflow.grid import Grid
from sparseswaps.workflow.study import load_study

BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (REPOSITORY / "docs" / "interoperation.md").read_text(), re.DOTALL)
CELL = "results/tiny/stdlib/seed0/60pct/wanda/swaps"


def block(language: str, number: int = 0) -> str:
    return [text for name, text in BLOCKS if name == language][number]


def test_plain_lm_eval_gives_the_workflows_own_numbers(finished, tmp_path):
    workflow = finished[0].copy(tmp_path / "copy")
    tasks, limit = ["embedded_cloze", "embedded_choice"], 40
    evaluation = finished[1]["evaluation"] | {"lm_eval": {"tasks": tasks, "limit": limit}}
    workflow.run(finished[1] | {"evaluation": evaluation}, "--cores", "1", "--", f"{CELL}/lm_eval.json")
    command = block("bash")
    for name, value in {"CHECKPOINT": f"{CELL}/checkpoint", "TASKS": ",".join(tasks), "LIMIT": limit}.items():
        command, found = re.subn(rf"^{name}=.*$", f"{name}={value}", command, flags=re.MULTILINE)
        assert found == 1
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", command], cwd=workflow.folder, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (output,) = (workflow.folder / "scores").rglob("results_*.json")
    expected = json.loads((workflow.folder / CELL / "lm_eval.json").read_text())["results"]
    found = {task: plain_metrics(values) for task, values in json.loads(output.read_text())["results"].items()}
    for results in (expected, found):
        assert results["embedded_cloze"].pop("perplexity_stderr") > 0  # by bootstrap, of more draws there
    assert found == expected
    assert found["embedded_cloze"]["perplexity"] > 1


@pytest.fixture
def tune(finished, tiny_model, tmp_path, monkeypatch):
    """Run some of the document's blocks on a cell of the finished workflow; returns where the tuned model is."""

    def run(*numbers):
        monkeypatch.chdir(tmp_path)
        ids = torch.arange(24 * 12).view(24, 12) % 2048
        names = {"cell": finished[0].folder / CELL, "base": tiny_model}
        names["dataset"] = [{"input_ids": row, "labels": row} for row in ids]
        code = "\n".join(block("python", number) for number in numbers)
        exec(compile(code, "docs/interoperation.md", "exec"), names)
        return tmp_path / "tuned"

    return run


def test_zeros_survive_transformers_trainer(finished, tiny_model, tune):
    folder = tune(0, 2)
    base, tuned = (AutoModelForCausalLM.from_pretrained(place) for place in (tiny_model, folder))
    dense = {name: parameter.clone() for name, parameter in base.named_parameters()}
    masks = apply_masks(base, finished[0].folder / CELL / "masks.safetensors")
    assert len(masks) == 14
    for name, mask in masks.items():
        assert torch.equal(tuned.get_parameter(name) == 0, ~mask)
        assert not torch.equal(tuned.get_parameter(name)[mask], dense[name][mask])  # it was trained


def test_zeros_of_a_checkpoint_survive_without_its_mask_file(finished, tune):
    folder = tune(0, 1, 2)
    places = (finished[0].folder / CELL / "checkpoint", folder)
    checkpoint, tuned = map(AutoModelForCausalLM.from_pretrained, places)
    masks = {name: weight == 0 for name, weight in checkpoint.named_parameters() if "proj" in name}
    assert len(masks) == 14
    for name, pruned in masks.items():
        assert pruned.float().mean() > 0.5
        assert torch.equal(tuned.get_parameter(name) == 0, pruned)
        assert not torch.equal(tuned.get_parameter(name), checkpoint.get_parameter(name))


def test_the_example_of_a_warm_start_is_valid(finished, tiny_model):
    example = yaml.safe_load(block("yaml"))
    example["warmstarts"][1]["from"] = str(finished[0].folder / CELL / "checkpoint")
    study = load_study(tiny_study(tiny_model, **example))
    assert {cell.pattern for cell in Grid(study).cells if cell.warmstart == "theirs"} == {"60pct"}
