"""The error of each block's output, against plain forward passes of whole models."""

import copy

import pytest
import torch
from families import FAMILIES, MODELS, outputs_of_blocks, tiny, tokens
from helpers import mask_file

from sparseswaps.base.errors import InputError
from sparseswaps.calibration.activations import KeepOnDisk
from sparseswaps.calibration.replay import Replay
from sparseswaps.evaluation.drift import drift
from sparseswaps.layer.masks import pack
from sparseswaps.model.blocks import find_blocks
from sparseswaps.model.checkpoint import Checkpoint, write_pruned
from sparseswaps.model.description import describe
from sparseswaps.model.mask_file import Masks, read_mask_file
from sparseswaps.model.masked import load_pruned
from sparseswaps.model.weights import WeightsOnDisk

IDS = tokens(5, seed=1)


def save(folder, family="llama"):
    tiny(MODELS[list(FAMILIES).index(family)]).save_pretrained(folder / "base")
    return describe(folder / "base")


def on_disk(described):
    return WeightsOnDisk(described, "cpu")


def direct(dense, pruned):
    """Return the rows of `drift`; on the dense path from models in which a single block is pruned."""
    rows = []
    for index, block in enumerate(find_blocks(pruned)[1]):
        alone = copy.deepcopy(dense)
        find_blocks(alone)[1][index] = copy.deepcopy(block)
        exact, *outputs = (outputs_of_blocks(model, IDS)[index].double() for model in (dense, alone, pruned))
        errors = [((output - exact).square().sum() / exact.square().sum()).item() for output in outputs]
        rows.append({"block": index, "dense_path": errors[0], "pruned_path": errors[1]})
    return rows


def assert_same(rows, expected):
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_errors_are_those_of_whole_models(family, tmp_path, reports):
    described = save(tmp_path, family)
    tensors = mask_file(tmp_path / "base", tmp_path / "masks.safetensors")
    masks, _ = read_mask_file(tmp_path / "masks.safetensors")
    write_pruned(Checkpoint(tmp_path / "base"), tensors, tmp_path / "pruned", {})
    dense, pruned = load_pruned(described, None, "cpu"), load_pruned(described, masks, "cpu")
    expected = direct(dense, pruned)
    assert expected[0]["dense_path"] == expected[0]["pruned_path"] > 0.01
    assert expected[-1]["dense_path"] != pytest.approx(expected[-1]["pruned_path"], rel=0.1)
    keep = KeepOnDisk(tmp_path)
    by_masks = drift(on_disk(described), on_disk(described), IDS, 2, masks, keep, progress=reports)
    assert by_masks[0]["dense_path"] == by_masks[0]["pruned_path"]
    assert reports[-1] == (len(expected), len(expected) * len(IDS))
    assert_same(by_masks, expected)
    assert drift(on_disk(described), on_disk(describe(tmp_path / "pruned")), IDS, 2) == by_masks  # bit by bit
    assert_same(drift(dense, pruned, IDS, 3), expected)


def test_a_checkpoint_may_have_new_weights(tmp_path):
    described = save(tmp_path)
    dense = load_pruned(described, None, "cpu")
    pruned = copy.deepcopy(dense)
    for parameter in find_blocks(pruned)[1].parameters():
        parameter.data *= 1.25
    pruned.save_pretrained(tmp_path / "pruned")
    rows = drift(on_disk(described), on_disk(describe(tmp_path / "pruned")), IDS, 8)
    assert_same(rows, direct(dense, pruned))
    assert min(row["dense_path"] for row in rows) > 0


def test_a_mask_that_keeps_everything_changes_nothing(tmp_path):
    described = save(tmp_path)
    shapes = {layer.tensor: (layer.d_out, layer.d_in) for layers in described.blocks for layer in layers}
    kept = {name: pack(torch.ones(shape, dtype=torch.bool)) for name, shape in shapes.items()}
    masks = Masks(kept, {name: d_in for name, (_, d_in) in shapes.items()})
    rows = drift(on_disk(described), on_disk(described), IDS, 8, masks)
    assert rows == [{"block": block, "dense_path": 0, "pruned_path": 0} for block in range(4)]


def test_no_sequence_counts_twice_where_memory_runs_out(tmp_path, monkeypatch):
    dense, pruned = (tiny(MODELS[0]) for _ in range(2))
    find_blocks(pruned)[1][1].mlp.up_proj.weight.data.zero_()
    expected, run = drift(dense, pruned, IDS, 5), Replay.run

    def limited(self, block, batch, index, hidden):
        output = run(self, block, batch, index, hidden)
        if block is self.blocks[2] and len(batch.ids) > 2:
            raise torch.OutOfMemoryError
        return output

    monkeypatch.setattr(Replay, "run", limited)
    assert_same(drift(dense, pruned, IDS, 5), expected)


def test_an_error_that_is_no_number_is_refused():
    dense, pruned = (tiny(MODELS[0]) for _ in range(2))
    find_blocks(pruned)[1][2].mlp.up_proj.weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match=r"^model\.layers\.2: "):
        drift(dense, pruned, IDS, 8)
