import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers import FAST, HAS_TRITON, device_of, layer, problem
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import masked_layers, masks_after_a_swap

from sparseswaps.base.errors import InputError
from sparseswaps.layer.criteria import wanda
from sparseswaps.layer.gram import row_loss
from sparseswaps.layer.masks import keep_best
from sparseswaps.layer.pattern import parse_pattern
from sparseswaps.layer.swaps import engine
from sparseswaps.layer.swaps.bounds import strongest_correlation
from sparseswaps.layer.swaps.certificate import CertificateError
from sparseswaps.layer.swaps.cost import norms, rounding
from sparseswaps.layer.swaps.engine import eliminate, refine_mask, walk
from sparseswaps.layer.swaps.reference import swap_cost
from sparseswaps.layer.swaps.refit import refit_swaps

SIZES = {"0%": [1, 6], "30%": [7, 16], "50%": [2, 12], "60%": [1, 5, 24], "95%": [20]}
SIZES |= {"1:2": [2, 10], "2:4": [4, 16], "3:4": [12], "2:3": [9], "3:5": [15], "4:8": [24], "16:32": [32, 64]}
SEARCHES = ["reference", *FAST, "refit"]


def run(backend, weight, gram, mask, pattern, max_swaps=None, frozen=None):
    """Run `refine_mask` with a backend on its device, or `refit_swaps`; return the result on the CPU."""
    if backend == "refit":
        return refit_swaps(weight, gram, mask, pattern, max_swaps=max_swaps)
    weight, gram, mask = (t.to(device_of(backend)) for t in (weight, gram, mask))
    result = refine_mask(
        weight, gram, mask, pattern, max_swaps, backend, None if frozen is None else frozen.to(mask.device)
    )
    return type(result)(**{name: value.cpu() for name, value in vars(result).items()})


def losses_of_all_swaps(weight, gram, mask, size):
    """Return the loss of one row [d_in] after each feasible swap, by the definition: {(u, p): loss}."""
    masks = masks_after_a_swap(mask, size)
    if not masks:
        return {}
    losses = row_loss(weight.expand(len(masks), -1), gram, torch.stack([*masks.values()]))
    return dict(zip(masks, losses.tolist(), strict=True))


def uncertainty(weight, gram):
    s = norms(weight, gram)
    return 100 * rounding(s) * s.sum(1)


@given(masked_layers(SIZES))
@settings(max_examples=50, deadline=None)
def test_swap_cost_is_the_change_of_the_loss(example):
    weight, gram, _, mask = example
    w, m = weight[0].double(), mask[0]
    before = float(row_loss(w[None], gram, m[None]))
    c = gram @ w.masked_fill(m, 0)
    slack = float(uncertainty(weight, gram)[0]) + 1e-300
    for (u, p), after in losses_of_all_swaps(w, gram, m, len(w)).items():
        assert float(swap_cost(w, c, gram, u, p)) == pytest.approx(after - before, abs=slack, rel=1e-9)


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_by_hand(backend):
    # One token: contributions w x of the pruned weights +10 and -1, of the kept ones +9 and -9; the error is 81. The
    # best swap prunes -9 and keeps -1, which leaves 10 - 9 = 1; the best u and the best p by themselves leave 100.
    weight, gram = torch.tensor([[10.0, -1.0, 9.0, -9.0]]), torch.ones(4, 4)
    mask = torch.tensor([[False, False, True, True]])
    result = run(backend, weight, gram, mask, parse_pattern("50%"), max_swaps=1)
    assert result.loss_before.item() == 81
    assert result.loss_after.item() == 1
    assert result.mask.tolist() == [[False, True, True, False]]


@pytest.mark.parametrize("backend", SEARCHES)
@pytest.mark.parametrize("pattern", ["50%", "4:8"])
def test_of_equal_swaps_the_lowest_pair_is_made(backend, pattern):
    # Whole numbers, no interaction: u = 2 and u = 5 are equally good to prune, p = 1, 3 and 6 to keep. Exact in floats.
    weight = torch.tensor([[4.0, 3.0, 1.0, 3.0, 4.0, 1.0, 3.0, 4.0]])
    mask = torch.tensor([[True, False, True, False, True, True, False, False]])
    gram = torch.eye(8)
    gram[7, 7] = 0  # nothing is gained by keeping a dead feature
    result = run(backend, weight, gram, mask, parse_pattern(pattern), max_swaps=1)
    assert result.mask.tolist() == [[True, True, False, False, True, True, False, False]]
    assert mask[0, 2]  # the input is as it was


