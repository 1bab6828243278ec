import json

import pytest
import torch

from sparseswaps.embedded import corpus
from sparseswaps.errors import InputError
from sparseswaps.text import draw, load


class Letters:
    """A tokenizer with a token for each character."""

    def __call__(self, text, verbose=True):
        return {"input_ids": [ord(letter) for letter in text]}


def documents(*lengths):
    """Documents of these lengths; no character occurs twice among them all."""
    start = 0x4E00
    found = []
    for length in lengths:
        found.append("".join(map(chr, range(start, start + length))))
        start += length
    return found


def test_each_long_document_gives_one_window():
    text = documents(30, 10, 25, 11, 40)  # 10 is not longer than seqlen
    calibration, held_out = draw(text, Letters(), samples=3, held_out=1, seqlen=10, seed=0)
    assert calibration.shape == (3, 10)
    assert held_out.shape == (1, 10)
    origins = [next(i for i, t in enumerate(text) if chr(w[0]) in t) for w in torch.cat([calibration, held_out])]
    assert sorted(origins) == [0, 2, 3, 4]


def test_no_token_is_drawn_twice_when_documents_run_out():
    drawn = torch.cat(draw(documents(35, 28), Letters(), samples=3, held_out=2, seqlen=10, seed=3))
    assert len(drawn.unique()) == 50
    for window in drawn:
        assert torch.equal(window, torch.arange(window[0], window[0] + 10))


def test_the_seed_decides():
    text = documents(*[50] * 9)
    first, again, other = (draw(text, Letters(), 4, 2, 10, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_too_short_a_text_is_said():
    with pytest.raises(InputError, match="5 samples and 1 held-out ones of 10 tokens were asked for, it gives 5"):
        draw(documents(35, 28), Letters(), samples=5, held_out=1, seqlen=10, seed=0)


def test_files(tmp_path):
    (tmp_path / "a.txt").write_text("one\n<|endoftext|>\ntwo\n<|endoftext|>\n")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"body": body}) + "\n" for body in ("one", "", "two")))
    assert load(str(tmp_path / "a.txt"), "calibration") == ["one", "two"]
    assert load(str(tmp_path / "b.jsonl"), "calibration", "body") == ["one", "", "two"]
    with pytest.raises(InputError, match="line 1 is not JSON with a text in its field 'text'"):
        load(str(tmp_path / "b.jsonl"), "calibration")
    with pytest.raises(InputError, match=r"c\.txt'?: cannot be read"):
        load(str(tmp_path / "c.txt"), "calibration")
    with pytest.raises(InputError, match=r"expected `embedded`, or a \.txt or \.jsonl file"):
        load(str(tmp_path / "d.csv"), "calibration")


def test_the_splits_of_the_embedded_text_are_disjoint_files():
    splits = {split: {name for name, _ in corpus.documents(split)} for split in corpus.SPLITS}
    assert not splits["train"] & splits["calibration"]
    assert not splits["train"] & splits["evaluation"]
    assert not splits["calibration"] & splits["evaluation"]
    assert all(len(names) > 30 for names in splits.values())
    with pytest.raises(ValueError, match="expected one of train"):
        corpus.documents("test")


def test_the_split_is_the_names_alone(tmp_path):
    (tmp_path / "json").mkdir()
    for name in ("json/decoder.py", "json/__init__.py", "asyncio.py"):
        (tmp_path / name).write_text("pass\n")
    found = {name for split in corpus.SPLITS for name, _ in corpus.documents(split, tmp_path)}
    assert found == {"json", "json.decoder", "asyncio"}
    assert ("json.decoder", "pass\n") in corpus.documents(corpus.split_of("json.decoder"), tmp_path)
