import pytest
import torch

from sparseswaps.base.progress import Part
from sparseswaps.calibration.capture import capture
from sparseswaps.embedded import MODEL
from sparseswaps.evaluation.perplexity import perplexity
from sparseswaps.layer.criteria import wanda
from sparseswaps.layer.pattern import parse_pattern
from sparseswaps.model.checkpoint import Checkpoint, write_pruned
from sparseswaps.model.description import describe
from sparseswaps.model.loading import load_model
from sparseswaps.model.weights import WeightsOnDisk
from sparseswaps.pruning.progress import blocks_part, rows_part

IDS = torch.arange(5 * 8).view(5, 8)


def test_a_description_reports_its_tensors_and_megabytes(reports, tiny_model):
    tensors = describe(tiny_model, progress=reports).tensors
    assert [done for done, _ in reports] == list(range(1, len(tensors) + 1))
    Checkpoint(MODEL).hashes(reports)
    assert reports[-1][1] == (MODEL / "model.safetensors").stat().st_size // 10**6 > 0


def test_capture_reports_blocks_and_sequences(reports, tiny_model):
    model = describe(tiny_model)
    list(capture(WeightsOnDisk(model, "cpu"), IDS, IDS[:2], 2, progress=reports))
    part = blocks_part(model.blocks, 7)
    assert reports[-1] == (2, 2 * 7) == (part.count, part.likely)
    assert reports == sorted(reports)
    assert {blocks for blocks, _ in reports} == {0, 1, 2}


def test_a_pruned_checkpoint_reports_its_tensors(reports, tiny_model, tmp_path):
    model, half = describe(tiny_model), parse_pattern("50%")
    masks = {layer.tensor: wanda(model.weight(layer), torch.eye(layer.d_in), half) for layer in model.blocks[1]}
    write_pruned(model.checkpoint, masks, tmp_path / "pruned", {}, progress=reports)
    assert reports == [(done, 0) for done in range(1, len(masks) + 1)]


def test_perplexity_reports_windows_and_their_runs(reports, tiny_model):
    perplexity(load_model(str(tiny_model), "cpu"), IDS, 2, progress=reports)
    assert reports == [(0, 2), (0, 4), (0, 5), (0, 7), (0, 9), (0, 10), (5, 10)]


@pytest.mark.parametrize(
    ("layer", "budget", "part"),
    [
        ("mlp.up_proj", None, Part(64, 1024, 0.06 * 32 * 64)),
        ("mlp.down_proj", None, Part(32, 4096, 0.06 * 64 * 32)),
        ("mlp.up_proj", 1, Part(64, 1024, 64)),
    ],
)
def test_rows_take_time_as_their_products_do(tiny_model, layer, budget, part):
    layer = next(candidate for candidate in describe(tiny_model).blocks[0] if candidate.name == layer)
    assert rows_part(layer, budget) == part
    assert rows_part(layer).share(0, 0) == 0
