import pytest
import torch
from helpers import alter, layer, problem
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseswaps.layer.criteria import wanda
from sparseswaps.layer.gram import row_loss
from sparseswaps.layer.pattern import parse_pattern
from sparseswaps.layer.swaps import between_rows as between
from sparseswaps.layer.swaps.between_rows import best_pairs, exchange
from sparseswaps.layer.swaps.certificate import CertificateError
from sparseswaps.layer.swaps.cost import norms, rounding
from sparseswaps.layer.swaps.engine import refine_mask

UNLIMITED = torch.iinfo(torch.int64).max


def flips(weight, gram, mask):
    """Return the change of the error when each single entry of the mask is flipped: float64 [d_out, d_in]."""
    before = row_loss(weight, gram, mask)
    changes = torch.empty(weight.shape, dtype=torch.float64)
    for column in range(weight.shape[1]):
        flipped = mask.clone()
        flipped[:, column] ^= True
        changes[:, column] = row_loss(weight, gram, flipped) - before
    return changes


def pairs(weight, gram, mask, frozen, budget):
    """Return the change of the error of every swap between rows that have a budget: {(r, u, r', p): change}."""
    change = flips(weight, gram, mask).tolist()
    allowed = (budget > 0)[:, None].expand(mask.shape)
    pruning, keeping = ((mask & ~frozen & allowed).nonzero().tolist(), (~mask & allowed).nonzero().tolist())
    return {(r, u, q, p): change[r][u] + change[q][p] for r, u in pruning for q, p in keeping if r != q}


def uncertainty(weight, gram):
    s = norms(weight, gram)
    return 100 * float(rounding(s).max() * s.sum())


@st.composite
def examples(draw):
    """Draw a layer of any difficulty: weight [1 to 5, d_in], Gram matrix, any mask, frozen weights, budget."""
    d_out, d_in = draw(st.integers(1, 5)), draw(st.integers(1, 8))
    seed = draw(st.integers(0, 10**6))
    kind = draw(st.sampled_from(["plain", "dead", "outliers", "duplicated", "zero weights", "equal rows"]))
    weight, inputs = alter(*layer(seed, d_out, d_in, "correlated"), kind)
    weight *= torch.logspace(-0.5, 0.5, d_out)[:, None]  # rows differ in scale
    if kind == "equal rows":
        weight = weight[:1].repeat(d_out, 1)
    random = torch.Generator().manual_seed(seed + 1)
    kept = torch.tensor(draw(st.lists(st.sampled_from([0.0, 0.4, 0.7, 1.0]), min_size=d_out, max_size=d_out)))
    mask = torch.rand(weight.shape, generator=random) < kept[:, None]
    frozen = torch.rand(weight.shape, generator=random) < draw(st.sampled_from([0.0, 0.3]))
    budget = torch.tensor(draw(st.lists(st.sampled_from([0, 1, 2, UNLIMITED]), min_size=d_out, max_size=d_out)))
    return weight, inputs.double() @ inputs.double().T, mask, frozen, budget


@given(examples())
@settings(max_examples=40, deadline=None)
def test_ends_where_no_pair_improves(example):
    weight, gram, start, frozen, budget = example
    mask = start.clone()
    swaps, slack = exchange(weight, gram, mask, frozen, budget), uncertainty(weight, gram)
    assert min(pairs(weight, gram, mask, frozen, budget - swaps).values(), default=0) >= -slack
    before, after = (row_loss(weight, gram, m).sum() for m in (start, mask))
    assert after <= before + slack
    assert swaps.any() == (mask != start).any()
    assert mask.sum() == start.sum()
    assert mask[start & frozen].all()
    assert (swaps <= budget).all()
    assert ((mask != start).sum(1) <= swaps).all()
    if len(weight) == 1:
        assert torch.equal(mask, start)


@given(examples())
@settings(max_examples=30, deadline=None)
def test_the_one_swap_of_two_rows_is_the_best_of_all(example):
    weight, gram, start, frozen, _ = example
    weight, start, frozen, budget = weight[:2], start[:2], frozen[:2], torch.ones(len(weight[:2])).long()
    every, mask = pairs(weight, gram, start, frozen, budget), start.clone()
    exchange(weight, gram, mask, frozen, budget)
    slack, best = uncertainty(weight, gram), min(every.values(), default=0)
    if torch.equal(mask, start):
        assert best >= -slack
    else:
        (pruned,), (kept,) = (start & ~mask).nonzero().tolist(), (mask & ~start).nonzero().tolist()
        assert every[*pruned, *kept] <= best + slack


