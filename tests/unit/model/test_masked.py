"""Mask files on models in memory."""

import pytest
import torch
from helpers import EXPERTS, mask_file, write_tiny_model
from transformers import AutoModelForCausalLM, GPT2Config, GptOssConfig, MixtralConfig

import sparseswaps
from sparseswaps.base.errors import InputError
from sparseswaps.model.checkpoint import Checkpoint, write_pruned
from sparseswaps.model.masked import load_pruned


@pytest.fixture
def base(tmp_path):
    return write_tiny_model(tmp_path / "base")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])  # as stored, and widened
def test_a_fresh_copy_is_pruned(base, tmp_path, dtype):
    masks = mask_file(base, tmp_path / "masks.safetensors")
    dense = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).state_dict()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    found = sparseswaps.apply_masks(model, tmp_path / "masks.safetensors")
    assert set(found) == set(masks)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, dense[name] * masks[name] if name in masks else dense[name])
    with pytest.raises(InputError, match="has not the values of the base model"):
        sparseswaps.apply_masks(model, tmp_path / "masks.safetensors")  # it is no base any more


@pytest.mark.parametrize("config", [MixtralConfig(**EXPERTS), GptOssConfig(**EXPERTS, pad_token_id=0)])
def test_experts_are_pruned_as_in_a_checkpoint(config, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "base")  # one tensor an expert, or one for all of them
    masks = mask_file(tmp_path / "base", tmp_path / "masks.safetensors")
    write_pruned(Checkpoint(tmp_path / "base"), masks, tmp_path / "pruned", {})
    found = sparseswaps.apply_masks(model, tmp_path / "masks.safetensors")
    assert {name for name in found if "experts" in name} == {
        f"model.layers.{block}.mlp.experts.{matrix}" for block in (0, 1) for matrix in ("gate_up_proj", "down_proj")
    }
    pruned = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, pruned[name])
        assert name not in found or found[name].float().mean() == 0.5


def test_transposed_layers_of_a_file_without_head(tmp_path):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=32, n_positions=16, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    AutoModelForCausalLM.from_config(config).transformer.save_pretrained(tmp_path / "base")
    masks = mask_file(tmp_path / "base", tmp_path / "masks.safetensors")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    found = sparseswaps.apply_masks(model, tmp_path / "masks.safetensors")
    assert set(found) == {f"transformer.{name}" for name in masks}
    for name, mask in found.items():
        weight = model.get_parameter(name)
        assert torch.equal(weight == 0, ~mask)
        assert (weight.T.reshape(weight.shape[1], -1, 4) == 0).sum(-1).eq(2).all()  # along the inputs


@pytest.mark.parametrize(
    "optimizer",
    [lambda p: torch.optim.AdamW(p, lr=0.01), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True)],
)
def test_zeros_survive_training_for_as_long_as_they_are_kept(base, tmp_path, optimizer):
    mask_file(base, tmp_path / "masks.safetensors")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    masks = sparseswaps.apply_masks(model, tmp_path / "masks.safetensors")
    handle = sparseswaps.keep_zeros(model, masks)
    before = {name: model.get_parameter(name).detach().clone() for name in masks}
    chosen = optimizer(model.parameters())
    ids = torch.arange(24).view(2, 12)

    def train():
        for _ in range(3):
            chosen.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            chosen.step()

    train()
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        assert (weight[~mask] == 0).all()
        assert not torch.equal(weight, before[name])  # it was trained
    handle.remove()
    train()
    assert any((model.get_parameter(name)[~mask] != 0).any() for name, mask in masks.items())


def test_what_does_not_fit_is_refused_and_nothing_is_pruned(base, tmp_path):
    path = tmp_path / "masks.safetensors"
    mask_file(base, path)
    other = AutoModelForCausalLM.from_pretrained(write_tiny_model(tmp_path / "other", seed=1))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(InputError, match="has not the values of the base model"):
        sparseswaps.apply_masks(other, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    with pytest.raises(InputError, match=r"\(loaded as torch.float32; if .* set checkpoints: true\)"):
        load_pruned(str(tmp_path / "other"), path, "cpu")
    shallow = AutoModelForCausalLM.from_pretrained(base, num_hidden_layers=1)
    with pytest.raises(InputError, match="this one has not"):
        sparseswaps.apply_masks(shallow, path)
    with pytest.raises(InputError, match="not the mask file of a whole model"):
        sparseswaps.apply_masks(other, base / "model.safetensors")
    with pytest.raises(InputError, match=r"not a readable safetensors file \(.*No such file"):
        sparseswaps.apply_masks(other, tmp_path / "none.safetensors")
    with pytest.raises(AttributeError):
        sparseswaps.no_such_thing  # noqa: B018
