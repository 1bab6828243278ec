import copy
import logging

import pytest
import torch
from families import MODELS, SIZES, families, tiny, tokens
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, MambaConfig, Qwen3MoeConfig

from sparseswaps.base.errors import InputError
from sparseswaps.calibration.activations import KeepOnDisk
from sparseswaps.calibration.capture import capture, sum_grams
from sparseswaps.calibration.replay import Replay
from sparseswaps.layer.criteria import wanda
from sparseswaps.layer.masks import check_mask
from sparseswaps.layer.pattern import parse_pattern
from sparseswaps.layer.swaps.engine import refine_mask
from sparseswaps.model.blocks import find_blocks, find_layers, put_weights
from sparseswaps.model.checkpoint import write_pruned
from sparseswaps.model.description import describe
from sparseswaps.model.layers import file_tensors
from sparseswaps.model.weights import WeightsInMemory, WeightsOnDisk

IDS = tokens(9, 1), tokens(3, 2)  # samples and held-out text
FEW = tokens(2, 1), tokens(1, 2)


@pytest.fixture(params=["in memory", "on disk"])
def held(request, tmp_path):
    """How a model's weights are held: a function from the model to its `Weights`."""

    def hold(model):
        if request.param == "in memory":
            return WeightsInMemory(copy.deepcopy(model))
        model.save_pretrained(tmp_path / "model", max_shard_size="5KB")
        return WeightsOnDisk(describe(tmp_path / "model"), "cpu")

    return hold