@pytest.mark.parametrize("backend", FAST)
@given(masked_layers(SIZES), st.sampled_from([None, 0, 1, 3]))
@settings(max_examples=60, deadline=None)
def test_backends_do_what_the_oracle_does(backend, example, max_swaps):
    weight, gram, pattern, start = example
    ours, oracle = (run(name, weight, gram, start, pattern, max_swaps) for name in (backend, "reference"))
    slack = uncertainty(weight, gram)
    assert ((ours.loss_after - oracle.loss_after).abs() <= 1e-5 * oracle.loss_after + slack).all()
    assert (ours.loss_after <= ours.loss_before + slack).all()
    if max_swaps is not None:
        assert (ours.swaps <= max_swaps).all()
    size = pattern.groups(weight.shape[1]).size
    counts = [mask.view(len(weight), -1, size).sum(-1) for mask in (start, ours.mask)]
    assert torch.equal(*counts)
    for row in range(len(weight)):
        others = losses_of_all_swaps(weight[row].double(), gram, ours.mask[row], size).values()
        if ours.certified[row]:
            assert min(others, default=torch.inf) >= ours.loss_after[row] - slack[row]
        else:
            assert ours.swaps[row] == max_swaps
            assert min(others) < ours.loss_after[row] + slack[row]


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("pattern", ["60%", "2:4", "5:8"])
@pytest.mark.parametrize("kind", ["random", "correlated", "outliers", "duplicated"])
def test_masks_equal_the_oracles_where_nothing_ties(backend, pattern, kind):
    weight, *others = problem(3, 4, 40, pattern, kind)
    if kind == "random":
        weight = weight.bfloat16()
    ours, oracle = (run(name, weight, *others) for name in (backend, "reference"))
    assert torch.equal(ours.mask, oracle.mask)
    assert torch.equal(ours.swaps, oracle.swaps)
    assert ours.swaps.sum() > 5
    assert ours.certified.all()


@pytest.mark.parametrize("pattern", ["30%", "60%", "4:8", "10:20"])
def test_the_compiled_search_agrees_with_the_batched_one_on_a_larger_layer(pattern):
    weight, gram, _, pattern = problem(3, 24, 400, pattern)  # more than one tile of columns, and no multiple of it
    scale = torch.logspace(-1, 1, 400)
    gram *= torch.outer(scale, scale)
    start = wanda(weight, gram, pattern)
    one, other = (run(backend, weight, gram, start, pattern) for backend in ("cpu", "batched"))
    assert torch.equal(one.mask, other.mask)
    assert torch.equal(one.swaps, other.swaps)
    assert one.swaps.sum() > 100
    assert torch.equal(eliminate(weight, gram, pattern), eliminate(weight, gram, pattern, "batched"))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("pattern", ["60%", "4:8"])
