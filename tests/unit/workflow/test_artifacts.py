import json
from dataclasses import replace

import pytest
import torch
from helpers import refusal

from sparseswaps.base.errors import BrokenFileError, InputError
from sparseswaps.calibration.grams import Grams
from sparseswaps.calibration.replay import Batch
from sparseswaps.model.description import Model
from sparseswaps.model.layers import Layer
from sparseswaps.model.mask_file import read_mask_file
from sparseswaps.workflow import artifacts

LAYER = Layer(name="proj", tensor="0.proj.weight", parameter="proj.weight", d_out=3, d_in=16)
MODEL = Model("folder", [[LAYER]], [], {LAYER.tensor: "0" * 64}, {}, source="org/name")
READERS = {
    "model.json": artifacts.read_model,
    "samples": lambda path: artifacts.read_samples(path, MODEL),
    "grams": lambda path: artifacts.read_grams(path, MODEL),
    "masks": lambda path: artifacts.read_masks(path, MODEL),
    "weights": lambda path: artifacts.new_weights([str(path)], MODEL)(LAYER.tensor),
    "mask file": read_mask_file,
}


def write(kind, path, model):
    gram, mask = torch.arange(256.0).view(16, 16), torch.arange(48).view(3, 16) % 3 > 0
    if kind == "model.json":
        artifacts.write_model(path, model)
    elif kind == "samples":
        artifacts.write_samples(path, torch.ones(2, 4).long(), torch.zeros(1, 4).long(), model, "made by")
    elif kind == "grams":
        sums = torch.ones(16).double()
        grams = Grams({"proj": "proj"}, {"proj": gram}, {"proj": sums}, {"proj": gram.T + 1}, {"proj": 4})
        artifacts.write_grams(path, grams, model, "made by")
    elif kind == "masks":
        artifacts.write_masks(path, [("proj", mask)], model, "made by")
    elif kind == "weights":
        artifacts.write_weights(path, {"proj": torch.ones(3, 16).bfloat16()}, model, "made by")
    else:
        artifacts.write_masks(path, [(LAYER.tensor, mask)], model, "made by", base=model.base)
    return path.read_bytes()


@pytest.fixture
def model(tiny_model):
    return replace(MODEL, folder=str(tiny_model))


@pytest.mark.parametrize("kind", READERS)
def test_a_truncated_or_empty_artifact_is_broken(kind, model, tmp_path):
    whole = write(kind, path := tmp_path / "artifact", model)
    READERS[kind](path)
    for size in (0, 1, 7, 8, len(whole) // 3, len(whole) // 2, len(whole) - 9, len(whole) - 2):
        path.write_bytes(whole[:size])
        refusal(READERS[kind], path, BrokenFileError)


def is_artifact(file: bytes) -> bool:
    try:
        header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
        return "crc32" in json.loads(header["__metadata__"]["sparseswaps"])
    except (ValueError, KeyError):
        return False


@pytest.mark.parametrize("kind", READERS)
def test_no_flipped_bit_goes_unnoticed(kind, model, tmp_path):
    whole = write(kind, path := tmp_path / "artifact", model)
    for bit in range(0, 8 * len(whole), 8 * len(whole) // 400 | 1):
        broken = bytearray(whole)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        foreign = kind == "mask file" and not is_artifact(bytes(broken))  # a user's file, perhaps of another program
        refusal(READERS[kind], path, InputError if foreign else BrokenFileError)


@pytest.mark.parametrize("kind", ["samples", "grams", "masks", "weights"])
def test_an_artifact_of_another_model_is_broken(kind, model, tmp_path):
    write(kind, path := tmp_path / "artifact", replace(model, tensors={LAYER.tensor: "1" * 64}))
    assert "org/name" in refusal(READERS[kind], path, BrokenFileError)


@pytest.mark.parametrize("with_dense", [True, False])
def test_hidden_states_come_back_batch_by_batch_and_a_damaged_batch_is_named(model, tmp_path, with_dense):
    states = torch.randn(2, 4, 8).bfloat16()
    dense = (lambda: states + 1) if with_dense else None
    batches = [
        Batch(torch.ones(2, 4).long(), False, lambda: states, dense),
        Batch(torch.zeros(1, 4).long(), True, lambda: states[:1], dense),
    ]
    artifacts.write_hidden(tmp_path / "hidden", batches, model, "made by")
    (tmp_path / "hidden" / ".snakemake_timestamp").touch()  # as Snakemake leaves it
    first, second = artifacts.read_hidden(tmp_path / "hidden", model)
    assert (first[1], second[1]) == (False, True)
    assert torch.equal(first[0], batches[0].ids)
    assert torch.equal(first[2], states)
    assert torch.equal(second[2], states[:1])
    assert torch.equal(first[3], states + 1) if with_dense else first[3] is None
    damaged = sorted((tmp_path / "hidden").glob("batch*"))[1]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    refusal(lambda path: list(artifacts.read_hidden(path.parent, model)), damaged, BrokenFileError)


def test_artifacts_of_another_kind_and_grams_that_are_not_finite_are_broken(model, tmp_path):
    write("grams", path := tmp_path / "artifact", model)
    assert "grams" in refusal(READERS["masks"], path, BrokenFileError)
    nan = torch.full((16, 16), torch.nan)
    grams = Grams({"proj": "proj"}, {"proj": nan}, {"proj": torch.ones(16).double()}, {}, {"proj": 4})
    artifacts.write_grams(path, grams, model, "made by")
    assert "proj" in refusal(READERS["grams"], path, BrokenFileError)
