"""What refinement and reconstruction do to a layer, and the figures they give."""

from itertools import pairwise

import pytest
import torch
from helpers import layer

from sparseswaps.layer.criteria import wanda
from sparseswaps.layer.gram import Inputs, output_error, row_loss
from sparseswaps.layer.masks import keep_best
from sparseswaps.layer.pattern import parse_pattern
from sparseswaps.layer.reconstruction import Reconstruction, reconstruct_layer
from sparseswaps.layer.refinement import (
    RefinementSettings,
    highest_scores,
    ladder,
    refine_layer,
    shrink_correlations,
)

PATTERN = parse_pattern("60%")


def inputs_of(seed=5, d_in=48, tokens=60):
    """Few tokens, so that refinement overfits them; as many held out."""
    weight, _ = layer(seed, 8, d_in, "random")
    more = torch.randn(d_in, 2 * tokens, generator=torch.Generator().manual_seed(seed + 1))
    mix = torch.randn(d_in, d_in, generator=torch.Generator().manual_seed(seed + 2))
    seen, unseen = (mix @ more).split(tokens, 1)
    return weight, Inputs(seen @ seen.T, unseen @ unseen.T, seen.double().sum(1), tokens, 4)


def test_the_ladder_ends_with_the_budget():
    assert list(ladder(0)) == [0]
    assert list(ladder(7)) == [0, 1, 2, 5, 7]
    assert list(ladder(100)) == [0, 1, 2, 5, 10, 25, 50, 100]
    endless = ladder(None)
    assert [next(endless) for _ in range(11)][-4:] == [100, 250, 500, 1000]


@pytest.mark.parametrize(
    "settings", [{}, {"max_swaps": 3}, {"between_rows": True}, {"freeze": 0.2}, {"method": "dsnot"}]
)
def test_figures_and_curve_are_those_of_the_masks(settings):
    how = RefinementSettings(**settings)
    weight, inputs = inputs_of()
    start = wanda(weight, inputs.gram, PATTERN)
    refined = refine_layer(weight, inputs, start, PATTERN, how)
    for which, mask in (("before", start), ("after", refined.mask)):
        for column, gram in (("loss", inputs.gram), ("held_out", inputs.held_out)):
            expected = row_loss(weight, gram, mask).sum().item()
            assert refined.figures[f"{column}_{which}"] == pytest.approx(expected, rel=1e-9)
    assert refined.figures["kept"] == start.sum()
    first, last = refined.curve[0], refined.curve[-1]
    assert first["budget"] == 0
    assert first["loss"] == refined.figures["loss_before"]
    assert last == {"budget": refined.figures["max_row_swaps"]} | {
        name: refined.figures[f"{name}_after"] for name in ("loss", "held_out")
    }
    if how.method == "swaps":
        assert all(before["loss"] > after["loss"] for before, after in pairwise(refined.curve))


def test_stopping_by_held_out_text_takes_the_best_step_before_it_rose():
    weight, inputs = inputs_of(tokens=24)
    start = keep_best(weight.abs(), PATTERN)
    whole = refine_layer(weight, inputs, start, PATTERN, RefinementSettings())
    early = refine_layer(weight, inputs, start, PATTERN, RefinementSettings(stop="held_out"))
    unseen = [point["held_out"] for point in whole.curve]
    rises = next(i for i in range(1, len(unseen)) if unseen[i] >= unseen[i - 1])  # or nothing is tested here
    assert early.figures["held_out_after"] == pytest.approx(unseen[rises - 1])
    assert early.figures["held_out_after"] < whole.figures["held_out_after"]
    assert 0 < early.figures["swaps"] < whole.figures["swaps"]
    assert early.curve == whole.curve[:rises]  # without the step that was not taken
    assert early.figures["kept"] == start.sum()
    unknown = refine_layer(
        weight, Inputs(inputs.gram, None, inputs.sums, 24, 4), start, PATTERN, RefinementSettings(stop="held_out")
    )
    assert torch.equal(unknown.mask, whole.mask)


def test_shrinkage_goes_from_the_method_to_wanda():
    weight, inputs = inputs_of()
    start = keep_best(weight.abs(), PATTERN)
    shrunk_to = {
        s: refine_layer(weight, inputs, start, PATTERN, RefinementSettings(shrinkage=s)) for s in (0.0, 0.5, 1.0)
    }
    assert torch.equal(shrunk_to[1.0].mask, wanda(weight, inputs.gram, PATTERN))
    losses = [refined.figures["loss_after"] for refined in shrunk_to.values()]  # of the Gram matrix as it is
    assert losses[0] < losses[1] < losses[2]
    torch.testing.assert_close(shrink_correlations(inputs.gram, 0.25).diagonal(), inputs.gram.diagonal())
    assert shrink_correlations(inputs.gram, 0.25)[0, 1] == 0.75 * inputs.gram[0, 1]


def test_frozen_are_the_highest_wanda_scores_of_each_row():
    weight, gram = (
        torch.tensor([[4.0, -3.0, 2.0, 1.0], [1.0, 1.0, -1.0, 9.0]]),
        torch.diag(torch.tensor([1.0, 4, 1, 0])),
    )
    assert highest_scores(weight, gram, 0.5).int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]
    assert not highest_scores(weight, gram, 0).any()
    refined = refine_layer(*inputs_of(), wanda(*_weight_and_gram(), PATTERN), PATTERN, RefinementSettings(freeze=0.3))
    frozen = highest_scores(*_weight_and_gram(), 0.3)
    assert refined.mask[frozen].all()  # the warm start keeps them all


def _weight_and_gram():
    weight, inputs = inputs_of()
    return weight, inputs.gram


@pytest.mark.parametrize("method", ["least_squares", "sparsegpt", "admm"])
def test_reconstruction_lowers_the_error_and_measures_what_is_stored(method):
    weight, inputs = inputs_of()
    weight = weight.bfloat16()
    start = wanda(weight, inputs.gram, PATTERN)
    refined = refine_layer(
        weight, inputs, start, PATTERN, RefinementSettings(max_swaps=0 if method == "sparsegpt" else None)
    )
    how = Reconstruction(method=method, damping=0.01)
    new, figures = reconstruct_layer(weight, inputs, refined.mask, how, refined.figures)
    assert new.dtype == torch.bfloat16
    assert not new[~refined.mask].any()
    assert figures["loss_after"] == pytest.approx(output_error(weight, inputs.gram, new).sum().item())
    assert figures["held_out_after"] == pytest.approx(output_error(weight, inputs.held_out, new).sum().item())
    assert figures["loss_after"] < refined.figures["loss_after"]
    unchanged = set(figures) - {"loss_after", "held_out_after", "seconds"}
    assert all(figures[name] == refined.figures[name] for name in unchanged)
