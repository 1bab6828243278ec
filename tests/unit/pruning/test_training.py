"""Block reconstruction, beside plain forward passes of the models and a plain loop in torch."""

import copy
import logging

import pytest
import torch
from families import MODELS, families, outputs_of_blocks, tiny, tokens

from sparseswaps.calibration.replay import Replay
from sparseswaps.calibration.settings import PrunedInputs
from sparseswaps.layer.masks import check_mask
from sparseswaps.layer.pattern import Pattern, parse_pattern
from sparseswaps.layer.settings import Reconstruction, RefinementSettings
from sparseswaps.model.blocks import find_blocks
from sparseswaps.model.weights import WeightsInMemory
from sparseswaps.pruning.block import PrunedBlock
from sparseswaps.pruning.chain import Chain
from sparseswaps.pruning.refine import Refine
from sparseswaps.pruning.warmstart import WarmStart

IDS = tokens(24, 1), tokens(8, 2)  # calibration and held-out text
LLAMA = MODELS[0]


def prune_blocks(model, pattern: Pattern, batch_size=8, ids=IDS, **block) -> list[PrunedBlock]:
    """Prune all blocks of a model in place, with training."""
    reconstruction = Reconstruction(method=block.pop("method", "least_squares"), block=block)
    weights = WeightsInMemory(model)
    blocks = find_blocks(model)[1]
    chain = Chain(
        lambda index, layer: layer.view_in(blocks[index].get_parameter(layer.parameter).data).contiguous(),
        lambda _block, _layer: pattern,
        WarmStart("wanda", None, "rows"),
        Refine(RefinementSettings(), "rows"),
        reconstruction,
        PrunedInputs(),
    )
    chain.start(replay := Replay(weights), *ids, batch_size)
    return [chain.prune_next(replay, index) for index in range(len(blocks))]


@families
def test_a_trained_block_keeps_its_pattern_and_the_errors_are_those_of_plain_forward_passes(config):
    dense, pattern = tiny(config), parse_pattern("2:4")
    model = copy.deepcopy(dense)
    pruned = prune_blocks(model, pattern, epochs=3, levels=3, learning_rate=0.01)
    errors = [
        ((got - wanted).square().sum() / wanted.square().sum()).item()
        for got, wanted in zip(outputs_of_blocks(model, IDS[1]), outputs_of_blocks(dense, IDS[1]), strict=True)
    ]
    for block, layers, error in zip(pruned, WeightsInMemory(model).layers, errors, strict=True):
        module = find_blocks(model)[1][block.epochs[0]["block"]]
        for layer in layers:
            weight, mask = layer.view_in(module.get_parameter(layer.parameter)), block.masks[layer.name]
            check_mask(mask, pattern)
            assert not weight[~mask].any()
            assert torch.equal(weight, block.weights[layer.name])
        assert [row["epoch"] for row in block.epochs] == [0, 1, 2, 3]
        final = [row["held_out"] for row in block.epochs if row["level"] == 3]
        assert min(final) == pytest.approx(error, rel=1e-3)
        assert block.epochs[3]["error"] < block.epochs[2]["error"]  # both of 2:4; the first epoch begins with 3:4


def train_plainly(model, dense, masks, ids, epochs, rate, sequences):
    """Train all blocks of a Llama as the module does, in a few lines; the weights are masked already."""
    for index, block in enumerate(model.model.layers):
        hidden = model.model.embed_tokens(ids) if index == 0 else outputs_of_blocks(model, ids)[index - 1]
        targets = outputs_of_blocks(dense, ids)[index]
        weights = {name: block.get_parameter(name).requires_grad_(True) for name in masks[index]}
        position = torch.arange(ids.shape[1])[None]
        rotary = model.model.rotary_emb(hidden, position)
        dense_weights = [dense.model.layers[index].get_parameter(name) for name in weights]
        rates = [rate * weight.square().mean().sqrt().item() for weight in dense_weights]
        adam = torch.optim.Adam([{"params": [weight]} for weight in weights.values()], betas=(0.9, 0.95))
        generator = torch.Generator().manual_seed(index)
        groups, step = len(ids) // sequences, 0
        for _ in range(epochs):
            for group in torch.randperm(groups, generator=generator).tolist():
                part = slice(group * sequences, (group + 1) * sequences)
                output = block(hidden[part].detach(), position_embeddings=rotary, attention_mask=None)
                loss = (output - targets[part]).square().mean() / targets.square().mean()
                adam.zero_grad()
                loss.backward()
                for name, weight in weights.items():
                    weight.grad[~masks[index][name]] = 0
                for options, one in zip(adam.param_groups, rates, strict=True):
                    options["lr"] = one * (1 - step / (epochs * groups))
                adam.step()
                step += 1
        for weight in weights.values():
            weight.requires_grad_(False)


