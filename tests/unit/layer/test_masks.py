import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparseswaps.base.errors import InputError
from sparseswaps.layer.criteria import WARMSTARTS
from sparseswaps.layer.masks import check_mask, keep_best, pack, unpack
from sparseswaps.layer.pattern import parse_pattern

PATTERNS = ["0%", "37%", "50%", "60%", "99%", "2:4", "1:8", "7:8"]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", WARMSTARTS)
def test_every_warm_start_keeps_exact_counts(name, pattern):
    random = torch.Generator().manual_seed(1)
    weight = torch.randn(9, 24, generator=random).to(torch.bfloat16)
    weight[2] = 0  # nothing to tell apart
    weight[3, ::2] = weight[3, 1]  # ties
    inputs = torch.randn(24, 50, generator=random)
    inputs[5] = 0
    pattern = parse_pattern(pattern)
    mask = WARMSTARTS[name](weight, inputs @ inputs.T, pattern)
    size, kept = pattern.blocks(24)
    assert mask.dtype == torch.bool
    if name == "sparsegpt" and size == 24:  # rows are not equally sparse
        assert mask.sum() == 9 * kept
        return
    assert (mask.view(9, -1, size).sum(-1) == kept).all()
    check_mask(mask, pattern)


def test_ties_keep_the_one_further_left():
    mask = keep_best(torch.tensor([[1.0, 2.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]), parse_pattern("50%"))
    assert mask.tolist() == [[True, True, False, False], [True, True, False, False]]


def test_criteria_by_hand():
    weight = torch.tensor([[1.0, -3.0, 2.0, 0.5]])
    gram = torch.diag(torch.tensor([16.0, 1.0, 4.0, 1.0]))
    half = parse_pattern("50%")
    assert WARMSTARTS["magnitude"](weight, gram, half).tolist() == [[False, True, True, False]]
    # |w| sqrt(G_jj) = 4, 3, 4, 0.5
    assert WARMSTARTS["wanda"](weight, gram, half).tolist() == [[True, False, True, False]]
    # one row: |w| over the column sum is 1 throughout, over the row sum |w| / 6.5; times G_jj^(1/4) = 2, 1, sqrt 2, 1:
    # 2.31, 1.46, 1.85, 1.08
    assert WARMSTARTS["ria"](weight, gram, half).tolist() == [[True, False, True, False]]
    # independent inputs: the error of pruning is w^2 G_jj = 16, 9, 16, 0.25, so 0.5 and then -3 go
    assert WARMSTARTS["greedy"](weight, gram, half).tolist() == [[True, False, True, False]]


def test_greedy_sees_what_pruned_weights_make_up_for():
    # x_0 and x_1 are the same input with opposite weights: pruning both costs nothing, pruning either costs 25.
    weight = torch.tensor([[5.0, -5.0, 1.0, 1.1]])
    inputs = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 6.0, 0.0], [0.0, 0.0, 6.0]])
    mask = WARMSTARTS["greedy"](weight, inputs @ inputs.T, parse_pattern("50%"))
    assert mask.tolist() == [[False, False, True, True]]


def test_a_wrong_count_is_named():
    mask = torch.tensor([[True, False, True, False], [True, True, True, False]])
    with pytest.raises(InputError, match=r"row 1, block 0 keeps 3 weights of 4, 2 are asked for by pattern 2:4"):
        check_mask(mask, parse_pattern("2:4"))


def test_masks_made_elsewhere_are_counted_roughly():
    half, of_four = parse_pattern("50%"), parse_pattern("2:4")
    mask = torch.zeros(10, 400, dtype=torch.bool)
    mask[:5] = True  # no row keeps a half, the matrix does
    check_mask(mask, half, "matrix")
    with pytest.raises(InputError, match=r"2000 weights are kept, 1960 are asked for by pattern 51%$"):
        check_mask(mask, parse_pattern("51%"), "matrix")
    for pattern in ("49%", "50%", "51%"):
        check_mask(mask, parse_pattern(pattern), "roughly")
    for pattern in ("48.5%", "51.5%"):
        with pytest.raises(
            InputError, match=rf"50\.00% of the weights are pruned, {pattern[:4]}0% .*: exclude this warm"
        ):
            check_mask(mask, parse_pattern(pattern), "roughly")
    check_mask(torch.tensor([[True, False, False, False]] * 2), half, "roughly")  # of narrow layers, one a row
    mask = torch.tensor([True, True, False, False]).repeat(10, 100)
    check_mask(mask, of_four, "roughly")
    mask[3, 6] = True
    with pytest.raises(InputError, match=r"row 3, block 1 keeps 3 weights of 4, 2 are .* 2:4: exclude this warm start"):
        check_mask(mask, of_four, "roughly")
    mask[3, :8] = False  # zeros of the base model
    check_mask(mask, of_four, "roughly")
    mask[3:5] = False
    with pytest.raises(InputError, match=r"60\.00% of the weights are pruned, 50\.00% are asked for by pattern 2:4"):
        check_mask(mask, of_four, "roughly")


@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**32))
def test_packing_loses_nothing(rows, d_in, seed):
    mask = torch.rand(rows, d_in, generator=torch.Generator().manual_seed(seed)) < 0.5
    assert torch.equal(unpack(pack(mask), d_in), mask)
