import shutil
from pathlib import Path

import pytest
import torch
from helpers import refusal
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sparseswaps.base.errors import BrokenFileError, InputError
from sparseswaps.layer.masks import keep_best
from sparseswaps.layer.pattern import parse_pattern
from sparseswaps.model.checkpoint import Checkpoint, read_pruned, write_pruned


def shard(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="50KB")
    assert (folder / "model.safetensors.index.json").exists()


@pytest.mark.parametrize("sharded", [False, True])
def test_pruned_is_mask_times_dense_and_the_rest_is_the_same_bytes(model, tmp_path, sharded):
    if sharded:
        shard(model)
    (model / "LICENSE.md").write_text("as you like\n")
    (model / "README.md").write_text("the dense model's card\n")
    (model / "pytorch_model.bin").write_bytes(b"dense weights")
    source, target = Checkpoint(model), tmp_path / "pruned"
    names = [name for name in source.files if name.endswith("_proj.weight")]
    masks = {name: keep_best(source.tensor(name).abs(), parse_pattern("2:4")) for name in names}
    write_pruned(source, masks, target, {"base": "x"})
    pruned = Checkpoint(target)
    assert pruned.files == source.files
    for name in source.files:
        before, after = source.tensor(name), pruned.tensor(name)
        assert after.dtype == torch.bfloat16
        expected = before.masked_fill(~masks[name], 0) if name in masks else before
        assert torch.equal(after.view(torch.int16), expected.view(torch.int16))  # to the bit: no negative zeros either
    expected = {path.name for path in model.iterdir()} - {"pytorch_model.bin", "README.md"} | {"sparseswaps.json"}
    assert {path.name for path in target.iterdir()} == expected
    assert (target / "LICENSE.md").read_text() == "as you like\n"


@pytest.mark.parametrize("change", ["edit", "delete"])
def test_a_changed_file_of_a_pruned_checkpoint_is_named(model, tmp_path, change):
    (model / "sparseswaps.json").write_text("{}")  # of an earlier pruning
    folder = tmp_path / "pruned"
    write_pruned(Checkpoint(model), {}, folder, {"base": "x"})
    assert read_pruned(folder)["base"] == "x"
    for file in folder.iterdir():
        if change == "delete" and file.name == "sparseswaps.json":
            continue
        content = file.read_bytes()
        if change == "edit":
            file.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
        else:
            file.unlink()
        refusal(lambda _: read_pruned(folder), file, BrokenFileError)
        file.write_bytes(content)


@pytest.mark.parametrize("content", ["{}", '{"crc32": []}', "[]"])
def test_a_pruned_checkpoint_without_checksums_is_broken(content, tmp_path):
    (tmp_path / "sparseswaps.json").write_text(content)
    refusal(lambda _: read_pruned(tmp_path), tmp_path / "sparseswaps.json", BrokenFileError)


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.weight", "no.such.weight"])
def test_a_mask_that_does_not_fit_leaves_nothing(model, tmp_path, name):
    with pytest.raises(InputError, match=name):
        write_pruned(Checkpoint(model), {name: torch.ones(2, 2, dtype=torch.bool)}, tmp_path / "pruned", {})
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_of_two_layouts_the_one_that_transformers_reads_is_pruned(model, tmp_path):
    dense = load_file(model / "model.safetensors")
    shutil.copyfile(model / "model.safetensors", tmp_path / "single.safetensors")
    shard(model)
    shutil.move(tmp_path / "single.safetensors", model / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    mask = keep_best(dense[name].abs(), parse_pattern("2:4"))
    write_pruned(Checkpoint(model), {name: mask}, tmp_path / "pruned", {})
    pruned = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned", dtype=torch.bfloat16).state_dict()
    assert torch.equal(pruned[name], dense[name] * mask)
    assert [path.name for path in (tmp_path / "pruned").glob("*.safetensors")] == ["model.safetensors"]
