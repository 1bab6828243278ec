import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import write_tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sparseswaps.base.errors import BrokenFileError, InputError
from sparseswaps.layer.masks import keep_best
from sparseswaps.layer.pattern import parse_pattern
from sparseswaps.model.checkpoint import Checkpoint, read_pruned, write_pruned
from sparseswaps.model.description import describe
from sparseswaps.model.loading import load_model, load_tokenizer


@pytest.fixture
def model(tmp_path) -> Path:
    return write_tiny_model(tmp_path / "model")


def shard(folder: Path) -> None:
    """Split a single-file checkpoint in two, with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


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


def test_whatever_changes_in_a_written_checkpoint_is_named(model, tmp_path):
    (model / "sparseswaps.json").write_text("{}")  # a checkpoint that is pruned once more
    folder = tmp_path / "pruned"
    write_pruned(Checkpoint(model), {}, folder, {"base": "x"})
    assert read_pruned(folder)["base"] == "x"
    for file in folder.iterdir():
        content = file.read_bytes()
        file.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
        with pytest.raises(BrokenFileError, match=f"{file.name}: .*; delete it and run snakemake again|not valid JSON"):
            read_pruned(folder)
        file.write_bytes(content)
    (folder / "config.json").rename(tmp_path / "config.json")
    with pytest.raises(BrokenFileError, match=r"config\.json: is gone"):
        read_pruned(folder)
    (folder / "sparseswaps.json").write_text('{"base": "x"}')
    with pytest.raises(BrokenFileError, match=r"sparseswaps\.json: has no checksums"):
        read_pruned(folder)


def test_a_mask_that_does_not_fit_leaves_nothing(model, tmp_path):
    name = "model.layers.0.mlp.up_proj.weight"
    for masks, message in [
        ({name: torch.ones(2, 2, dtype=torch.bool)}, "its mask is"),
        ({"no.such.weight": torch.ones(2, 2, dtype=torch.bool)}, "holds no tensor 'no.such.weight'"),
    ]:
        with pytest.raises(InputError, match=message):
            write_pruned(Checkpoint(model), masks, tmp_path / "pruned", {})
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_describe(model):
    described = describe(model)
    assert described.blocks[1][0].tensor == "model.layers.1.self_attn.q_proj.weight"
    assert [layer.name for layer in described.blocks[0]][-1] == "mlp.down_proj"
    assert (described.blocks[1][-1].d_out, described.blocks[1][-1].d_in) == (32, 64)
    assert described.left_dense == []
    other = describe(write_tiny_model(model.parent / "other", seed=1))
    assert other.fingerprint != described.fingerprint
    assert describe(model).fingerprint == described.fingerprint


def test_broken_models_are_named(model):
    weights, config = model / "model.safetensors", model / "config.json"
    tensors = load_file(weights)
    name = "model.layers.1.mlp.up_proj.weight"

    poisoned = {**tensors, name: tensors[name].clone()}
    poisoned[name][3, 4] = float("nan")
    save_file(poisoned, weights)
    with pytest.raises(InputError, match=f"tensor {name} holds NaN or Inf"):
        describe(model)

    save_file({key: tensor for key, tensor in tensors.items() if key != name}, weights)
    with pytest.raises(InputError, match=f"holds no tensor '{name}'"):
        describe(model)

    save_file({**tensors, name: tensors[name][:, :8].contiguous()}, weights)
    with pytest.raises(InputError, match=rf"{name} is \(64, 8\), its configuration says \(64, 32\)"):
        describe(model)

    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match=r"model\.safetensors: not a readable safetensors file"):
        describe(model)

    weights.rename(model / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"holds no model\.safetensors"):
        describe(model)

    (model / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../elsewhere.safetensors"}}')
    with pytest.raises(InputError, match=r"index\.json: names '\.\./elsewhere\.safetensors'"):
        describe(model)

    save_file(tensors, weights)
    (model / "model.safetensors.index.json").unlink()
    config.write_text(json.dumps({"model_type": "no-such-family"}))
    with pytest.raises(InputError, match="transformers cannot build it"):
        describe(model)


def test_a_checkpoint_that_lacks_a_tensor_is_not_filled_with_random_numbers(model):
    tensors = load_file(model / "model.safetensors")
    del tensors["model.layers.0.input_layernorm.weight"]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks model\.layers\.0\.input_layernorm\.weight"):
        load_model(str(model), "cpu")


def test_a_model_loads_in_float32_on_the_cpu(model):
    loaded = load_model(str(model), "cpu")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert not loaded.training


def test_a_missing_tokenizer_is_named(model):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    with pytest.raises(InputError, match="no tokenizer"):
        load_tokenizer(str(model))


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


def test_a_model_without_linear_layers_is_refused(model, monkeypatch):
    monkeypatch.setattr("sparseswaps.model.blocks.linear_layers", lambda block: {})
    with pytest.raises(InputError, match="hold neither linear layers nor experts"):
        describe(model)
