import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseswaps.layer.dense_target import weights_for_dense_outputs


def problem(seed: int, d_out: int = 3, d_in: int = 6, tokens: int = 40):
    """Return a weight, the dense model's inputs, and a pruned model's inputs that are near them, [d_in, tokens]."""
    generator = torch.Generator().manual_seed(seed)
    weight, dense, noise = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((d_out, d_in), (d_in, tokens), (d_in, tokens))
    )
    return weight, dense, 0.8 * dense + 0.3 * noise


@given(st.integers(0, 10**6), st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_it_minimises_the_weighted_sum_of_errors_and_ridge(seed, alpha):
    weight, dense, pruned = problem(seed)
    gram, cross = pruned @ pruned.T, dense @ pruned.T
    got = weights_for_dense_outputs(weight, gram, cross, alpha).double()
    # The same problem as one of least squares over all inputs side by side.
    ridge = (0.01 * gram.diagonal().mean()).sqrt() * torch.eye(len(gram), dtype=torch.float64)
    inputs = torch.cat([alpha**0.5 * pruned, (1 - alpha) ** 0.5 * pruned, ridge], 1)
    outputs = torch.cat([alpha**0.5 * weight @ dense, (1 - alpha) ** 0.5 * weight @ pruned, weight @ ridge], 1)
    wanted = torch.linalg.lstsq(inputs.T, outputs.T).solution.T
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_without_a_share_or_a_difference_the_weights_stay():
    weight, dense, pruned = problem(1)
    gram = pruned @ pruned.T
    assert torch.equal(weights_for_dense_outputs(weight, gram, dense @ pruned.T, 0.0), weight.float())
    torch.testing.assert_close(weights_for_dense_outputs(weight, gram, gram, 1.0), weight.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dead_features_keep_their_weights(dtype):
    weight, dense, pruned = problem(2)
    dense[1] = pruned[1] = 0
    weight = weight.to(dtype)
    got = weights_for_dense_outputs(weight, (pruned @ pruned.T).float(), (dense @ pruned.T).float(), 0.5)
    assert got.dtype == torch.float32
    assert torch.equal(got[:, 1], weight[:, 1].float())
    nothing = torch.zeros(6, 6)
    assert torch.equal(weights_for_dense_outputs(weight, nothing, nothing, 0.5), weight.float())
