import pytest
import torch

from sparseswaps.base.errors import InputError
from sparseswaps.layer.pattern import parse_pattern
from sparseswaps.model.layers import Layer
from sparseswaps.workflow.jobs.allocation import by_outliers, by_table, outlier_share


def blocks(*d_outs):
    """Return blocks of two layers, `a` and `mlp.b`, with a number of output features for each block."""
    return [[Layer(name, name, name, d_out, 8) for name in ("a", "mlp.b")] for d_out in d_outs]


def test_a_table_goes_from_the_general_to_the_particular():
    table = {"block01": "50%", "mlp.b": 0.7, "block01.mlp.b": "2:4"}
    found = by_table(parse_pattern("60%"), table, blocks(4, 4, 4))
    labels = [{name: pattern.label for name, pattern in layers.items()} for layers in found]
    assert labels == [{"a": "60%", "mlp.b": "70%"}, {"a": "50%", "mlp.b": "2:4"}, {"a": "60%", "mlp.b": "70%"}]

    for name in ("block07", "mlp.c", "block01.c"):
        with pytest.raises(InputError, match=rf"layers\.{name} "):
            by_table(parse_pattern("60%"), {name: "50%"}, blocks(4, 4))


def test_outliers_by_hand():
    # Of eight scores, 7 of 1 and one of 25: the mean is 4, and 25 is more than 5 times that, but not 7 times.
    scores = [torch.ones(3), torch.tensor([[1.0, 1, 1, 1], [25, 0, 0, 0]])[:1], torch.tensor([25.0])]
    assert outlier_share(scores, 5) == 1 / 8
    assert outlier_share(scores, 7) == 0


@pytest.mark.parametrize("d_outs", [(4, 4, 4), (4, 8, 2)])
def test_blocks_with_more_outliers_keep_more_and_the_model_keeps_its_share(d_outs):
    shares, spread = [0.01, 0.03, 0.02], 0.1
    found = by_outliers(parse_pattern("60%"), shares, spread, blocks(*d_outs))
    sparsity = [float(layers["a"].sparsity) for layers in found]
    assert sparsity[1] < sparsity[2] < sparsity[0]
    assert sparsity[0] - sparsity[1] == pytest.approx(2 * spread, abs=2e-6)
    assert sparsity[0] - sparsity[2] == pytest.approx(spread, abs=2e-6)
    mean = sum(s * d_out for s, d_out in zip(sparsity, d_outs, strict=True)) / sum(d_outs)
    assert mean == pytest.approx(0.6, abs=2e-6)
    uniform = by_outliers(parse_pattern("60%"), [0.02] * 3, spread, blocks(*d_outs))
    assert {layers["mlp.b"].label for layers in uniform} == {"60%"}
    with pytest.raises(InputError, match=r"owl\.spread"):  # a block would keep all weights
        by_outliers(parse_pattern("10%"), [0.0, 0.1, 0.1], 0.4, blocks(*d_outs))
