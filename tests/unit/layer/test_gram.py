import pytest
import torch

from sparseswaps.base.errors import InputError
from sparseswaps.layer.gram import accumulate, check_gram, row_loss


def test_batches_add_up_to_the_gram_matrix():
    inputs = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    total = torch.zeros(7, 7, dtype=torch.float64)
    for batch in inputs.split(2):
        accumulate(total, batch)
    flat = inputs.reshape(-1, 7).double()
    torch.testing.assert_close(total, flat.T @ flat, rtol=1e-6, atol=1e-6)


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


def test_gram_matrices_that_are_none():
    good = torch.eye(3)
    check_gram(good)
    check_gram(torch.zeros(3, 3))
    check_gram(torch.ones(3, 3))  # rank one
    for scale in (1e-310, 1e-30, 1e30, 1e290):
        check_gram(torch.ones(3, 3, dtype=torch.float64) * scale)
        with pytest.raises(InputError):
            check_gram(torch.tensor([[1.0, 9.0], [3.0, 1.0]], dtype=torch.float64) * scale)
    for bad, message in [
        (torch.ones(2, 3), "square"),
        (good * float("nan"), "NaN"),
        (good + torch.triu(torch.ones(3, 3), 1), "symmetric"),
        (-good, "semidefinite"),
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "semidefinite"),
        (torch.tensor([[0.0, 1.0], [1.0, 0.0]]), "semidefinite"),
    ]:
        with pytest.raises(InputError, match=message):
            check_gram(bad)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_products_on_a_gpu_are_exact_for_halves_and_float32(dtype):
    inputs = torch.randn(1000, 2500, generator=torch.Generator().manual_seed(0)).to(dtype)
    total = torch.zeros(2500, 2500, dtype=torch.float64, device="cuda")
    accumulate(total, inputs.cuda())
    flat = inputs.double()
    torch.testing.assert_close(total.cpu(), flat.T @ flat, rtol=1e-5, atol=1e-3)
