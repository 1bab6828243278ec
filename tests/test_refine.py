"""The swap engine: its cost, its steps and its certificate, against the definition and the plain oracle."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseswaps.criteria import WARMSTARTS
from sparseswaps.errors import InputError
from sparseswaps.gram import row_loss
from sparseswaps.masks import check_mask, keep_best
from sparseswaps.pattern import parse_pattern
from sparseswaps.refine import Stop, refine
from sparseswaps.refine.engine import BACKENDS
from sparseswaps.refine.reference import rounding_of, swap_cost


def layer(seed: int, d_out: int, d_in: int, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A random layer's weight [d_out, d_in] and inputs [d_in, tokens] of one kind of difficulty."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(d_out, d_in, generator=random)
    inputs = torch.randn(d_in, 2 * d_in + 3, generator=random)
    if kind == "correlated":
        inputs = 0.2 * inputs + torch.randn(1, inputs.shape[1], generator=random)
    elif kind == "rank deficient":
        inputs = inputs[:, : max(1, d_in // 3)]
    elif kind == "duplicated":
        inputs[1::2] = inputs[: d_in - 1 : 2]
    elif kind == "dead":
        inputs[::3] = 0
    elif kind == "outliers":
        inputs[:: max(1, d_in // 2)] *= 1e4
    elif kind == "zero weights":
        weight[:, ::3] = 0
    return weight, inputs


KINDS = ["random", "correlated", "rank deficient", "duplicated", "dead", "outliers", "zero weights"]
layers = st.builds(
    layer, st.integers(0, 10**6), st.integers(1, 5), st.sampled_from([4, 8, 12, 24]), st.sampled_from(KINDS)
)
patterns = st.sampled_from(["0%", "30%", "50%", "60%", "95%", "2:4", "1:4", "3:4", "1:2"]).map(parse_pattern)


def random_mask(weight, pattern, seed):
    scores = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed))
    return keep_best(scores, pattern)


def losses_of_all_swaps(weight, gram, mask, size):
    """The loss of one row [d_in] after each feasible swap, by evaluating the definition."""
    found = {}
    for u in mask.nonzero().flatten().tolist():
        for p in (~mask).nonzero().flatten().tolist():
            if u // size == p // size:
                swapped = mask.clone()
                swapped[u], swapped[p] = False, True
                found[u, p] = float(row_loss(weight[None], gram, swapped[None]))
    return found


@given(layers, st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_swap_cost_is_the_change_of_the_loss(example, seed):
    weight, inputs = (t.double() for t in example)
    gram = inputs @ inputs.T
    mask = random_mask(weight, parse_pattern("50%"), seed)[0]
    w = weight[0]
    before = float(row_loss(w[None], gram, mask[None]))
    c = gram @ w.masked_fill(mask, 0)
    scale = float(rounding_of(w, gram)) * 1e3 + 1e-12
    for (u, p), after in losses_of_all_swaps(w, gram, mask, len(w)).items():
        assert swap_cost(w, c, gram, u, p) == pytest.approx(after - before, abs=scale, rel=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend):
    # One token: contributions w x of the pruned weights +10 and -1, of the kept ones +9 and -9; the error is 81. The
    # best swap prunes -9 and keeps -1, which leaves 10 - 9 = 1; the best u and the best p by themselves leave 100.
    weight, gram = torch.tensor([[10.0, -1.0, 9.0, -9.0]]), torch.ones(4, 4)
    mask = torch.tensor([[False, False, True, True]])
    result = refine(weight, gram, mask, parse_pattern("50%"), max_swaps=1, backend=backend)
    assert result.loss_before.item() == 81
    assert result.loss_after.item() == 1
    assert result.mask.tolist() == [[False, True, True, False]]
    assert mask.tolist() == [[False, False, True, True]]  # the input is as it was


@given(layers, patterns, st.integers(0, 10**6), st.sampled_from([None, 0, 1, 3]))
@settings(max_examples=150, deadline=None)
def test_backends_agree_with_the_oracle(example, pattern, seed, max_swaps):
    weight, inputs = example
    gram = inputs.double() @ inputs.double().T
    start = random_mask(weight, pattern, seed)
    ours = refine(weight, gram, start, pattern, max_swaps)
    oracle = refine(weight, gram, start, pattern, max_swaps, backend="reference")
    tolerance = rounding_of(weight.double(), gram) * 1e3
    if not has_ties(weight, gram):  # rounding settles ties, and then each may end in an optimum of its own
        assert ((ours.loss_after - oracle.loss_after).abs() <= 1e-5 * oracle.loss_after + tolerance).all()
    check_mask(ours.mask, pattern)
    assert (ours.loss_after <= ours.loss_before + tolerance).all()
    if max_swaps is not None:
        assert (ours.swaps <= max_swaps).all()
    assert torch.equal(ours.certified, ours.stop == Stop.OPTIMUM)
    size = pattern.blocks(weight.shape[1]).size
    for row in range(len(weight)):
        others = losses_of_all_swaps(weight[row].double(), gram, ours.mask[row], size).values()
        improvable = min(others, default=torch.inf) < ours.loss_after[row] - tolerance[row]
        if ours.certified[row]:
            assert not improvable
        else:
            assert improvable
            assert ours.swaps[row] == max_swaps


def has_ties(weight, gram):
    """Whether some swaps cost the same by construction: duplicated or dead features, zero weights."""
    norms = gram.diagonal().clamp_min(1e-300).sqrt()
    correlation = (gram / norms / norms[:, None]).fill_diagonal_(0).abs()
    return bool((correlation > 1 - 1e-9).any()) or bool((weight == 0).any()) or bool((gram.diagonal() == 0).any())


@pytest.mark.parametrize("pattern", ["60%", "2:4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_equal_the_oracles_where_nothing_ties(pattern, dtype):
    weight, inputs = layer(3, 6, 32, "correlated")
    weight, gram, pattern = weight.to(dtype), inputs @ inputs.T, parse_pattern(pattern)
    start = WARMSTARTS["wanda"](weight, gram, pattern)
    ours = refine(weight, gram, start, pattern)
    oracle = refine(weight, gram, start, pattern, backend="reference")
    assert torch.equal(ours.mask, oracle.mask)
    assert torch.equal(ours.swaps, oracle.swaps)
    assert ours.swaps.sum() > 5
    assert ours.certified.all()


def test_a_budget_is_a_prefix_and_losses_never_rise():
    weight, inputs = layer(5, 8, 48, "correlated")
    gram, pattern = inputs @ inputs.T, parse_pattern("60%")
    start = WARMSTARTS["magnitude"](weight, gram, pattern)
    optimum = refine(weight, gram, start, pattern)
    losses = [refine(weight, gram, start, pattern, max_swaps=budget).loss_after for budget in range(12)]
    assert torch.equal(losses[0], optimum.loss_before)
    for before, after in pairwise(losses):
        assert (after <= before).all()
    half_way = refine(weight, gram, start, pattern, max_swaps=4).mask
    assert torch.equal(refine(weight, gram, half_way, pattern).mask, optimum.mask)


def test_rows_may_keep_different_counts():
    weight, inputs = layer(7, 4, 16, "correlated")
    gram = inputs @ inputs.T
    mask = torch.arange(16).expand(4, 16) < torch.tensor([[0], [5], [11], [16]])
    result = refine(weight, gram, mask, parse_pattern("50%"))
    assert result.mask.sum(1).tolist() == [0, 5, 11, 16]
    assert result.swaps[[0, 3]].tolist() == [0, 0]
    assert result.certified.all()


def test_what_does_not_fit_is_refused():
    weight, gram, mask = torch.ones(2, 4), torch.eye(4), torch.ones(2, 4, dtype=torch.bool)
    half = parse_pattern("50%")
    for arguments, message in [
        ((weight, torch.eye(3), mask, half), r"needs a \[4, 4\] Gram"),
        ((weight, gram, mask.int(), half), "boolean mask"),
        ((weight * float("inf"), gram, mask, half), "NaN or Inf"),
        ((weight, gram, mask, half, -1), "max_swaps"),
        ((weight, gram, mask, parse_pattern("2:3")), "2:3 does not divide"),
        ((weight, gram, mask, half, None, "warp"), "backend 'warp'"),
    ]:
        with pytest.raises(InputError, match=message):
            refine(*arguments)


@pytest.mark.gpu
@pytest.mark.parametrize("pattern", ["60%", "2:4"])
def test_cuda_gives_the_masks_of_the_cpu(pattern):
    weight, inputs = layer(11, 64, 256, "correlated")
    gram, pattern = inputs @ inputs.T, parse_pattern(pattern)
    start = WARMSTARTS["wanda"](weight, gram, pattern)
    here = refine(weight, gram, start, pattern)
    there = refine(weight.cuda(), gram.cuda(), start.cuda(), pattern)
    assert there.mask.is_cuda
    assert torch.equal(there.mask.cpu(), here.mask)
    assert torch.equal(there.swaps.cpu(), here.swaps)
