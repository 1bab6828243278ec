from pathlib import Path

import pytest

from sparseswaps.base.errors import BrokenFileError, InputError, prefix_errors


def test_a_prefix_keeps_the_class_and_the_file_of_an_error():
    """The job that reads a broken file sets it aside by its path."""
    with pytest.raises(BrokenFileError) as caught, prefix_errors("model.layers.3"), prefix_errors("mlp.up_proj"):
        raise BrokenFileError("results/gram.safetensors", "ends too early")
    assert (caught.value.path, caught.value.what) == (Path("results/gram.safetensors"), "ends too early")
    assert str(caught.value).startswith("model.layers.3: mlp.up_proj: results/gram.safetensors: ends too early; ")


@pytest.mark.parametrize(
    ("error", "message", "notes"),
    [(InputError("wrong"), "block 3: wrong", 0), (KeyError("wrong"), "'wrong'", 1)],
)
def test_a_prefix_goes_into_messages_of_input_errors_and_into_notes_of_others(error, message, notes):
    with pytest.raises(type(error)) as caught, prefix_errors("block 3"):
        raise error
    assert str(caught.value) == message
    assert ["block 3" in note for note in getattr(caught.value, "__notes__", [])] == [True] * notes
