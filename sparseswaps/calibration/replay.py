"""The decoder blocks of a model of any family, run one by one with the arguments that the model gives them."""

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from sparseswaps.base.errors import InputError
from sparseswaps.base.memory import halve_until_it_fits
from sparseswaps.base.progress import Report, ignore_progress
from sparseswaps.calibration.activations import Keep, Load, keep_in_memory
from sparseswaps.calibration.grams import MatrixInputs
from sparseswaps.calibration.recording import record_inputs, replace_forward
from sparseswaps.model.blocks import find_blocks
from sparseswaps.model.layers import Matrix
from sparseswaps.model.weights import Weights

Arguments = tuple[tuple, dict]
# Takes what matrices read for a batch, whether it is held-out text, and what matrices of the dense block read.
Record = Callable[[MatrixInputs, bool, MatrixInputs | None], None]


@dataclass
class Batch:
    """Sequences that are run together."""

    ids: Tensor  # int64 [batch, seqlen]
    held_out: bool = False
    hidden: Load | None = None  # loads the input of the next block, [batch, seqlen, width]; None until it is observed
    dense: Load | None = None  # the same of the dense model, where a chain of pruned blocks keeps it
    arguments: list[Arguments] = field(default_factory=list)  # of each block, beside hidden states, once observed


class Replay:
    """Runs a model's decoder blocks one by one. If the device's memory runs out, all batches are halved.

    `start`, `resume` or `observe` gives the batches. The arguments and errors are those of `capture`.
    """

    def __init__(self, weights: Weights, keep: Keep = keep_in_memory, progress: Report = ignore_progress) -> None:
        self.weights, self.keep, self.progress = weights, keep, progress
        self.prefix, self.blocks = find_blocks(weights.model)
        self.batches: list[Batch] = []
        self.sequences_run = 0  # through a block; a sequence counts once for each run
        self.extra_outputs: tuple | None = None  # what a block returns after hidden states
        self._position = 0  # of the batch that a block is run on

    def start(self, samples: Tensor, held_out: Tensor, batch_size: int, keep_dense: bool = False) -> None:
        """Observe what the model gives its blocks; the first block is next. `keep_dense` also keeps dense states."""

        def observe(size: int) -> None:
            batches = [Batch(ids) for ids in samples.split(size)]
            self.observe(batches + [Batch(ids, held_out=True) for ids in held_out.split(size) if len(ids)])

        halve_until_it_fits(observe, batch_size, "sequences", "the calibration's seqlen")
        if keep_dense:
            for batch in self.batches:
                batch.dense = batch.hidden

    def resume(self, batches: Iterable[tuple[Tensor, bool, Tensor, Tensor | None]]) -> None:
        """Go on from the batches of another replay: token ids, whether held out, hidden states, dense hidden states."""
        self.observe(
            [
                Batch(ids, held_out, self.keep(hidden), None if dense is None else self.keep(dense))
                for ids, held_out, hidden, dense in batches
            ]
        )

    def run_model(self, ids: Tensor) -> None:
        """Run the model on token ids [batch, seqlen], until a `_Stopped`."""
        self.weights.model(input_ids=ids.to(self.weights.device), use_cache=False)

    def _observe_extra_outputs(self, ids: Tensor) -> tuple | None:
        """Return what the first block returns in a tuple after hidden states; None if it returns only these."""
        hook = self.blocks[0].register_forward_hook(_stop)
        try:
            with self.weights.stem(), self.weights.block(0), record_inputs(self.blocks[0]):
                self.run_model(ids)
        except _Stopped as stopped:
            (output,) = stopped.args
            return output[1:] if isinstance(output, tuple | list) else None
        finally:
            hook.remove()

    @torch.no_grad()
    def observe(self, batches: list[Batch]) -> None:
        """Observe what the model gives its blocks for batches, and run the blocks on these batches from now on.

        Batches without hidden states get those of the first block. The other arguments of blocks (masks, position
        tables) usually depend only on the batch's shape, and are then kept once. Raises InputError when blocks cannot
        be run one by one: the model changes hidden states between them, or gives arguments that depend on them.
        """
        if not self.batches:
            self.extra_outputs = self._observe_extra_outputs(batches[0].ids[:1])
        known: dict[torch.Size, list[Arguments]] = {}  # the arguments by the shape of a batch
        with self.weights.stem():
            for batch in batches:
                ids = batch.ids
                probe = _Probe(self, ids)
                if ids.shape not in known:
                    known[ids.shape] = probe.arguments
                    if not all(map(_same, probe.arguments, _Probe(self, ids, disturb=True).arguments)):
                        name = type(self.weights.model).__name__
                        raise InputError(f"{name}: what its blocks get depends on hidden states; it cannot be pruned")
                pairs = zip(known[ids.shape], probe.arguments, strict=True)
                batch.arguments = [one if _same(one, other) else _to_device("cpu", other) for one, other in pairs]
                batch.hidden = batch.hidden or self.keep(probe.hidden)
        self.batches = batches

    def run_block(
        self,
        index: int,
        record: Record | None = None,
        unrouted: set[Matrix] = frozenset(),
        advance: bool = False,
        dense: nn.Module | None = None,
    ) -> None:
        """Run a block, whose weights are on the device, on every batch.

        `unrouted` are the experts' matrices whose input is recorded over all tokens of their layer. `advance` puts the
        block's output in the place of its input, for the next block. `dense` is the block with its dense weights, and
        is run on the dense model's hidden states beside it, so that both are recorded.
        """

        def run(batch: Batch) -> None:
            of_dense = None
            if dense is not None:
                with record_inputs(dense) as of_dense:
                    self.run(dense, batch, index, batch.dense())
            with record_inputs(self.blocks[index], unrouted) as inputs:
                output = self.run(self.blocks[index], batch, index, batch.hidden())
            if record is not None:
                record(inputs, batch.held_out, of_dense)
            if advance:
                batch.hidden = self.keep(output)

        self.run_batches(index, run)

    def advance(self, index: int) -> None:
        """Put the output of a block in the place of its input, on every batch, by the block's own code alone."""

        def run(batch: Batch) -> None:
            batch.hidden = self.keep(self.run(self.blocks[index], batch, index, batch.hidden()))

        self.run_batches(index, run)

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [tokens, vocabulary] of the last block's outputs [tokens, width].

        The model's own code computes them, with stand-ins for embeddings and blocks, so a family's last norm and scaled
        logits are right. All else must be on the device (`weights.ends`).
        """
        states, embeddings = hidden.to(self.weights.device)[None], self.weights.model.get_input_embeddings()
        output = states if self.extra_outputs is None else (states, *self.extra_outputs)
        ids = torch.zeros(states.shape[:2], dtype=torch.int64, device=self.weights.device)
        embedded = states.new_zeros(*ids.shape, embeddings.weight.shape[1])
        with ExitStack() as stack:
            stack.enter_context(replace_forward(embeddings, lambda _ids: embedded))
            for block in self.blocks:
                stack.enter_context(replace_forward(block, lambda *_args, **_kwargs: output))
            return self.weights.model(input_ids=ids, use_cache=False).logits[0]

    def advance_dense(self, index: int, block: nn.Module) -> None:
        """Put the output of a block with dense weights in the place of the dense model's hidden states."""

        def run(batch: Batch) -> None:
            with record_inputs(block):
                batch.dense = self.keep(self.run(block, batch, index, batch.dense()))

        self.run_batches(index, run)

    def run(self, block: nn.Module, batch: Batch, index: int, hidden: Tensor) -> Tensor:
        """Return the output of block `index`, or of its copy, [batch, seqlen, width], for hidden states of a batch."""
        args, kwargs = _to_device(self.weights.device, _replace_hidden(batch.arguments[index], hidden))
        output = block(*args, **kwargs)
        return output[0] if isinstance(output, tuple | list) else output

    @torch.no_grad()
    def run_batches(self, index: int, run: Callable[[Batch], None]) -> None:
        """Call `run` for every batch, and report progress as that of block `index`. A failed call changes nothing."""

        def attempt(size: int) -> None:
            if size < len(self.batches[self._position].ids):
                self.split_batches(size)
            run(self.batches[self._position])

        self._position = 0
        while self._position < len(self.batches):
            size = len(self.batches[self._position].ids)
            halve_until_it_fits(attempt, size, "sequences", "the calibration's seqlen")
            self.sequences_run += len(self.batches[self._position].ids)
            self.progress(index, self.sequences_run)
            self._position += 1

    def split_batches(self, size: int) -> None:
        """Split all batches into batches of `size` sequences at most. Changes nothing if memory runs out."""
        parts: list[Batch] = []
        for batch in self.batches:
            ids, hidden = batch.ids.split(size), map(self.keep, batch.hidden().split(size))
            dense = map(self.keep, batch.dense().split(size)) if batch.dense else repeat(None)
            parts += map(Batch, ids, repeat(batch.held_out), hidden, dense)
        position = sum(math.ceil(len(batch.ids) / size) for batch in self.batches[: self._position])
        self.observe(parts)
        self._position = position


