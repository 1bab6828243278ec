"""Weights that give the dense model's outputs on a pruned model's inputs: targets in place of the dense weights."""

import torch
from torch import Tensor

_RIDGE = 0.01  # of the mean of the Gram matrix's diagonal


@torch.no_grad()
def weights_for_dense_outputs(weight: Tensor, gram: Tensor, cross: Tensor, alpha: float) -> Tensor:
    """Return the weights T whose outputs on pruned inputs X~ are nearest to the dense outputs W X.

    With G = X~ X~^T (`gram`), D = X X~^T (`cross`) and a ridge lambda towards W, T minimises
    alpha ||W X - T X~||^2 + (1 - alpha) ||W X~ - T X~||^2 + lambda ||T - W||^2:

        T = (W (alpha D + (1 - alpha) G) + lambda W) (G + lambda I)^-1 = W + alpha W (D - G) (G + lambda I)^-1

    `weight` is [d_out, d_in] of any floating dtype, both matrices are [d_in, d_in]; the result is float32.
    """
    ridge = _RIDGE * gram.diagonal().double().mean()
    if not ridge > 0:
        return weight.float()
    damped = gram.double() + ridge * torch.eye(len(gram), dtype=torch.float64, device=gram.device)
    missing = weight.double() @ (cross.double() - gram)  # [d_out, d_in]
    change = torch.cholesky_solve(missing.T, torch.linalg.cholesky(damped)).T
    return (weight.double() + alpha * change).float()