def test_training_is_that_of_a_plain_loop():
    dense = tiny(LLAMA)
    for parameter in dense.parameters():
        parameter.requires_grad_(False)
    model, plain = copy.deepcopy(dense), copy.deepcopy(dense)
    ids = IDS[0], IDS[1][:0]  # without held-out text, the last epoch is kept
    # The plain loop starts with the masks of the training: Wanda's and swaps', from the inputs of trained blocks.
    pruned = prune_blocks(model, parse_pattern("50%"), ids=ids, method="none", epochs=2, learning_rate=0.01)
    masks = [{f"{name}.weight": mask for name, mask in block.masks.items()} for block in pruned]
    for block, masks_of_block in zip(plain.model.layers, masks, strict=True):
        for name, mask in masks_of_block.items():
            block.get_parameter(name).data.masked_fill_(~mask, 0)
    train_plainly(plain, dense, masks, ids[0], 2, 0.01, 8)
    for (name, got), wanted in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-5, msg=name)


def test_running_out_of_memory_halves_the_batches_of_a_step_and_changes_nothing_else(caplog):
    model = tiny(LLAMA)
    expected = prune_blocks(copy.deepcopy(model), parse_pattern("50%"), epochs=2, levels=3)
    most = 2

    def fail(_module, args):
        if torch.is_grad_enabled() and len(args[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    for block in model.model.layers:
        block.mlp.down_proj.register_forward_pre_hook(fail)
    with caplog.at_level(logging.WARNING):
        halved = prune_blocks(model, parse_pattern("50%"), epochs=2, levels=3)
    assert len([line for line in caplog.messages if "out of memory" in line]) == 2  # 8 sequences, then 4
    for one, other in zip(halved, expected, strict=True):
        for name, weight in one.weights.items():
            torch.testing.assert_close(weight, other.weights[name], rtol=1e-3, atol=1e-4)


def test_the_epoch_of_least_error_on_held_out_text_is_kept():
    """A learning rate that is too high makes every epoch worse than the fitted weights."""
    model = tiny(LLAMA)
    fitted = prune_blocks(copy.deepcopy(model), parse_pattern("50%"), epochs=1, learning_rate=1e-30)
    for block, start in zip(
        prune_blocks(model, parse_pattern("50%"), epochs=2, learning_rate=10.0), fitted, strict=True
    ):
        assert min(row["held_out"] for row in block.epochs) == block.epochs[0]["held_out"]
        for name, weight in block.weights.items():
            torch.testing.assert_close(weight, start.weights[name])


def test_weights_in_bfloat16_are_trained_in_float32():
    """Steps that are lost in the rounding of a bfloat16 weight add up."""
    model = tiny(LLAMA).bfloat16()
    pruned = prune_blocks(model, parse_pattern("50%"), epochs=4, learning_rate=1e-3)
    for block in pruned:
        assert block.epochs[-1]["error"] < block.epochs[0]["error"]
        assert {weight.dtype for weight in block.weights.values()} == {torch.bfloat16}


def test_figures_of_a_trained_layer_are_those_of_its_dense_weights():
    model = tiny(LLAMA)
    dense = copy.deepcopy(model)
    first = prune_blocks(model, parse_pattern("50%"), epochs=1, levels=2)[0]
    untrained = prune_blocks(copy.deepcopy(dense), parse_pattern("50%"), epochs=1, learning_rate=1e-30)[0]
    read = dense.model.layers[0].input_layernorm(dense.model.embed_tokens(IDS[0])).flatten(0, 1)
    for row, one, layer in zip(first.losses, untrained.losses, WeightsInMemory(dense).layers[0], strict=True):
        assert row["loss_before"] == one["loss_before"]  # of Wanda's mask of the dense weights
        assert row["kept"] == layer.d_out * layer.d_in // 2
        assert row["swaps"] > 0
        if layer.name.endswith(("q_proj", "k_proj", "v_proj")):
            change = layer.view_in(dense.model.layers[0].get_parameter(layer.parameter)) - first.weights[layer.name]
            assert row["loss_after"] == pytest.approx((read @ change.T).square().sum().item(), rel=1e-4)


class EveryOther(torch.nn.Module):
    """An MLP whose layer is called for batches of one half of the texts only."""

    def __init__(self, width):
        super().__init__()
        self.layer = torch.nn.Linear(width, width, bias=False)

    def forward(self, x):
        return self.layer(x) if x[:, 0, 0].sum() > 0 else x


def test_training_leaves_gradients_as_they_are_and_needs_no_layer_in_every_step():
    model = tiny(LLAMA)
    model.model.layers[0].mlp = EveryOther(16)
    frozen = model.model.layers[1].mlp.up_proj.weight.requires_grad_(False)
    pruned = prune_blocks(model, parse_pattern("50%"), batch_size=2, epochs=1, sequences=2)
    assert "mlp.layer" in pruned[0].weights
    assert [parameter for parameter in model.parameters() if not parameter.requires_grad] == [frozen]
    assert all(parameter.grad is None for parameter in model.parameters())
