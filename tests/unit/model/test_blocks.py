import torch
from families import MODELS, families, tiny
from transformers import AutoModelForCausalLM

from sparseswaps.model.blocks import find_layers
from sparseswaps.model.description import describe


@families
def test_layers_in_memory_are_those_of_the_files(config, tmp_path):
    tiny(config).save_pretrained(tmp_path)
    expected = describe(tmp_path).blocks
    assert find_layers(tiny(config)) == expected
    assert find_layers(AutoModelForCausalLM.from_pretrained(tmp_path)) == expected


def test_a_checkpoint_without_its_head_is_found(tmp_path):
    model = tiny(next(config for config in MODELS if config.model_type == "gpt2"))
    model.transformer.save_pretrained(tmp_path)  # its tensors are named h.0... and not transformer.h.0...
    described = describe(tmp_path)
    first = described.blocks[0][0]
    assert first.tensor == "h.0.attn.c_attn.weight"
    assert torch.equal(described.weight(first), model.transformer.h[0].attn.c_attn.weight.T)
    assert (first.d_out, first.d_in) == (48, 16)
