from math import inf, nan

import pytest
import torch

from sparseswaps.base.errors import InputError
from sparseswaps.layer.gram import accumulate, check_gram, gram_matrix, row_loss


def test_batches_add_up_to_the_gram_matrix():
    inputs = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    gram, flat = gram_matrix(inputs.split(2)), inputs.reshape(-1, 7).double()
    torch.testing.assert_close(gram, (flat.T @ flat).float())
    torch.testing.assert_close(gram, gram_matrix(inputs))
    assert torch.equal(gram, gram.T)  # exactly


def test_products_of_bfloat16_are_exact():
    inputs = torch.randn(1, 9, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    total = torch.zeros(9, 9, dtype=torch.float64)
    accumulate(total, inputs)
    assert torch.equal(total, inputs.double().T @ inputs.double())


def test_row_loss_is_the_error_of_the_output():
    random = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(4, 6, generator=random), torch.randn(6, 30, generator=random)
    mask = torch.rand(4, 6, generator=random) < 0.5
    error = ((weight @ inputs - (weight * mask) @ inputs).double() ** 2).sum(1)
    torch.testing.assert_close(row_loss(weight, inputs @ inputs.T, mask), error, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-310, 1e-30, 1e30, 1e290])
def test_gram_matrices_of_any_rank_and_unit_pass(scale):
    for gram in (torch.eye(3), torch.zeros(3, 3), torch.ones(3, 3)):
        check_gram(gram)
        check_gram(gram.double() * scale)
    with pytest.raises(InputError, match="not symmetric"):
        check_gram(torch.tensor([[1.0, 9.0], [3.0, 1.0]], dtype=torch.float64) * scale)


@pytest.mark.parametrize(
    ("gram", "property_"),
    [
        (torch.ones(2, 3), "square"),
        (torch.eye(3) * nan, "NaN"),
        (torch.eye(3) + torch.triu(torch.ones(3, 3), 1), "symmetric"),
        (-torch.eye(3), "semidefinite"),
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "semidefinite"),
        (torch.tensor([[0.0, 1.0], [1.0, 0.0]]), "semidefinite"),
        # A large feature must not hide an error between other features.
        (torch.tensor([[1, 2, 0], [2, 1, 0], [0, 0, 1e12]]), "semidefinite"),
    ],
)
def test_other_matrices_are_refused(gram, property_):
    with pytest.raises(InputError, match=property_):
        check_gram(gram)


@pytest.mark.parametrize(
    "inputs",
    [[], torch.ones(2, 3).long(), torch.tensor(1.0), [torch.ones(2, 3), torch.ones(2, 4)], torch.full((2, 3), inf)],
)
def test_wrong_inputs_are_refused(inputs):
    with pytest.raises(InputError, match=r"^inputs: "):
        gram_matrix(inputs)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_products_on_a_gpu_are_exact_for_halves_and_float32(dtype):
    inputs = torch.randn(1000, 2500, generator=torch.Generator().manual_seed(0)).to(dtype)
    total = torch.zeros(2500, 2500, dtype=torch.float64, device="cuda")
    accumulate(total, inputs.cuda())
    flat = inputs.double()
    torch.testing.assert_close(total.cpu(), flat.T @ flat, rtol=1e-5, atol=1e-3)