class _Stopped(Exception):  # noqa: N818
    """Ends a forward pass early, with the output of the module that ended it."""


def _stop(_module: nn.Module, _args: tuple, output: Any) -> None:
    raise _Stopped(output)


class _Probe:
    """Stands in for all blocks in one forward pass, and notes what they are given; `disturb` changes hidden states."""

    def __init__(self, replay: Replay, ids: Tensor, disturb: bool = False) -> None:
        self.replay, self.disturb = replay, disturb
        self.hidden: Tensor | None = None  # the first block's hidden states
        self.arguments: list[Arguments] = []  # the other arguments of each block
        self._returned: Tensor | None = None  # the hidden states that the block before returned
        with ExitStack() as stack:
            for index, block in enumerate(replay.blocks):
                stack.enter_context(replace_forward(block, partial(self.forward, index)))
            with suppress(_Stopped):
                replay.run_model(ids)
        if len(self.arguments) < len(replay.blocks):
            raise InputError(f"{replay.prefix}.{len(self.arguments)}: the model never runs it; it cannot be pruned")

    def forward(self, index: int, *args: Any, **kwargs: Any) -> Any:
        """Note the arguments of one block, and return its hidden states as the block's output."""
        hidden = args[0] if args else kwargs["hidden_states"]
        if not self.arguments:
            self.hidden = self._returned = hidden
        if index != len(self.arguments) or (hidden is not self._returned and not _same(hidden, self._returned)):
            name = f"{self.replay.prefix}.{index}"
            raise InputError(f"{name}: is not given what the block before it returns; it cannot be pruned")
        self.arguments.append(_replace_hidden((args, kwargs), None))
        if len(self.arguments) == len(self.replay.blocks):
            raise _Stopped
        self._returned = hidden * 1.5 + 0.25 if self.disturb else hidden
        extra = self.replay.extra_outputs
        return self._returned if extra is None else (self._returned, *extra)


def _replace_hidden(arguments: Arguments, hidden: Tensor | None) -> Arguments:
    args, kwargs = arguments
    return ((hidden, *args[1:]), kwargs) if args else ((), kwargs | {"hidden_states": hidden})


def _same(some: Any, others: Any) -> bool:
    """Return whether two trees of arguments have equal tensors and plain values; other objects are never the same."""
    (some, shape), (others, other) = tree_flatten(some), tree_flatten(others)
    if shape != other:
        return False
    plain = (type(None), bool, int, float, str)
    pairs = zip(some, others, strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else isinstance(a, plain) and a == b for a, b in pairs)


def _to_device(device: str | torch.device, arguments: Arguments) -> Arguments:
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, arguments)
