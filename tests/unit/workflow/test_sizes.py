import json

import pytest
import torch
from families import MODELS
from helpers import LLAMA
from transformers import AutoModelForCausalLM

from sparseswaps.base.errors import InputError
from sparseswaps.model.blocks import find_blocks
from sparseswaps.model.directory import read_config
from sparseswaps.workflow.plan.sizes import Matrices, sizes_of


@pytest.mark.parametrize("config", MODELS, ids=lambda config: config.model_type)
def test_sizes_are_never_below_those_of_the_model_and_seldom_far_above(config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    sizes = sizes_of(read_config(tmp_path))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    _, blocks = find_blocks(model)
    assert sizes.blocks == len(blocks)
    assert max(p.numel() for p in blocks.parameters()) <= sizes.largest
    if len({sum(p.numel() for p in block.parameters()) for block in blocks}) > 1:
        pytest.skip("blocks with experts and without: all are reckoned as the larger kind")
    real = sum(p.numel() for p in blocks[0].parameters())
    assert real <= sizes.block <= 1.6 * real
    real = sum(p.numel() for p in model.parameters())
    assert real <= sizes.parameters <= 1.6 * real
    embedding = model.get_input_embeddings().weight
    assert sizes.embedding == embedding.numel()
    assert sizes.tied == (model.get_output_embeddings().weight is embedding)
    assert (sizes.unfused == 0) == model._supports_sdpa


def test_a_real_size():
    sizes = sizes_of(LLAMA)
    assert sizes.checkpoint == 2 * sizes.parameters
    assert [m.d_in for m in sizes.inputs] == [4096, 4096, 4096, 14336]
    assert Matrices(2, 1024, 4096) in sizes.matrices
    # Experts have inputs of their own and see their share of the tokens.
    sizes = sizes_of(LLAMA | {"num_local_experts": 8, "num_experts_per_tok": 2})
    assert Matrices(8, 14336, 14336, 0.25) in sizes.inputs
    assert Matrices(16, 14336, 4096, 0.25) in sizes.matrices


def test_the_dtype_and_the_head_of_a_configuration_that_says_less(tmp_path):
    text = {key: value for key, value in LLAMA.items() if key != "torch_dtype"}
    (tmp_path / "config.json").write_text(json.dumps({"torch_dtype": "bfloat16", "text_config": text}))
    assert sizes_of(read_config(tmp_path)).bytes == 2
    # What transformers left out of a file is that the head is tied.
    silent = {key: value for key, value in LLAMA.items() if key != "tie_word_embeddings"}
    assert not sizes_of(LLAMA | {"transformers_version": "4.43.0"}).tied
    assert sizes_of(silent | {"transformers_version": "4.42.0"}).tied
    assert not sizes_of(silent).tied  # who knows who wrote it


@pytest.mark.parametrize("key", ["hidden_size", "vocab_size", "num_hidden_layers"])
def test_what_is_not_there_is_named(key):
    with pytest.raises(InputError, match=key):
        sizes_of({name: value for name, value in LLAMA.items() if name != key})
