"""2:4 matrices in torch's compressed layout: packed to the bit, kept in files, and run by torch's own tensors."""

import json

import pytest
import torch
from conftest import write_tiny_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.functional import linear
from torch.sparse import SparseSemiStructuredTensor, SparseSemiStructuredTensorCUTLASS
from transformers import AutoModelForCausalLM, GPTNeoXConfig, MixtralConfig

from sparseswaps import semi_structured
from sparseswaps.blocks import describe
from sparseswaps.checkpoint import write_pruned
from sparseswaps.errors import InputError
from sparseswaps.masks import keep_best
from sparseswaps.model import by_tensor
from sparseswaps.pattern import parse_pattern
from sparseswaps.semi_structured import compress, decompress, export, layers_2_4, load

SIZES = dict(hidden_size=64, intermediate_size=128)


class OnTheCPU(SparseSemiStructuredTensorCUTLASS):
    """CUTLASS's tensors where its kernels do not run: all of torch's dispatch around a product, which is dense."""

    @classmethod
    def _validate_device_dim_dtype_shape(cls, original_tensor):
        pass

    def _mm(self, B, *, bias=None, should_transpose_dense):  # noqa: N803
        assert should_transpose_dense  # inputs times the transposed weight
        return linear(B, decompress(self.packed, self.meta), bias)


def matrix(d_out, d_in, dtype, pattern="2:4", seed=0):
    weight = torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return weight.masked_fill(~keep_best(weight.abs(), parse_pattern(pattern)), 0)


def prune(folder, target, pattern="2:4"):
    """A checkpoint with a model's layers pruned by magnitude."""
    model = describe(folder)
    masks = {}
    for layers in model.blocks:
        kept = {layer.name: keep_best(model.weight(layer).abs(), parse_pattern(pattern)) for layer in layers}
        masks |= by_tensor(layers, kept)
    write_pruned(model.checkpoint, masks, target, {"sparseswaps.json": "{}\n"})
    return masks


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compressed")
    prune(write_tiny_model(folder / "base", **SIZES), folder / "pruned")
    return folder / "pruned"


def logits(model):
    ids = torch.arange(3, 40, device=model.device)[None]
    with torch.inference_mode():
        return model(input_ids=ids).logits.float().cpu()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pattern", ["2:4", "1:4"])  # 1:4 has fewer values than there is room for
def test_packing_is_exact(dtype, pattern):
    weight = matrix(96, 192, dtype, pattern)
    values, places = compress(weight)
    assert (values.shape, values.dtype, places.shape, places.dtype) == ((96, 96), dtype, (96, 12), torch.int16)
    assert (values.nbytes + places.nbytes) * 16 == weight.nbytes * 9
    assert torch.equal(decompress(values, places).view(torch.int16), weight.view(torch.int16))


@pytest.mark.parametrize(
    ("weight", "why"),
    [
        (matrix(64, 64, torch.bfloat16, "3:4"), "more than two of four weights are kept"),
        (matrix(64, 96, torch.bfloat16), "64 x 96, which are no multiples of 32 and 64"),
        (matrix(48, 64, torch.float16), "48 x 64, which are no multiples of 32 and 64"),
        (matrix(64, 64, torch.float32), "2 dimensions of torch.float32, not 2 of float16 or bfloat16"),
        (matrix(64, 64, torch.float16)[None], "3 dimensions"),
    ],
)
def test_other_matrices_are_refused(weight, why):
    with pytest.raises(InputError, match=f"cannot be compressed: {why}"):
        compress(weight)


