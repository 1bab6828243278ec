from pathlib import Path

import pytest

from sparseswaps.base.errors import BrokenFileError, prefix_errors


def test_a_prefix_keeps_the_class_and_the_file_of_an_error():
    """The job that reads a broken file sets it aside by its path."""
    with pytest.raises(BrokenFileError) as caught, prefix_errors("model.layers.3"), prefix_errors("mlp.up_proj"):
        raise BrokenFileError("results/gram.safetensors", "ends too early")
    assert (caught.value.path, caught.value.what) == (Path("results/gram.safetensors"), "ends too early")
    assert str(caught.value).startswith("model.layers.3: mlp.up_proj: results/gram.safetensors: ends too early; ")
    assert not hasattr(caught.value, "__notes__")


def test_a_prefix_goes_into_the_notes_of_other_errors():
    with pytest.raises(KeyError) as caught, prefix_errors("block 3"):
        raise KeyError("wrong")
    assert str(caught.value) == "'wrong'"
    assert ["block 3" in note for note in caught.value.__notes__] == [True]
