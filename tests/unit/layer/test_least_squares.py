from itertools import pairwise

import pytest
import torch
from helpers import alter, limit_memory, problem
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseswaps.base.errors import InputError
from sparseswaps.layer import least_squares as module
from sparseswaps.layer.criteria import wanda
from sparseswaps.layer.gram import output_error, product, row_loss
from sparseswaps.layer.least_squares import least_squares, objective
from sparseswaps.layer.pattern import parse_pattern


def layer(seed: int, d_out: int, d_in: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a weight and inputs [d_in, tokens] that share a factor and differ in scale."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(d_out, d_in, generator=random)
    inputs = torch.randn(d_in, tokens, generator=random) + torch.randn(1, tokens, generator=random)
    return weight, inputs * torch.exp(torch.randn(d_in, 1, generator=random))


def exact(weight, gram, mask, damping):
    """Return the solution by a factorisation of each row's own matrix, float64."""
    new = torch.zeros(weight.shape, dtype=torch.float64)
    for w, m, v in zip(weight.double(), mask, new, strict=True):
        ridge = damping * gram.diagonal().mean() * torch.eye(int(m.sum()), dtype=torch.float64)
        v[m] = torch.linalg.solve(gram[m][:, m] + ridge, gram[m] @ w + ridge @ w[m])
    return new


@pytest.mark.parametrize("damping", [0, 0.01, 1])
def test_is_the_exact_solution_of_every_row(damping):
    weight, inputs = layer(0, 6, 40, 200)
    gram = inputs.double() @ inputs.double().T
    mask = torch.rand(6, 40, generator=torch.Generator().manual_seed(1)) < torch.linspace(0, 1, 6)[:, None]
    new = least_squares(weight, gram, mask, damping, 200)
    assert new.dtype == torch.float32
    torch.testing.assert_close(new.double(), exact(weight, gram, mask, damping), rtol=1e-3, atol=1e-4)
    least = objective(weight, gram, exact(weight, gram, mask, damping), mask, damping)
    torch.testing.assert_close(objective(weight, gram, new, mask, damping), least, rtol=1e-7, atol=1e-6)
    assert new[mask.sum(1) == 40].equal(weight[mask.sum(1) == 40])  # nothing was pruned: nothing to make up for


def test_the_objective_is_its_definition():
    weight, inputs = layer(0, 5, 12, 30)
    gram = inputs @ inputs.T
    mask = wanda(weight, gram, parse_pattern("50%"))
    new = least_squares(weight, gram, mask, 0.1, 3)
    of_outputs = (((new - weight) @ inputs).double() ** 2).sum(1)
    torch.testing.assert_close(output_error(weight, gram, new), of_outputs, rtol=1e-4, atol=1e-4)
    pull = 0.1 * gram.diagonal().mean() * ((new - weight * mask) ** 2).sum(1)
    torch.testing.assert_close(objective(weight, gram, new, mask, 0.1), of_outputs + pull, rtol=1e-4, atol=1e-4)
    assert torch.equal(row_loss(weight, gram, mask), output_error(weight, gram, weight * mask))


def test_the_error_falls_with_every_iteration_to_the_least(monkeypatch):
    weight, inputs = layer(3, 32, 256, 300)
    gram = inputs @ inputs.T
    mask = wanda(weight, gram, parse_pattern("60%"))

    def error(new):
        return objective(weight, gram, new, mask, 0.01)

    errors = [error(least_squares(weight, gram, mask, 0.01, iterations)) for iterations in range(10)]
    assert torch.equal(errors[0], row_loss(weight, gram, mask))
    for before, after in pairwise(errors):
        assert (after < before).all()
    least = error(exact(weight, gram.double(), mask, 0.01))
    assert (least < 0.8 * errors[0]).all()
    assert (error(least_squares(weight, gram, mask, 0.01, 20)) - least < 1e-6 * errors[0]).all()
    products = []
    monkeypatch.setattr(module, "product", lambda *arguments: products.append(1) or product(*arguments))
    assert (error(least_squares(weight, gram, mask, 0.01, 500)) - least < 1e-7 * errors[0]).all()
    assert len(products) < 30  # no more than it takes


@st.composite
def examples(draw):
    """Draw a layer of any difficulty: its weight, Gram matrix, a random mask, a damping."""
    d_in = draw(st.integers(1, 24))
    weight, inputs = layer(draw(st.integers(0, 10**6)), draw(st.integers(1, 4)), d_in, draw(st.integers(1, 50)))
    kind = draw(st.sampled_from(["plain", "dead", "outliers", "duplicated", "nearly singular", "small"]))
    weight, inputs = alter(weight, inputs, kind)
    if kind == "nearly singular":
        inputs = inputs[:1] + 1e-3 * inputs
    elif kind == "small":
        inputs *= 1e-15
    weight = weight.to(draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64])))
    gram = inputs @ inputs.T if draw(st.booleans()) else inputs.double() @ inputs.double().T
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))) < 0.5
    return weight, gram, mask, draw(st.sampled_from([0, 1e-6, 0.01, 10]))


