import shutil

import pytest
from safetensors.torch import load_file

from sparseswaps.base.errors import InputError
from sparseswaps.model.checkpoint import Checkpoint, write_pruned
from sparseswaps.model.description import describe
from sparseswaps.model.directory import check_files, companion_files
from sparseswaps.model.loading import load_model, load_tokenizer


@pytest.fixture
def model(tiny_model, tmp_path):
    """A copy of the tiny model, to be spoilt."""
    return shutil.copytree(tiny_model, tmp_path / "model")


@pytest.fixture
def linked(model, tmp_path):
    """A folder of symbolic links to the files of a model in another folder, one of them by way of a second link."""
    folder = tmp_path / "linked"
    folder.mkdir()
    (tmp_path / "config.json").symlink_to(model / "config.json")
    for file in model.iterdir():
        (folder / file.name).symlink_to(f"../{'' if file.name == 'config.json' else 'model/'}{file.name}")
    return folder


def test_links_of_a_model_folder_are_followed(model, linked, tmp_path):
    check_files(linked)
    assert companion_files(linked) == companion_files(model)
    assert describe(linked).tensors == describe(model).tensors
    load_model(str(linked), "cpu")
    load_tokenizer(str(linked))
    write_pruned(Checkpoint(linked), {}, tmp_path / "pruned", {})
    assert not any(path.is_symlink() for path in (tmp_path / "pruned").iterdir())
    tensors = load_file(tmp_path / "pruned" / "model.safetensors")
    assert tensors.keys() == load_file(model / "model.safetensors").keys()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_broken_link_is_named(model, linked, name):
    (model / name).unlink()
    with pytest.raises(InputError, match=name):
        describe(linked)
