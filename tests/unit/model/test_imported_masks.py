import pytest
import torch
from families import tiny
from helpers import EXPERTS, GPT2, mask_file, refusal, write_tiny_model
from transformers import AutoModelForCausalLM, GPT2Config, GptOssConfig, LlamaConfig, MixtralConfig

from sparseswaps.base.errors import InputError
from sparseswaps.base.files import read_json, write_json
from sparseswaps.model.checkpoint import Checkpoint, write_pruned
from sparseswaps.model.description import describe
from sparseswaps.model.directory import mask_files
from sparseswaps.model.imported_masks import import_masks
from sparseswaps.workflow.artifacts import write_masks


def all_layers(model):
    return [layer for layers in model.blocks for layer in layers]


def assert_masks(path, model, expected):
    mask_of = import_masks(path, model)
    for layer in all_layers(model):
        mask = mask_of(layer)
        assert mask.shape == (layer.d_out, layer.d_in)
        assert mask.float().mean() == 0.5
        stored = layer.read_with(lambda name, expert: expected[name][... if expert is None else expert])
        assert torch.equal(mask, stored)


CONFIGS = [LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)]
CONFIGS += [GPT2Config(**GPT2), MixtralConfig(**EXPERTS), GptOssConfig(**EXPERTS, pad_token_id=0)]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_zeros_and_mask_files_are_read_as_base_weights_are(config, tmp_path):
    """Transposed layers, a tensor for each expert and one for all; another dtype, several files, zeros of any sign."""
    tiny(config).save_pretrained(tmp_path / "base")
    masks = mask_file(tmp_path / "base", tmp_path / "masks.safetensors")
    write_pruned(Checkpoint(tmp_path / "base"), masks, tmp_path / "pruned", {})
    pruned = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter.neg_()
    pruned.to(torch.bfloat16).save_pretrained(tmp_path / "theirs", max_shard_size="2KB")
    assert len(mask_files(tmp_path / "theirs")) > 1
    base = describe(tmp_path / "base")
    for path in ("pruned", "theirs", "masks.safetensors"):
        assert_masks(tmp_path / path, base, masks)


@pytest.mark.parametrize(("own", "other"), [("long", "short"), ("short", "long")])
def test_files_with_and_without_the_models_prefix_fit_each_other(own, other, tmp_path):
    model = tiny(GPT2Config(**GPT2))
    model.save_pretrained(tmp_path / "long")
    model.transformer.save_pretrained(tmp_path / "short")
    masks = mask_file(tmp_path / own, tmp_path / "masks.safetensors")
    write_pruned(Checkpoint(tmp_path / own), masks, tmp_path / "pruned", {})
    prefix = "transformer."
    renamed = {f"{prefix}{n}" if other == "long" else n.removeprefix(prefix): mask for n, mask in masks.items()}
    assert_masks(tmp_path / "pruned", describe(tmp_path / other), renamed)


def test_layers_without_a_mask_in_a_mask_file_are_dense(tiny_model, tmp_path):
    model, masks = describe(tiny_model), mask_file(tiny_model, tmp_path / "all.safetensors")
    del masks["model.layers.1.mlp.up_proj.weight"]
    write_masks(tmp_path / "masks.safetensors", masks.items(), model, "made by", base=model.base)
    mask_of = import_masks(tmp_path / "masks.safetensors", model)
    kept = {layer.tensor: mask_of(layer).float().mean().item() for layer in all_layers(model)}
    assert kept.pop("model.layers.1.mlp.up_proj.weight") == 1
    assert set(kept.values()) == {0.5}


@pytest.mark.parametrize(
    ("change", "tensor"),
    [({"num_hidden_layers": 1}, "model.layers.1.self_attn.q_proj.weight"), ({"intermediate_size": 48}, "(48, 32)")],
)
def test_masks_of_another_model_are_refused(tiny_model, tmp_path, change, tensor):
    base, other = describe(tiny_model), write_tiny_model(tmp_path / "other", **change)
    assert tensor in refusal(lambda path: import_masks(path, base), other)
    same_layers = write_tiny_model(tmp_path / "same layers", seed=1)
    mask_file(same_layers, path := tmp_path / "masks.safetensors")
    line = refusal(lambda path: import_masks(path, base), path)
    assert str(tiny_model) in line
    assert str(same_layers) in line


def test_zeros_of_compressed_or_quantised_weights_are_refused(model):
    dense = {"quant_method": "compressed-tensors", "version": "0.9", "sparsity_config": {"format": "dense"}}
    config = read_json(model / "config.json")
    write_json(model / "config.json", config | {"quantization_config": dense})
    assert mask_files(model) == [model / "model.safetensors"]  # the weights are as they were
    sparse = dense | {"sparsity_config": {"format": "sparse-24-bitmask"}}
    for settings in (sparse, dense | {"format": "pack-quantized"}, {"quant_method": "bitsandbytes"}):
        write_json(model / "config.json", config | {"quantization_config": settings})
        refusal(lambda _: mask_files(model), model / "config.json")


@pytest.mark.parametrize("broken", ["missing", "no tensors", "weights", "cut", "without weights", "without config"])
def test_what_holds_no_masks_is_refused_by_name(model, broken):
    weights = model / "model.safetensors"
    path = {"missing": model / "none", "no tensors": model / "tokenizer.json", "weights": weights}.get(broken, model)
    if broken == "cut":
        weights.write_bytes(b"none")
    elif broken == "without weights":
        weights.rename(model / "pytorch_model.bin")
    elif broken == "without config":
        (model / "config.json").unlink()
    with pytest.raises(InputError, match=str(path)):
        mask_files(path)
