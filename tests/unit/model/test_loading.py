import os

import pytest
import torch
from helpers import attempt, refusal
from safetensors.torch import load_file, save_file

from sparseswaps.base.errors import InputError
from sparseswaps.base.files import read_json, write_json
from sparseswaps.calibration.capture import capture
from sparseswaps.model.description import describe
from sparseswaps.model.loading import load_model, load_tokenizer
from sparseswaps.model.weights import WeightsOnDisk


def test_a_model_loads_in_float32_on_the_cpu(model):
    loaded = load_model(model, "cpu")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert not loaded.training


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.input_layernorm.weight"])
def test_a_checkpoint_that_lacks_a_tensor_is_not_filled_with_random_numbers(model, name):
    tensors = load_file(model / "model.safetensors")
    del tensors[name]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=name):
        load_model(model, "cpu")
    ids = torch.ones(2, 8).long()
    with pytest.raises(InputError, match=name):
        list(capture(WeightsOnDisk(describe(model), "cpu"), ids, ids[:0], 2))


@pytest.mark.parametrize("size", [0, 5, 300, -2])
def test_a_truncated_checkpoint_is_named(model, size):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    refusal(lambda _: load_model(model, "cpu"), path)


def test_a_model_that_transformers_does_not_know_is_named(model):
    write_json(model / "config.json", {"model_type": "no-such-family"})
    refusal(lambda _: load_model(model, "cpu"), model)
    refusal(describe, model)


@pytest.mark.parametrize("content", [None, "", "{}", "[" * 100_000, '{"model": 5}'])
def test_a_missing_or_broken_tokenizer_is_named(model, content):
    (model / "tokenizer_config.json").unlink()
    (model / "tokenizer.json").unlink()
    if content is not None:
        (model / "tokenizer.json").write_text(content)
    refusal(lambda _: load_tokenizer(model), model)


def test_nothing_in_a_models_folder_is_run(model, tmp_path, monkeypatch):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    for name in ("pytorch_model.bin", "training_args.bin", "adapter_model.bin", "tokenizer.pkl"):
        torch.save(Trap(), model / name)
    (model / "own.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'sprung')!r})\n")
    readers = [lambda: load_model(model, "cpu"), lambda: load_tokenizer(model), lambda: describe(model)]
    for read in readers:
        read()
    for name, key in (("config.json", "AutoModelForCausalLM"), ("tokenizer_config.json", "AutoTokenizer")):
        write_json(model / name, read_json(model / name) | {"auto_map": {key: "own.Own", "AutoConfig": "own.Own"}})
    for read in readers:
        _, error = attempt(read)
        assert error is None or "trust_remote_code: true" in error
    assert not (tmp_path / "sprung").exists()
