"""Chains of pruned blocks: the order of a block's layers, and targets for dense outputs."""

import copy

import pytest
import torch
from families import FAMILIES, MODELS, families, tiny, tokens

from sparseswaps.calibration.capture import sum_grams
from sparseswaps.calibration.recording import record_inputs
from sparseswaps.calibration.replay import Replay
from sparseswaps.calibration.settings import PrunedInputs
from sparseswaps.layer.dense_target import weights_for_dense_outputs
from sparseswaps.layer.least_squares import least_squares
from sparseswaps.layer.masks import check_mask, keep_best
from sparseswaps.layer.pattern import parse_pattern
from sparseswaps.layer.settings import Reconstruction, RefinementSettings
from sparseswaps.model.blocks import find_blocks, put_weights
from sparseswaps.model.weights import WeightsInMemory
from sparseswaps.pruning.chain import Chain
from sparseswaps.pruning.refine import Refine
from sparseswaps.pruning.warmstart import WarmStart

IDS = tokens(12, 1), tokens(4, 2)
HALF = parse_pattern("50%")
LLAMA = MODELS[0]
GROUPS = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]


def chain_of(model, inputs: PrunedInputs, **reconstruction) -> tuple[Chain, Replay]:
    blocks = find_blocks(model)[1]
    chain = Chain(
        lambda index, layer: layer.view_in(blocks[index].get_parameter(layer.parameter).data).contiguous(),
        lambda _block, _layer: HALF,
        WarmStart("magnitude", None, "rows"),
        Refine(RefinementSettings(max_swaps=0), "rows"),
        Reconstruction(**reconstruction),
        inputs,
    )
    chain.start(replay := Replay(WeightsInMemory(model)), *IDS, 4)
    return chain, replay


def inputs_of(model, index, names, ids):
    """Return what layers of a block read in a plain forward pass, [tokens, d_in], by name."""
    inputs = {}
    modules = {name: model.model.layers[index].get_submodule(name) for name in names}
    hooks = [
        module.register_forward_pre_hook(lambda _module, args, name=name: inputs.update({name: args[0].flatten(0, 1)}))
        for name, module in modules.items()
    ]
    with torch.no_grad():
        model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    return inputs


@pytest.mark.parametrize("target", [0.0, 0.7])
def test_layers_in_order_with_dense_targets_are_those_of_a_plain_loop(target):
    """Each group of layers is fitted on inputs of a model in which all layers before it are pruned."""
    dense = tiny(LLAMA)
    model, plain = copy.deepcopy(dense), copy.deepcopy(dense)
    chain, replay = chain_of(model, PrunedInputs(order="sequential", dense_target=target))
    for index, block in enumerate(plain.model.layers):
        names = [name for name, module in block.named_modules() if isinstance(module, torch.nn.Linear)]
        for group in GROUPS:
            for name in (name for name in names if name.rpartition(".")[2] in group):
                of_dense, of_pruned = (inputs_of(m, index, [name], IDS[0])[name].double() for m in (dense, plain))
                gram, cross = of_pruned.T @ of_pruned, of_dense.T @ of_pruned
                weight = dense.model.layers[index].get_submodule(name).weight
                wanted = weights_for_dense_outputs(weight, gram, cross, target)
                mask = keep_best(wanted.abs(), HALF)
                new = least_squares(wanted, gram.float(), mask, 0.01, 50)
                block.get_submodule(name).weight.data.copy_(new)
        chain.prune_next(replay, index)
    for (name, got), wanted in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-2, atol=1e-3, msg=name)


@families
def test_any_family_in_order_with_dense_targets(config):
    dense = tiny(config)
    model = copy.deepcopy(dense)
    chain, replay = chain_of(model, PrunedInputs(order="sequential", dense_target=0.5), block={"epochs": 1})
    for index, layers in enumerate(WeightsInMemory(dense).layers):
        pruned = chain.prune_next(replay, index)
        assert sorted(pruned.masks) == sorted(layer.name for layer in layers)
        block = find_blocks(model)[1][index]
        for layer in layers:
            weight = layer.view_in(block.get_parameter(layer.parameter))
            check_mask(pruned.masks[layer.name], HALF)
            assert torch.equal(weight, pruned.weights[layer.name])


@pytest.mark.parametrize(
    "config", [MODELS[list(FAMILIES).index(name)] for name in ("llama", "gpt2", "phi3", "qwen3_moe")]
)
def test_products_with_dense_inputs(config):
    """Of what layers read in the dense block, and in a block whose layers lack half of their columns."""
    model = tiny(config)
    weights = WeightsInMemory(model)
    replay = Replay(weights)
    replay.start(*IDS, 4, keep_dense=True)
    block, layers = replay.blocks[0], weights.layers[0]
    dense = copy.deepcopy(block)
    halves = {s.name: s.view_in(dense.get_parameter(s.parameter)) * (torch.arange(s.d_in) % 2) for s in layers}
    put_weights(block, layers, halves)
    grams = sum_grams(replay, 0, dense=dense)
    expected = dict.fromkeys(grams.cross, 0)
    for batch in replay.batches:
        with torch.no_grad(), record_inputs(dense) as of_dense, record_inputs(block) as of_pruned:
            replay.run(dense, batch, 0, batch.dense())
            replay.run(block, batch, 0, batch.hidden())
        for layer in layers:
            if layer.name in expected and not batch.held_out:
                (one,), (other,) = of_dense[layer.matrix], of_pruned[layer.matrix]
                expected[layer.name] += one.flatten(0, -2).double().T @ other.flatten(0, -2).double()
    assert set(expected) == {grams.reads[layer.name] for layer in layers if layer.expert is None}
    assert sorted(grams.order) == sorted(layer.name for layer in layers)
    for name, product in expected.items():
        torch.testing.assert_close(grams.cross[name], product.float(), rtol=1e-4, atol=1e-4)
    assert any(not torch.allclose(product, product.T) for product in expected.values())
    assert sum_grams(replay, 0).cross == {}


def test_layers_of_phi3_are_pruned_in_the_order_of_their_calls():
    """Its module holds the output projection before the projections that come first."""
    model = tiny(MODELS[list(FAMILIES).index("phi3")])
    chain, replay = chain_of(model, PrunedInputs(order="sequential"))
    grams = sum_grams(replay, 0)
    groups = chain._groups(replay.weights.layers[0], grams)
    assert [[layer.name.rpartition(".")[2] for layer in group] for group in groups] == [
        ["qkv_proj"],
        ["o_proj"],
        ["gate_up_proj"],
        ["down_proj"],
    ]
