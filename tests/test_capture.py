import copy

import pytest
import torch
from conftest import write_tiny_model
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from sparseswaps.blocks import as_layer, describe, find_blocks, prunable_layers, put_masks
from sparseswaps.capture import capture
from sparseswaps.checkpoint import write_pruned
from sparseswaps.criteria import wanda
from sparseswaps.errors import InputError
from sparseswaps.masks import check_mask
from sparseswaps.pattern import parse_pattern
from sparseswaps.refine import refine

SHARED = dict(vocab_size=64, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, bos_token_id=0, eos_token_id=0)
SIZES = SHARED | dict(intermediate_size=24, num_key_value_heads=1, head_dim=8, initializer_range=0.3, pad_token_id=0)
TWO_KINDS = ["sliding_attention", "full_attention"] * 2
MODELS = [
    LlamaConfig(**SIZES),
    MistralConfig(**SIZES, sliding_window=4),
    Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    Qwen3Config(**SIZES),
    Gemma2Config(**SIZES, sliding_window=4, query_pre_attn_scalar=8),
    Gemma3TextConfig(**SIZES, sliding_window=4, layer_types=TWO_KINDS),
    Phi3Config(**SIZES),  # one layer for queries, keys and values
    Olmo2Config(**SIZES),
    GPT2Config(**SHARED, n_positions=32, initializer_range=0.3),  # Conv1D: transposed weights
    GPTNeoXConfig(**SHARED, intermediate_size=24, initializer_range=0.3),
    OPTConfig(**SHARED, ffn_dim=24, max_position_embeddings=32, word_embed_proj_dim=16, init_std=0.3, pad_token_id=0),
    FalconConfig(**SHARED, initializer_range=0.3),
    BloomConfig(**SHARED, initializer_range=0.3),
]
families = pytest.mark.parametrize("config", MODELS, ids=lambda config: config.model_type)


def tokens(count, seed):
    return torch.randint(0, 64, (count, 12), generator=torch.Generator().manual_seed(seed))


