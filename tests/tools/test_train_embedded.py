"""The training of the embedded model, on a small recipe, and the shipped model."""

import json
from dataclasses import replace

import pytest
import torch
from helpers import same
from safetensors.torch import load_file
from train_embedded import Recipe, bits_per_byte, card, token_stream, train, train_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparseswaps.calibration.documents import load
from sparseswaps.embedded import MODEL

SIZES = dict(vocab_size=300, hidden_size=16, intermediate_size=24, layers=1, heads=2, key_value_heads=1, context=16)
SMALL = Recipe(**SIZES, batch=2, steps=6, warmup=2)


@pytest.fixture(scope="module")
def stream():
    texts = ["def f(x):\n    return x + 1\n" * 40, "class A:\n    pass\n" * 40]
    return token_stream(train_tokenizer(texts, SMALL), texts)


def test_the_seed_decides_and_an_interrupted_training_ends_where_it_would_have(stream, tmp_path):
    def interrupt(line):
        if line.startswith("step 4"):
            raise InterruptedError

    lines = []
    whole, _ = train(SMALL, stream, tmp_path / "whole.state", lines.append, every=2)
    with pytest.raises(InterruptedError):
        train(SMALL, stream, tmp_path / "parts.state", interrupt, every=2)
    parts, _ = train(SMALL, stream, tmp_path / "parts.state", lines.append, every=2)
    assert "resumed at step 4" in lines
    assert same(whole.state_dict(), parts.state_dict())
    other, _ = train(replace(SMALL, seed=1), stream, tmp_path / "other.state", lines.append)
    assert not torch.equal(whole.lm_head.weight, other.lm_head.weight)


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
    bits = bits_per_byte(model, tokenizer, load("embedded", "evaluation")[:6], recipe.context)
    assert bits == pytest.approx(facts["held_out_bits_per_byte"], rel=0.25)  # of all modules of the evaluation split
