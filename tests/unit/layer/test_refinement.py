from dataclasses import replace
from itertools import islice, pairwise

import pytest
import torch
from helpers import layer

from sparseswaps.layer.criteria import wanda
from sparseswaps.layer.gram import Inputs, output_error, row_loss
from sparseswaps.layer.masks import keep_best
from sparseswaps.layer.pattern import parse_pattern
from sparseswaps.layer.reconstruction import reconstruct_layer
from sparseswaps.layer.refinement import highest_scores, ladder, refine_layer, shrink_correlations
from sparseswaps.layer.settings import Reconstruction, RefinementSettings

PATTERN = parse_pattern("60%")


def example(tokens=60):
    """Return a weight, its inputs with few tokens, so that refinement overfits, and as many held-out tokens."""
    weight, _ = layer(5, 8, 48, "random")
    tokens_of_both = torch.randn(48, 2 * tokens, generator=torch.Generator().manual_seed(6))
    mix = torch.randn(48, 48, generator=torch.Generator().manual_seed(7))
    seen, unseen = (mix @ tokens_of_both).split(tokens, 1)
    return weight, Inputs(seen @ seen.T, unseen @ unseen.T, seen.double().sum(1), tokens, 4)


def refine_with(weight, inputs, start, **settings):
    return refine_layer(weight, inputs, start, PATTERN, RefinementSettings(**settings))


@pytest.mark.parametrize(
    ("budget", "rungs"),
    [(0, [0]), (7, [0, 1, 2, 5, 7]), (None, [0, 1, 2, 5, 10, 25, 50, 100, 250, 500, 1000])],
)
def test_the_ladder_ends_with_the_budget(budget, rungs):
    assert list(islice(ladder(budget), 11)) == rungs


@pytest.mark.parametrize(
    "settings", [{}, {"max_swaps": 3}, {"between_rows": True}, {"freeze": 0.2}, {"refit": True}, {"method": "dsnot"}]
)
def test_figures_and_curve_are_those_of_the_masks(settings):
    weight, inputs = example()
    start = wanda(weight, inputs.gram, PATTERN)
    refined = refine_with(weight, inputs, start, **settings)
    for which, mask in (("before", start), ("after", refined.mask)):
        for column, gram in (("loss", inputs.gram), ("held_out", inputs.held_out)):
            expected = row_loss(weight, gram, mask).sum().item()
            assert refined.figures[f"{column}_{which}"] == pytest.approx(expected, rel=1e-9)
    figures, first, last = refined.figures, refined.curve[0], refined.curve[-1]
    assert figures["kept"] == start.sum()
    assert (first["budget"], first["loss"]) == (0, figures["loss_before"])
    assert (last["budget"], last["loss"]) == (figures["max_row_swaps"], figures["loss_after"])
    assert last["held_out"] == figures["held_out_after"]
    if not settings.keys() & {"method", "refit"}:  # these may raise the loss
        assert all(before["loss"] > after["loss"] for before, after in pairwise(refined.curve))


def test_stopping_by_held_out_text_takes_the_step_before_its_loss_rises():
    weight, inputs = example(tokens=24)
    start = keep_best(weight.abs(), PATTERN)
    whole, early = (refine_with(weight, inputs, start, stop=stop) for stop in ("optimum", "held_out"))
    unseen = [point["held_out"] for point in whole.curve]
    rises = next(i for i in range(1, len(unseen)) if unseen[i] >= unseen[i - 1])  # else the test shows nothing
    assert early.figures["held_out_after"] == pytest.approx(unseen[rises - 1])
    assert early.figures["held_out_after"] < whole.figures["held_out_after"]
    assert 0 < early.figures["swaps"] < whole.figures["swaps"]
    assert early.curve == whole.curve[:rises]
    assert early.figures["kept"] == start.sum()
    unknown = refine_with(weight, replace(inputs, held_out=None), start, stop="held_out")
    assert torch.equal(unknown.mask, whole.mask)


def test_shrinkage_goes_from_the_method_to_wanda():
    weight, inputs = example()
    start = keep_best(weight.abs(), PATTERN)
    plain, half, full = (refine_with(weight, inputs, start, shrinkage=shrinkage) for shrinkage in (0.0, 0.5, 1.0))
    assert torch.equal(full.mask, wanda(weight, inputs.gram, PATTERN))
    # The losses are by the Gram matrix without shrinkage.
    assert plain.figures["loss_after"] < half.figures["loss_after"] < full.figures["loss_after"]
    torch.testing.assert_close(shrink_correlations(inputs.gram, 0.25).diagonal(), inputs.gram.diagonal())
    assert shrink_correlations(inputs.gram, 0.25)[0, 1] == 0.75 * inputs.gram[0, 1]


def test_a_refinement_keeps_the_weights_with_the_highest_wanda_scores_of_their_row():
    weight = torch.tensor([[4.0, -3.0, 2.0, 1.0], [1.0, 1.0, -1.0, 9.0]])
    gram = torch.diag(torch.tensor([1.0, 4, 1, 0]))
    assert highest_scores(weight, gram, 0.5).int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]
    assert not highest_scores(weight, gram, 0).any()
    weight, inputs = example()
    start, frozen = wanda(weight, inputs.gram, PATTERN), highest_scores(weight, inputs.gram, 0.3)
    assert start[frozen].all()
    assert refine_with(weight, inputs, start, freeze=0.3).mask[frozen].all()


@pytest.mark.parametrize("method", ["least_squares", "sparsegpt", "admm"])
def test_reconstruction_lowers_the_error_and_measures_the_stored_weights(method):
    weight, inputs = example()
    weight = weight.bfloat16()
    start = wanda(weight, inputs.gram, PATTERN)
    refined = refine_with(weight, inputs, start, max_swaps=0 if method == "sparsegpt" else None)
    settings = Reconstruction(method=method, damping=0.01)
    new, figures = reconstruct_layer(weight, inputs, refined.mask, settings, refined.figures)
    assert new.dtype == torch.bfloat16
    assert not new[~refined.mask].any()
    assert figures["loss_after"] == pytest.approx(output_error(weight, inputs.gram, new).sum().item())
    assert figures["held_out_after"] == pytest.approx(output_error(weight, inputs.held_out, new).sum().item())
    assert figures["loss_after"] < refined.figures["loss_after"]
    changed = {name for name in figures if figures[name] != refined.figures[name]}
    assert {"loss_after", "held_out_after"} <= changed <= {"loss_after", "held_out_after", "seconds"}
