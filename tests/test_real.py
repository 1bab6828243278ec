"""On real trained models: refinement must help a model that somebody trained, not only a random one."""

import os
from pathlib import Path

import pytest
import torch

from sparseswaps.blocks import describe
from sparseswaps.capture import capture
from sparseswaps.criteria import WARMSTARTS
from sparseswaps.documents import load
from sparseswaps.pattern import parse_pattern
from sparseswaps.perplexity import perplexity, windows
from sparseswaps.refine import refine
from sparseswaps.text import draw, tokenize

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif("SPARSESWAPS_ASSETS" not in os.environ, reason="SPARSESWAPS_ASSETS names no folder"),
]


@pytest.mark.parametrize("pattern", ["50%", "60%", "2:4"])
@pytest.mark.parametrize("name", ["stories260k", "babyllama105"])
def test_refinement_lowers_a_trained_models_perplexity(name, pattern):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assets = Path(os.environ["SPARSESWAPS_ASSETS"])
    described = describe(assets / name)
    tokenizer = AutoTokenizer.from_pretrained(described.folder)
    model = AutoModelForCausalLM.from_pretrained(described.folder, dtype=torch.float32).eval()
    calibration, held_out = draw(
        ["\n".join(load(str(assets / "text" / "tinystories_calibration.txt"), "calibration"))],
        tokenizer,
        samples=64,
        held_out=8,
        seqlen=256,
        seed=0,
    )
    evaluation = "\n".join(load(str(assets / "text" / "tinystories_eval.txt"), "evaluation"))[:100_000]
    cut = windows(tokenize(tokenizer, evaluation), 256, 48)
    pattern = parse_pattern(pattern)
    found = {"dense": perplexity(model, cut).perplexity}
    grams = list(capture(model, calibration, held_out, batch_size=16))
    masks = {"wanda": {}, "swaps": {}}
    for index, layers in enumerate(described.blocks):
        for layer in layers:
            weight, gram = described.weight(index, layer), grams[index].matrix[grams[index].reads[layer.name]]
            start = WARMSTARTS["wanda"](weight, gram, pattern)
            result = refine(weight, gram, start, pattern)
            assert result.certified.all()
            assert result.loss_after.sum() < result.loss_before.sum()
            key = described.tensor_name(index, layer.name)
            masks["wanda"][key], masks["swaps"][key] = start, result.mask
    dense = {key: model.get_parameter(key).detach().clone() for key in masks["wanda"]}
    for start in masks:
        for key, mask in masks[start].items():
            model.get_parameter(key).data.copy_(dense[key] * mask)
        found[start] = perplexity(model, cut).perplexity
    print(name, pattern.label, found)
    assert found["dense"] < found["swaps"] < found["wanda"]
