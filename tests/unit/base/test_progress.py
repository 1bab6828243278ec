"""Long work shows itself: what functions tell, what the log and a terminal say of it, and that files hold no bars."""

import logging

import pytest
import torch
from helpers import FAST, ON_CUDA, layer

from sparseswaps.base import progress
from sparseswaps.base.progress import Part, show_progress
from sparseswaps.calibration.capture import capture
from sparseswaps.embedded import MODEL
from sparseswaps.evaluation.perplexity import perplexity
from sparseswaps.layer.criteria import WARMSTARTS, wanda
from sparseswaps.layer.gram import Inputs
from sparseswaps.layer.pattern import parse_pattern
from sparseswaps.layer.reconstruction import Reconstruction, reconstruct_layer
from sparseswaps.layer.refinement import RefinementSettings, refine_layer
from sparseswaps.layer.swaps import batched
from sparseswaps.layer.swaps.engine import eliminate, refine
from sparseswaps.model.checkpoint import Checkpoint, write_pruned
from sparseswaps.model.description import describe
from sparseswaps.model.loading import load_model
from sparseswaps.model.weights import WeightsOnDisk
from sparseswaps.pruning.progress import blocks_part, rows_part

PATTERN = parse_pattern("50%")


class Told(list):
    """A `Report` that keeps what it is told."""

    def __call__(self, done, made):
        self.append((done, made))


def example(rows=11):
    """A weight, of more rows than a thread takes at a time, its Gram matrix and Wanda's mask."""
    weight, inputs = layer(5, rows, 16, "correlated")
    gram = inputs @ inputs.T
    return weight, gram, wanda(weight, gram, PATTERN)


@pytest.mark.parametrize("backend", ["reference", *FAST])
@pytest.mark.parametrize("max_swaps", [None, 1])
def test_all_rows_and_all_swaps_are_told(backend, max_swaps):
    weight, gram, start = (t.to("cuda" if backend == "cuda" and ON_CUDA else "cpu") for t in example(3))
    told = Told()
    result = refine(weight, gram, start, PATTERN, max_swaps, backend, progress=told)
    assert told[-1] == (3, result.swaps.sum())
    assert told == sorted(told)
    # The one before is the backend's: what it found at an optimum, and its swaps.
    assert told[-2] == (result.certified.sum(), result.swaps.sum())
    assert result.swaps.sum() > 2
    told.clear()
    eliminate(weight, gram, PATTERN, backend, told)
    assert told[-1] == (3, 0)


def test_rows_are_told_while_others_are_searched():
    weight, gram, start = example()
    told = Told()
    refine(weight, gram, start, PATTERN, backend="cpu", progress=told)
    assert [done for done, _ in told] == [8, 11, 11]
    told.clear()
    refine(weight, gram, start, PATTERN, backend="batched", progress=told)
    assert len(told) > 3


def test_rows_that_are_begun_again_for_want_of_memory_count_once(monkeypatch):
    weight, gram, start = example()
    search, tried = batched.swap_rows, []

    def short_of_memory(part, *arguments):
        tried.append(len(part))
        found = search(part, *arguments)
        if len(part) > 6:
            raise torch.OutOfMemoryError
        return found

    monkeypatch.setattr(batched, "swap_rows", short_of_memory)
    told = Told()
    result = refine(weight, gram, start, PATTERN, backend="batched", progress=told)
    assert tried[:2] == [11, 5]
    assert told[-1] == (11, result.swaps.sum())
    assert max(done for done, _ in told) == 11
    assert max(made for _, made in told) == result.swaps.sum()


@pytest.mark.parametrize("settings", [{}, {"max_swaps": 3}, {"stop": "held_out"}, {"method": "dsnot"}])
def test_a_layers_rows_come_to_their_end_once(settings):
    how = RefinementSettings(**settings)
    weight, gram, start = example()
    _, other = layer(6, 11, 16, "correlated")
    told = Told()
    inputs = Inputs(gram, other @ other.T, torch.ones(16, dtype=torch.float64), 35, 1)
    refined = refine_layer(weight, inputs, start, PATTERN, how, told)
    assert told[-1][0] == 11
    assert told == sorted(told)
    if how.stop == "optimum":
        assert told[-1][1] == refined.figures["swaps"]
    else:  # what was made in the step that held-out text rejects counts as well
        assert told[-1][1] > refined.figures["swaps"]


