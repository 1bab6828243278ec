"""Gram matrices of a model's calibration inputs, block by block.

Nothing here knows a model family: every block is run with the arguments that the model itself was seen to give it.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_flatten, tree_map

from sparseswaps.base.errors import InputError
from sparseswaps.base.memory import halve_until_it_fits
from sparseswaps.base.progress import Report, ignore_progress
from sparseswaps.calibration.activations import Keep, in_memory
from sparseswaps.calibration.grams import Grams
from sparseswaps.layer.gram import accumulate, symmetric_gram
from sparseswaps.model.blocks import expert_modules, expert_parameters, find_blocks, linear_layers, put_weights
from sparseswaps.model.layers import Layer
from sparseswaps.model.weights import Weights

Prune = Callable[[int, Grams], dict[str, Tensor]]
Arguments = tuple[tuple, dict]
Matrix = tuple[str, int | None]  # a parameter's name within its block, and which expert's matrix of it
Inputs = dict[Matrix, list[Tensor]]  # what each matrix reads, call by call


class _Reached(Exception):  # noqa: N818
    """Ends a forward pass once what was asked for is known."""


@dataclass
class _Batch:
    """Sequences that are run together.

    Attributes:
        ids: int64 [batch, seqlen].
        held_out: whether they are held-out text.
        arguments: what the model gives each block beside hidden states.
        hidden: brings the input of the block that is next, [batch, seqlen, width].
    """

    ids: Tensor
    held_out: bool
    arguments: list[Arguments]
    hidden: Callable[[], Tensor]


Observe = Callable[[list[tuple[Tensor, bool]]], list[_Batch]]


def capture(
    weights: Weights,
    samples: Tensor,
    held_out: Tensor,
    batch_size: int,
    prune: Prune | None = None,
    keep: Keep = in_memory,
    progress: Report = ignore_progress,
) -> Iterator[Grams]:
    """Gram matrices of the inputs of every prunable layer, block by block.

    Inputs are those of the dense model, or, with `prune`, of a model whose earlier blocks are pruned already: it is
    called with the number of a block and its Gram matrices, and the weights that it returns are put into the block
    before that is run for the inputs of the next.

    One block's weights and Gram matrices are held at a time, and the hidden states of one batch; those of the others
    wait where `keep` puts them. Where the device's memory runs out, batches are halved.

    A layer that the model never calls, but takes the weight of (Mamba's), is named in the log and has no Gram matrix.

    An expert has Gram matrices of its own, over the tokens that are routed to it. One that sees fewer tokens than its
    input has features is given every token of its layer instead (`Grams.unrouted`).

    Args:
        weights: those of a causal language model.
        samples: int64 [samples, seqlen] token ids of the calibration text.
        held_out: int64 [any number, seqlen] token ids of held-out text.
        batch_size: sequences per forward pass.
        prune: the new weights of a block, [d_out, d_in] by layer name, from its number and Gram matrices.
        keep: puts hidden states away.
        progress: is told how many blocks are done, and how many sequences were run through one: each goes through a
            block once, and once more for experts and for `prune`.

    Yields:
        One `Grams` a block, in order, float32 on the model's device.

    Raises:
        InputError: an activation is NaN or infinite (names the layer), or a single sequence is too much for the
            device's memory.
    """
    observe = partial(_observe, weights, _more_than_hidden(weights, samples[:1]))

    def start(size: int) -> list[_Batch]:
        cut = [(ids, False) for ids in samples.split(size)]
        return observe(cut + [(ids, True) for ids in held_out.split(size) if len(ids)], keep)

    batches, _ = halve_until_it_fits(start, batch_size, "sequences", "the calibration's seqlen")
    ran = 0

    def told(blocks: int, sequences: int) -> None:
        nonlocal ran
        ran += sequences
        progress(blocks, ran)

    for index in range(len(weights.layers)):
        # Neither a name nor a decorated generator holds what was yielded while the next Gram matrices are summed.
        yield _of_block(weights, index, batches, observe, prune, keep, told, *samples.shape)


@torch.inference_mode()
def _of_block(
    weights: Weights,
    index: int,
    batches: list[_Batch],
    observe: Observe,
    prune: Prune | None,
    keep: Keep,
    told: Report,
    sequences: int,
    seqlen: int,
) -> Grams:
    """One block's Gram matrices over so many sequences; afterwards the hidden states of the batches are its outputs.

    `told` hears how many blocks are done, and how many sequences were run since.
    """
    prefix, blocks = find_blocks(weights.model)
    block, layers, grams = blocks[index], weights.layers[index], Grams()
    grams.sequences = sequences
    step = partial(_step, weights, block, index, keep)
    add = partial(_add, grams, layers, f"{prefix}.{index}")
    sweep = partial(_sweep, batches, observe, keep, partial(told, index))
    with weights.block(index):
        # A block with experts may have to see its inputs twice, so the first time they are not replaced yet.
        at_once = prune is None and not expert_modules(block)
        sweep(partial(step, add=partial(add, set()), advance=at_once))
        advanced = at_once
        if few := _forget_starved(grams, layers):
            advanced = prune is None
            sweep(partial(step, add=partial(add, few), unrouted=few, advance=advanced))
        _leave_dense(grams, layers, f"{prefix}.{index}", sequences * seqlen)
        for totals in (grams.matrix, grams.held_out):
            for name in list(totals):
                totals[name] = symmetric_gram(totals.pop(name))
        if prune is not None:
            put_weights(block, layers, prune(index, grams))
        if not advanced:
            sweep(partial(step, advance=True))
    told(index + 1, 0)
    return grams


@torch.inference_mode()
def _more_than_hidden(weights: Weights, ids: Tensor) -> tuple | None:
    """What a block returns in a tuple after hidden states; None when it returns nothing but these."""
    found = []

    def note(_module: nn.Module, _args: tuple, output: Any) -> None:
        found.append(output[1:] if isinstance(output, tuple | list) else None)
        raise _Reached

    _, blocks = find_blocks(weights.model)
    hook = blocks[0].register_forward_hook(note)
    with weights.stem(), weights.block(0), _noting(blocks[0]), suppress(_Reached):
        weights.model(input_ids=ids.to(weights.device), use_cache=False)
    hook.remove()
    return found[0]


@torch.inference_mode()
def _observe(
    weights: Weights, more: tuple | None, batches: list[tuple[Tensor, bool]], keep: Keep = lambda _: None
) -> list[_Batch]:
    """What the model gives its blocks for token ids [batch, seqlen]: the first one's hidden states, and the other
    arguments of each.

    These arguments (masks, position tables) depend on the batch's shape alone, as a rule, and are then kept once.

    Raises:
        InputError: blocks cannot be run one by one, since the model does something between them, or gives them
            arguments that depend on hidden states.
    """
    found, of_shape = [], {}
    with weights.stem():
        for ids, held_out in batches:
            hidden, arguments = _seen(weights, more, ids)
            if ids.shape not in of_shape:
                of_shape[ids.shape] = arguments
                _, others = _seen(weights, more, ids, lambda states: states * 1.5 + 0.25)
                if not all(_same(*pair) for pair in zip(arguments, others, strict=True)):
                    name = type(weights.model).__name__
                    raise InputError(f"{name}: what it gives its blocks depends on hidden states; it cannot be pruned")
            known = zip(of_shape[ids.shape], arguments, strict=True)
            arguments = [one if _same(one, other) else tree_map(_to("cpu"), other) for one, other in known]
            found.append(_Batch(ids, held_out, arguments, keep(hidden)))
    return found


def _seen(
    weights: Weights, more: tuple | None, ids: Tensor, change: Callable[[Tensor], Tensor] = lambda states: states
) -> tuple[Tensor, list[Arguments]]:
    """The first block's hidden states and all blocks' other arguments. No block is run for it: each hands on what it
    was given, changed in a way that tells whether arguments depend on it."""
    model, (prefix, blocks) = weights.model, find_blocks(weights.model)
    first: list[Tensor] = []
    last: list[Tensor] = []
    seen: dict[int, Arguments] = {}

    def hand_on(index: int, *args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        if not seen:
            first.append(given)
        elif given is not last[0] and not _same(given, last[0]):
            raise InputError(f"{prefix}.{index}: is not given what the block before it returns; it cannot be pruned")
        seen[index] = _with_hidden((args, kwargs), None)
        if index == len(blocks) - 1:
            raise _Reached
        last[:] = [change(given)]
        return last[0] if more is None else (last[0], *more)

    with ExitStack() as forwards:
        for index, block in enumerate(blocks):
            forwards.enter_context(_instead(block, partial(hand_on, index)))
        with suppress(_Reached):
            model(input_ids=ids.to(weights.device), use_cache=False)
    if len(seen) < len(blocks):
        raise InputError(f"{prefix}.{min(set(range(len(blocks))) - set(seen))}: the model never runs it")
    return first[0], [seen[index] for index in range(len(blocks))]


@contextmanager
def _instead(module: nn.Module, forward: Callable) -> Iterator[None]:
    """A module with another forward pass."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _with_hidden(arguments: Arguments, hidden: Tensor | None) -> Arguments:
    """A block's arguments with its hidden states [batch, seqlen, width] replaced."""
    args, kwargs = arguments
    if args:
        return (hidden, *args[1:]), kwargs
    return (), {**kwargs, "hidden_states": hidden}


_PLAIN = (type(None), bool, int, float, str)


def _same(some: Any, others: Any) -> bool:
    """Whether two trees of arguments hold the same plain values and equal tensors at the same places; other objects,
    by which blocks may hand things to each other, are never the same."""
    (some, shape), (others, other) = tree_flatten(some), tree_flatten(others)
    if shape != other:
        return False
    pairs = zip(some, others, strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else isinstance(a, _PLAIN) and a == b for a, b in pairs)


def _to(device: Any) -> Callable[[Any], Any]:
    return lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf


def _sweep(
    batches: list[_Batch], observe: Observe, keep: Keep, told: Callable[[int], None], step: Callable[[_Batch], None]
) -> None:
    """Do a step with every batch, and tell how many sequences it has; halve all of them, in place, whenever one is too
    large for the device's memory."""
    position = 0

    def attempt(size: int) -> None:
        nonlocal position
        if len(batches[position].ids) > size:
            pieces = _cut(batches, size, observe, keep)  # may itself need more memory than there is
            position = sum(-(-len(batch.ids) // size) for batch in batches[:position])
            batches[:] = pieces
        step(batches[position])

    while position < len(batches):
        halve_until_it_fits(attempt, len(batches[position].ids), "sequences", "the calibration's seqlen")
        told(len(batches[position].ids))
        position += 1


def _cut(batches: list[_Batch], size: int, observe: Observe, keep: Keep) -> list[_Batch]:
    """The same sequences, `size` at a time at most, with what the model gives its blocks for as many."""
    pieces, hidden = [], []
    for batch in batches:
        pieces += [(ids, batch.held_out) for ids in batch.ids.split(size)]
        hidden += batch.hidden().split(size)
    found = observe(pieces)
    for batch, states in zip(found, hidden, strict=True):
        batch.hidden = keep(states)
    return found


def _step(
    weights: Weights,
    block: nn.Module,
    index: int,
    keep: Keep,
    batch: _Batch,
    add: Callable[[_Batch, Inputs], None] | None = None,
    unrouted: set[Matrix] = frozenset(),
    advance: bool = False,
) -> None:
    """Run a block on a batch, hand the inputs of its matrices to `add`, put its output in the place of its input."""
    args, kwargs = _with_hidden(batch.arguments[index], batch.hidden())
    args, kwargs = tree_map(_to(weights.device), (args, kwargs))
    with _noting(block, unrouted) as inputs:
        output = block(*args, **kwargs)
    if add is not None:
        add(batch, inputs)
    if advance:
        batch.hidden = keep(output[0] if isinstance(output, tuple | list) else output)


@contextmanager
def _noting(block: nn.Module, unrouted: set[Matrix] = frozenset()) -> Iterator[Inputs]:
    """What the matrices of a block read, while it is run; experts are run in a way that shows it."""
    inputs: Inputs = {}
    with ExitStack() as hooks:
        for name, layer in linear_layers(block).items():
            note = partial(_note, inputs, (f"{name}.weight", None))
            hooks.callback(layer.register_forward_pre_hook(note, with_kwargs=True).remove)
        for name, experts in expert_modules(block).items():
            hooks.enter_context(_instead(experts, partial(_run_experts, experts, name, inputs, unrouted)))
        yield inputs


def _note(inputs: Inputs, matrix: Matrix, _module: nn.Module, args: tuple, kwargs: dict) -> None:
    inputs.setdefault(matrix, []).append(args[0] if args else next(iter(kwargs.values())))


def _run_experts(
    experts: nn.Module,
    name: str,
    inputs: Inputs,
    unrouted: set[Matrix],
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
) -> Tensor:
    """The forward pass of transformers' fused experts, one expert at a time, with the inputs of each noted.

    Args:
        experts: a module of `expert_modules`.
        name: its name within the block.
        inputs: takes the inputs.
        unrouted: the matrices whose input is noted over all tokens.
        hidden_states: [tokens, width].
        top_k_index, top_k_weights: [tokens, experts per token].
    """
    first, last = expert_parameters(experts)

    def project(parameter: str, expert: int, x: Tensor) -> Tensor:
        weight = getattr(experts, parameter)[expert]
        bias = getattr(experts, f"{parameter}_bias")[expert] if experts.has_bias else None
        return functional.linear(x, weight.T if experts.is_transposed else weight, bias)

    def between(expert: int, x: Tensor) -> Tensor:
        up = project(first, expert, x)
        return experts._apply_gate(up) if experts.has_gate else experts.act_fn(up)

    output = torch.zeros_like(hidden_states)
    for expert in range(experts.num_experts):
        token, slot = (top_k_index == expert).nonzero(as_tuple=True)
        routed = hidden_states[token]
        inner = between(expert, routed)
        read = {(f"{name}.{first}", expert): routed, (f"{name}.{last}", expert): inner}
        found = project(last, expert, inner)
        if experts.has_post_expert_norm:
            found = experts.post_expert_norm(found)
        output.index_add_(0, token, (found * top_k_weights[token, slot, None]).to(output.dtype))
        if not unrouted.isdisjoint(read):
            read = {(f"{name}.{first}", expert): hidden_states}
            read[f"{name}.{last}", expert] = between(expert, hidden_states)
        for matrix, x in read.items():
            inputs.setdefault(matrix, []).append(x)
    return output


def _add(grams: Grams, layers: list[Layer], place: str, only: set[Matrix], batch: _Batch, inputs: Inputs) -> None:
    """Add one batch's Gram matrices, or some of them; layers that were given the same tensor share one."""
    first: dict[Any, str] = {}
    for layer in layers:
        if layer.matrix in inputs:
            reader = first.setdefault(layer.matrix, layer.name)
            # All inputs are alive at once, so equal addresses mean the same tensor; an empty one has no address.
            address = tuple((x.data_ptr(), x.shape, x.stride()) for x in inputs[layer.matrix] if x.numel())
            grams.reads.setdefault(layer.name, first.setdefault(address, reader) if address else reader)
    totals = grams.held_out if batch.held_out else grams.matrix
    distinct = [layer for layer in layers if grams.reads.get(layer.name) == layer.name and layer.matrix in inputs]
    distinct = [layer for layer in distinct if not only or layer.matrix in only]
    for layer in distinct:  # before anything is added: where memory runs out here, the batch can be tried again
        if layer.name not in totals:
            device = inputs[layer.matrix][0].device
            totals[layer.name] = torch.zeros(layer.d_in, layer.d_in, dtype=torch.float64, device=device)
    for layer in distinct:
        for x in inputs[layer.matrix]:
            accumulate(totals[layer.name], x)
            if not batch.held_out:
                grams.tokens[layer.name] = grams.tokens.get(layer.name, 0) + x.shape[:-1].numel()
                sums = x.reshape(-1, layer.d_in).sum(0, dtype=torch.float64)
                grams.sums[layer.name] = sums + grams.sums.get(layer.name, 0)
        if not totals[layer.name].diagonal().isfinite().all():
            raise InputError(f"{place}.{layer.name}: an input activation is NaN or Inf; check the model and its dtype")


def _leave_dense(grams: Grams, layers: list[Layer], place: str, tokens: int) -> None:
    """Name the layers that cannot be calibrated, and forget what was seen of them: those whose weight the model takes
    without calling them, and those that it calls for too few of the `tokens`."""
    for layer in layers:
        source = grams.reads.get(layer.name)
        if source is None:
            logging.warning("%s.%s: never called with an input of its own, left dense", place, layer.name)
        elif grams.tokens.get(source, 0) < min(layer.d_in, tokens):
            logging.warning("%s.%s: sees %d tokens, left dense", place, layer.name, grams.tokens.get(source, 0))
            del grams.reads[layer.name]
    for kept in (grams.matrix, grams.held_out, grams.sums, grams.tokens):
        for name in set(kept) - set(grams.reads.values()):
            del kept[name]


def _forget_starved(grams: Grams, layers: list[Layer]) -> set[Matrix]:
    """The experts' matrices that saw fewer tokens than they have features; what was added of them is dropped."""
    found = set()
    for layer in layers:
        if layer.expert is not None and grams.tokens.get(layer.name, layer.d_in) < layer.d_in:
            found.add(layer.matrix)
            grams.unrouted.append(layer.name)
            for kept in (grams.matrix, grams.held_out, grams.sums, grams.tokens):
                kept.pop(layer.name, None)
    return found