def test_only_2_4_matrices_change_in_an_exported_checkpoint(pruned, tmp_path):
    names = export(pruned, tmp_path / "out")
    before, after = (
        load_file(pruned / "model.safetensors"),
        load_file(tmp_path / "out" / "compressed-model.safetensors"),
    )
    assert sorted(names) == sorted(name for name in before if "layers" in name and "norm" not in name)
    assert set(after) == {*before} - {*names} | {f"{name}.{part}" for name in names for part in ("values", "places")}
    assert all(torch.equal(after[name], before[name]) for name in before if name not in names)
    saved = sum(tensor.nbytes for tensor in before.values()) - sum(tensor.nbytes for tensor in after.values())
    assert saved * 16 == sum(before[name].nbytes for name in names) * 7
    others = {path.name for path in pruned.iterdir()} - {"model.safetensors"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == others | {"compressed-model.safetensors"}
    with safe_open(tmp_path / "out" / "compressed-model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "compressed": json.dumps(names)}


EXPERTS = dict(num_local_experts=2, num_experts_per_tok=2, num_key_value_heads=2, vocab_size=64)
WITH_BIASES = GPTNeoXConfig(**SIZES, num_hidden_layers=2, num_attention_heads=4, vocab_size=64, dtype="float16")


@pytest.mark.parametrize("config", [None, MixtralConfig(**SIZES, num_hidden_layers=1, **EXPERTS), WITH_BIASES])
def test_it_loads_back_as_it_was(config, pruned, tmp_path):
    if config is not None:  # of Mixtral, one tensor for each expert in the files
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).to(config.dtype or torch.bfloat16)
        model.save_pretrained(tmp_path / "base", max_shard_size="100KB")
        prune(tmp_path / "base", tmp_path / "pruned")
        pruned = tmp_path / "pruned"
    export(pruned, tmp_path / "out")
    found, expected = load(tmp_path / "out", "cpu"), AutoModelForCausalLM.from_pretrained(pruned)
    assert not found.training
    assert found.generation_config == expected.generation_config
    assert found.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert found.state_dict()[name].dtype == tensor.dtype
        assert torch.equal(found.state_dict()[name], tensor)


@pytest.mark.parametrize("config", [None, WITH_BIASES])
def test_a_model_of_semi_structured_tensors_computes_the_same(config, pruned, tmp_path, monkeypatch):
    """All but the kernels: what torch does around them runs on the CPU as well."""
    monkeypatch.setattr(semi_structured, "backend", lambda: OnTheCPU)
    if config is not None:
        AutoModelForCausalLM.from_config(config).half().save_pretrained(tmp_path / "base")
        prune(tmp_path / "base", tmp_path / "pruned")
        pruned = tmp_path / "pruned"
    dense = AutoModelForCausalLM.from_pretrained(pruned)
    model = semi_structured.to_semi_structured(AutoModelForCausalLM.from_pretrained(pruned), "cpu")
    layers = layers_2_4(dense)
    assert len(layers) == sum(isinstance(module, torch.nn.Linear) for module in model.modules()) - 1  # all but the head
    assert all(isinstance(model.get_submodule(name).weight, SparseSemiStructuredTensor) for name in layers)
    assert torch.equal(logits(model), logits(dense))
    ids = torch.arange(3, 40)[None].expand(2, -1)  # and without inference mode, where torch takes products apart
    one, other = (of.generate(ids, max_new_tokens=4, do_sample=False) for of in (model, dense))
    assert torch.equal(one, other)


def test_a_checkpoint_with_nothing_to_compress_is_refused(tmp_path):
    prune(write_tiny_model(tmp_path / "base", **SIZES), tmp_path / "pruned", "50%")
    with pytest.raises(InputError, match="holds nothing to compress"):
        export(tmp_path / "pruned", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_broken_exports_are_named(pruned, tmp_path):
    with pytest.raises(InputError, match=r"holds no compressed-\*\.safetensors"):
        load(pruned, "cpu")
    name = export(pruned, tmp_path)[0]
    file = tmp_path / "compressed-model.safetensors"
    whole, about = load_file(file), {"compressed": json.dumps([name])}
    for broken, header, message in (
        (whole, {}, r"not what export\(\) wrote .*export the checkpoint again"),
        ({key: whole[key] for key in whole if key != f"{name}.places"}, about, r"not what export\(\) wrote"),
        (whole | {f"{name}.places": whole[f"{name}.places"][:, :1].clone()}, about, r"not what export\(\) wrote"),
        ({f"{name}.{part}": whole[f"{name}.{part}"] for part in ("values", "places")}, about, "lacks lm_head.weight"),
    ):
        save_file(broken, file, metadata=header)
        with pytest.raises(InputError, match=message):
            load(tmp_path, "cpu")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load(tmp_path, "cpu")


@pytest.mark.gpu
def test_it_loads_back_and_runs_on_a_gpu(pruned, tmp_path):
    export(pruned, tmp_path / "out")
    model, dense = load(tmp_path / "out"), AutoModelForCausalLM.from_pretrained(pruned).cuda()
    layers = layers_2_4(dense)
    assert all(isinstance(model.get_submodule(name).weight, semi_structured.backend()) for name in layers)
    found, expected = logits(model), logits(dense)
    assert (found - expected).norm() < 0.02 * expected.norm()
    ids = torch.arange(3, 40, device="cuda")[None]
    assert model.generate(ids, max_new_tokens=4, do_sample=False).shape == (1, 41)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [1, 37, 512])
def test_kernels_give_the_dense_product(tokens, dtype):
    weight, inputs = matrix(256, 512, dtype).cuda(), torch.randn(tokens, 512).to(dtype).cuda()
    kernels = semi_structured.semi_structured(weight, semi_structured.backend())
    with torch.inference_mode():
        found, expected = linear(inputs, kernels), linear(inputs.float(), weight.float())
    assert (found - expected).norm() < torch.finfo(dtype).eps * expected.norm()
