from itertools import count, islice

import pytest
import torch

from sparseswaps.base.errors import InputError
from sparseswaps.calibration.sampling import check_vocabulary, draw
from sparseswaps.workflow.artifacts import digest


class Letters:
    def __call__(self, text, verbose=True):
        return {"input_ids": [ord(letter) for letter in text]}


def documents(*lengths):
    """Return documents of these lengths, in which no character occurs twice."""
    characters = map(chr, count(0x4E00))
    return ["".join(islice(characters, length)) for length in lengths]


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
    with pytest.raises(InputError, match=r"5 .* 1 .* 10 "):  # too short a text
        draw(documents(35, 28), Letters(), samples=5, held_out=1, seqlen=10, seed=0)


class Shelf(list):
    """Documents that count how often one of them is read."""

    read = 0

    def __getitem__(self, index):
        self.read += 1
        return super().__getitem__(index)

    __iter__ = None


def test_documents_that_are_not_drawn_are_not_read():
    text = documents(*[50] * 1000)
    shelf = Shelf(text)
    drawn = draw(shelf, Letters(), 4, 2, 10, seed=0)
    assert shelf.read == 6
    assert torch.equal(torch.cat(drawn), torch.cat(draw(text, Letters(), 4, 2, 10, seed=0)))


def test_the_seed_decides_by_a_protocol_that_does_not_change():
    """Pinned: a study that names the hash of its samples must be able to draw them again."""
    drawn, other = (draw(documents(35, 5, 28, 90), Letters(), 3, 2, 10, seed) for seed in (1, 2))
    assert digest(*drawn) == "1310853bf2796ac27075aac7f4347d8f4f2202f894f9796382e6848596510366" != digest(*other)


def test_a_tokenizer_of_another_model_is_named():
    check_vocabulary(torch.tensor([[3, 99]]), 100)
    check_vocabulary(torch.tensor([[3, 99]]), None)
    with pytest.raises(InputError, match="99"):
        check_vocabulary(torch.tensor([[3, 99]]), 99)
