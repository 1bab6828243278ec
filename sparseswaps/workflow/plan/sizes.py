"""The sizes of a model by its config.json, without building the model; `needs` calculates with them.

Families have different names for one size; this module alone knows the names. Where a config.json cannot say whether a
family has something (a third matrix in the MLP, biases), it is assumed to be there: no size is below the real one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

from sparseswaps.base.errors import InputError
from sparseswaps.model.directory import depth, first_integer

# Families that transformers has no fused attention for.
_UNFUSED = {"bloom", "codegen", "deepseek_v4", "flint", "gemma2", "gpt_neo", "gpt_neox_japanese", "gpt_oss", "gptj"}
_UNFUSED |= {"granite_swa", "granitemoe_swa", "hy_v4", "mimo_v2_flash", "mpt", "openai-gpt", "vaultgemma", "xglm"}
_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


class Matrices(NamedTuple):
    """`count` weights [d_out, d_in] of a block; `used` is the share of all tokens that each weight sees."""

    count: int
    d_out: int
    d_in: int
    used: float = 1

    @property
    def entries(self) -> int:
        return self.count * self.d_out * self.d_in


@dataclass(frozen=True)
class Sizes:
    """The sizes of a decoder-only model."""

    blocks: int  # decoder blocks
    hidden: int  # width of the hidden states
    attention: int  # heads x width of a head, which the attention's last layer reads
    key_value: int  # key and value heads x width of a head
    unfused: int  # heads whose attention scores are all held; 0 where attention is fused
    intermediate: int  # width of the MLP, where there are no experts
    experts: int  # experts of a block; 0: none
    expert: int  # width of an expert
    active: int  # experts that a token goes through
    shared: int  # width of the experts that every token goes through, all together; 0: none
    vocabulary: int  # tokens of the vocabulary
    tied: bool  # whether the head is the embeddings
    bytes: int  # of a stored weight

    @property
    def mlps(self) -> list[tuple[int, int, float]]:
        """Number, width, and share of all tokens of a block's MLP, or of its experts and then its shared experts."""
        if not self.experts:
            return [(1, self.intermediate, 1.0)]
        routed = (self.experts, self.expert, self.active / self.experts)
        return [routed, (1, self.shared, 1.0)] if self.shared else [routed]

    @cached_property
    def matrices(self) -> tuple[Matrices, ...]:
        """The weights of a block, with every MLP gated."""
        query, output = Matrices(1, self.attention, self.hidden), Matrices(1, self.hidden, self.attention)
        matrices = [query, Matrices(2, self.key_value, self.hidden), output]
        if self.experts:
            matrices.append(Matrices(1, self.experts, self.hidden))  # the router
        for count, width, used in self.mlps:
            matrices += [Matrices(2 * count, width, self.hidden, used), Matrices(count, self.hidden, width, used)]
        return tuple(matrices)

    @cached_property
    def inputs(self) -> tuple[Matrices, ...]:
        """The Gram matrices [d_in, d_in] of a block's distinct inputs: two of the attention, two of every MLP."""
        widths = [(1, self.hidden, 1.0), (1, self.attention, 1.0)]
        for count, width, used in self.mlps:
            widths += [(count, self.hidden, used), (count, width, used)]
        return tuple(Matrices(count, width, width, used) for count, width, used in widths)

    @cached_property
    def prunable(self) -> int:
        """Weights of a block's matrices."""
        return sum(m.entries for m in self.matrices)

    @cached_property
    def used(self) -> float:
        """Weights of a block's matrices that one token is multiplied with."""
        return sum(m.used * m.entries for m in self.matrices)

    @property
    def mlp(self) -> int:
        """Width of an MLP for one token, all its experts together."""
        return self.active * self.expert + self.shared if self.experts else self.intermediate

    @property
    def widths(self) -> set[int]:
        """The widths d_in of a block's layers."""
        return {m.d_in for m in self.matrices}

    @property
    def widest(self) -> int:
        return max(self.widths)

    @cached_property
    def block(self) -> int:
        """Parameters of a block: its matrices, a bias each, and six vectors for its norms."""
        return self.prunable + sum(m.count * m.d_out for m in self.matrices) + 6 * self.hidden

    @cached_property
    def gram(self) -> int:
        """Entries of the Gram matrices of a block's distinct inputs."""
        return sum(m.entries for m in self.inputs)

    @property
    def embedding(self) -> int:
        """Parameters of the embeddings, or of the head."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """Parameters of the whole model, with the last norm."""
        return self.blocks * self.block + (1 if self.tied else 2) * self.embedding + 2 * self.hidden

    @property
    def largest(self) -> int:
        """Parameters of the largest tensor; a block's experts may be in one."""
        return max(self.embedding, max(m.entries for m in self.matrices))

    @property
    def checkpoint(self) -> int:
        """Bytes of the model's files."""
        return self.parameters * self.bytes


def sizes_of(config: Mapping[str, Any]) -> Sizes:
    """Return the sizes by a `config.json` (`directory.read_config`). Raises InputError when a needed key is missing."""
    integer = partial(first_integer, config)
    hidden = _needed(config, "hidden_size", "n_embd", "d_model")
    heads = integer("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads") or 1
    key_value_heads = integer("num_key_value_heads", "num_kv_heads") or heads
    if config.get("multi_query") and not config.get("new_decoder_architecture"):  # Falcon, GPT-BigCode
        key_value_heads = 1
    # With compressed attention, as DeepSeek's, the width of a head is in parts.
    parts = (integer("qk_nope_head_dim") or 0) + (integer("qk_rope_head_dim") or 0)
    head = max(parts, integer("head_dim") or -(-hidden // heads))
    intermediate = integer("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size") or 4 * hidden
    experts = integer("num_local_experts", "num_experts", "n_routed_experts") or 0
    expert = integer("moe_intermediate_size") or intermediate
    dtype = config.get("dtype") or config.get("torch_dtype")
    return Sizes(
        blocks=depth(config),
        hidden=hidden,
        attention=heads * head,
        key_value=key_value_heads * head,
        unfused=heads if config.get("model_type") in _UNFUSED else 0,
        intermediate=intermediate,
        experts=experts,
        expert=expert,
        active=min(experts, integer("num_experts_per_tok") or experts),
        shared=integer("shared_expert_intermediate_size") or (integer("n_shared_experts") or 0) * expert,
        vocabulary=_needed(config, "vocab_size"),
        # Before release 5, transformers could leave the key out for a tied head, and never for another head.
        tied=config.get("tie_word_embeddings", "transformers_version" in config) is True,
        bytes=_BYTES.get(str(dtype).removeprefix("torch."), 4),
    )


def _needed(config: Mapping[str, Any], *keys: str) -> int:
    value = first_integer(config, *keys)
    if not value:
        raise InputError(f"config.json does not say {keys[0]}, without which nothing can be planned")
    return value
