"""Swaps and eliminations with refit, compared with explicit solves for every candidate set of kept weights."""

import pytest
import torch
from helpers import limit_memory, problem
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import KINDS, masked_layers, masks_after_a_swap

from sparseswaps.base.errors import InputError
from sparseswaps.layer.criteria import WARMSTARTS, wanda
from sparseswaps.layer.gram import output_error
from sparseswaps.layer.least_squares import least_squares, objective
from sparseswaps.layer.masks import keep_best
from sparseswaps.layer.pattern import parse_pattern
from sparseswaps.layer.swaps import refit
from sparseswaps.layer.swaps.engine import refine_mask
from sparseswaps.layer.swaps.refit import refit_eliminate, refit_swaps
from sparseswaps.layer.swaps.tableau import build_tableau, swap_rows

SIZES = {"30%": [1, 7, 11], "50%": [2, 12], "60%": [1, 5, 13], "95%": [20], "1:2": [10], "2:4": [4, 12], "3:5": [15]}
HALF = parse_pattern("50%")


def damp(weight, gram, damping=0.01):
    """Return weights and D, whose dead features have zero weights: float64."""
    matrix = gram.double() + damping * gram.double().diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    return weight.double() * (gram.diagonal() > 0), matrix


def refitted(w, matrix, mask):
    """Return the refitted weights v of one row, by a solve for the kept weights."""
    v = torch.zeros_like(w)
    v[mask] = torch.linalg.solve(matrix[mask][:, mask], (matrix @ w)[mask])
    return v


def loss(w, matrix, mask):
    change = refitted(w, matrix, mask) - w
    return float(change @ matrix @ change)


def losses_of_all_swaps(w, matrix, mask, size):
    """Return the refitted error of one row after each feasible swap: {(u, p): error}."""
    return {pair: loss(w, matrix, after) for pair, after in masks_after_a_swap(mask, size).items()}


def scales(w, matrix):
    return (w.square() * matrix.diagonal()).sum(-1)