class Watch(TorchFunctionMode):
    """Sums up x^T x for all that is multiplied with one of the model's matrices."""

    def __init__(self, model):
        super().__init__()
        parameters = [(name, parameter) for name, parameter in model.named_parameters() if parameter.ndim > 1]
        self.parameters = {parameter.untyped_storage().data_ptr(): (name, parameter) for name, parameter in parameters}
        self.sums = {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (functional.linear, torch.addmm, torch.Tensor.matmul, torch.Tensor.__matmul__):
            x, weight = args[1:3] if function is torch.addmm else args[:2]
            if (start := weight.untyped_storage().data_ptr()) in self.parameters:
                name, parameter = self.parameters[start]
                expert = weight.storage_offset() // parameter.shape[-2:].numel()
                flat = x.detach().reshape(-1, x.shape[-1]).double()
                gram, count = self.sums.get((name, expert), (0, 0))
                self.sums[name, expert] = gram + flat.T @ flat, count + len(flat)
        return function(*args, **(kwargs or {}))


def assert_watched(model, index, layers, grams, tolerance):
    """Assert that a block's Gram matrices and numbers of tokens are those of plain forward passes of the model."""
    for split, ids in zip(("matrix", "held_out"), IDS, strict=True):
        with Watch(model) as watch, torch.no_grad():
            model(input_ids=ids)
        for layer in layers:
            if (source := grams.reads[layer.name]) not in grams.unrouted:
                gram, count = watch.sums[f"{find_blocks(model)[0]}.{index}.{layer.parameter}", layer.expert or 0]
                torch.testing.assert_close(getattr(grams, split)[source], gram.float(), rtol=tolerance, atol=tolerance)
                assert split == "held_out" or grams.tokens[source] == count


@families
def test_grams_are_those_of_the_models_own_forward_pass(config, held):
    model = tiny(config)
    weights = held(model)
    captured = capture(weights, *IDS, batch_size=2)  # the last batches are smaller
    for index, (grams, layers) in enumerate(zip(captured, weights.layers, strict=True)):
        assert grams.unrouted == []  # every expert of these models sees enough
        assert_watched(model, index, layers, grams, 1e-4)


@families
def test_a_block_from_disk_is_that_of_from_pretrained_in_the_files_dtype(config, tmp_path):
    tiny(config).bfloat16().save_pretrained(tmp_path)
    described = describe(tmp_path)
    whole = WeightsInMemory(AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").eval())
    whole.layers = described.blocks
    passes = [capture(weights, *IDS, 2) for weights in (whole, WeightsOnDisk(described, "cpu", "checkpoint"))]
    for one, other in zip(*passes, strict=True):
        assert one.reads == other.reads
        assert all(torch.equal(gram, other.matrix[name]) for name, gram in one.matrix.items())


@pytest.mark.gpu
@families
def test_captured_on_a_gpu_as_on_the_cpu_and_twice_the_same(config, tmp_path):
    tiny(config).save_pretrained(tmp_path)
    described = describe(tmp_path)
    passes = [capture(WeightsOnDisk(described, device, "checkpoint"), *IDS, 2) for device in ("cpu", "cuda", "cuda")]
    for one, other, again in zip(*passes, strict=True):
        assert (one.reads, one.tokens) == (other.reads, other.tokens)
        for name, gram in one.matrix.items():
            torch.testing.assert_close(other.matrix[name].cpu(), gram, rtol=1e-3, atol=1e-3)
            assert torch.equal(other.matrix[name], again.matrix[name])


def half(weights, index):
    """Return the weights of a block's layers, with zeros for every other input."""
    block = find_blocks(weights.model)[1][index]
    of_layers = {s.name: s.view_in(block.get_parameter(s.parameter)) for s in weights.layers[index]}
    return {name: weight * (torch.arange(weight.shape[1]) % 2 == 0) for name, weight in of_layers.items()}


def assert_same(layers, one, other):
    for layer in layers:
        for split in ("matrix", "held_out"):
            pair = [getattr(grams, split)[grams.reads[layer.name]] for grams in (one, other)]
            torch.testing.assert_close(*pair, rtol=1e-3, atol=1e-3)


@families
def test_pruned_inputs_are_those_of_a_model_whose_earlier_blocks_are_pruned(config, held):
    model = tiny(config)
    weights = held(model)
    replay = Replay(weights)
    replay.start(*IDS, 2)
    of_dense = list(capture(WeightsInMemory(copy.deepcopy(model)), *IDS, 2))[-1]
    mine = WeightsInMemory(model)
    for index, (block, layers) in enumerate(zip(replay.blocks, weights.layers, strict=True)):
        with weights.block(index):
            grams = sum_grams(replay, index)
            put_weights(block, layers, half(weights, index))
            replay.run_block(index, advance=True)
        assert_watched(model, index, layers, grams, 1e-3)
        put_weights(find_blocks(model)[1][index], mine.layers[index], half(mine, index))
    assert any(not torch.allclose(grams.matrix[n], of_dense.matrix[n]) for n in grams.matrix if n in of_dense.matrix)


@pytest.mark.parametrize("config", [MODELS[0], MODELS[-2]], ids=lambda config: config.model_type)
def test_running_out_of_memory_halves_the_batches(config, caplog):
    model, most = tiny(config), 2

    def greedy(_module, args):
        if len(args[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    expected = list(capture(WeightsInMemory(model), *IDS, 1))
    model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(greedy)
    with caplog.at_level(logging.WARNING):
        halved = list(capture(WeightsInMemory(model), *IDS, 7))
    assert len(caplog.messages) == 2  # 7 sequences, then 3
    for layers, one, other in zip(find_layers(model), halved, expected, strict=True):
        assert_same(layers, one, other)
    most = 0
    with pytest.raises(InputError, match="seqlen"):
        list(capture(WeightsInMemory(model), *IDS, 7))


def test_running_out_of_memory_while_batches_are_halved_loses_nothing():
    model = tiny(MODELS[0])
    weights = WeightsInMemory(model)
    expected = list(capture(weights, *IDS, 1))
    block, embedding = model.model.layers[0].mlp, model.model.embed_tokens
    left = {block: 3, embedding: 6}  # the first block's second batch fails, then observing the halved batches

    def fail(module, _args):
        left[module] -= 1
        if left[module] == 0:
            raise torch.OutOfMemoryError("CUDA out of memory")

    for module in left:
        module.register_forward_pre_hook(fail)
    for layers, one, other in zip(weights.layers, capture(weights, *IDS, 4), expected, strict=True):
        assert one.tokens == other.tokens
        assert_same(layers, one, other)
    assert max(left.values()) <= 0  # all of them happened


def test_halving_loads_the_hidden_states_of_one_batch_at_a_time():
    steps = []

    def keep(tensor):
        steps.append("stored")
        return lambda: steps.append("loaded") or tensor

    replay = Replay(WeightsInMemory(tiny(MODELS[0])), keep)
    replay.start(*FEW, 2)
    steps.clear()
    replay.split_batches(1)
    assert steps == ["loaded", "stored", "stored", "loaded", "stored"]


class Twice(torch.nn.Module):
    """A block's MLP whose first layer is called twice, whose second for every other token, and whose third never."""

    def __init__(self, width):
        super().__init__()
        self.twice, self.few, self.never = (torch.nn.Linear(width, width, bias=False) for _ in range(3))

    def forward(self, x):
        x = self.twice(x) + self.twice(x * 2)
        return x + (self.few(x[..., :1, :]) if x[0, 0, 0] > 0 else 0) + functional.linear(x, self.never.weight)


def test_layers_that_are_called_otherwise_than_once(caplog):
    model = tiny(MODELS[0])
    model.model.layers[0].mlp = Twice(16)
    weights = WeightsInMemory(model)
    inputs = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
    with caplog.at_level(logging.WARNING):
        grams = next(capture(weights, *IDS, 3))
    x = torch.cat([x.reshape(-1, 16) for x in inputs[-4:-1]])  # the first call only shows what the block returns
    torch.testing.assert_close(grams.matrix["mlp.twice"], 5 * x.T @ x, rtol=1e-4, atol=1e-4)
    assert grams.tokens["mlp.twice"] == 2 * 9 * 12
    assert [layer.name for layer in grams.readers(weights.layers[0]) if "mlp" in layer.name] == ["mlp.twice"]
    assert [message.partition(":")[0] for message in caplog.messages] == [
        f"model.layers.0.mlp.{name}" for name in ("few", "never")
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda given, _: given + 1, r"model\.layers\.1"),
        (lambda given, options: (options.update(position_ids=given.sum()), given)[1], "LlamaForCausalLM"),
    ],
)
def test_models_whose_blocks_cannot_be_run_one_by_one_are_refused(change, message):
    def between(_module, args, options):
        return (change(args[0], options), *args[1:]), options

    model = tiny(MODELS[0])
    model.model.layers[1].register_forward_pre_hook(between, with_kwargs=True)
    with pytest.raises(InputError, match=message):
        next(capture(WeightsInMemory(model), *FEW, 2))


def test_a_model_that_does_not_run_a_block_is_refused():
    model = tiny(MODELS[0])
    model.model.config = copy.deepcopy(model.config)
    model.model.config.num_hidden_layers = 3  # of 4
    with pytest.raises(InputError, match=r"model\.layers\.3"):
        next(capture(WeightsInMemory(model), *FEW, 2))


def test_hidden_states_may_wait_on_disk(tmp_path):
    weights = WeightsInMemory(tiny(MODELS[0]).bfloat16())
    files = capture(weights, *IDS, 2, keep=KeepOnDisk(tmp_path))
    for one, other in zip(files, capture(weights, *IDS, 2), strict=True):
        assert one.matrix.keys() == other.matrix.keys()
        assert all(torch.equal(gram, other.matrix[name]) for name, gram in one.matrix.items())
        assert list(tmp_path.iterdir()) == []


def test_an_expert_that_sees_too_few_tokens_is_given_all_of_its_layer(held):
    model = tiny(Qwen3MoeConfig(**SIZES, num_experts=6, num_experts_per_tok=1, moe_intermediate_size=12))
    for block in model.model.layers:  # expert 5 is chosen never, 0 by nearly all tokens
        block.mlp.gate.weight.data[:] = 0
        block.mlp.gate.weight.data[1:5] = 0.02 * torch.randn(4, 16)
        block.mlp.gate.weight.data[5] = -100 * block.mlp.gate.weight.data[1]
    weights, inputs, experts = held(model), [], model.model.layers[0].mlp.experts
    experts.register_forward_pre_hook(lambda _module, args: inputs.append((args[0], args[1])))
    with torch.no_grad():
        model(input_ids=IDS[0])
    ((hidden, chosen),) = inputs
    grams = next(capture(weights, *IDS, batch_size=2))
    unrouted = 0
    for layer in weights.layers[0]:
        if layer.expert is None:
            continue
        routed = hidden[(chosen == layer.expert).any(-1)]
        few = len(routed) < layer.d_in
        x = hidden if few else routed
        if layer.parameter.endswith("down_proj"):
            gate, up = functional.linear(x, experts.gate_up_proj[layer.expert]).chunk(2, dim=-1)
            x = functional.silu(gate) * up
        source = grams.reads[layer.name]
        torch.testing.assert_close(grams.matrix[source], (x.T @ x).detach(), rtol=1e-4, atol=1e-4)
        assert grams.figures(layer.name) == {"tokens": len(x), "unrouted": few}
        unrouted += few
    assert 0 < unrouted < len(weights.layers[0])


@families
def test_a_family_is_pruned_from_its_files_to_its_files(config, tmp_path):
    dense = tiny(config)
    dense.save_pretrained(tmp_path / "dense")
    described, pattern = describe(tmp_path / "dense"), parse_pattern("2:4")
    gates = (".gate.weight", "router.weight", "shared_expert_gate.weight")
    routers = {name for name, _ in dense.named_parameters() if "experts" not in name and name.endswith(gates)}
    assert set(described.left_dense) == routers
    masks, doubled = {}, {}
    captured = capture(WeightsOnDisk(described, "cpu"), *IDS, batch_size=5)
    for layers, grams in zip(described.blocks, captured, strict=True):
        of_block = {}
        for layer in layers:
            weight, gram = described.weight(layer), grams.matrix[grams.reads[layer.name]]
            result = refine_mask(weight, gram, wanda(weight, gram, pattern), pattern)
            assert result.loss_after.sum() < result.loss_before.sum()
            check_mask(result.mask, pattern)
            of_block[layer.name] = result.mask
        masks |= file_tensors(layers, of_block)
        doubled |= file_tensors(layers, {layer.name: 2 * described.weight(layer) for layer in layers})
    write_pruned(described.checkpoint, masks, tmp_path / "pruned", {})
    pruned = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned").state_dict()
    write_pruned(described.checkpoint, masks, tmp_path / "doubled", {}, doubled.__getitem__)  # with new weights
    for name, tensor in AutoModelForCausalLM.from_pretrained(tmp_path / "doubled").state_dict().items():
        scale = 1 if torch.equal(pruned[name], dense.state_dict()[name]) else 2
        assert torch.equal(tensor, scale * pruned[name])
    for name, tensor in dense.state_dict().items():
        matrix = ".layers." in name or ".h." in name
        if matrix and tensor.ndim >= 2 and not name.endswith("_bias") and name not in routers:
            zeros = pruned[name] == 0
            assert torch.equal(pruned[name], tensor.masked_fill(zeros, 0)), name
            assert zeros.float().mean() == pytest.approx(0.5, abs=0.05)
        else:
            assert torch.equal(pruned[name], tensor), name


def test_a_layer_that_is_never_called_is_named_and_stays_dense(tmp_path, caplog):
    """Mamba takes the weight of `dt_proj` and multiplies by itself."""
    model = tiny(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4, pad_token_id=0))
    model.save_pretrained(tmp_path)
    described = describe(tmp_path)
    with caplog.at_level(logging.WARNING):
        grams = next(capture(WeightsOnDisk(described, "cpu"), *FEW, batch_size=2))
    assert any("backbone.layers.0.mixer.dt_proj" in message for message in caplog.messages)
    names = [layer.name for layer in grams.readers(described.blocks[0])]
    assert names == ["mixer.in_proj", "mixer.x_proj", "mixer.out_proj"]


def test_layers_with_one_input_share_one_gram_matrix():
    weights = WeightsInMemory(tiny(MODELS[0]))
    grams, without_held_out = (next(capture(weights, FEW[0], ids, batch_size=2)) for ids in (FEW[1], FEW[1][:0]))
    shared = dict.fromkeys(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], "self_attn.q_proj")
    shared |= dict.fromkeys(["mlp.gate_proj", "mlp.up_proj"], "mlp.gate_proj")
    assert grams.reads == shared | {name: name for name in ("self_attn.o_proj", "mlp.down_proj")}
    assert set(grams.matrix) == set(grams.held_out) == set(grams.reads.values()) == set(without_held_out.matrix)
    assert without_held_out.held_out == {}


def test_infinite_activations_name_their_layer():
    model = tiny(MODELS[0])
    model.model.layers[1].mlp.up_proj.weight.data.fill_(1e38)
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.down_proj"):
        list(capture(WeightsInMemory(model), *FEW, batch_size=2))
