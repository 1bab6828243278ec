import pytest
from families import MODELS, tiny, tokens
from safetensors.torch import load_file, save_file

from sparseswaps.base.errors import InputError
from sparseswaps.calibration.capture import capture
from sparseswaps.model.description import describe
from sparseswaps.model.weights import WeightsOnDisk


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.input_layernorm.weight"])
def test_a_checkpoint_that_lacks_a_parameter_is_named(name, tmp_path):
    tiny(MODELS[0]).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=name):
        list(capture(WeightsOnDisk(describe(tmp_path), "cpu"), tokens(2, 1), tokens(1, 2), 2))
