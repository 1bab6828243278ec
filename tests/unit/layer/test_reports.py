import pytest
import torch
from helpers import FAST, device_of, limit_memory, problem

from sparseswaps.base.errors import InputError
from sparseswaps.layer import masks, refinement
from sparseswaps.layer.criteria import WARMSTARTS, wanda
from sparseswaps.layer.gram import Inputs, row_loss
from sparseswaps.layer.masks import keep_best
from sparseswaps.layer.pattern import parse_pattern
from sparseswaps.layer.reconstruction import reconstruct_layer
from sparseswaps.layer.refinement import refine_layer
from sparseswaps.layer.settings import Reconstruction, RefinementSettings
from sparseswaps.layer.swaps import batched, engine
from sparseswaps.layer.swaps.engine import eliminate, refine_mask

PATTERN = parse_pattern("50%")
WEIGHT, GRAM, START, _ = problem(5, 11, 16, "50%")  # more rows than a thread takes at a time


def inputs_of(gram, held_out=None):
    return Inputs(gram, held_out, torch.ones(len(gram), dtype=torch.float64), 35, 1)


@pytest.mark.parametrize("backend", ["reference", *FAST])
@pytest.mark.parametrize("max_swaps", [None, 1])
def test_refinement_reports_all_rows_and_swaps(reports, backend, max_swaps):
    weight, gram, start = (t.to(device_of(backend)) for t in problem(5, 3, 16, "50%")[:3])
    result = refine_mask(weight, gram, start, PATTERN, max_swaps, backend, progress=reports)
    assert reports[-1] == (3, result.swaps.sum())
    assert reports == sorted(reports)
    # The report before is the backend's: the rows at an optimum, and their swaps.
    assert reports[-2] == (result.certified.sum(), result.swaps.sum())
    assert result.swaps.sum() > 2
    eliminate(weight, gram, PATTERN, backend, reports)
    assert reports[-1] == (3, 0)


@pytest.mark.parametrize(("backend", "least"), [("cpu", 3), ("batched", 4)])
def test_refinement_reports_while_other_rows_are_searched(reports, backend, least):
    refine_mask(WEIGHT, GRAM, START, PATTERN, backend=backend, progress=reports)
    assert len(reports) >= least
    assert reports[0][0] < 11


@pytest.mark.parametrize("settings", [{}, {"max_swaps": 3}, {"stop": "held_out"}, {"refit": True}, {"method": "dsnot"}])
def test_a_layer_reports_its_rows_once(reports, settings):
    settings = RefinementSettings(**settings)
    inputs = inputs_of(GRAM, problem(6, 1, 16, "50%")[1])
    refined = refine_layer(WEIGHT, inputs, START, PATTERN, settings, reports)
    assert reports[-1][0] == 11
    assert reports == sorted(reports)
    if settings.stop == "optimum":
        assert reports[-1][1] == refined.figures["swaps"]
    else:  # the swaps of the step that held-out text rejects count as well
        assert reports[-1][1] > refined.figures["swaps"]


@pytest.mark.parametrize("name", WARMSTARTS)
def test_warm_starts_report_their_rows(reports, name):
    WARMSTARTS[name](WEIGHT, GRAM, PATTERN, progress=reports)
    assert reports[-1] == (11, 0)
    assert reports == sorted(reports)


@pytest.mark.parametrize("method", ["least_squares", "sparsegpt", "admm"])
def test_reconstructions_report_their_rows(reports, method):
    reconstruct_layer(WEIGHT, inputs_of(GRAM), START, Reconstruction(method=method), {"seconds": 0}, reports)
    assert reports == [(11, 0)]


def test_rows_that_start_again_count_once(monkeypatch, reports):
    search, sizes = batched.swap_rows, []

    def swap_then_fail(rows, report):
        sizes.append(len(rows.mask))
        result = search(rows, report)
        if sizes[-1] > 6:
            raise torch.OutOfMemoryError
        return result

    monkeypatch.setattr(batched, "swap_rows", swap_then_fail)
    result = refine_mask(WEIGHT, GRAM, START, PATTERN, backend="batched", progress=reports)
    assert sizes[:2] == [11, 5]
    assert reports[-1] == (11, result.swaps.sum())
    assert max(done for done, _ in reports) == 11
    assert max(made for _, made in reports) == result.swaps.sum()


HALVED = [(11, "rows", 5), (5, "rows", 2)]


@pytest.mark.parametrize("name", ["ria", "greedy"])
def test_a_warm_start_in_parts_is_the_same(monkeypatch, caplog, name):
    monkeypatch.setattr(engine, "select_backend", lambda *_: batched)
    whole = WARMSTARTS[name](WEIGHT, GRAM, PATTERN)
    monkeypatch.setattr(masks, "keep_best", limit_memory(keep_best, 3))
    monkeypatch.setattr(batched, "eliminate_rows", limit_memory(batched.eliminate_rows, 3))
    assert torch.equal(WARMSTARTS[name](WEIGHT, GRAM, PATTERN), whole)
    assert [record.args for record in caplog.records] == HALVED


def test_refinement_in_parts_is_the_same(monkeypatch, caplog):
    weight, gram, _, pattern = problem(5, 11, 48, "60%")
    held_out = problem(6, 1, 48, "60%")[1]
    start = keep_best(-weight.abs(), pattern)
    whole = refine_mask(weight, gram, start, pattern, backend="batched")
    assert whole.swaps.sum() > 20
    monkeypatch.setattr(batched, "swap_rows", limit_memory(batched.swap_rows, 3))
    parts = refine_mask(weight, gram, start, pattern, backend="batched")
    assert [record.args for record in caplog.records] == HALVED
    for name, column in vars(whole).items():
        torch.testing.assert_close(getattr(parts, name), column, rtol=1e-12, atol=1e-12)
    monkeypatch.setattr(refinement, "row_loss", limit_memory(row_loss, 4))
    refined = refine_layer(weight, inputs_of(gram, held_out), start, pattern, RefinementSettings(max_swaps=1))
    for column, mask in (("held_out_before", start), ("held_out_after", refined.mask)):
        assert refined.figures[column] == pytest.approx(float(row_loss(weight, held_out, mask).sum()))
    monkeypatch.setattr(batched, "swap_rows", limit_memory(batched.swap_rows, 0))
    with pytest.raises(InputError, match="gpu: false"):
        refine_mask(weight, gram, start, pattern, backend="batched")


@pytest.mark.gpu
def test_rows_are_refined_in_parts_on_a_full_gpu(caplog):
    random = torch.Generator("cuda").manual_seed(0)
    weight = torch.randn(65536, 512, generator=random, device="cuda")
    inputs = torch.randn(512, 2048, generator=random, device="cuda")
    gram, pattern = inputs @ inputs.T, parse_pattern("2:4")
    start = wanda(weight, gram, pattern)
    whole = refine_mask(weight, gram, start, pattern)
    assert not caplog.records
    torch.cuda.empty_cache()
    most = torch.cuda.memory_reserved() + 256 * 2**20  # less than the correlations of all rows, 268 MB
    try:
        torch.cuda.set_per_process_memory_fraction(most / torch.cuda.get_device_properties(0).total_memory)
        parts = refine_mask(weight, gram, start, pattern)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert caplog.records[0].args == (65536, "rows", 32768)
    assert torch.equal(parts.mask, whole.mask)
