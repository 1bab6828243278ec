import re

import pytest
import torch
from families import tiny
from helpers import EXPERTS, GPT2, mask_file, refusal, write_tiny_model
from transformers import AutoModelForCausalLM, GPT2Config, GptOssConfig, MixtralConfig

import sparseswaps
from sparseswaps.base.errors import InputError
from sparseswaps.model.checkpoint import Checkpoint, write_pruned


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])  # as stored, and widened
def test_a_fresh_copy_is_pruned(tiny_model, tmp_path, dtype):
    masks = mask_file(tiny_model, tmp_path / "masks.safetensors")
    dense = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=dtype).state_dict()
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=dtype)
    applied = sparseswaps.apply_masks(model, tmp_path / "masks.safetensors")
    assert set(applied) == set(masks)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, dense[name] * masks[name] if name in masks else dense[name])
    with pytest.raises(InputError, match=re.escape(str(tiny_model))):
        sparseswaps.apply_masks(model, tmp_path / "masks.safetensors")  # the model is pruned already


@pytest.mark.parametrize("config", [MixtralConfig(**EXPERTS), GptOssConfig(**EXPERTS, pad_token_id=0)])
def test_experts_are_pruned_as_in_a_checkpoint(config, tmp_path):
    model = tiny(config)
    model.save_pretrained(tmp_path / "base")  # one tensor an expert, or one for all of them
    masks = mask_file(tmp_path / "base", tmp_path / "masks.safetensors")
    write_pruned(Checkpoint(tmp_path / "base"), masks, tmp_path / "pruned", {})
    applied = sparseswaps.apply_masks(model, tmp_path / "masks.safetensors")
    assert {name for name in applied if "experts" in name} == {
        f"model.layers.{block}.mlp.experts.{matrix}" for block in (0, 1) for matrix in ("gate_up_proj", "down_proj")
    }
    pruned = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, pruned[name])
        assert name not in applied or applied[name].float().mean() == 0.5


def test_transposed_layers_of_a_file_without_head(tmp_path):
    tiny(GPT2Config(**GPT2)).transformer.save_pretrained(tmp_path / "base")
    masks = mask_file(tmp_path / "base", tmp_path / "masks.safetensors")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    applied = sparseswaps.apply_masks(model, tmp_path / "masks.safetensors")
    assert set(applied) == {f"transformer.{name}" for name in masks}
    for name, mask in applied.items():
        weight = model.get_parameter(name)
        assert torch.equal(weight == 0, ~mask)
        assert (weight.T.reshape(weight.shape[1], -1, 4) == 0).sum(-1).eq(2).all()  # along the inputs


@pytest.mark.parametrize(
    ("kind", "options"),
    [(torch.optim.AdamW, {"lr": 0.01}), (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True})],
)
def test_zeros_survive_training_for_as_long_as_they_are_kept(tiny_model, tmp_path, kind, options):
    mask_file(tiny_model, tmp_path / "masks.safetensors")
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    masks = sparseswaps.apply_masks(model, tmp_path / "masks.safetensors")
    handle = sparseswaps.keep_zeros(model, masks)
    before = {name: model.get_parameter(name).detach().clone() for name in masks}
    optimizer, ids = kind(model.parameters(), **options), torch.arange(24).view(2, 12)

    def train():
        for _ in range(3):
            optimizer.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()

    train()
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        assert (weight[~mask] == 0).all()
        assert not torch.equal(weight, before[name])  # it was trained
    handle.remove()
    train()
    assert any((model.get_parameter(name)[~mask] != 0).any() for name, mask in masks.items())


def test_another_model_is_refused_and_not_pruned(tiny_model, tmp_path):
    mask_file(tiny_model, path := tmp_path / "masks.safetensors")
    other = write_tiny_model(tmp_path / "other", seed=1)
    model = AutoModelForCausalLM.from_pretrained(other)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert str(tiny_model) in refusal(lambda path: sparseswaps.apply_masks(model, path), path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    shallow = AutoModelForCausalLM.from_pretrained(tiny_model, num_hidden_layers=1)
    assert "model.layers.1." in refusal(lambda path: sparseswaps.apply_masks(shallow, path), path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "none.safetensors"])
def test_what_is_not_a_mask_file_is_refused(tiny_model, name):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    refusal(lambda path: sparseswaps.apply_masks(model, path), tiny_model / name)
