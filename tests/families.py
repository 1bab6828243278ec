"""Tiny models of many families."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sparseswaps.model.blocks import find_blocks

SHARED = dict(vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, bos_token_id=0, eos_token_id=0)
SIZES = SHARED | dict(intermediate_size=24, num_key_value_heads=1, head_dim=8, initializer_range=0.3, pad_token_id=0)
EXPERTS = dict(num_experts=3, num_experts_per_tok=2, moe_intermediate_size=12)
TWO_KINDS = ["sliding_attention", "full_attention"]
OPT = dict(ffn_dim=24, max_position_embeddings=32, word_embed_proj_dim=16, init_std=0.3, pad_token_id=0)
FAMILIES = {
    "llama": SIZES | dict(num_hidden_layers=4),  # the others have both of their kinds of blocks in two
    "mistral": SIZES | dict(sliding_window=4),
    "qwen2": SIZES | dict(use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "qwen3": SIZES,
    "gemma2": SIZES | dict(sliding_window=4, query_pre_attn_scalar=8),
    "gemma3_text": SIZES | dict(sliding_window=4, layer_types=TWO_KINDS),
    "phi3": SIZES,  # one layer for queries, keys and values
    "olmo2": SIZES,
    "gpt2": SHARED | dict(n_positions=32, initializer_range=0.3),  # Conv1D: transposed weights
    "gpt_neox": SHARED | dict(intermediate_size=24, initializer_range=0.3),
    "opt": SHARED | OPT,
    "falcon": SHARED | dict(initializer_range=0.3),
    "bloom": SHARED | dict(initializer_range=0.3),
    # Experts: one tensor each in the files, one parameter for all in the model.
    "mixtral": SIZES | dict(num_local_experts=3),
    "qwen2_moe": SIZES | EXPERTS | dict(shared_expert_intermediate_size=20, decoder_sparse_step=2),
    "qwen3_moe": SIZES | EXPERTS,
    # Experts that are fused in the files, too.
    "gpt_oss": SIZES | dict(num_local_experts=3, num_experts_per_tok=2, layer_types=TWO_KINDS, sliding_window=4),
}
MODELS = [AutoConfig.for_model(family, **settings) for family, settings in FAMILIES.items()]

families = pytest.mark.parametrize("config", MODELS, ids=FAMILIES)


def tiny(config):
    """Return a random model in eval mode, whose experts are not fused by other kernels."""
    torch.manual_seed(0)
    config = copy.deepcopy(config)  # a model's dtype is written into its configuration
    config._experts_implementation = "eager"
    return AutoModelForCausalLM.from_config(config).eval()


def tokens(count, seed):
    """Return random token ids, int64 [count, 12]."""
    return torch.randint(0, 64, (count, 12), generator=torch.Generator().manual_seed(seed))


def outputs_of_blocks(model, ids):
    """Return what each block returns in a plain forward pass, [sequences, seqlen, width]."""
    outputs = []

    def note(_module, _args, output):
        outputs.append(output[0] if isinstance(output, tuple) else output)

    hooks = [block.register_forward_hook(note) for block in find_blocks(model)[1]]
    with torch.no_grad():
        model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    return outputs
