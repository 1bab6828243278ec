"""What docs/interoperation.md tells its readers to run, run as it stands there on the workflow's own results."""

import json
import os
import runpy
import shlex
import sys

import pytest
import torch
import yaml
from helpers import DRAW, REPOSITORY, bash, code_blocks, commands, tiny_study
from transformers import AutoModelForCausalLM

from sparseswaps.evaluation.harness import plain_metrics
from sparseswaps.model.masked import apply_masks
from sparseswaps.workflow.grid import Grid
from sparseswaps.workflow.study import load_study

DOCUMENT = "docs/interoperation.md"
CELL = DRAW / "60pct/wanda/swaps"


def test_plain_lm_eval_gives_the_workflows_own_numbers(finished, tmp_path):
    workflow = finished[0].copy(tmp_path / "copy")
    tasks, limit = ["embedded_cloze", "embedded_choice"], 40
    evaluation = finished[1]["evaluation"] | {"lm_eval": {"tasks": tasks, "limit": limit}}
    workflow.run(finished[1] | {"evaluation": evaluation}, "--cores", "1", "--", f"{CELL}/lm_eval.json")
    (command,) = commands(code_blocks(DOCUMENT, "sh")[0])
    *script, _checkpoint, _tasks, _limit = command.split()
    command = [*script, f"{CELL}/checkpoint", ",".join(tasks), str(limit)]
    (workflow.folder / "examples").symlink_to(REPOSITORY / "examples")
    bash(shlex.join(command), workflow.folder, os.environ | {"PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"})
    (output,) = (workflow.folder / "scores").rglob("results_*.json")
    expected = json.loads((workflow.folder / CELL / "lm_eval.json").read_text())["results"]
    found = {task: plain_metrics(values) for task, values in json.loads(output.read_text())["results"].items()}
    for results in (expected, found):
        assert results["embedded_cloze"].pop("perplexity_stderr") > 0  # by bootstrap, of more draws there
    perplexities = [results["embedded_cloze"].pop("perplexity") for results in (found, expected)]
    assert perplexities[0] == pytest.approx(perplexities[1], rel=1e-6)
    assert found == expected
    assert perplexities[0] > 1


@pytest.mark.parametrize("numbers", [(0,), (0, 1)], ids=["mask file", "checkpoint"])
@pytest.mark.parametrize("function", ["train_all", "train_lora"])
def test_zeros_survive_fine_tuning(finished, tiny_model, tmp_path, numbers, function):
    if function == "train_lora":
        pytest.importorskip("peft")
    ids, cell = torch.arange(24 * 12).view(24, 12) % 2048, finished[0].folder / CELL
    names = {"cell": cell, "base": tiny_model}
    code = "\n".join(code_blocks(DOCUMENT, "python")[number] for number in numbers)
    exec(compile(code, DOCUMENT, "exec"), names)
    train = runpy.run_path(str(REPOSITORY / "examples" / "finetune.py"))[function]
    dataset = [{"input_ids": row, "labels": row} for row in ids]
    train(names["model"], names["masks"], dataset, max_steps=3, learning_rate=1e-3).save_pretrained(tmp_path / "tuned")
    pruned, tuned = map(AutoModelForCausalLM.from_pretrained, (tiny_model, tmp_path / "tuned"))
    masks = apply_masks(pruned, cell / "masks.safetensors")
    assert len(masks) == 14
    for name, mask in masks.items():
        assert torch.equal(tuned.get_parameter(name) == 0, ~mask)
        assert not torch.equal(tuned.get_parameter(name), pruned.get_parameter(name))  # it was trained


def test_the_example_of_a_warm_start_is_valid(finished, tiny_model):
    example = yaml.safe_load(code_blocks(DOCUMENT, "yaml")[0])
    example["warmstarts"][1]["from"] = str(finished[0].folder / CELL / "checkpoint")
    study = load_study(tiny_study(tiny_model, **example))
    assert {cell.pattern for cell in Grid(study).cells if cell.warmstart == "theirs"} == {"60pct"}