@families
def test_grams_are_those_of_the_models_own_forward_pass(config):
    """Blocks replayed one by one, against hooks on every layer during plain forward passes of the whole model."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    samples, held_out = tokens(5, 1), tokens(3, 2)
    expected = {}

    def record(name):
        def hook(_module, args):
            flat = args[0].detach().reshape(-1, args[0].shape[-1]).double()
            expected[name] = expected.get(name, 0) + flat.T @ flat

        return hook

    _, blocks = find_blocks(model)
    for split, ids in (("matrix", samples), ("held_out", held_out)):
        hooks = [
            layer.register_forward_pre_hook(record((split, index, name)))
            for index, block in enumerate(blocks)
            for name, layer in prunable_layers(block).items()
        ]
        model(input_ids=ids)
        for hook in hooks:
            hook.remove()
    captured = list(capture(model, samples, held_out, batch_size=2))  # the last batches are smaller
    assert len(captured) == len(blocks)
    for (split, index, name), gram in expected.items():
        grams = captured[index]
        torch.testing.assert_close(getattr(grams, split)[grams.reads[name]], gram, rtol=1e-4, atol=1e-4)


def half_of_each_block(model):
    """A `prune` that keeps every other input of every layer, whatever the Gram matrices."""
    _, blocks = find_blocks(model)

    def prune(index, _grams):
        shapes = {name: as_layer(name, layer) for name, layer in prunable_layers(blocks[index]).items()}
        return {name: (torch.arange(s.d_in) % 2 == 0).expand(s.d_out, s.d_in) for name, s in shapes.items()}

    return prune


def same(some, others):
    for one, other in zip(some, others, strict=True):
        assert one.reads == other.reads
        for name in one.matrix:
            torch.testing.assert_close(one.matrix[name], other.matrix[name], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(one.held_out[name], other.held_out[name], rtol=1e-4, atol=1e-4)


@families
def test_pruned_inputs_are_those_of_a_model_whose_earlier_blocks_are_pruned(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    samples, held_out = tokens(5, 1), tokens(3, 2)
    prune = half_of_each_block(model)
    dense = list(capture(model, samples, held_out, 2))
    chained = list(capture(copy.deepcopy(model), samples, held_out, 2, prune))
    _, blocks = find_blocks(model)
    expected = []
    for index in range(len(blocks)):  # a dense pass over a whole model, of which blocks before `index` are pruned
        expected.append(list(capture(model, samples, held_out, 2))[index])
        put_masks(blocks[index], prune(index, None))
    same(chained, expected)
    assert any(not torch.allclose(chained[-1].matrix[name], gram) for name, gram in dense[-1].matrix.items())


def test_where_nothing_is_pruned_both_propagations_agree():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS[0]).eval()
    samples, held_out = tokens(5, 1), tokens(3, 2)
    same(capture(model, samples, held_out, 2, lambda *_: {}), capture(model, samples, held_out, 2))


@families
@pytest.mark.parametrize("pattern", ["60%", "2:4"])
def test_a_family_is_pruned_from_its_files_to_its_files(config, pattern, tmp_path):
    torch.manual_seed(0)
    dense = AutoModelForCausalLM.from_config(config).eval()
    dense.save_pretrained(tmp_path / "dense")
    described, pattern = describe(tmp_path / "dense"), parse_pattern(pattern)
    assert described.left_dense == []
    masks = {}
    for index, grams in enumerate(capture(dense, tokens(5, 1), tokens(3, 2), batch_size=5)):
        for layer in described.blocks[index]:
            weight, gram = described.weight(index, layer), grams.matrix[grams.reads[layer.name]].float()
            result = refine(weight, gram, wanda(weight, gram, pattern), pattern)
            assert result.loss_after.sum() < result.loss_before.sum()
            check_mask(result.mask, pattern)
            masks[described.tensor_name(index, layer.name)] = layer.in_file(result.mask)
    write_pruned(described.checkpoint, masks, tmp_path / "pruned", {})
    pruned = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned").state_dict()
    linear = {f"{name}.weight" for name, _ in dense.named_modules() if f"{name}.weight" in masks}
    assert linear == set(masks)
    for name, tensor in dense.state_dict().items():
        assert torch.equal(pruned[name], tensor * masks[name] if name in masks else tensor), name


def test_a_checkpoint_without_its_head_is_found(tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(next(config for config in MODELS if config.model_type == "gpt2"))
    model.transformer.save_pretrained(tmp_path)  # its tensors are named h.0... and not transformer.h.0...
    described = describe(tmp_path)
    assert described.prefix == "h"
    first = described.blocks[0][0]
    assert torch.equal(described.weight(0, first), model.transformer.h[0].attn.c_attn.weight.T)
    assert (first.d_out, first.d_in) == (48, 16)


def test_layers_with_one_input_share_one_gram_matrix():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS[0]).eval()
    grams = next(capture(model, tokens(2, 1), tokens(1, 2), batch_size=2))
    assert grams.reads == {
        "self_attn.q_proj": "self_attn.q_proj",
        "self_attn.k_proj": "self_attn.q_proj",
        "self_attn.v_proj": "self_attn.q_proj",
        "self_attn.o_proj": "self_attn.o_proj",
        "mlp.gate_proj": "mlp.gate_proj",
        "mlp.up_proj": "mlp.gate_proj",
        "mlp.down_proj": "mlp.down_proj",
    }
    assert set(grams.matrix) == set(grams.held_out) == set(grams.reads.values())


def test_no_held_out_text_gives_no_held_out_gram():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS[0]).eval()
    grams = next(capture(model, tokens(2, 1), tokens(2, 2)[:0], batch_size=2))
    assert grams.held_out == {}
    assert len(grams.matrix) == 4


def test_infinite_activations_name_their_layer(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(write_tiny_model(tmp_path / "model"), dtype=torch.float32).eval()
    model.model.layers[1].mlp.up_proj.weight.data.fill_(1e38)
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.down_proj: an input activation is NaN or Inf"):
        list(capture(model, tokens(2, 1), tokens(1, 2), batch_size=2))
