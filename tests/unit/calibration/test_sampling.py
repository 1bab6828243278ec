from collections.abc import Sequence

import pytest
import torch

from sparseswaps.base.errors import InputError
from sparseswaps.calibration.sampling import check_vocabulary, draw
from sparseswaps.workflow.artifacts import digest


class Letters:
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


class Shelf(Sequence):
    """Documents that are counted when they are looked at, as a data set on disk would read them."""

    def __init__(self, documents):
        self.documents, self.read = documents, []

    def __len__(self):
        return len(self.documents)

    def __getitem__(self, index):
        assert isinstance(index, int)
        self.read.append(index)
        return self.documents[index]


def test_documents_that_are_not_drawn_are_not_read():
    shelf = Shelf(documents(*[50] * 1000))
    drawn = draw(shelf, Letters(), 4, 2, 10, seed=0)
    assert len(shelf.read) == 6
    assert torch.equal(torch.cat(drawn), torch.cat(draw(list(shelf.documents), Letters(), 4, 2, 10, seed=0)))


def test_the_protocol_of_the_draw_does_not_change():
    """Pinned: a study that names the hash of its samples must be able to draw them again."""
    assert digest(*draw(documents(35, 5, 28, 90), Letters(), 3, 2, 10, seed=1)) == (
        "1310853bf2796ac27075aac7f4347d8f4f2202f894f9796382e6848596510366"
    )


def test_a_tokenizer_of_another_model_is_named():
    check_vocabulary(torch.tensor([[3, 99]]), 100)
    check_vocabulary(torch.tensor([[3, 99]]), None)
    with pytest.raises(InputError, match="99"):
        check_vocabulary(torch.tensor([[3, 99]]), 99)


def test_a_text_that_is_too_short_is_refused():
    with pytest.raises(InputError, match=r"5 .* 1 .* 10 "):
        draw(documents(35, 28), Letters(), samples=5, held_out=1, seqlen=10, seed=0)
