import torch
from helpers import write_tiny_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from sparseswaps.model import checkpoint
from sparseswaps.model.description import describe


def test_a_weight_opens_the_file_that_holds_it_and_no_other(tmp_path, monkeypatch):
    write_tiny_model(tmp_path / "single")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "single", dtype="auto")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    described = describe(tmp_path / "sharded")
    described.weight(described.blocks[0][0])  # reads which file holds which tensor, once
    opened, open_tensors = [], checkpoint.open_tensors

    def count(path, *arguments, **options):
        opened.append(path.name)
        return open_tensors(path, *arguments, **options)

    monkeypatch.setattr(checkpoint, "open_tensors", count)
    layers = [layer for block in described.blocks for layer in block]
    for layer in layers:
        assert torch.equal(described.weight(layer), model.get_parameter(layer.tensor))
    assert len(opened) == len(layers)
    for name, layer in zip(opened, layers, strict=True):
        with safe_open(tmp_path / "sharded" / name, framework="pt") as file:
            assert layer.tensor in file.keys()  # noqa: SIM118
    assert len(set(opened)) >= 2
