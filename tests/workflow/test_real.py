"""On real trained models: refinement must help a model that somebody trained, not only a random one."""

import json
import os
from pathlib import Path

import pytest
import torch

import sparseswaps
from sparseswaps.calibration.documents import load
from sparseswaps.calibration.sampling import draw, tokenize
from sparseswaps.evaluation.perplexity import perplexity, windows
from sparseswaps.model.directory import context_length, read_config
from sparseswaps.model.loading import load_model, load_tokenizer

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif("SPARSESWAPS_ASSETS" not in os.environ, reason="SPARSESWAPS_ASSETS names no folder"),
]


@pytest.mark.parametrize("pattern", ["50%", "60%", "2:4"])
@pytest.mark.parametrize("name", ["stories260k", "babyllama105"])
def test_refinement_lowers_a_trained_models_perplexity(name, pattern):
    assets = Path(os.environ["SPARSESWAPS_ASSETS"])
    tokenizer = load_tokenizer(assets / name)
    calibration = "\n".join(load(str(assets / "text" / "tinystories_calibration.txt"), "calibration"))[:300_000]
    ids, _ = draw([calibration], tokenizer, samples=64, held_out=0, seqlen=256, seed=0)
    dense, start, refined = (load_model(assets / name, "cpu") for _ in range(3))
    sparseswaps.prune(start, None, pattern, calibration=ids, max_swaps=0)
    for row in sparseswaps.prune(refined, None, pattern, calibration=ids).losses:
        assert row["rows_certified"] == row["rows"]
        assert row["loss_after"] < row["loss_before"]
    evaluation = "\n".join(load(str(assets / "text" / "tinystories_eval.txt"), "evaluation"))[:100_000]
    cut = windows(tokenize(tokenizer, evaluation), 256, 48)
    perplexities = [perplexity(model, cut).perplexity for model in (dense, refined, start)]
    assert perplexities[0] < perplexities[1] < perplexities[2]


@pytest.mark.parametrize(
    ("name", "seqlen", "tokens", "expected"),
    # Measured once, and again by the plain code below; the token counts belong to these tokenizers.
    [("stories260k", 512, 815_070, 156.13757), ("babyllama105", 256, 1_272_655, 20.144445)],
)
def test_wikitext2_under_the_protocol(name, seqlen, tokens, expected):
    assets = Path(os.environ["SPARSESWAPS_ASSETS"])
    text = assets / "text" / "wikitext2_raw_test.jsonl"
    tokenizer, model = load_tokenizer(assets / name), load_model(assets / name, "cpu")
    ids = tokenize(tokenizer, "\n\n".join(load(str(text), "evaluation")))
    assert len(ids) == tokens
    assert seqlen == context_length(read_config(assets / name))
    measured = perplexity(model, windows(ids, seqlen, 100))
    assert measured.perplexity == pytest.approx(expected, rel=1e-5)

    # The literature's evaluation, written plainly: one window at a time, from the rows of the file.
    rows = [json.loads(line)["text"] for line in text.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 4358
    plain = tokenizer("\n\n".join(rows), return_tensors="pt", verbose=False).input_ids
    assert torch.equal(plain[0], ids)
    with torch.no_grad():
        losses = [model(batch, labels=batch).loss for batch in plain.split(seqlen, dim=1)[:100]]
    assert measured.perplexity == pytest.approx(torch.stack(losses).mean().exp().item(), rel=1e-5)
