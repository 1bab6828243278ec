import json
import shutil

import pytest
from helpers import refusal
from safetensors.torch import load_file

from sparseswaps.base.errors import InputError
from sparseswaps.model.checkpoint import Checkpoint, write_pruned
from sparseswaps.model.description import describe
from sparseswaps.model.directory import check_files, companion_files, read_config
from sparseswaps.model.loading import load_model, load_tokenizer


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
    load_model(linked, "cpu")
    load_tokenizer(linked)
    write_pruned(Checkpoint(linked), {}, tmp_path / "pruned", {})
    assert not any(path.is_symlink() for path in (tmp_path / "pruned").iterdir())
    tensors = load_file(tmp_path / "pruned" / "model.safetensors")
    assert tensors.keys() == load_file(model / "model.safetensors").keys()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_broken_link_is_named(model, linked, name):
    (model / name).unlink()
    refusal(lambda _: describe(linked), linked / name)


OUTSIDE = ["../model.safetensors", "{}/model.safetensors", "..", ".", "", "a/../model.safetensors", "a\\b.safetensors"]
NO_NAMES = ["x" * 300 + ".safetensors", "\0.safetensors", "\ud800.safetensors", "pytorch_model.bin", None, 5, ["a"]]
NO_INDICES = ["[]", "{}", '{"weight_map": {}}', '{"weight_map": ["a"]}', "{"]


@pytest.mark.parametrize("content", [*NO_INDICES, *(json.dumps({"weight_map": {"a": n}}) for n in OUTSIDE + NO_NAMES)])
def test_an_index_names_files_of_its_own_folder(model, content):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    shutil.copyfile(model / "pytorch_model.bin", model.parent / "model.safetensors")
    index = model / "model.safetensors.index.json"
    index.write_text(content.replace("{}/", f"{model.parent}/"))
    refusal(lambda _: check_files(model), index)


@pytest.mark.parametrize(
    "content",
    [
        '{"transformers_weights": "pytorch_model.bin"}',
        '{"attn_implementation": "org/code"}',
        '{"text_config": {"_attn_implementation": "org/code@main"}}',
        '{"experts_implementation": {"": "org/code"}}',
        "[" * 100_000,
        '{"num_hidden_layers": ' + "1" * 5000 + "}",
        "\0",
        "[]",
    ],
)
def test_a_configuration_that_is_broken_or_leads_to_other_weights_or_code_is_refused(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    refusal(lambda _: read_config(tmp_path), tmp_path / "config.json")


def test_an_adapter_is_refused(model):
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "../other"}')
    with pytest.raises(InputError, match=r"adapter_config\.json"):
        read_config(model)
