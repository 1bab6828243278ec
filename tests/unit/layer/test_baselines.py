"""The baselines against second formulations of theirs: explicit inverses, plain loops, linear systems solved."""

import logging
from math import floor, inf

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseswaps.base.errors import InputError
from sparseswaps.layer.baselines.admm import admm_mask, admm_update
from sparseswaps.layer.baselines.dsnot import dsnot
from sparseswaps.layer.baselines.sparsegpt import sparsegpt_mask, sparsegpt_update
from sparseswaps.layer.criteria import WARMSTARTS, wanda
from sparseswaps.layer.masks import check_mask
from sparseswaps.layer.pattern import parse_pattern

PATTERNS = ["50%", "60%", "2:4"]


def layer(seed: int, d_out: int, d_in: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [d_out, d_in] and correlated inputs [d_in, tokens] of different size and mean, one dead; in float64."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    tokens = 3 * d_in
    inputs = 0.5 * normal(d_in, tokens) + normal(d_in, 4) @ normal(4, tokens) / 2 + 0.5 * normal(d_in, 1)
    inputs *= torch.logspace(-0.5, 0.5, d_in, dtype=torch.float64)[torch.randperm(d_in, generator=random), None]
    inputs[d_in // 2] = 0
    return normal(d_out, d_in), inputs


def error(weight, new, gram):
    """The error of the output, summed over all rows."""
    change = (weight - new).double()
    return float(((change @ gram) * change).sum())


# SparseGPT


def brain_surgeon(weight, gram, choose, damping=0.01):
    """Textbook OBS from left to right in float64, the inverse of the remaining columns' Hessian anew for each column.

    `choose(column, scores)` gives the mask [d_out, d_in] as far as it is known at a column; `scores(k)` are w_k^2 /
    [Hinv]_kk at that time, for the Hessian of the columns from k on.
    """
    dead = gram.diagonal() == 0
    hessian = gram + damping * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    hessian[dead, dead] += 1
    new = weight.masked_fill(dead, 0)
    for j in range(len(gram)):
        mask = choose(j, lambda k: new[:, k] ** 2 / torch.linalg.inv(hessian[k:, k:])[0, 0])
        inverse = torch.linalg.inv(hessian[j:, j:])
        for row in range(len(weight)):
            if not mask[row, j]:
                new[row, j:] -= new[row, j] / inverse[0, 0] * inverse[0]
                new[row, j] = 0
    return new


def chooser(mask, pattern, block):
    """SparseGPT's rule, for `brain_surgeon`; it fills in `mask`."""
    d_out, d_in = mask.shape
    size, kept = pattern.blocks(d_in)
    together = block if size == d_in else size

    def choose(column, scores):
        if column % together == 0:
            columns = range(column, min(column + together, d_in))
            found = torch.stack([scores(k) for k in columns], 1).tolist()
            ranked = [(-found[i][k - column], i, k) for i in range(d_out) for k in columns]
            if size == d_in:
                share = [floor(d_out * kept * end / d_in) for end in (column, columns.stop)]
                best = sorted(ranked)[: share[1] - share[0]]
            else:
                best = [entry for i in range(d_out) for entry in sorted(e for e in ranked if e[1] == i)[:kept]]
            mask[:, columns] = False
            for _, i, k in best:
                mask[i, k] = True
        return mask

    return choose


@pytest.mark.parametrize("pattern", [*PATTERNS, "3:5"])
def test_sparsegpt_is_the_optimal_brain_surgeon_column_by_column(pattern):
    weight, inputs = layer(1, 5, 20)
    gram, pattern = inputs @ inputs.T, parse_pattern(pattern)
    expected_mask = torch.ones(weight.shape, dtype=torch.bool)
    expected = brain_surgeon(weight, gram, chooser(expected_mask, pattern, block=8))
    mask = sparsegpt_mask(weight, gram, pattern, block=8)
    assert torch.equal(mask, expected_mask)
    # The mask alone is enough to make the weights of the sweep that found it.
    new = sparsegpt_update(weight, gram, mask, block=8)
    assert new.dtype == torch.float32
    torch.testing.assert_close(new.double(), expected, rtol=1e-6, atol=1e-7)
    assert not new[~mask].any()
    torch.testing.assert_close(sparsegpt_update(weight.float(), gram.float(), mask), new, rtol=1e-4, atol=1e-5)


def test_sparsegpt_makes_weights_for_any_mask():
    weight, inputs = layer(2, 6, 20)
    gram = inputs @ inputs.T
    mask = torch.rand(6, 20, generator=torch.Generator().manual_seed(0)) < torch.arange(6)[:, None] / 5
    expected = brain_surgeon(weight, gram, lambda *_: mask, damping=0.1)
    new = sparsegpt_update(weight, gram, mask, damping=0.1, block=7)
    torch.testing.assert_close(new.double(), expected, rtol=1e-6, atol=1e-7)
    scaled = sparsegpt_update(weight.float(), gram * 1e-90, mask, damping=0.1)  # units do not matter
    torch.testing.assert_close(scaled, new, rtol=1e-4, atol=1e-5)
    assert not new[0].any()
    assert not new[:, 10].any()  # the dead feature
    torch.testing.assert_close(new[5].double(), weight[5].index_fill(0, torch.tensor(10), 0))  # nothing to make up for


@given(st.integers(1, 6), st.integers(1, 30), st.integers(1, 40), st.integers(0, 99), st.booleans())
@settings(max_examples=60, deadline=None)
def test_sparsegpt_keeps_what_the_pattern_says_of_the_whole_matrix(d_out, d_in, block, percent, equal):
    weight, inputs = layer(d_in, d_out, d_in)
    if equal:
        weight, inputs = torch.ones(d_out, d_in), torch.eye(d_in)
    pattern = parse_pattern(f"{percent}%")
    mask = sparsegpt_mask(weight, inputs @ inputs.T, pattern, block=block)
    assert mask.sum() == d_out * pattern.blocks(d_in).kept
    if equal and block >= d_in:
        assert mask.flatten().int().diff().le(0).all()  # of equal weights the upper rows' are kept, and the first


def test_sparsegpt_does_not_share_among_rows_alike():
    weight, inputs = layer(3, 8, 32)
    weight *= torch.arange(1, 9)[:, None]
    counts = sparsegpt_mask(weight, inputs @ inputs.T, parse_pattern("50%")).sum(1)
    assert counts[7] > 2 * counts[0] > 0


def test_sparsegpt_dampens_more_where_there_is_no_factor(caplog):
    # Positive semidefinite but for the rounding of float32: eigenvalues 8 and seven times -1e-7.
    gram = torch.full((8, 8), 1 + 1e-7, dtype=torch.float64).fill_diagonal_(1)
    weight, mask = torch.ones(2, 8), torch.eye(2, 8, dtype=torch.bool)
    with caplog.at_level(logging.WARNING):
        new = sparsegpt_update(weight, gram, mask, damping=1e-8)
    assert len(caplog.messages) == 2
    torch.testing.assert_close(new, sparsegpt_update(weight, gram, mask, damping=1e-6))
    with pytest.raises(InputError, match="raise the damping"):
        sparsegpt_mask(weight, gram, parse_pattern("50%"), damping=1e-15)


# ADMM


def alternating(weight, gram, rounds, mask_of, damping=0.1):
    """The paper's rounds in float64, row by row; `mask_of(round, row, values)` is the mask of one. Returns the weights
    [d_out, d_in] and the last masks."""
    norm = gram.diagonal().sqrt() + 1e-8
    a = gram / torch.outer(norm, norm)
    a += damping * a.diagonal().mean() * torch.eye(len(a), dtype=a.dtype)
    result, masks = torch.empty_like(weight), torch.empty(weight.shape, dtype=torch.bool)
    for row, dense in enumerate(weight * norm):
        w, u = dense.clone(), torch.zeros_like(dense)
        for t in range(rounds):
            m = mask_of(t, row, w + u)
            z = (w + u) * m
            u = u + w - z
            w = torch.linalg.solve(a + torch.eye(len(a), dtype=a.dtype), a @ dense + z - u)
        result[row], masks[row] = (w + u) * m / norm, m
    return result, masks


@pytest.mark.parametrize("pattern", PATTERNS)
def test_admm_is_the_papers_rounds(pattern):
    weight, inputs = layer(4, 6, 40)
    gram, pattern = inputs @ inputs.T, parse_pattern(pattern)
    size, kept = pattern.blocks(40)
    picked = {}

    def pick(t, row, values):
        if t < 15:
            best = [
                k
                for first in range(0, 40, size)
                for k in sorted(range(first, first + size), key=lambda k: -abs(values[k]))[:kept]
            ]
            picked[row] = torch.zeros(40, dtype=torch.bool).index_fill(0, torch.tensor(best), True)
        return picked[row]

    _, expected_mask = alternating(weight, gram, 20, pick)
    mask = admm_mask(weight, gram, pattern)
    assert torch.equal(mask, expected_mask)
    assert not torch.equal(mask, admm_mask(weight, gram, pattern, picks=1))
    assert torch.equal(admm_mask(weight, gram, pattern, picks=1), wanda(weight, gram, pattern))
    expected, _ = alternating(weight, gram, 20, lambda t, row, values: mask[row])
    new = admm_update(weight, gram, mask)
    assert new.dtype == torch.float32
    torch.testing.assert_close(new.double(), expected, rtol=1e-6, atol=1e-7)
    assert not new[~mask].any()
    torch.testing.assert_close(admm_update(weight.float(), gram.float(), mask), new, rtol=1e-3, atol=1e-4)


def damped(gram, damping=0.1):
    """The Gram matrix of which ADMM's weights are the least-squares solution, in the units of the weights."""
    norm = gram.diagonal().sqrt() + 1e-8
    return gram + damping * (gram.diagonal() / norm**2).mean() * torch.diag(norm**2)


def test_admm_converges_to_the_best_weights_on_the_mask():
    weight, inputs = layer(5, 6, 24)
    gram = inputs @ inputs.T
    mask = torch.rand(6, 24, generator=torch.Generator().manual_seed(0)) < torch.arange(6)[:, None] / 5
    objective = damped(gram)
    new = admm_update(weight, gram, mask, iterations=2000)
    for row, kept in enumerate(mask):
        exact = torch.linalg.solve(objective[kept][:, kept], objective[kept] @ weight[row])
        torch.testing.assert_close(new[row, kept].double(), exact, rtol=1e-5, atol=1e-6)
    assert not new[~mask].any()


# What the theory says of errors


@pytest.mark.parametrize("pattern", PATTERNS)
def test_weights_made_for_a_mask_lower_its_error(pattern):
    weight, inputs = layer(6, 24, 96)
    gram, pattern = inputs @ inputs.T, parse_pattern(pattern)
    for mask in (wanda(weight, gram, pattern), sparsegpt_mask(weight, gram, pattern), admm_mask(weight, gram, pattern)):
        plain, surgeon, few = weight * mask, sparsegpt_update(weight, gram, mask), admm_update(weight, gram, mask)
        assert error(weight, surgeon, gram) < 0.8 * error(weight, plain, gram)
        assert error(weight, few, gram) < 0.8 * error(weight, plain, gram)
        # In the limit no weights on the mask have a lower damped error than ADMM's.
        best = error(weight, admm_update(weight, gram, mask, iterations=500), damped(gram))
        assert all(best < (1 + 1e-6) * error(weight, new, damped(gram)) for new in (plain, surgeon, few))
    ours = sparsegpt_update(weight, gram, sparsegpt_mask(weight, gram, pattern))
    assert error(weight, ours, gram) < error(weight, weight * wanda(weight, gram, pattern), gram)


# DSnoT


def test_dsnot_by_hand():
    # All means are 1, all variances but that of x_0: D = 4 w = 12, 8, 4, -4, -8, 20, of which 12, 8 and 4 are pruned,
    # an error of 24. D / Var = 3, 8, 4 there. First 8 comes back and -4 goes (its Wanda score is below that of -8), the
    # error is 12; then 4 comes back and -8 goes, and it is 0.
    weight = torch.tensor([[3.0, 2.0, 1.0, -1.0, -2.0, 5.0]])
    variance = torch.tensor([4.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    gram = torch.diag(4 * (variance + 1))
    start = torch.tensor([[False, False, False, True, True, True]])
    for sign in (1, -1):
        for cycles, kept in [(0, [3, 4, 5]), (1, [1, 4, 5]), (2, [1, 2, 5]), (50, [1, 2, 5])]:
            mask = dsnot(sign * weight, gram, start, parse_pattern("50%"), torch.full((6,), 4.0).double(), 4, 1, cycles)
            assert mask[0].nonzero().flatten().tolist() == kept
    assert start.tolist() == [[False, False, False, True, True, True]]
    # Means over two sequences are half as large, and so is the error: 12, below a threshold of 13.
    arguments = start, parse_pattern("50%"), torch.full((6,), 4.0).double(), 4, 2, 50
    assert torch.equal(dsnot(weight, gram, *arguments, 13), start)
    assert not torch.equal(dsnot(weight, gram, *arguments, 11), start)


def dsnot_row(weight, norm, variance, effect, kept, size, cycles, threshold):
    """One row in plain Python: the kept weights, a set, after DSnoT; `size` is M, or d_in."""
    d_in = len(weight)
    start, kept = frozenset(kept), set(kept)
    begun = sum(effect[j] for j in range(d_in) if j not in kept)
    for _ in range(cycles):
        left = sum(effect[j] for j in range(d_in) if j not in kept)
        if abs(left) <= threshold:
            break
        side = 1 if left > 0 else -1
        back = [j for j in range(d_in) if j not in start and j not in kept and side * effect[j] > 0]
        if not back:
            break
        grown = max(back, key=lambda j: side * effect[j] / variance[j])
        go = [j for j in start & kept if size < d_in and j // size == grown // size]
        go += [j for j in start & kept if size == d_in and side * effect[j] < 0]
        if not go:
            break
        pruned = min(go, key=lambda j: abs(weight[j]) * norm[j])
        if size < d_in and (left - effect[grown] + effect[pruned]) * begun <= 0:
            break
        kept = (kept | {grown}) - {pruned}
    return kept


@pytest.mark.parametrize("pattern", [*PATTERNS, "4:8", "90%"])
def test_dsnot_is_the_loop_over_rows(pattern):
    weight, inputs = layer(7, 40, 96)
    gram, sums, pattern = inputs @ inputs.T, inputs.sum(1), parse_pattern(pattern)
    start, tokens = wanda(weight, gram, pattern), inputs.shape[1]
    variance = inputs.var(1, correction=0)
    effect = weight * sums / 6
    for cycles, threshold in [(50, 0.1), (50, 10.0), (3, 0.1)]:
        mask = dsnot(weight, gram, start, pattern, sums, tokens, 6, cycles, threshold)
        for row in range(40):
            columns = (weight[row], inputs.norm(dim=1), variance, effect[row])
            kept = start[row].nonzero().flatten().tolist()
            size = pattern.blocks(96).size
            expected = dsnot_row(*(t.tolist() for t in columns), kept, size, cycles, threshold)
            assert set(mask[row].nonzero().flatten().tolist()) == expected
        check_mask(mask, pattern)
        assert (mask != start).sum() > 40


def test_dsnot_takes_features_that_do_not_vary():
    weight, inputs = layer(8, 16, 24)
    inputs[3] = 0.7  # of a constant the expected error is certain; and row 12 is dead
    gram, sums, half = inputs @ inputs.T, inputs.sum(1), parse_pattern("50%")
    start = wanda(weight, gram, half)
    effect = weight * sums / 2
    certain = ~start[:, 3] & (effect[:, 3] * effect.masked_fill(start, 0).sum(1) > 0)
    assert certain.any()
    for rounding in (-1e-7, 0, 1e-7):  # of a Gram matrix in float32
        gram[3, 3] = sums[3] ** 2 / inputs.shape[1] * (1 + rounding)
        mask = dsnot(weight, gram, start, half, sums, inputs.shape[1], 2, cycles=1)
        assert mask[certain, 3].all()
        mask = dsnot(weight, gram, start, half, sums, inputs.shape[1], 2)
        check_mask(mask, half)
        assert torch.equal(mask[:, 12], start[:, 12])
    # Nothing to regrow, or nothing to prune, is no error.
    for kept in (torch.ones(16, 24, dtype=torch.bool), torch.zeros(16, 24, dtype=torch.bool)):
        assert torch.equal(dsnot(weight, gram, kept, half, sums, 72, 2), kept)


# Random masks


def test_random_masks_are_the_weights_own():
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)).bfloat16()
    gram, pattern = torch.eye(96), parse_pattern("50%")
    mask = WARMSTARTS["random"](weight, gram, pattern)
    assert torch.equal(mask, WARMSTARTS["random"](torch.nn.Parameter(weight), 3 * gram, pattern))
    assert torch.equal(mask, WARMSTARTS["random"](weight.T.contiguous().T, gram, pattern))
    other = WARMSTARTS["random"](weight + 1, gram, pattern)
    assert 0.4 < (mask == other).float().mean() < 0.6
    assert 0.4 < mask[:, :48].float().mean() < 0.6
    assert mask.sum(0).float().std() < 8  # binomial: 4


@pytest.mark.parametrize("bad", [torch.full((4, 4), inf), torch.eye(3), -torch.eye(4)])
def test_what_is_no_gram_matrix_is_refused(bad):
    weight, mask, half = torch.ones(2, 4), torch.eye(2, 4, dtype=torch.bool), parse_pattern("50%")
    for call in (
        lambda: sparsegpt_mask(weight, bad, half),
        lambda: sparsegpt_update(weight, bad, mask),
        lambda: admm_mask(weight, bad, half),
        lambda: admm_update(weight, bad, mask),
        lambda: dsnot(weight, bad, mask, half, torch.ones(4).double(), 4, 1),
    ):
        with pytest.raises(InputError, match="Gram matrix"):
            call()
