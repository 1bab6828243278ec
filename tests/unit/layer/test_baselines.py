import logging
from math import floor, inf

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseswaps.base.errors import InputError
from sparseswaps.layer.baselines import alps
from sparseswaps.layer.baselines.admm import admm_mask, admm_update
from sparseswaps.layer.baselines.alps import alps_mask
from sparseswaps.layer.baselines.dsnot import dsnot
from sparseswaps.layer.baselines.sparsegpt import sparsegpt_mask, sparsegpt_update
from sparseswaps.layer.criteria import random, wanda
from sparseswaps.layer.gram import Inputs
from sparseswaps.layer.least_squares import least_squares
from sparseswaps.layer.masks import check_mask, keep_best
from sparseswaps.layer.pattern import parse_pattern
from sparseswaps.layer.settings import Reconstruction

PATTERNS = ["50%", "60%", "2:4"]
HALF = parse_pattern("50%")


def layer(seed: int, d_out: int, d_in: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a weight, its Gram matrix and inputs [d_in, tokens]: correlated, of several scales and means, one dead."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tokens = 3 * d_in
    inputs = 0.5 * normal(d_in, tokens) + normal(d_in, 4) @ normal(4, tokens) / 2 + 0.5 * normal(d_in, 1)
    inputs *= torch.logspace(-0.5, 0.5, d_in, dtype=torch.float64)[torch.randperm(d_in, generator=generator), None]
    inputs[d_in // 2] = 0
    return normal(d_out, d_in), inputs @ inputs.T, inputs


def error(weight, new, gram):
    change = (weight - new).double()
    return float(((change @ gram) * change).sum())


def brain_surgeon(weight, gram, choose, damping=0.01):
    """Run the textbook OBS from left to right in float64, with a new inverse of the Hessian for each column.

    `choose(column, scores)` returns the mask [d_out, d_in] up to a column; `scores(k)` are w_k^2 / [Hinv]_kk at that
    time, for the Hessian of the columns from k on.
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
    """Return SparseGPT's rule for `brain_surgeon`, which fills in `mask`."""
    d_out, d_in = mask.shape
    size, kept = pattern.groups(d_in)
    together = block if size == d_in else size

    def choose(column, scores):
        if column % together == 0:
            columns = range(column, min(column + together, d_in))
            values = torch.stack([scores(k) for k in columns], 1)
            groups, count = values, kept
            if size == d_in:  # the rows compete
                first, last = (floor(d_out * kept * end / d_in) for end in (column, columns.stop))
                groups, count = values.reshape(1, -1), last - first
            best = groups.argsort(dim=1, descending=True, stable=True)[:, :count]
            mask[:, columns] = torch.zeros_like(groups, dtype=torch.bool).scatter(1, best, True).view(values.shape)
        return mask

    return choose


@pytest.mark.parametrize("pattern", [*PATTERNS, "3:5"])
def test_sparsegpt_is_the_optimal_brain_surgeon_column_by_column(pattern):
    (weight, gram, _), pattern = layer(1, 5, 20), parse_pattern(pattern)
    expected_mask = torch.ones(weight.shape, dtype=torch.bool)
    expected = brain_surgeon(weight, gram, chooser(expected_mask, pattern, block=8))
    mask = sparsegpt_mask(weight, gram, pattern, block=8)
    assert torch.equal(mask, expected_mask)
    # The mask alone is enough to compute the weights of its sweep.
    new = sparsegpt_update(weight, gram, mask, block=8)
    assert new.dtype == torch.float32
    torch.testing.assert_close(new.double(), expected, rtol=1e-6, atol=1e-7)
    assert not new[~mask].any()
    torch.testing.assert_close(sparsegpt_update(weight.float(), gram.float(), mask), new, rtol=1e-4, atol=1e-5)


def test_sparsegpt_makes_weights_for_any_mask():
    weight, gram, _ = layer(2, 6, 20)
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
    weight, gram, _ = (torch.ones(d_out, d_in), torch.eye(d_in), None) if equal else layer(d_in, d_out, d_in)
    pattern = parse_pattern(f"{percent}%")
    mask = sparsegpt_mask(weight, gram, pattern, block=block)
    assert mask.sum() == d_out * pattern.groups(d_in).kept
    if equal and block >= d_in:
        assert mask.flatten().int().diff().le(0).all()  # of equal weights the upper rows' are kept, and the first


def test_sparsegpt_does_not_share_among_rows_alike():
    weight, gram, _ = layer(3, 8, 32)
    counts = sparsegpt_mask(weight * torch.arange(1, 9)[:, None], gram, HALF).sum(1)
    assert counts[7] > 2 * counts[0] > 0


def test_sparsegpt_dampens_more_where_there_is_no_factor(caplog):
    # Positive semidefinite but for the rounding of float32: eigenvalues 8 and seven times -1e-7.
    gram = torch.full((8, 8), 1 + 1e-7, dtype=torch.float64).fill_diagonal_(1)
    weight, mask = torch.ones(2, 8), torch.eye(2, 8, dtype=torch.bool)
    with caplog.at_level(logging.WARNING):
        new = sparsegpt_update(weight, gram, mask, damping=1e-8)
    assert len(caplog.records) == 2
    torch.testing.assert_close(new, sparsegpt_update(weight, gram, mask, damping=1e-6))
    with pytest.raises(InputError, match="damping"):
        sparsegpt_mask(weight, gram, HALF, damping=1e-15)


def alternating(weight, gram, rounds, mask_of, damping=0.1):
    """Run the paper's rounds in float64, with the mask `mask_of(round, row, values)`; return weights and last masks."""
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
    (weight, gram, _), pattern = layer(4, 6, 40), parse_pattern(pattern)
    picked = {}

    def pick(t, row, values):
        if t < 15:
            picked[row] = keep_best(values.abs()[None], pattern)[0]
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


def test_admm_converges_to_the_best_weights_on_the_mask():
    weight, gram, _ = layer(5, 6, 24)
    mask = torch.rand(6, 24, generator=torch.Generator().manual_seed(0)) < torch.arange(6)[:, None] / 5
    norm = gram.diagonal().sqrt() + 1e-8
    objective = gram + 0.1 * (gram.diagonal() / norm**2).mean() * torch.diag(norm**2)  # in the units of the weights
    new = admm_update(weight, gram, mask, iterations=2000)
    for row, kept in enumerate(mask):
        exact = torch.linalg.solve(objective[kept][:, kept], objective[kept] @ weight[row])
        torch.testing.assert_close(new[row, kept].double(), exact, rtol=1e-5, atol=1e-6)
    assert not new[~mask].any()


def damped(gram):
    return gram + 0.01 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)


def largest(values, pattern):
    """Return the mask of the values of largest size in each group, or in the whole matrix for a sparsity."""
    if pattern.groups(values.shape[1]).size < values.shape[1]:
        return keep_best(values.abs(), pattern)
    kept = len(values) * pattern.groups(values.shape[1]).kept
    mask = torch.zeros(values.numel(), dtype=torch.bool)
    mask[values.abs().flatten().argsort(descending=True, stable=True)[:kept]] = True
    return mask.view(values.shape)


def penalised(weight, gram, pattern):
    """Run ALPS' rounds in the paper's variables B, D and V, with a solve a round; return the mask and the events."""
    hessian = damped(gram)
    norm = hessian.diagonal().sqrt()
    a, dense = hessian / torch.outer(norm, norm), weight * norm
    first = before = largest(dense, pattern)
    d, v, rho, events = dense * first, torch.zeros_like(dense), 0.1, []
    for t in range(1, 301):
        b = torch.linalg.solve(a + rho * torch.eye(len(a), dtype=a.dtype), (dense @ a - v + rho * d).T).T
        mask = largest(b + v / rho, pattern)
        d = (b + v / rho) * mask
        v = v + rho * (b - d)
        if t % 3:
            continue
        change, before = int((mask != before).sum()), mask
        grown, share = any(event in (1.3, 1.2) for event in events), change / int(mask.sum())
        if grown and change == 0:
            return mask, [*events, "unchanged"]
        if t > 30 and share < 0.0003:
            return mask, [*events, "settled"]
        if share > 0.005 or grown:
            events.append(1.3 if share > 0.1 else 1.2 if share > 0.005 else 1.1)
            rho *= events[-1]
        else:
            events.append("restart" if change else "lower")
            rho /= 5
            if change:
                d, v = dense * first, torch.zeros_like(dense)
    return mask, events


def alike(d_out, spread):
    """Return a weight, and the Gram matrix of one token whose 40 features differ by a spread around one."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(d_out, 40, generator=generator, dtype=torch.float64)
    features = 1 + spread * torch.randn(40, 1, generator=generator, dtype=torch.float64)
    return weight, features @ features.T


@pytest.mark.parametrize(
    ("problem", "pattern", "events"),
    [
        (layer(4, 6, 40)[:2], "50%", {1.3, 1.2, "unchanged"}),
        (layer(4, 6, 40)[:2], "60%", {1.3, 1.2, "unchanged"}),
        (layer(4, 6, 40)[:2], "2:4", {1.3, 1.2, "unchanged"}),
        (layer(5, 48, 40)[:2], "60%", {1.3, 1.2, 1.1, "unchanged"}),
        (alike(48, 0.1), "60%", {"lower", 1.3, 1.2, "unchanged"}),
        (alike(300, 0.3), "60%", {"restart", 1.2, 1.1, "unchanged"}),
        (layer(7, 256, 96)[:2], "2:4", {1.3, 1.2, 1.1, "settled"}),
    ],
)
def test_alps_is_the_papers_rounds(problem, pattern, events):
    (weight, gram), pattern = problem, parse_pattern(pattern)
    expected, occurred = penalised(weight, gram, pattern)
    assert set(occurred) == events
    mask = alps_mask(weight, gram, pattern)
    assert torch.equal(mask, expected)
    assert not torch.equal(mask, largest(weight * damped(gram).diagonal().sqrt(), pattern))
    check_mask(mask, pattern, "matrix")
    assert (alps_mask(weight.float(), gram.float(), pattern) != mask).float().mean() < 0.002
    assert torch.equal(alps_mask(3 * weight, 1e-90 * gram, pattern), mask)  # units do not matter


@pytest.mark.parametrize("pattern", PATTERNS)
def test_masks_of_alps_suit_least_squares_better_than_other_masks(pattern):
    assert Reconstruction().damping == alps._DAMPING  # so both minimise the same error
    (weight, gram, _), pattern = layer(6, 24, 96), parse_pattern(pattern)
    masks = [make_mask(weight, gram, pattern) for make_mask in (alps_mask, sparsegpt_mask, admm_mask, wanda)]
    least, *others = (error(weight, least_squares(weight, gram, mask, 0.01, 50), gram) for mask in masks)
    assert least < 0.97 * min(others)  # 0.82 at 50 %, 0.83 at 60 % and 0.945 at 2:4


@pytest.mark.parametrize("pattern", [*PATTERNS, "0%"])
@pytest.mark.parametrize("rank", [0, 3])
def test_alps_takes_singular_gram_matrices_and_rows_of_zeros(pattern, rank):
    (weight, _, inputs), pattern = layer(9, 8, 40), parse_pattern(pattern)
    weight[2] = 0
    mask = alps_mask(weight, inputs[:, :rank] @ inputs[:, :rank].T, pattern)
    check_mask(mask, pattern, "matrix")
    if pattern.label in ("50%", "60%"):
        assert not mask[2].any()


def test_alps_keeps_the_upper_rows_and_the_leftmost_of_equal_weights():
    mask = alps_mask(torch.ones(4, 6), torch.zeros(6, 6), HALF)
    assert mask.flatten().tolist() == [True] * 12 + [False] * 12


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("sequences", "cycles", "threshold", "kept"),
    [
        (1, 0, 0.1, [3, 4, 5]),
        (1, 1, 0.1, [1, 4, 5]),
        (1, 2, 0.1, [1, 2, 5]),
        (1, 50, 0.1, [1, 2, 5]),
        # Means over two sequences are half as large, and so is the error: 12, below a threshold of 13.
        (2, 50, 13, [3, 4, 5]),
        (2, 50, 11, [1, 4, 5]),
    ],
)
def test_dsnot_by_hand(sign, sequences, cycles, threshold, kept):
    # All means are 1, and all variances except the variance of x_0. D = 4 w = 12, 8, 4, -4, -8, 20; the pruned 12, 8
    # and 4 make an error of 24, with D / Var = 3, 8, 4. First the 8 is regrown and the -4 pruned (its Wanda score is
    # below the score of -8), which leaves 12; then the 4 is regrown and the -8 pruned, which leaves 0.
    weight = sign * torch.tensor([[3.0, 2.0, 1.0, -1.0, -2.0, 5.0]])
    gram = torch.diag(4 * (torch.tensor([4.0, 1.0, 1.0, 1.0, 1.0, 1.0]) + 1))
    start, sums = torch.arange(6)[None] > 2, torch.full((6,), 4.0).double()
    mask = dsnot(weight, Inputs(gram, None, sums, 4, sequences), start, HALF, cycles, threshold)
    assert mask[0].nonzero().flatten().tolist() == kept
    assert start.tolist() == [[False, False, False, True, True, True]]  # the input is as it was


def dsnot_row(weight, norm, variance, effect, kept, size, cycles, threshold):
    """Run DSnoT on one row in plain Python; return the set of kept weights. `size` is M, or d_in."""
    d_in = len(weight)
    start, kept = frozenset(kept), set(kept)
    first_error = sum(effect[j] for j in range(d_in) if j not in kept)
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
        if size < d_in and (left - effect[grown] + effect[pruned]) * first_error <= 0:
            break
        kept = (kept | {grown}) - {pruned}
    return kept


@pytest.mark.parametrize(("cycles", "threshold"), [(50, 0.1), (50, 10.0), (3, 0.1)])
@pytest.mark.parametrize("pattern", [*PATTERNS, "4:8", "90%"])
def test_dsnot_is_the_loop_over_rows(pattern, cycles, threshold):
    (weight, gram, inputs), pattern = layer(7, 40, 96), parse_pattern(pattern)
    start, sums = wanda(weight, gram, pattern), inputs.sum(1)
    mask = dsnot(weight, Inputs(gram, None, sums, inputs.shape[1], 6), start, pattern, cycles, threshold)
    for row in range(40):
        columns = (weight[row], inputs.norm(dim=1), inputs.var(1, correction=0), weight[row] * sums / 6)
        kept = start[row].nonzero().flatten().tolist()
        expected = dsnot_row(*(t.tolist() for t in columns), kept, pattern.groups(96).size, cycles, threshold)
        assert set(mask[row].nonzero().flatten().tolist()) == expected
    check_mask(mask, pattern)
    assert (mask != start).sum() > 40


@pytest.mark.parametrize("rounding", [-1e-7, 0, 1e-7])  # of a Gram matrix in float32
def test_dsnot_takes_features_that_do_not_vary(rounding):
    weight, _, inputs = layer(8, 16, 24)
    inputs[3] = 0.7  # a constant has a certain expected error; feature 12 is dead
    gram, sums = inputs @ inputs.T, inputs.sum(1)
    start = wanda(weight, gram, HALF)
    effect = weight * sums / 2
    certain = ~start[:, 3] & (effect[:, 3] * effect.masked_fill(start, 0).sum(1) > 0)
    assert certain.any()
    gram[3, 3] = sums[3] ** 2 / inputs.shape[1] * (1 + rounding)
    figures = Inputs(gram, None, sums, inputs.shape[1], 2)
    assert dsnot(weight, figures, start, HALF, cycles=1)[certain, 3].all()
    mask = dsnot(weight, figures, start, HALF)
    check_mask(mask, HALF)
    assert torch.equal(mask[:, 12], start[:, 12])


@pytest.mark.parametrize("kept", [True, False])
def test_dsnot_leaves_rows_with_nothing_to_regrow_or_prune(kept):
    weight, gram, inputs = layer(8, 16, 24)
    start = torch.full((16, 24), kept)
    figures = Inputs(gram, None, inputs.sum(1), 72, 2)
    assert torch.equal(dsnot(weight, figures, start, HALF), start)


def test_random_masks_depend_on_the_weight_alone():
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)).bfloat16()
    mask = random(weight, torch.eye(96), HALF)
    assert torch.equal(mask, random(torch.nn.Parameter(weight), 3 * torch.eye(96), HALF))
    assert torch.equal(mask, random(weight.T.contiguous().T, torch.eye(96), HALF))
    other = random(weight + 1, torch.eye(96), HALF)
    assert 0.4 < (mask == other).float().mean() < 0.6
    assert 0.4 < mask[:, :48].float().mean() < 0.6
    assert mask.sum(0).float().std() < 8  # binomial: 4


MASK = torch.eye(2, 4, dtype=torch.bool)


def dsnot_of_gram(weight, gram):
    dsnot(weight, Inputs(gram, None, torch.ones(4).double(), 4, 1), MASK, HALF)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (sparsegpt_mask, (HALF,)),
        (sparsegpt_update, (MASK,)),
        (admm_mask, (HALF,)),
        (admm_update, (MASK,)),
        (alps_mask, (HALF,)),
        (dsnot_of_gram, ()),
    ],
)
@pytest.mark.parametrize("gram", [torch.full((4, 4), inf), torch.eye(3), -torch.eye(4)])
def test_other_matrices_than_gram_matrices_are_refused(function, arguments, gram):
    with pytest.raises(InputError, match="Gram matrix"):
        function(torch.ones(2, 4), gram, *arguments)
