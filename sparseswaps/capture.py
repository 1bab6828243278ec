"""Gram matrices of a model's calibration inputs, block by block.

Nothing here knows a model family: every block is run with the arguments that the model itself was seen to give it.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparseswaps.blocks import find_blocks, prunable_layers, put_masks
from sparseswaps.errors import InputError
from sparseswaps.gram import Grams, accumulate

Prune = Callable[[int, Grams], dict[str, Tensor]]


class _Reached(Exception):  # noqa: N818
    """Ends a forward pass once the inputs that were asked for are known."""


def _observe(
    model: PreTrainedModel, blocks: nn.ModuleList, ids: Tensor, only_first: bool
) -> tuple[Tensor, list[tuple[tuple, dict]]]:
    """What the model gives its blocks for `ids` [batch, seqlen]: the first one's hidden states, and the other
    positional and keyword arguments of each."""
    hidden: list[Tensor] = []
    seen: list[tuple[tuple, dict]] = []

    def note(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        if not seen:
            hidden.append(args[0] if args else kwargs["hidden_states"])
        seen.append(_with_hidden((args, kwargs), None))  # later blocks' hidden states are not kept
        if only_first or len(seen) == len(blocks):
            raise _Reached

    with ExitStack() as hooks:
        for block in blocks:
            hooks.callback(block.register_forward_pre_hook(note, with_kwargs=True).remove)
        with suppress(_Reached):
            model(input_ids=ids, use_cache=False)
    return hidden[0], seen


def _with_hidden(arguments: tuple[tuple, dict], hidden: Tensor | None) -> tuple[tuple, dict]:
    """A block's arguments with its hidden states [batch, seqlen, width] replaced."""
    args, kwargs = arguments
    if args:
        return (hidden, *args[1:]), kwargs
    return (), {**kwargs, "hidden_states": hidden}


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@torch.inference_mode()
def capture(
    model: PreTrainedModel, samples: Tensor, held_out: Tensor, batch_size: int, prune: Prune | None = None
) -> Iterator[Grams]:
    """Gram matrices of the inputs of every linear layer, block by block.

    Inputs are those of the dense model, or, with `prune`, of a model whose earlier blocks are pruned already: it is
    called with the number of a block and its Gram matrices, and the masks that it returns are put on the block's
    weights, in place, before the block is run for the inputs of the next.

    Only one block's Gram matrices and the hidden states of all samples are held at a time; hidden states wait on the
    CPU.

    Args:
        model: a causal language model in eval mode, on the device that is to compute.
        samples: int64 [samples, seqlen] token ids of the calibration text.
        held_out: int64 [any number, seqlen] token ids of held-out text.
        batch_size: sequences per forward pass.
        prune: the masks of a block, boolean [d_out, d_in] by layer name, from its number and Gram matrices.

    Yields:
        One `Grams` a block, in order, on the model's device.

    Raises:
        InputError: an activation is NaN or infinite, or the model never calls a layer; names the layer.
    """
    prefix, blocks = find_blocks(model)
    batches = [(ids, False) for ids in samples.split(batch_size)]
    batches += [(ids, True) for ids in held_out.split(batch_size) if len(ids)]
    # A block's other arguments (masks, position tables) depend on the batch's shape alone, but differ between blocks.
    arguments: dict[int, list[tuple[tuple, dict]]] = {}
    hidden: list[Tensor] = []
    for ids, _ in batches:
        first, seen = _observe(model, blocks, ids.to(model.device), only_first=len(ids) in arguments)
        arguments.setdefault(len(ids), seen)
        hidden.append(first.cpu())
    for index, block in enumerate(blocks):
        grams = Grams()
        for position, (ids, is_held_out) in enumerate(batches):
            args, kwargs = _with_hidden(arguments[len(ids)][index], hidden[position].to(model.device))
            inputs: dict[str, Tensor] = {}
            with ExitStack() as hooks:
                for name, layer in prunable_layers(block).items():
                    hook = _recorder(inputs, name)
                    hooks.callback(layer.register_forward_pre_hook(hook).remove)
                output = _first(block(*args, **kwargs))
            if prune is None:
                hidden[position] = output.cpu()
            for name in prunable_layers(block):
                if name not in inputs:
                    raise InputError(f"{prefix}.{index}.{name}: the model never calls it, so it cannot be calibrated")
            _add(grams, inputs, is_held_out, f"{prefix}.{index}")
        for totals in (grams.matrix, grams.held_out):
            for name, total in totals.items():  # the rounding of a device's matrix product need not be symmetric
                totals[name] = (total + total.T) / 2
        if prune is not None:
            put_masks(block, prune(index, grams))
            for position, (ids, _) in enumerate(batches):
                args, kwargs = _with_hidden(arguments[len(ids)][index], hidden[position].to(model.device))
                hidden[position] = _first(block(*args, **kwargs)).cpu()
        yield grams


def _recorder(inputs: dict[str, Tensor], name: str) -> Any:
    def record(_module: nn.Module, args: tuple) -> None:
        inputs[name] = args[0]

    return record


def _add(grams: Grams, inputs: dict[str, Tensor], is_held_out: bool, block: str) -> None:
    """Add one batch's Gram matrices; layers that were given the same tensor share one."""
    if not grams.reads:
        first: dict[tuple, str] = {}
        for name, x in inputs.items():  # all alive at once, so equal addresses mean the same tensor
            grams.reads[name] = first.setdefault((x.data_ptr(), x.shape, x.stride()), name)
    totals = grams.held_out if is_held_out else grams.matrix
    for name in dict.fromkeys(grams.reads.values()):
        x = inputs[name]
        if name not in totals:
            totals[name] = torch.zeros(x.shape[-1], x.shape[-1], dtype=torch.float64, device=x.device)
        accumulate(totals[name], x)
        if not totals[name].diagonal().isfinite().all():
            raise InputError(f"{block}.{name}: an input activation is NaN or Inf; check the model and its dtype")