@pytest.mark.parametrize("name", WARMSTARTS)
def test_warm_starts_tell_their_rows(name):
    weight, gram, _ = example()
    told = Told()
    WARMSTARTS[name](weight, gram, PATTERN, progress=told)
    assert told[-1] == (11, 0)
    assert told == sorted(told)


@pytest.mark.parametrize("method", ["least_squares", "sparsegpt", "admm"])
def test_reconstructions_tell_their_rows(method):
    weight, gram, start = example()
    told = Told()
    inputs = Inputs(gram, None, torch.ones(16, dtype=torch.float64), 35, 1)
    reconstruct_layer(weight, inputs, start, Reconstruction(method=method), {"seconds": 0}, told)
    assert told == [(11, 0)]


def test_what_is_done_with_a_whole_model_is_told(tiny_model, tmp_path):
    told = Told()
    described = describe(tiny_model, progress=told)
    assert [done for done, _ in told] == list(range(1, len(described.tensors) + 1))
    told.clear()
    Checkpoint(MODEL).hashes(told)
    assert told[-1][1] == (MODEL / "model.safetensors").stat().st_size // 10**6 > 0

    ids = torch.arange(5 * 8).view(5, 8)
    for prune, passes in ((None, 1), (lambda *_: {}, 2)):
        told.clear()
        list(capture(WeightsOnDisk(described, "cpu"), ids, ids[:2], 2, prune, progress=told))
        work = blocks_part(described.blocks, 7, again=prune is not None)
        assert told[-1] == (2, 2 * 7 * passes) == (work.count, work.likely)
        assert told == sorted(told)
        assert {blocks for blocks, _ in told} == {0, 1, 2}

    told.clear()
    masks = {la.tensor: wanda(described.weight(la), torch.eye(la.d_in), PATTERN) for la in described.blocks[1]}
    write_pruned(described.checkpoint, masks, tmp_path / "pruned", {}, progress=told)
    assert told == [(done, 0) for done in range(1, len(masks) + 1)]

    told.clear()
    perplexity(load_model(str(tiny_model), "cpu"), ids, 2, told)
    assert told == [(2, 16), (4, 32), (5, 40)]


def test_time_left_is_by_cost_and_by_what_is_made_until_something_is_done(monkeypatch, caplog):
    clock = iter([100.0, 110.0, 140.0, 200.0, 201.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    caplog.set_level(logging.INFO)
    with show_progress("job", "rows", "swaps", [Part(10, 1.0, 400), Part(1000, 0.09, 4000)]) as (first, second):
        first(0, 0)  # after 10 seconds: not yet a line
        first(0, 100)  # after 40: a quarter of the tenth that is the first part
        first(10, 2000)
        second(100, 500)  # one second later: not yet
    assert caplog.messages == [
        "0 of 1,010 rows, 100 swaps, 2.5 swaps/s, 0:26:00 left",
        "10 of 1,010 rows, 2,000 swaps, 20 swaps/s, 0:15:00 left",
    ]


def test_rows_take_time_as_their_products_do(tiny_model):
    block = describe(tiny_model).blocks[0]
    wide, narrow = (next(la for la in block if la.name == f"mlp.{name}_proj") for name in ("down", "up"))
    assert (wide.d_in, narrow.d_in) == (64, 32)
    assert rows_part(narrow, None) == Part(64, 1024, 0.06 * 32 * 64)
    assert rows_part(wide, None) == Part(32, 4096, 0.06 * 64 * 32)
    assert rows_part(narrow, 1) == Part(64, 1024, 64)
    assert rows_part(narrow).share(0, 0) == 0
