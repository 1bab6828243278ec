"""Jobs that run out of GPU memory go on with smaller batches, and give what they would have given."""

import weakref

import pytest
import torch

from sparseswaps.base.errors import InputError
from sparseswaps.base.memory import halve_until_it_fits, map_slices
from sparseswaps.layer import criteria
from sparseswaps.layer import refinement as layerwise
from sparseswaps.layer.criteria import ria, wanda
from sparseswaps.layer.gram import Inputs, row_loss
from sparseswaps.layer.masks import keep_best
from sparseswaps.layer.pattern import parse_pattern
from sparseswaps.layer.swaps import batched, engine
from sparseswaps.layer.swaps.engine import eliminate, refine


def test_slices_follow_each_other_and_are_halved_from_where_memory_ended(caplog):
    def step(rows):
        if rows.stop - rows.start > (3 if rows.start >= 12 else 100):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rows.start, rows.stop

    assert map_slices(step, 20, 6, "rows") == [(0, 6), (6, 12), (12, 15), (15, 18), (18, 20)]
    assert caplog.messages == ["out of memory at 6 rows: going on with 3"]
    assert map_slices(step, 5, 64, "rows") == [(0, 5)]
    assert map_slices(step, 0, 64, "rows") == []


def test_what_failed_is_gone_before_the_next_attempt():
    held = []

    def step(size):
        assert all(tensor() is None for tensor in held)
        tensor = torch.ones(size)
        held.append(weakref.ref(tensor))
        cycle = [tensor]
        cycle.append(cycle)
        if size > 3:
            raise torch.OutOfMemoryError
        return size

    assert halve_until_it_fits(step, 13, "rows") == (3, 3)
    assert len(held) == 3


@pytest.mark.parametrize(("lower", "advice"), [(None, "set gpu: false"), ("seqlen", "lower seqlen, or set gpu: false")])
def test_no_memory_for_one_is_said_in_one_line(lower, advice):
    def step(rows):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n2 GiB")

    with pytest.raises(InputError) as error:
        map_slices(step, 4, 4, "windows", lower)
    assert str(error.value) == f"out of GPU memory with one of the windows at a time; {advice}"
    assert error.value.__context__ is None  # nor does it hold what failed


def short_of_memory(function, most, weight=0):
    """A function that has memory for so many rows of its argument of that number."""

    def limited(*arguments):
        if len(arguments[weight]) > most:
            raise torch.OutOfMemoryError
        return function(*arguments)

    return limited


def test_rows_are_refined_in_parts_where_memory_is_short(monkeypatch, caplog):
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(11, 48, generator=random)
    inputs, unseen = (torch.randn(48, 200, generator=random) + torch.randn(200, generator=random) for _ in range(2))
    gram, held_out, pattern = inputs @ inputs.T, unseen @ unseen.T, parse_pattern("60%")
    start = ria(weight, gram, pattern)
    with monkeypatch.context() as patched:
        patched.setattr(criteria, "keep_best", short_of_memory(keep_best, 6))
        assert torch.equal(ria(weight, gram, pattern), start)
    assert caplog.messages == ["out of memory at 11 rows: going on with 5"]
    caplog.clear()
    whole = refine(weight, gram, start, pattern, backend="batched")
    pruned = eliminate(weight, gram, pattern, "batched")
    for name in ("swap_rows", "eliminate_rows"):
        monkeypatch.setattr(batched, name, short_of_memory(getattr(batched, name), 3))
    parts = refine(weight, gram, start, pattern, backend="batched")
    assert caplog.messages == ["out of memory at 11 rows: going on with 5", "out of memory at 5 rows: going on with 2"]
    for name, column in vars(whole).items():
        torch.testing.assert_close(getattr(parts, name), column, rtol=1e-12, atol=1e-12)
    assert whole.swaps.sum() > 20
    assert torch.equal(eliminate(weight, gram, pattern, "batched"), pruned)
    assert len(caplog.messages) == 4

    monkeypatch.setattr(engine, "select_backend", lambda *_: batched)
    monkeypatch.setattr(layerwise, "row_loss", short_of_memory(row_loss, 4))
    inputs = Inputs(gram, held_out, torch.zeros(len(gram)), 1, 1)
    refined = layerwise.refine_layer(weight, inputs, start, pattern, layerwise.RefinementSettings())
    mask, row = refined.mask, refined.figures
    assert torch.equal(mask, whole.mask)
    assert row["held_out_before"] == pytest.approx(float(row_loss(weight, held_out, start).sum()))
    assert row["held_out_after"] == pytest.approx(float(row_loss(weight, held_out, mask).sum()))
    monkeypatch.setattr(batched, "swap_rows", short_of_memory(batched.swap_rows, 0))
    with pytest.raises(InputError, match="out of GPU memory with one of the rows"):
        refine(weight, gram, start, pattern)


@pytest.mark.gpu
def test_rows_are_refined_in_parts_on_a_full_gpu(caplog):
    random = torch.Generator("cuda").manual_seed(0)
    weight = torch.randn(65536, 512, generator=random, device="cuda")
    inputs = torch.randn(512, 2048, generator=random, device="cuda")
    gram, pattern = inputs @ inputs.T, parse_pattern("2:4")
    start = wanda(weight, gram, pattern)
    whole = refine(weight, gram, start, pattern)
    assert not caplog.messages
    torch.cuda.empty_cache()
    most = torch.cuda.memory_reserved() + 256 * 2**20  # less than the correlations of all rows, 268 MB
    try:
        torch.cuda.set_per_process_memory_fraction(most / torch.cuda.get_device_properties(0).total_memory)
        parts = refine(weight, gram, start, pattern)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert caplog.messages[0] == "out of memory at 65536 rows: going on with 32768"
    assert torch.equal(parts.mask, whole.mask)