@pytest.mark.parametrize(("kept", "made"), [(True, 0), (False, 1)])
def test_a_wrong_search_is_an_error(monkeypatch, kept, made):
    class WrongPass:
        def __init__(self, weight, gram, mask, frozen, budget):
            mask[0, 0] = kept

        def run(self):
            return torch.tensor([made])

    monkeypatch.setattr(between, "_ExchangePass", WrongPass)
    mask = torch.zeros(1, 2).bool()
    with pytest.raises(CertificateError):
        exchange(torch.ones(1, 2), torch.eye(2), mask, mask.clone(), torch.tensor([UNLIMITED]))


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_rows_are_paired_best_first(costs):
    pruning, keeping = map(list, zip(*costs, strict=True))
    rows, expected = set(range(len(costs))), []
    while True:
        options = [(pruning[u] + keeping[p], u, p) for u in rows for p in rows if u != p]
        cost, *pair = min(options, default=(0, -1, -1))
        if cost >= 0:
            break
        expected.append(tuple(pair))
        rows -= set(pair)
    assert best_pairs(pruning, keeping) == expected


def test_by_hand():
    # Features without correlation: pruning costs w^2, keeping gains w^2. Row 0 prunes its small weights for row 1, the
    # first of two equal weights first; the weights of row 2 are worth more.
    weight = torch.tensor([[1.0, 1.0, 9.0, 9.0], [5.0, 7.0, 8.0, 3.0], [9.0, 6.0, 0.5, 9.0]])
    mask = torch.tensor([[True, True, True, True], [False, False, True, False], [True, True, False, True]])
    frozen, budget = torch.zeros_like(mask), torch.full((3,), UNLIMITED)
    one, two = mask.clone(), mask.clone()
    assert exchange(weight, torch.eye(4), one, frozen, torch.tensor([1, 1, 1])).tolist() == [1, 1, 0]
    assert one.tolist() == [[False, True, True, True], [False, True, True, False], [True, True, False, True]]
    assert exchange(weight, torch.eye(4), two, frozen, budget).tolist() == [2, 2, 0]
    assert two.tolist() == [[False, False, True, True], [True, True, True, False], [True, True, False, True]]
    frozen[0, :2] = True
    three = mask.clone()
    exchange(weight, torch.eye(4), three, frozen, budget)
    assert three.tolist() == [[True, True, True, True], [False, True, True, False], [True, False, False, True]]


@pytest.mark.parametrize(("gain", "swaps"), [(0, 0), (1e-9, 1)])
def test_a_swap_must_gain_more_than_rounding(gain, swaps):
    weight, gram, _, _ = problem(6, 1, 30, "50%")
    for column in range(30):  # two equal rows, one without a weight: to take the other row's weight gains nothing
        rows = weight.double() * torch.tensor([[1], [1 + gain]], dtype=torch.float64)
        mask, frozen = torch.ones(2, 2, 30, dtype=torch.bool)
        mask[1, column] = frozen[0, column] = False
        assert exchange(rows, gram, mask, frozen, torch.ones(2).long()).tolist() == [swaps, swaps]


def test_a_layer_in_turn_with_its_rows_own_swaps():
    weight, inputs = layer(3, 40, 60, "random")
    weight, inputs = weight * torch.logspace(-1, 1, 40)[:, None], inputs + inputs[:1]  # which share a factor
    gram, pattern = inputs @ inputs.T, parse_pattern("60%")
    mask = refine_mask(weight, gram, wanda(weight, gram, pattern), pattern).mask
    losses, kept, frozen = [row_loss(weight, gram, mask).sum()], mask.sum(), torch.zeros_like(mask)
    for turn in range(3):
        again, budget = mask.clone(), torch.full((40,), UNLIMITED)
        swaps = exchange(weight, gram, mask, frozen, budget)
        losses.append(row_loss(weight, gram, mask).sum())
        exchange(weight, gram, again, frozen, budget)
        assert torch.equal(mask, again)
        mask = refine_mask(weight, gram, mask, pattern).mask
        losses.append(row_loss(weight, gram, mask).sum())
        assert swaps.sum() > (200, 5, 0)[turn]
    assert losses == sorted(losses, reverse=True)
    assert losses[1] < 0.9 * losses[0]
    assert mask.sum() == kept
    assert mask.sum(1).max() > 40 > 8 > mask.sum(1).min()
