import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sparseswaps.base.errors import InputError
from sparseswaps.evaluation.perplexity import perplexity, windows
from sparseswaps.evaluation.scores import score

VOCABULARY = 50


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, initializer_range=0.5, attention_dropout=0.5))


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(VOCABULARY, (77,), generator=torch.Generator().manual_seed(1))


def test_windows_are_disjoint_and_in_order(ids):
    cut = windows(ids, 8)
    assert cut.shape == (9, 8)  # the last 5 tokens are dropped
    assert torch.equal(cut.flatten(), ids[:72])
    assert torch.equal(windows(ids, 8, 4), cut[:4])
    assert torch.equal(windows(ids, 8, 100), cut)
    assert windows(ids, 77).shape == (1, 77)

    for seqlen, limit, named in ((78, None, "seqlen.*77.*78"), (1, None, "seqlen"), (8, 0, "limit")):
        with pytest.raises(InputError, match=named):
            windows(ids, seqlen, limit)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_perplexity_is_the_exponential_of_transformers_own_loss(model, ids, batch_size):
    cut = windows(ids, 8)
    result = perplexity(model, cut, batch_size)
    with torch.no_grad():
        losses = [model(input_ids=window[None], labels=window[None]).loss.item() for window in cut]
    assert result.nll == pytest.approx(sum(losses) / 9, rel=1e-6)
    assert result.perplexity == math.exp(result.nll)
    assert (result.windows, result.seqlen, result.tokens) == (9, 8, 72)


def test_the_loss_is_float32_for_logits_in_bfloat16(model, ids):
    rounded, cut = model.to(torch.bfloat16), windows(ids, 8)
    result = perplexity(rounded, cut)
    with torch.no_grad():
        logits = rounded(input_ids=cut).logits[:, :-1].double()
    exact = torch.nn.functional.cross_entropy(logits.flatten(0, 1), cut[:, 1:].flatten())
    assert result.nll == pytest.approx(exact.item(), rel=1e-3)  # logits of other slices round otherwise
    (losses, _), *_ = score(rounded, [cut[0, :-1].tolist()], [cut[0, 1:].tolist()], batch_size=1)
    assert (losses != losses.bfloat16()).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_its_window(model, value):
    cut = torch.ones(6, 8, dtype=torch.int64)
    model.model.embed_tokens.weight.data[7] = value
    perplexity(model, cut)
    cut[4, 0] = 7
    with pytest.raises(InputError, match=r"window 4\b"):
        perplexity(model, cut, batch_size=2)


def test_a_loss_whose_exponential_overflows_is_refused(model, ids):
    model.lm_head.weight.data.mul_(1e6)
    with pytest.raises(InputError, match=r"window 0\b"):
        perplexity(model, windows(ids, 8))


def test_batches_are_halved_when_memory_is_short(model, ids):
    cut, block, sizes, most = windows(ids, 8), model.model.layers[1], [], 2
    expected, forward = perplexity(model, cut, batch_size=2), block.forward

    def limited(hidden_states, **more):
        sizes.append(len(hidden_states))
        if len(hidden_states) > most:
            raise torch.OutOfMemoryError
        return forward(hidden_states, **more)

    block.forward = limited
    assert perplexity(model, cut, batch_size=8) == expected
    assert sizes == [8, 4, 2, 2, 2, 2, 1]  # of 9 windows
    most = 0
    with pytest.raises(InputError, match="seqlen"):
        perplexity(model, cut, batch_size=8)
    assert sizes[7:] == [8, 4, 2, 1]
