from families import families, tiny
from transformers import AutoModelForCausalLM

from sparseswaps.model.blocks import find_layers
from sparseswaps.model.description import describe


@families
def test_layers_in_memory_are_those_of_the_files(config, tmp_path):
    tiny(config).save_pretrained(tmp_path)
    expected = describe(tmp_path).blocks
    assert find_layers(tiny(config)) == expected
    assert find_layers(AutoModelForCausalLM.from_pretrained(tmp_path)) == expected
