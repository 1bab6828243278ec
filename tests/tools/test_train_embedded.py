"""The training of the embedded model, on a small recipe, and the shipped model."""

import json

import pytest
import torch
from safetensors.torch import load_file
from train_embedded import Recipe, bits_per_byte, card, token_stream, train, train_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparseswaps.calibration.documents import load
from sparseswaps.embedded import MODEL

SMALL = Recipe(
    vocab_size=300,
    hidden_size=16,
    intermediate_size=24,
    layers=1,
    heads=2,
    key_value_heads=1,
    context=16,
    batch=2,
    steps=6,
    warmup=2,
)


@pytest.fixture(scope="module")
def stream():
    texts = ["def f(x):\n    return x + 1\n" * 40, "class A:\n    pass\n" * 40]
    tokenizer = train_tokenizer(texts, SMALL)
    return tokenizer, token_stream(tokenizer, texts)


def test_an_interrupted_training_ends_where_it_would_have(stream, tmp_path):
    def interrupt(line):
        if line.startswith("step 4"):
            raise InterruptedError

    lines = []
    whole, _ = train(SMALL, stream[1], tmp_path / "whole.state", lines.append, every=2)
    with pytest.raises(InterruptedError):
        train(SMALL, stream[1], tmp_path / "parts.state", interrupt, every=2)
    parts, _ = train(SMALL, stream[1], tmp_path / "parts.state", lines.append, every=2)
    assert "resumed at step 4" in lines
    for before, after in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(before, after)


def test_the_seed_decides(stream, tmp_path):
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        recipe = Recipe(**{**vars(SMALL), "seed": seed})
        model, _ = train(recipe, stream[1], tmp_path / f"{name}.state", lambda line: None)
        weights.append(model.lm_head.weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_shipped_model_is_what_its_card_says():
    about = json.loads((MODEL / "training.json").read_text())
    recipe, facts = Recipe(**about["recipe"]), about["facts"]
    assert recipe == Recipe()
    assert (MODEL / "README.md").read_text() == card(recipe, facts)
    assert (MODEL / "model.safetensors").stat().st_size < 12e6
    tensors = load_file(MODEL / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert all(not (tensor == 0).any() for name, tensor in tensors.items() if "proj" in name)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    assert model.num_parameters() == facts["parameters"]
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    # The card's figure is of all modules of the evaluation split.
    assert bits_per_byte(model, tokenizer, load("embedded", "evaluation")[:6], recipe.context) == pytest.approx(
        facts["held_out_bits_per_byte"], rel=0.25
    )
