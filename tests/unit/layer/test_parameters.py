"""The functions of layer take a weight that is a model's parameter."""

import pytest
import torch
from helpers import problem
from torch import nn

from sparseswaps.layer.baselines.admm import admm_update
from sparseswaps.layer.baselines.dsnot import dsnot
from sparseswaps.layer.baselines.sparsegpt import sparsegpt_update
from sparseswaps.layer.criteria import WARMSTARTS, warmstart
from sparseswaps.layer.gram import Inputs, correlation, output_error, row_loss
from sparseswaps.layer.least_squares import least_squares
from sparseswaps.layer.reconstruction import reconstruct_layer
from sparseswaps.layer.refinement import refine_layer
from sparseswaps.layer.settings import Reconstruction, RefinementSettings
from sparseswaps.layer.swaps.engine import refine_mask

WEIGHT, GRAM, MASK, PATTERN = problem(5, 6, 16, "50%")
INPUTS = Inputs(GRAM, problem(6, 1, 16, "50%")[1], torch.ones(16, dtype=torch.float64), 35, 1)
METHODS = ("least_squares", "sparsegpt", "admm")
REFINEMENTS = ({"shrinkage": 0.5, "stop": "held_out", "freeze": 0.2}, {"refit": True}, {"method": "dsnot"})
CALLS = [  # functions, and their arguments after the weight
    (correlation, GRAM, MASK),
    (row_loss, GRAM, MASK),
    (output_error, GRAM, WEIGHT.masked_fill(~MASK, 0)),
    *((warmstart, GRAM, PATTERN, name) for name in WARMSTARTS),
    (refine_mask, GRAM, MASK, PATTERN),
    (refine_mask, GRAM, MASK, PATTERN, None, None, None, True),  # between rows, too
    (dsnot, INPUTS, MASK, PATTERN),
    (least_squares, GRAM, MASK, 0.01, 5),
    (sparsegpt_update, GRAM, MASK),
    (admm_update, GRAM, MASK),
    *((refine_layer, INPUTS, MASK, PATTERN, RefinementSettings(**keys)) for keys in REFINEMENTS),
    *((reconstruct_layer, INPUTS, MASK, Reconstruction(method=name), {"seconds": 0}) for name in METHODS),
]


def flatten(result):
    """Return the tensors and the plain values of a result, without the time that it took."""
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, dict):
        return [leaf for name, value in result.items() if name != "seconds" for leaf in flatten(value)]
    if isinstance(result, list | tuple):
        return [leaf for value in result for leaf in flatten(value)]
    return flatten(vars(result)) if hasattr(result, "__dict__") else [result]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call[0].__name__)
@pytest.mark.filterwarnings("error")
def test_a_parameter_gives_the_same_result_as_its_values(call):
    function, *arguments = call
    expected, results = (flatten(function(weight, *arguments)) for weight in (WEIGHT, nn.Parameter(WEIGHT)))
    for value, result in zip(expected, results, strict=True):
        if isinstance(result, torch.Tensor):
            assert torch.equal(result, value)
            assert not result.requires_grad
        else:
            assert result == value