def test_frozen_weights_stay_and_the_mask_is_the_oracles(backend, pattern):
    weight, gram, start, pattern = problem(6, 2, 40, pattern)
    free = run(backend, weight, gram, start, pattern)
    frozen = torch.rand(start.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    frozen[1] |= ~free.mask[1]  # what was pruned
    ours, oracle = (run(name, weight, gram, start, pattern, frozen=frozen) for name in (backend, "reference"))
    assert torch.equal(ours.mask, oracle.mask)
    assert ours.certified.all()
    assert ours.mask[frozen & start].all()
    assert not free.mask[frozen & start].all()  # it makes a difference
    assert (ours.loss_after <= ours.loss_before).all()


@pytest.mark.parametrize("pattern", ["60%", "4:8"])
def test_a_walk_yields_the_result_of_each_budget(pattern):
    weight, gram, start, pattern = problem(5, 8, 96, pattern)
    steps = list(walk(weight, gram, start, pattern, [0, 1, 2, 1000, 2000]))
    assert len(steps) == 4  # the optimum ends it
    for step, budget in zip(steps, [0, 1, 2, None], strict=True):
        alone = refine_mask(weight, gram, start, pattern, budget)
        for name in ("mask", "swaps", "certified"):
            assert torch.equal(getattr(step, name), getattr(alone, name)), name
        torch.testing.assert_close(step.loss_after, alone.loss_after, rtol=1e-12, atol=0)
        assert torch.equal(step.loss_before, steps[0].loss_after)
        assert torch.equal(refine_mask(weight, gram, step.mask, pattern).mask, steps[-1].mask)  # a budget is a prefix
    assert all((after.loss_after <= before.loss_after).all() for before, after in pairwise(steps))


def test_swaps_between_rows_lower_the_loss_and_keep_the_count():
    weight, gram, start, pattern = problem(5, 8, 48, "60%", "random")
    weight *= torch.linspace(0.5, 2, 8)[:, None]  # a weight of the last row is worth more than one of the first
    alone = refine_mask(weight, gram, start, pattern)
    together = refine_mask(weight, gram, start, pattern, between_rows=True)
    assert together.mask.sum() == start.sum()
    assert (together.mask.sum(1) != start.sum(1)).any()
    assert together.certified.all()
    assert together.loss_after.sum() < alone.loss_after.sum()
    torch.testing.assert_close(together.loss_after, row_loss(weight, gram, together.mask), rtol=1e-12, atol=0)
    # Neither swaps within rows nor swaps between rows improve the mask further.
    assert torch.equal(refine_mask(weight, gram, together.mask, pattern, between_rows=True).mask, together.mask)


def test_losses_match_the_masks_for_any_number_of_threads_and_the_drift_is_rounding():
    weight, gram, start, pattern = problem(8, 50, 300, "60%")
    result, threads = refine_mask(weight, gram, start, pattern), torch.get_num_threads()
    torch.testing.assert_close(result.loss_after, row_loss(weight, gram, result.mask), rtol=1e-12, atol=0)
    assert result.swaps.sum() > 100
    assert 0 < result.drift.max() < 1e-11
    try:
        torch.set_num_threads(3)
        assert torch.equal(refine_mask(weight, gram, start, pattern).mask, result.mask)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("backend", SEARCHES)
def test_rows_may_keep_different_counts(backend):
    weight, gram, _, pattern = problem(7, 4, 16, "50%")
    mask = torch.arange(16).expand(4, 16) < torch.tensor([[0], [5], [11], [16]])
    result = run(backend, weight, gram, mask, pattern)
    assert result.mask.sum(1).tolist() == [0, 5, 11, 16]
    assert result.swaps[[0, 3]].tolist() == [0, 0]
    assert result.certified.all()


@given(masked_layers(SIZES))
@settings(max_examples=50, deadline=None)
def test_no_interaction_exceeds_its_bound(example):
    weight, gram, pattern, _ = example
    size = pattern.groups(weight.shape[1]).size
    rho, s = strongest_correlation(gram, size), norms(weight, gram)[0]
    w = weight[0].double()
    column = torch.arange(len(w))
    pairs = (column[:, None] // size == column // size) & (column[:, None] != column)
    interaction = (2 * w[:, None] * w * gram).abs()
    bound = 2 * s[:, None] * s * torch.minimum(rho[:, None], rho)
    assert (interaction <= bound * (1 + 1e-12))[pairs].all()
    assert (rho <= 1 + 1e-9).all()


@pytest.mark.parametrize("backend", FAST)
@given(masked_layers(SIZES))
@settings(max_examples=30, deadline=None)
def test_elimination_prunes_what_costs_least(backend, example):
    weight, gram, pattern, _ = example
    device = device_of(backend)
    ours = eliminate(weight.to(device), gram.to(device), pattern, backend).cpu()
    size, kept = pattern.groups(weight.shape[1])
    assert (ours.view(len(weight), -1, size).sum(-1) == kept).all()
    if not has_ties(weight, gram):
        assert torch.equal(ours, eliminate(weight, gram, pattern, "reference"))


def has_ties(weight, gram):
    """Return whether prunings may cost the same: duplicated or dead features, zero weights, low rank."""
    s = norms(weight, gram)
    rank = torch.linalg.matrix_rank(gram)
    return bool((s == 0).any()) or bool((strongest_correlation(gram, len(gram)) > 1 - 1e-9).any()) or rank < len(gram)


WEIGHT, IDENTITY, KEPT, HALF = torch.ones(2, 4), torch.eye(4), torch.ones(2, 4, dtype=torch.bool), parse_pattern("50%")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"gram": torch.eye(3)}, r"\[3, 3\]"),
        ({"gram": IDENTITY.to("meta")}, "meta"),
        ({"gram": -IDENTITY}, "Gram matrix"),
        ({"weight": torch.ones(4, 3)}, r"\[4, 3\]"),
        ({"weight": WEIGHT * float("inf")}, "weight"),
        ({"weight": WEIGHT.double() * 1e160}, "weight"),
        ({"weight": WEIGHT[0]}, "weight"),
        ({"weight": WEIGHT.int()}, "weight"),
        ({"weight": WEIGHT[:, :0]}, "weight"),
        ({"mask": KEPT.int()}, "mask"),
        ({"mask": KEPT[:, :3]}, "mask"),
        ({"mask": KEPT.to("meta")}, "mask"),
        ({"frozen": KEPT[:1]}, "frozen"),
        ({"max_swaps": -1}, "max_swaps"),
        ({"max_swaps": 1.5}, "max_swaps"),
        ({"pattern": parse_pattern("2:3")}, "2:3"),
        ({"pattern": parse_pattern("1:2"), "between_rows": True}, "1:2"),
        ({"backend": "warp"}, "'warp'"),
        ({"backend": "cuda"}, "'cuda'"),
    ],
)
def test_wrong_input_is_refused(monkeypatch, change, name):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    arguments = {"weight": WEIGHT, "gram": IDENTITY, "pattern": HALF} | change
    with pytest.raises(InputError, match=name):
        refine_mask(**{"mask": KEPT} | arguments)
    if arguments.keys() <= {"weight", "gram", "pattern", "backend"}:
        with pytest.raises(InputError, match=name):
            eliminate(**arguments)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("pattern", ["60%", "2:4"])
