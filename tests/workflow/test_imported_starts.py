"""Masks that other programs made: the zeros of any checkpoint, refined by the real workflow."""

import json
import re
import shutil

import pytest
import torch
from helpers import DRAW, GPT2, TEXT, read_losses, same, write_tiny_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config
from transformers.pytorch_utils import Conv1D

from sparseswaps.embedded import MODEL
from sparseswaps.workflow.artifacts import read_masks, read_model, read_samples


def prune_by_wanda(source, target, ids, prune):
    """Save a copy of a model that is pruned as in Wanda's paper, with all layers on the dense model's inputs.

    `prune` returns the weights to prune from the scores |W_ij| ||X_j||. The kept weights get other values.
    """
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    modules = model.base_model.named_modules()
    linear = {name: module for name, module in modules if isinstance(module, nn.Linear | Conv1D)}
    norms = {}
    for name, module in linear.items():
        module.register_forward_pre_hook(lambda _, args, name=name: norms.update({name: args[0].norm(dim=(0, 1))}))
    with torch.no_grad():
        model(ids)
        for name, module in linear.items():
            weight = module.weight if isinstance(module, nn.Linear) else module.weight.T
            weight.masked_fill_(prune(weight.abs() * norms[name]), 0).mul_(1.5)
    model.to(torch.float16).save_pretrained(target, max_shard_size="50KB")


def of_each_row(scores, sparsity=0.6):
    order = torch.sort(scores, dim=-1, stable=True)[1]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order[:, : int(scores.shape[1] * sparsity)], True)


def of_each_four(scores):
    pruned = of_each_row(scores.reshape(-1, 4), 0.5).view(scores.shape)
    pruned[1, :4] = True  # as if the base model had zeros there
    return pruned


def of_the_matrix(scores):
    return scores < scores.flatten().kthvalue(int(scores.numel() * 0.6)).values


@pytest.fixture(scope="module")
def refined(finished, tiny_model, tmp_path_factory):
    """The finished workflow's directory with one more study: imported masks, each for one pattern and model."""
    place = tmp_path_factory.mktemp("imported")
    workflow = finished[0].copy(place / "work")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(GPT2Config(**GPT2)).to(torch.bfloat16).save_pretrained(place / "gpt2")
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(place / "gpt2")
    draw = workflow.folder / DRAW
    ids, _ = read_samples(draw / "samples.safetensors", read_model(draw.parent.parent / "model.json"))
    made = {"rows": of_each_row, "fours": of_each_four, "matrix": of_the_matrix}
    for name, prune in made.items():
        prune_by_wanda(tiny_model, place / name, ids, prune)
    prune_by_wanda(place / "gpt2", place / "turned", ids, of_each_four)
    shutil.copy(draw / "60pct/wanda/swaps/masks.safetensors", place / "again.safetensors")
    of_60, of_24 = ["rows", "matrix", "again"], ["fours", "turned"]
    starts = [{"name": name, "from": str(place / name)} for name in (*made, "turned")]
    starts.append({"name": "again", "from": str(place / "again.safetensors")})
    config = finished[1] | {
        "name": "imported",
        "models": {"tiny": {"source": str(tiny_model)}, "gpt2": {"source": str(place / "gpt2")}},
        "calibrations": {"stdlib": dict(TEXT), "chained": TEXT | {"propagate": "pruned"}},
        "warmstarts": ["wanda", *starts],
        "evaluation": {},
        "checkpoints": False,
        "exclude": [
            {"warmstart": of_60, "pattern": "2:4"},
            {"warmstart": of_24, "pattern": "60%"},
            {"warmstart": ["wanda", "fours", *of_60], "model": "gpt2"},
            {"warmstart": "turned", "model": "tiny"},
            {"warmstart": ["wanda", "again", *made], "refinement": "none", "calibration": "chained"},
            {"warmstart": ["wanda", "again", "rows", *of_24], "calibration": "chained"},
            {"warmstart": [*of_60, *of_24], "refinement": "none"},
        ],
    }
    workflow.run(config, "--cores", "2")
    return workflow, config, place


def masks_of(workflow, folder, model="tiny"):
    """All masks below a folder of a model's results, by block and layer."""
    described = read_model(workflow.folder / "results" / model / "model.json")
    paths = sorted((workflow.folder / "results" / model / folder / "masks").glob("*.safetensors"))
    assert len(paths) == 2
    return {(path.stem, *key): mask for path in paths for *key, mask in read_masks(path, described).items()}


@pytest.mark.parametrize(
    ("own", "theirs"),
    [("wanda", "rows"), ("wanda/swaps", "rows/swaps"), ("wanda/swaps", "again"), ("wanda/swaps", "again/swaps")],
)
def test_imported_masks_are_our_own_and_refined_to_the_same(refined, own, theirs):
    assert same(*(masks_of(refined[0], f"stdlib/seed0/60pct/{start}") for start in (own, theirs)))