def assert_same_tableau(one, other):
    """Check that two tableaus are equal up to rounding, and up to the order of their slots."""
    orders = [tableau.kept.argsort(1) for tableau in (one, other)]
    for name in ("kept", "v"):
        torch.testing.assert_close(*(getattr(t, name).gather(1, o) for t, o in zip((one, other), orders, strict=True)))
    tables = [t.table.gather(1, o[:, :, None].expand_as(t.table)) for t, o in zip((one, other), orders, strict=True)]
    torch.testing.assert_close(*tables, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(one.s, other.s, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(one.c.masked_fill(one.mask, 0), other.c.masked_fill(one.mask, 0), rtol=1e-8, atol=1e-8)


@given(masked_layers(SIZES))
@settings(max_examples=40, deadline=None)
def test_the_formula_is_the_change_of_the_refitted_error(example):
    weight, gram, _, mask = example
    weight, matrix = damp(weight, gram)
    if not matrix.any():
        return
    kept, table, v, c, s = build_tableau(weight[:1], matrix, mask[:1])
    before, slack = loss(weight[0], matrix, mask[0]), 1e-12 * float(scales(weight[0], matrix))
    for (u, p), after in losses_of_all_swaps(weight[0], matrix, mask[0], len(matrix)).items():
        slot = int((kept[0] == u).nonzero())
        a, b = table[0, slot, u], table[0, slot, p]
        cost = v[0, slot] ** 2 / a
        change = cost - (c[0, p] + b * v[0, slot] / a) ** 2 / (s[0, p] + b**2 / a)
        assert float(change) == pytest.approx(after - before, abs=1e-9 * float(cost) + slack)


@given(masked_layers(SIZES), st.sampled_from([0.001, 0.01, 0.3]))
@settings(max_examples=60, deadline=None)
def test_every_swap_is_the_best_and_the_final_mask_has_no_better(example, damping):
    weight, gram, pattern, start = example
    w, matrix = damp(weight, gram, damping)
    size, slack = pattern.groups(len(gram)).size, (1e-9 * scales(w, matrix)).tolist()
    mask = start
    for _ in range(4):
        result = refit_swaps(weight, gram, mask, pattern, damping, max_swaps=1)
        for row in range(len(w)):
            if matrix.any():
                before, after = loss(w[row], matrix, mask[row]), loss(w[row], matrix, result.mask[row])
                assert float(result.loss_before[row]) == pytest.approx(before, abs=slack[row])
                assert float(result.loss_after[row]) == pytest.approx(after, abs=slack[row])
                best = min(losses_of_all_swaps(w[row], matrix, mask[row], size).values(), default=before)
                assert after == pytest.approx(min(best, before), abs=slack[row])
            assert int(result.swaps[row]) == int((mask[row] & ~result.mask[row]).sum()) <= 1
        mask = result.mask
    result = refit_swaps(weight, gram, start, pattern, damping)
    assert result.certified.all()
    counts = [m.view(len(w), -1, size).sum(-1) for m in (start, result.mask)]
    assert torch.equal(*counts)
    for row in range(len(w) if matrix.any() else 0):
        others = losses_of_all_swaps(w[row], matrix, result.mask[row], size).values()
        assert min(others, default=torch.inf) >= float(result.loss_after[row]) - slack[row]
    again = refit_swaps(weight, gram, result.mask, pattern, damping)
    assert torch.equal(again.mask, result.mask)
    assert not again.swaps.any()


@pytest.mark.parametrize("pattern", ["60%", "2:4"])
def test_an_updated_tableau_is_a_fresh_one(pattern):
    weight, gram, _, pattern = problem(3, 9, 40, pattern)
    weight, matrix = damp(weight, gram)
    mask = keep_best(-weight.abs(), pattern)
    mask[:, :2] |= torch.arange(9)[:, None] < 4  # rows keep different numbers of weights
    tableau, budget = build_tableau(weight, matrix, mask), torch.arange(9) * 3
    swaps, settled = swap_rows(matrix, tableau, pattern.groups(40).size, torch.zeros(9).double(), budget)
    assert torch.equal(swaps[~settled], budget[~settled])
    assert (swaps > 10).any()
    assert torch.equal(tableau.mask.sum(1), mask.sum(1))
    assert_same_tableau(tableau, build_tableau(weight, matrix, tableau.mask))


@pytest.mark.parametrize("pattern", ["60%", "2:4"])
def test_the_refitted_weights_are_those_of_least_squares(pattern):
    weight, gram, mask, pattern = problem(4, 6, 40, pattern)
    result = refit_swaps(weight, gram, mask, pattern, 0.05)
    new = least_squares(weight, gram, result.mask, 0.05, 500)
    w, matrix = damp(weight, gram, 0.05)
    for row in range(6):
        torch.testing.assert_close(new[row].double(), refitted(w[row], matrix, result.mask[row]), rtol=1e-3, atol=1e-4)
    ridge = 0.05 * gram.diagonal().double().mean()
    apart = ridge * w.masked_fill(result.mask, 0).square().sum(1)
    least = objective(weight, gram, new, result.mask, 0.05) + apart
    torch.testing.assert_close(result.loss_after, least, rtol=1e-6, atol=0)


@pytest.mark.parametrize("pattern", ["60%", "2:4"])
def test_refit_lowers_the_error_after_least_squares_further_than_plain_swaps(pattern):
    weight, gram, start, pattern = problem(5, 16, 96, pattern)

    def error(mask):
        return float(output_error(weight, gram, least_squares(weight, gram, mask, 0.01, 200)).sum())

    plain, from_wanda = refine_mask(weight, gram, start, pattern), refit_swaps(weight, gram, start, pattern)
    admm = WARMSTARTS["admm"](weight, gram, pattern)
    best = refit_swaps(weight, gram, admm, pattern)
    assert error(from_wanda.mask) < 0.95 * min(error(plain.mask), error(start))
    assert error(best.mask) < 0.99 * error(admm)
    assert best.certified.all()


def test_the_budget_and_rows_in_parts_change_nothing_else(monkeypatch, caplog, reports):
    weight, gram, _, pattern = problem(8, 11, 48, "60%")
    start = keep_best(-weight.abs(), pattern)
    whole = refit_swaps(weight, gram, start, pattern, progress=reports)
    assert reports[-1] == (11, whole.swaps.sum())
    few = refit_swaps(weight, gram, start, pattern, max_swaps=3)
    assert few.swaps.tolist() == [3] * 11
    assert not few.certified.any()
    assert torch.equal(refit_swaps(weight, gram, few.mask, pattern).mask, whole.mask)  # a budget is a prefix
    assert torch.equal(refit_swaps(weight[:1], gram, start[:1], pattern).mask, whole.mask[:1])
    monkeypatch.setattr(refit, "build_tableau", limit_memory(build_tableau, 3))
    assert torch.equal(refit_swaps(weight, gram, start, pattern).mask, whole.mask)
    assert [record.args for record in caplog.records] == [(11, "rows", 5), (5, "rows", 2)]


def test_a_row_that_moves_in_every_pass_is_not_certified(monkeypatch):
    weight, gram, _, pattern = problem(9, 3, 48, "60%")
    start = keep_best(-weight.abs(), pattern)
    monkeypatch.setattr(refit, "_PASSES", 1)
    result = refit_swaps(weight, gram, start, pattern)
    assert not result.swaps.any()
    assert not result.certified.any()
    monkeypatch.setattr(refit, "_PASSES", 2)
    result = refit_swaps(weight, gram, start, pattern)
    assert result.swaps.any()
    assert result.certified.all()


def eliminated(w, matrix, size, kept):
    """Return the mask of one row by elimination with a solve for each candidate, and whether there was a tie."""
    mask, tie, slack = torch.ones_like(w, dtype=torch.bool), False, 1e-9 * float(scales(w, matrix))
    while True:
        losses = []
        for u in mask.nonzero().flatten().tolist():
            if mask.view(-1, size)[u // size].sum() > kept:
                mask[u] = False
                losses.append((loss(w, matrix, mask), u))
                mask[u] = True
        if not losses:
            return mask, tie
        losses.sort()
        tie |= len(losses) > 1 and losses[1][0] - losses[0][0] <= slack
        mask[losses[0][1]] = False


@given(masked_layers(SIZES))
@settings(max_examples=40, deadline=None)
def test_elimination_prunes_what_costs_least_after_a_refit(example):
    weight, gram, pattern, _ = example
    w, matrix = damp(weight, gram)
    size, kept = pattern.groups(len(gram))
    mask = refit_eliminate(weight, gram, pattern)
    assert (mask.view(len(w), -1, size).sum(-1) == kept).all()
    for row in range(len(w) if matrix.any() else 0):
        expected, tie = eliminated(w[row], matrix, size, kept)
        assert tie or torch.equal(mask[row], expected)


@pytest.mark.parametrize("pattern", ["60%", "2:4", "3:5"])
def test_elimination_equals_the_naive_one_where_nothing_ties(pattern):
    weight, gram, _, pattern = problem(10, 4, 20, pattern)
    size, kept = pattern.groups(20)
    expected = [eliminated(w, damp(weight, gram)[1], size, kept) for w in weight.double()]
    assert not any(tie for _, tie in expected)
    assert torch.equal(refit_eliminate(weight, gram, pattern), torch.stack([mask for mask, _ in expected]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pattern", ["60%", "2:4"])
def test_every_row_of_a_larger_layer_is_certified(kind, pattern):
    weight, gram, start, pattern = problem(11, 5, 100, pattern, kind)
    result = refit_swaps(weight, gram, start, pattern)
    assert result.certified.all()
    assert (result.loss_after <= result.loss_before).all()
    assert torch.equal(refit_eliminate(weight, gram, pattern).sum(1), start.sum(1))


def test_dead_features_are_pruned_first():
    weight, gram, _, _ = problem(12, 3, 15, "50%", "dead")
    dead, pattern = gram.diagonal() == 0, parse_pattern("60%")  # prunes 9; 5 features are dead
    assert not refit_eliminate(weight, gram, pattern)[:, dead].any()
    weight[:, dead] = 100
    start = keep_best(weight.abs(), pattern)
    assert start[:, dead].all()
    assert not refit_swaps(weight, gram, start, pattern).mask[:, dead].any()
    nothing = refit_swaps(weight, torch.zeros_like(gram), start, pattern)
    assert torch.equal(nothing.mask, start)
    assert nothing.certified.all()


KEPT = torch.ones(2, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"gram": torch.eye(3)}, r"\[3, 3\]"),
        ({"gram": -torch.eye(4)}, "Gram matrix"),
        ({"weight": torch.full((2, 4), torch.inf)}, "weight"),
        ({"start": KEPT.int()}, "start"),
        ({"start": KEPT[:1]}, "start"),
        ({"damping": 0}, "damping"),
        ({"damping": torch.nan}, "damping"),
        ({"max_swaps": -1}, "max_swaps"),
        ({"max_swaps": 1.5}, "max_swaps"),
        ({"pattern": parse_pattern("2:3")}, "2:3"),
    ],
)
def test_wrong_input_is_refused(change, name):
    arguments = {"weight": torch.ones(2, 4), "gram": torch.eye(4), "pattern": HALF} | change
    with pytest.raises(InputError, match=name):
        refit_swaps(**{"start": KEPT} | arguments)
    if arguments.keys() <= {"weight", "gram", "pattern", "damping"}:
        with pytest.raises(InputError, match=name):
            refit_eliminate(**arguments)


def test_a_ridge_below_the_rounding_of_the_gram_matrix_is_refused():
    gram = torch.full((1200, 1200), 1 + 1.3e-4, dtype=torch.float64).fill_diagonal_(1)  # eigenvalues of -1.3e-4
    weight, start = torch.ones(1, 1200), torch.ones(1, 1200, dtype=torch.bool)
    assert refit_swaps(weight, gram, start, HALF).certified.all()
    with pytest.raises(InputError, match="damping"):
        refit_swaps(weight, gram, start, HALF, 1e-4)
    with pytest.raises(InputError, match="damping"):
        refit_eliminate(weight, gram, HALF, 1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("pattern", ["60%", "2:4"])
def test_a_gpu_gives_the_masks_of_the_cpu(pattern):
    weight, gram, _, pattern = problem(13, 32, 200, pattern)
    start = wanda(weight, gram, pattern)
    on_cpu = refit_swaps(weight, gram, start, pattern)
    on_gpu = refit_swaps(weight.cuda(), gram.cuda(), start.cuda(), pattern)
    assert torch.equal(on_gpu.mask.cpu(), on_cpu.mask)
    assert on_gpu.certified.all()
    eliminated_on_gpu = refit_eliminate(weight.cuda(), gram.cuda(), pattern).cpu()
    assert torch.equal(eliminated_on_gpu, refit_eliminate(weight, gram, pattern))
