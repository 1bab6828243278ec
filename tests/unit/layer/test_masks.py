import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparseswaps.base.errors import InputError
from sparseswaps.layer.criteria import WARMSTARTS, warmstart
from sparseswaps.layer.masks import check_mask, keep_best, pack, unpack
from sparseswaps.layer.pattern import counting_rule, parse_pattern

HALF = parse_pattern("50%")
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
    size, kept = pattern.groups(24)
    assert mask.dtype == torch.bool
    if counting_rule(name, between_rows=False) == "matrix" and size == 24:  # rows are not equally sparse
        assert mask.sum() == 9 * kept
    else:
        assert (mask.view(9, -1, size).sum(-1) == kept).all()
        check_mask(mask, pattern)


def test_ties_keep_the_leftmost_weight():
    mask = keep_best(torch.tensor([[1.0, 2.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]), HALF)
    assert mask.tolist() == [[True, True, False, False], [True, True, False, False]]


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("magnitude", [1, 2]),
        ("wanda", [0, 2]),  # |w| sqrt(G_jj) = 4, 3, 4, 0.5
        # One row: |w| over the column sum is 1, over the row sum |w| / 6.5; times G_jj^(1/4) = 2, 1, sqrt 2, 1:
        ("ria", [0, 2]),  # 2.31, 1.46, 1.85, 1.08
        ("obc", [0, 2]),  # independent inputs: pruning costs w^2 (G_jj + ridge), almost as for greedy
        ("greedy", [0, 2]),  # independent inputs: pruning costs w^2 G_jj = 16, 9, 16, 0.25
    ],
)
def test_criteria_by_hand(name, kept):
    weight, gram = torch.tensor([[1.0, -3.0, 2.0, 0.5]]), torch.diag(torch.tensor([16.0, 1.0, 4.0, 1.0]))
    assert WARMSTARTS[name](weight, gram, HALF)[0].nonzero().flatten().tolist() == kept


def test_a_warm_start_is_the_mask_of_its_criterion():
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(warmstart(weight, torch.eye(8), HALF, "ria"), WARMSTARTS["ria"](weight, torch.eye(8), HALF))
    with pytest.raises(InputError, match="criterion: 'ira'"):
        warmstart(weight, torch.eye(8), HALF, "ira")
    with pytest.raises(InputError, match=r"\[7, 7\]"):
        warmstart(weight, torch.eye(7), HALF)


def test_greedy_sees_that_pruned_weights_cancel():
    # x_0 and x_1 are the same input with opposite weights: pruning both costs nothing, pruning either costs 25.
    weight = torch.tensor([[5.0, -5.0, 1.0, 1.1]])
    inputs = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 6.0, 0.0], [0.0, 0.0, 6.0]])
    mask = WARMSTARTS["greedy"](weight, inputs @ inputs.T, HALF)
    assert mask.tolist() == [[False, False, True, True]]


UPPER_HALF = (torch.arange(10) < 5)[:, None].expand(10, 400)  # no row keeps a half, the matrix does
TWO_OF_FOUR = torch.tensor([True, True, False, False]).repeat(10, 100)


def change(mask, rows, columns, value):
    mask = mask.clone()
    mask[rows, columns] = value
    return mask


@pytest.mark.parametrize(
    ("mask", "pattern", "counted"),
    [
        (TWO_OF_FOUR, "2:4", "rows"),
        (UPPER_HALF, "50%", "matrix"),
        (UPPER_HALF, "49%", "roughly"),
        (UPPER_HALF, "50%", "roughly"),
        (UPPER_HALF, "51%", "roughly"),
        (torch.tensor([[True, False, False, False]] * 2), "50%", "roughly"),  # one weight a row of a narrow layer
        (TWO_OF_FOUR, "2:4", "roughly"),
        (change(TWO_OF_FOUR, 3, slice(8), False), "2:4", "roughly"),  # zeros of the base model
    ],
)
def test_right_counts_pass(mask, pattern, counted):
    check_mask(mask, parse_pattern(pattern), counted)


@pytest.mark.parametrize(
    ("mask", "pattern", "counted", "figures"),
    [
        (torch.tensor([[1, 0, 1, 0], [1, 1, 1, 0]]).bool(), "2:4", "rows", "row 1, group 0 .*3 .*4 .*2:4.* 2"),
        (TWO_OF_FOUR, "1:2", "matrix", "row 0, group 0 .*1:2"),
        (UPPER_HALF, "51%", "matrix", "2000 .*51%.*1960"),
        (UPPER_HALF, "48.5%", "roughly", r"50\.00%.*48\.50%"),
        (UPPER_HALF, "51.5%", "roughly", r"50\.00%.*51\.50%"),
        (change(TWO_OF_FOUR, 3, 6, True), "2:4", "roughly", "row 3, group 1 .*3 .*4 .*2:4.* 2;"),
        (change(TWO_OF_FOUR, slice(3, 5), slice(None), False), "2:4", "roughly", r"60\.00%.*2:4.*50\.00%"),
    ],
)
def test_wrong_counts_are_refused_with_their_figures(mask, pattern, counted, figures):
    with pytest.raises(InputError, match=figures):
        check_mask(mask, parse_pattern(pattern), counted)


@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**32))
def test_packing_loses_nothing(rows, d_in, seed):
    mask = torch.rand(rows, d_in, generator=torch.Generator().manual_seed(seed)) < 0.5
    assert torch.equal(unpack(pack(mask), d_in), mask)
