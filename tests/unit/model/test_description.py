import pytest
import torch
from helpers import write_tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sparseswaps.base.errors import InputError
from sparseswaps.model import checkpoint
from sparseswaps.model.description import describe


def test_a_weight_opens_the_file_that_holds_it_and_no_other(model, tmp_path, monkeypatch):
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    loaded.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    described = describe(tmp_path / "sharded")
    described.weight(described.blocks[0][0])  # reads which file holds which tensor, once
    opened, open_tensors = [], checkpoint.open_tensors

    def count(path, *arguments, **options):
        opened.append(path.name)
        return open_tensors(path, *arguments, **options)

    monkeypatch.setattr(checkpoint, "open_tensors", count)
    layers = [layer for block in described.blocks for layer in block]
    for layer in layers:
        assert torch.equal(described.weight(layer), loaded.get_parameter(layer.tensor))
    assert len(set(opened)) >= 2
    for name, layer in zip(opened, layers, strict=True):
        assert layer.tensor in load_file(tmp_path / "sharded" / name)


def test_a_description_holds_layers_and_hashes(model, tmp_path):
    described = describe(model)
    assert described.blocks[1][0].tensor == "model.layers.1.self_attn.q_proj.weight"
    assert described.blocks[0][-1].name == "mlp.down_proj"
    assert (described.blocks[1][-1].d_out, described.blocks[1][-1].d_in) == (32, 64)
    assert described.left_dense == []
    assert described.fingerprint == describe(model).fingerprint
    assert described.fingerprint != describe(write_tiny_model(tmp_path / "other", seed=1)).fingerprint


WEIGHT = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "details"),
    [
        (lambda weight: weight.index_fill(1, torch.tensor(4), torch.nan), "NaN"),
        (lambda _: None, "holds no tensor"),
        (lambda weight: weight[:, :8].contiguous(), r"\(64, 8\)"),
        (lambda weight: weight.to(torch.float8_e4m3fn), "float8"),
    ],
)
def test_a_wrong_or_missing_weight_is_named(model, change, details):
    tensors = load_file(model / "model.safetensors")
    changed = change(tensors.pop(WEIGHT))
    save_file(tensors | ({} if changed is None else {WEIGHT: changed}), model / "model.safetensors")
    with pytest.raises(InputError, match=rf"(?=.*{WEIGHT}).*{details}"):
        describe(model)


def test_a_model_without_linear_layers_or_weights_is_refused(model, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("sparseswaps.model.blocks.linear_layers", lambda block: {})
        with pytest.raises(InputError, match=str(model)):
            describe(model)
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"model\.safetensors"):
        describe(model)