def test_views_are_accepted(backend, pattern):
    weight, gram, start, pattern = problem(13, 5, 12, pattern)
    expected = run(backend, weight, gram, start, pattern)
    strided = [t.T.contiguous().T for t in (weight, gram, start)]
    assert torch.equal(run(backend, *strided, pattern).mask, expected.mask)
    assert expected.swaps.any()


def test_a_feature_whose_squares_vanish_is_dead():
    weight, inputs = layer(14, 3, 16, "random")
    inputs[2] *= 1e-24  # its square is 0 in float32, its products with the others are not
    gram = inputs @ inputs.T
    assert gram[2, 2] == 0
    assert gram[2].any()
    result = refine_mask(weight, gram, keep_best(-weight.abs(), HALF), HALF)
    assert result.certified.all()
    assert result.swaps.sum() > 3


@pytest.mark.parametrize(
    ("wrong", "made", "named"),
    [
        (torch.ones_like, 0, None),  # a mask that keeps more
        (torch.logical_not, 0, None),  # frozen weights that are pruned
        (torch.clone, 0, "row 0"),  # a start that is said to be optimal
        (torch.clone, 1, "row 0"),  # rows that never settle
    ],
)
def test_a_wrong_result_of_a_search_is_an_error(monkeypatch, wrong, made, named):
    class WrongBackend:
        @staticmethod
        def swap_rows(rows, progress):
            rows.mask[:] = wrong(rows.mask)
            return torch.full_like(rows.budget, made), torch.ones(len(rows.weight), dtype=torch.bool)

    weight, gram, _, _ = problem(1, 6, 16, "50%")
    start = keep_best(-weight.abs(), HALF)
    monkeypatch.setattr(engine, "select_backend", lambda *_: WrongBackend)
    with pytest.raises(CertificateError, match=named):
        refine_mask(weight, gram, start, HALF, frozen=start if wrong is torch.logical_not else None)


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not there")
def test_the_kernels_compile_for_a_gpu(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, Path(__file__).with_name("compile_kernels.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("d_in", [256, 1000])
@pytest.mark.parametrize("pattern", ["60%", "2:4", "4:8"])
def test_cuda_gives_the_masks_of_the_cpu(pattern, d_in):
    weight, gram, start, pattern = problem(11, 64, d_in, pattern)
    on_cpu = refine_mask(weight, gram, start, pattern)
    on_gpu, again = (refine_mask(weight.cuda(), gram.cuda(), start.cuda(), pattern) for _ in range(2))
    assert on_gpu.mask.is_cuda
    assert torch.equal(on_gpu.mask.cpu(), on_cpu.mask)
    assert torch.equal(on_gpu.swaps.cpu(), on_cpu.swaps)
    assert torch.equal(again.mask, on_gpu.mask)
    assert torch.equal(again.loss_after, on_gpu.loss_after)  # every run gives the same bits
    masks = [eliminate(weight.to(device), gram.to(device), pattern).cpu() for device in ("cuda", "cpu")]
    torch.testing.assert_close(*(row_loss(weight, gram, mask) for mask in masks))  # near-ties may be rounded apart
    oracle = refine_mask(weight[:1].cuda(), gram.cuda(), start[:1].cuda(), pattern, 1, "reference")
    assert torch.equal(oracle.mask.cpu(), refine_mask(weight[:1], gram, start[:1], pattern, 1).mask)


@pytest.mark.gpu
@pytest.mark.parametrize("d_in", [14336, 28672])
@pytest.mark.parametrize("pattern", ["60%", "2:4"])
def test_cuda_holds_for_wide_layers(pattern, d_in):
    random = torch.Generator("cuda").manual_seed(0)
    weight = torch.randn(4, d_in, generator=random, device="cuda")
    inputs = torch.randn(d_in, 2048, generator=random, device="cuda")
    gram, pattern = inputs @ inputs.T, parse_pattern(pattern)
    start = wanda(weight, gram, pattern)
    one, other = (refine_mask(weight, gram, start, pattern, 50, backend) for backend in ("cuda", "batched"))
    assert one.swaps.sum() == 200
    assert torch.equal(one.mask, other.mask)
    assert (eliminate(weight, gram, pattern).sum(1) == start.sum(1)).all()