@pytest.mark.parametrize("draw", ["stdlib", "chained"])
def test_rows_of_unequal_sparsity_keep_their_own(refined, draw):
    begun = masks_of(refined[0], "stdlib/seed0/60pct/matrix")
    ended = masks_of(refined[0], f"{draw}/seed0/60pct/matrix/swaps")
    for name, mask in begun.items():
        assert mask.sum(1).unique().numel() > 1
        assert abs(mask.float().mean() - 0.4) < 0.01
        assert torch.equal(mask.sum(1), ended[name].sum(1))
        assert not torch.equal(mask, ended[name])
    losses = read_losses(refined[0].folder / f"results/tiny/{draw}/seed0/60pct/matrix/swaps")
    assert (losses["loss_after"] < losses["loss_before"]).all()
    assert (losses["rows_certified"] == losses["rows"]).all()


@pytest.mark.parametrize(("model", "start"), [("tiny", "fours"), ("gpt2", "turned")])
def test_blocks_keep_what_they_had_where_that_is_less(refined, model, start):
    begun, ended = (masks_of(refined[0], f"stdlib/seed0/2of4/{start}{stage}", model) for stage in ("", "/swaps"))
    for name, mask in begun.items():
        blocks = mask.view(len(mask), -1, 4).sum(-1)
        assert blocks[1, 0] == 0
        assert blocks.flatten().bincount().tolist() == [1, 0, blocks.numel() - 1]
        assert torch.equal(ended[name].view(len(mask), -1, 4).sum(-1), blocks)
    losses = read_losses(refined[0].folder / f"results/{model}/stdlib/seed0/2of4/{start}/swaps")
    assert (losses["loss_after"] < losses["loss_before"]).all()


def test_masks_of_this_workflow_go_on_from_where_they_were(refined):
    assert (read_losses(refined[0].folder / DRAW / "60pct/again/swaps")["swaps"] == 0).all()


def test_the_report_says_where_they_came_from(refined):
    workflow, config, place = refined
    record = json.loads((workflow.folder / "results/reports/imported/provenance.json").read_text())
    starts = {name: text for name, text in record["made with"].items() if name.startswith("warm start ")}
    assert starts == {f"warm start {s['name']}": f"from {s['from']}" for s in config["warmstarts"][1:]}
    assert f"from {place / 'rows'}" in (workflow.folder / "results/reports/imported/report.html").read_text()


def test_a_changed_checkpoint_runs_its_own_cells_again(refined, tmp_path):
    workflow, config, place = refined[0].copy(tmp_path / "copy"), *refined[1:]
    shutil.copytree(place / "matrix", tmp_path / "matrix")
    moved = json.loads(json.dumps(config).replace(str(place / "matrix"), str(tmp_path / "matrix")))
    cells = ("stdlib/seed0/60pct/matrix", "chained/seed0/60pct/matrix", "stdlib/seed0/60pct/rows")
    targets = [f"results/tiny/{cell}/swaps/masks.safetensors" for cell in cells]
    again = {"warmstart": 2, "refine": 2, "chain": 2, "masks": 2}
    assert workflow.planned(config, *targets) == {}
    assert workflow.planned(moved, *targets) == again
    workflow.run(moved, "--touch", "--cores", "1", "--", *targets)
    assert workflow.planned(moved, *targets) == {}
    shard = next((tmp_path / "matrix").glob("*.safetensors"))
    save_file({name: tensor * 2 for name, tensor in load_file(shard).items()}, shard, metadata={"format": "pt"})
    assert workflow.planned(moved, *targets) == again


def test_starts_that_do_not_fit_are_named_by_their_jobs(refined, tmp_path):
    workflow, config, place = refined[0].copy(tmp_path / "copy"), *refined[1:]
    dense = config["models"]["tiny"]["source"]
    other = write_tiny_model(tmp_path / "other", intermediate_size=48)
    starts = {"dense": dense, "matrix": str(place / "matrix"), "other": str(other), "gpt2": str(place / "gpt2")}
    wrong = config | {"warmstarts": [{"name": n, "from": path} for n, path in starts.items()], "exclude": []}
    targets = [f"results/tiny/stdlib/seed0/2of4/{name}/masks/block01.safetensors" for name in starts]
    targets.append("results/tiny/chained/seed0/2of4/dense/swaps/masks.safetensors")
    said = workflow.fail(wrong, "--cores", "2", "--keep-going", "--", *targets)
    errors = set(re.findall(r"^(warmstart|chain): error: (.*)$", said, re.MULTILINE))
    assert len(errors) == len(targets)
    for rule, start in (
        ("warmstart", "block 1, self_attn.q_proj: 0.00%"),
        ("chain", "block 0, self_attn.q_proj: 0.00%"),
        ("warmstart", "block 1, self_attn.q_proj: 5"),  # by matrix: other than 50%
        ("warmstart", f"{other}: model.layers.0.mlp.gate_proj.weight is (48, 32)"),
        ("warmstart", f"{place / 'gpt2'}: "),
    ):
        assert any(name == rule and line.startswith(start) for name, line in errors), (rule, start, errors)
