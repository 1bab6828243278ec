import math
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sparseswaps.base.errors import InputError
from sparseswaps.evaluation.perplexity import perplexity, windows

VOCABULARY = 50


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            initializer_range=0.5,
            attention_dropout=0.5,
        )
    )


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


def test_windows_refuses_what_cannot_be_cut(ids):
    with pytest.raises(InputError, match="77 tokens, less than one window of 78"):
        windows(ids, 78)
    with pytest.raises(InputError, match="seqlen"):
        windows(ids, 1)
    with pytest.raises(InputError, match="limit"):
        windows(ids, 8, 0)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_perplexity_is_the_exponential_of_transformers_own_loss(model, ids, batch_size):
    cut = windows(ids, 8)
    result = perplexity(model, cut, batch_size)
    with torch.no_grad():
        losses = [model(input_ids=window[None], labels=window[None]).loss.item() for window in cut]
    assert result.nll == pytest.approx(sum(losses) / 9, rel=1e-6)
    assert result.perplexity == math.exp(result.nll)
    assert (result.windows, result.seqlen, result.tokens) == (9, 8, 72)


def test_uniform_predictions_have_the_vocabulary_as_perplexity(model, ids):
    model.lm_head.weight.data.zero_()
    assert perplexity(model, windows(ids, 11)).perplexity == pytest.approx(VOCABULARY, rel=1e-6)


def test_loss_is_float32_whatever_the_logits(model, ids):
    rounded = model.to(torch.bfloat16)
    result = perplexity(rounded, windows(ids, 8))
    with torch.no_grad():
        logits = rounded(input_ids=windows(ids, 8)).logits[:, :-1].double()
    exact = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows(ids, 8)[:, 1:].flatten())
    assert result.nll == pytest.approx(exact.item(), rel=1e-6)


class Spoilt(torch.nn.Module):
    """Predicts uniformly, but for one value in each window that begins with token 7."""

    device = torch.device("cpu")

    def __init__(self, value: float):
        super().__init__()
        self.value = value

    def forward(self, input_ids, use_cache):
        logits = torch.zeros(*input_ids.shape, VOCABULARY)
        logits[input_ids[:, 0] == 7, 0, 0] = self.value
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e5])
def test_a_loss_that_is_no_number_names_its_window(value):
    cut = torch.ones(6, 8, dtype=torch.int64)
    assert perplexity(Spoilt(value), cut).perplexity == pytest.approx(VOCABULARY)
    cut[4, 0] = 7
    with pytest.raises(InputError, match="window 4 of 6"):
        perplexity(Spoilt(value), cut, batch_size=2)


def test_windows_are_fewer_at_a_time_where_memory_is_short(model, ids, caplog):
    forward, most = model.forward, 2

    def limited(input_ids, **more):
        if len(input_ids) > most:
            raise torch.OutOfMemoryError
        return forward(input_ids=input_ids, **more)

    expected = perplexity(model, windows(ids, 8), batch_size=2)
    model.forward = limited
    assert perplexity(model, windows(ids, 8), batch_size=8) == expected
    assert caplog.messages == [f"out of memory at {size} windows: going on with {size // 2}" for size in (8, 4)]
    most = 0
    with pytest.raises(InputError, match="one of the windows at a time; lower seqlen"):
        perplexity(model, windows(ids, 8), batch_size=8)
