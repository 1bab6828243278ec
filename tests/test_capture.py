import pytest
import torch
from conftest import write_tiny_model
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen2Config

from sparseswaps.blocks import find_blocks, prunable_layers
from sparseswaps.capture import capture
from sparseswaps.errors import InputError

SIZES = dict(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=4,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    initializer_range=0.3,
)
MODELS = [
    LlamaConfig(**SIZES),
    Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    Gemma3TextConfig(**SIZES, sliding_window=4, layer_types=["sliding_attention", "full_attention"] * 2),
]


def tokens(count, seed):
    return torch.randint(0, 64, (count, 12), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("config", MODELS, ids=lambda config: config.model_type)
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