@given(examples(), st.sampled_from([0, 1, 5, 100]))
@settings(max_examples=100, deadline=None)
def test_no_row_ends_worse_than_it_began(example, iterations):
    weight, gram, mask, damping = example
    new = least_squares(weight, gram, mask, damping, iterations)
    assert new.isfinite().all()
    assert not new[~mask].any()
    assert torch.equal(new.to(weight.dtype).float(), new)
    start = weight.float().masked_fill(~mask, 0)
    before, after = (objective(weight, gram, v, mask, damping) for v in (start, new))
    assert (after <= before).all()
    dead = gram.diagonal() == 0
    assert torch.equal(new[:, dead], start[:, dead])
    if not iterations:
        assert torch.equal(new, start)


def test_a_row_that_rounding_makes_worse_stays_as_it_was():
    # Features (10, 1) and (10, -1) of two tokens compensate (0, b) by +t and -t. In bfloat16 the weight 1 can change by
    # about t, but the weight 3 cannot. The error of the first token is then larger than the error without a change.
    inputs = torch.tensor([[10, 1], [10, -1], [0, 1.2 / 128]], dtype=torch.float64)
    weight, mask = torch.tensor([[1.0, 3.0, 1.0]]), torch.tensor([[True, True, False]])
    new = least_squares(weight, inputs @ inputs.T, mask, 0, 9)
    torch.testing.assert_close(new, torch.tensor([[1 + 0.6 / 128, 3 - 0.6 / 128, 0]]))
    assert not torch.equal(new, weight * mask)
    assert torch.equal(least_squares(weight.bfloat16(), inputs @ inputs.T, mask, 0, 9), weight * mask)


def test_a_nearly_singular_gram_matrix():
    gram = torch.tensor([[1, 1 + 1e-7, 0.5], [1 + 1e-7, 1, 0.5002], [0.5, 0.5002, 1]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False]])
    new = least_squares(torch.ones(1, 3), gram, mask, 0, 9)  # along (1, -1) there is no minimum
    torch.testing.assert_close(new, torch.tensor([[1.25, 1.25, 0]]), rtol=1e-3, atol=0)


def test_dead_features_do_not_disturb_the_solution():
    weight, inputs = alter(*layer(5, 4, 24, 60), "dead")
    alive, gram = inputs.any(1), inputs @ inputs.T
    mask = torch.rand(4, 24, generator=torch.Generator().manual_seed(1)) < 0.5
    new = least_squares(weight, gram, mask, 0, 100)
    without = least_squares(weight[:, alive], gram[alive][:, alive], mask[:, alive], 0, 100)
    torch.testing.assert_close(new[:, alive], without)
    assert not torch.equal(without, (weight * mask)[:, alive])


def test_rows_are_solved_in_parts_where_memory_is_short(monkeypatch, caplog):
    weight, gram, mask, _ = problem(4, 11, 24, "50%")
    whole = least_squares(weight, gram, mask, 0.01, 30)
    monkeypatch.setattr(module, "correlation", limit_memory(module.correlation, 3))
    torch.testing.assert_close(least_squares(weight, gram, mask, 0.01, 30), whole)
    assert [record.args for record in caplog.records] == [(11, "rows", 5), (5, "rows", 2)]


KEPT = torch.ones(2, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("gram", "mask", "damping", "name"),
    [
        (torch.eye(3), KEPT, 0.01, "Gram matrix"),
        (torch.eye(4), KEPT[:1], 0.01, "mask"),
        (torch.eye(4), KEPT.int(), 0.01, "mask"),
        (torch.eye(4), KEPT, -1, "damping"),
        (torch.eye(4), KEPT, float("nan"), "damping"),
    ],
)
def test_wrong_input_is_refused(gram, mask, damping, name):
    with pytest.raises(InputError, match=name):
        least_squares(torch.ones(2, 4), gram, mask, damping, 10)
