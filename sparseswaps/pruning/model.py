"""Prune a model in memory: the workflow's stages from the calibration text to the masks, in one call."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparseswaps.base.errors import InputError, prefix_errors
from sparseswaps.calibration.capture import capture
from sparseswaps.calibration.documents import load
from sparseswaps.calibration.replay import Replay
from sparseswaps.calibration.sampling import check_vocabulary, draw
from sparseswaps.layer.pattern import Pattern, counting_rule, parse_pattern
from sparseswaps.layer.settings import Reconstruction
from sparseswaps.model.blocks import find_blocks, put_weights
from sparseswaps.model.directory import context_length, vocabulary_size
from sparseswaps.model.layers import Layer
from sparseswaps.model.weights import WeightsInMemory
from sparseswaps.pruning.block import PrunedBlock, check_held_out, prune_block
from sparseswaps.pruning.chain import Chain
from sparseswaps.pruning.reconstruct import fit_weights
from sparseswaps.pruning.refine import Refine
from sparseswaps.pruning.settings import DEFAULTS, PruneSettings
from sparseswaps.pruning.warmstart import WarmStart


@dataclass(frozen=True)
class Pruned:
    """The masks and figures that `prune` returns for a model.

    Attributes:
        masks: boolean, True where kept, by the name of each pruned parameter of the model, in its shape and on its
            device: what `keep_zeros` takes.
        losses: a row a layer, with the columns of the workflow's losses: `block`, `layer`, `d_out`, `d_in`, the
            calibration `tokens` it saw, the weights `kept`; the pruning error ||W X - (M * W) X||^2 of the warm start
            and of the mask, on calibration text (`loss_before`, `loss_after`) and on held-out text
            (`held_out_before`, `held_out_after`; None without such); `swaps`, and how many of its `rows` are at their
            local optimum (`rows_certified`); `seconds`; and others. `pandas.DataFrame(losses)` is the table.
        curves: both errors (`loss`, `held_out`) of each layer by the swaps that a row could make so far (`budget`).
        epochs: where blocks are trained, the relative error of each block's output by epoch, on calibration text
            (`error`) and on held-out text (`held_out`), and the `level` of the masks' sparsity.
    """

    masks: dict[str, Tensor]
    losses: list[dict[str, Any]]
    curves: list[dict[str, Any]]
    epochs: list[dict[str, Any]]


def prune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    pattern: str | float,
    warmstart: str = DEFAULTS.warmstart,
    calibration: str | Sequence[str] | Tensor = DEFAULTS.text,
    *,
    samples: int = DEFAULTS.samples,
    held_out: int = DEFAULTS.held_out,
    seqlen: int = DEFAULTS.seqlen,
    seed: int = DEFAULTS.seed,
    propagate: str = DEFAULTS.propagate,
    order: str = DEFAULTS.order,
    dense_target: float = DEFAULTS.dense_target,
    max_swaps: int | None = DEFAULTS.max_swaps,
    stop: str = DEFAULTS.stop,
    freeze: float = DEFAULTS.freeze,
    shrinkage: float = DEFAULTS.shrinkage,
    between_rows: bool = DEFAULTS.between_rows,
    refit: bool = DEFAULTS.refit,
    reconstruction: Reconstruction | Mapping[str, Any] | None = DEFAULTS.reconstruction,
    batch_size: int = DEFAULTS.batch_size,
) -> Pruned:
    """Prune a causal language model in place: calibrate it, mask every layer, and refine the masks by exact 1-swaps.

    The method is SparseSwaps (arXiv 2512.10922). The arguments are keys of the workflow's configuration, with the same
    defaults. The masks equal the workflow's bit by bit, if the model is loaded in float32 on the CPU and as many
    threads compute as in the workflow (`torch.set_num_threads(1)` by default).

    The linear layers of the decoder blocks are pruned, and the experts that transformers holds in one parameter. Layers
    that the calibration text does not reach stay dense. The log (`logging`) has a line with the figures of each layer.
    After an error, the blocks before the failed block are pruned, the others are not.

    Args:
        model: a causal language model of transformers, whole on one device, in any floating dtype.
        tokenizer: the model's own; None is enough where `calibration` is token ids.
        pattern: a sparsity per row, such as `"60%"` or 0.6, or N:M, such as `"2:4"`: N kept of every M.
        warmstart: what makes the first masks: `magnitude`, `wanda`, `ria`, `greedy`, `obc`, `random`, `sparsegpt`,
            `admm` or `alps`.
        calibration: `"embedded"`, sources of Python's standard library, which need no network; a .txt, .jsonl (gzipped
            or not) or .parquet file; `"c4"`, `"wikitext2"` or the id of another data set on the hub; a list of
            documents, of which each that is longer than `seqlen` gives a sample; or token ids, int64 [samples, seqlen],
            which are used as they are, without held-out samples.
        samples: calibration sequences to draw.
        held_out: further sequences whose Gram matrices refinement never sees.
        seqlen: tokens per sequence.
        seed: the seed of the draw.
        propagate: `"dense"` calibrates every block on the dense model's inputs; `"pruned"` on the outputs of the pruned
            blocks before it.
        order: with pruned inputs, `"sequential"` prunes the layers of a block one after the other, each on what the
            pruned layers before it give; `"together"` all on the same run.
        dense_target: with pruned inputs and a reconstruction, how much weights are fitted to the dense model's outputs:
            0 to the outputs of the dense layer on the pruned model's inputs, 1 to its outputs on the dense model's.
        max_swaps: most swaps per row; None goes to the local optimum, 0 leaves the warm start as it is.
        stop: `"held_out"` takes the last mask before a layer's error on held-out text rises; `"optimum"` ignores it.
        freeze: share of each row's weights, those with the highest Wanda scores, that no swap prunes; in [0, 1).
        shrinkage: swaps are chosen by (1 - s) G + s diag(G) instead of the Gram matrix G; in [0, 1].
        between_rows: whether rows exchange weights, too. The matrix then keeps what a sparsity says; its rows may
            differ.
        refit: whether a swap is judged with all kept weights refitted after it. For calls with a `reconstruction`;
            `stop`, `freeze`, `shrinkage` and `between_rows` must then have their defaults.
        reconstruction: how the kept weights are fitted to the masks, as a `Reconstruction` or a table of its keys; None
            leaves their values as they are. With `{"block": {"levels": 8}}` and `propagate="pruned"`, each block is
            trained to give the dense block's output while its masks tighten. New values are rounded to the model's
            dtype (in the workflow, to the dtype of the model's files).
        batch_size: sequences per forward pass; fewer after a GPU has run out of memory.

    Returns:
        The masks and the figures of all layers. The model is pruned; its training mode is what it was.

    Raises:
        InputError: one line that names the argument or the layer: an argument is not allowed; the model is not of
            transformers or not whole on one device; the pattern does not divide a width; the text cannot be read or is
            too short; token ids are not the model's; an activation or a weight is not finite; or the GPU has no memory
            for one sequence or row.
    """
    arguments = locals() | ({"text": calibration} if isinstance(calibration, str) else {})
    settings = PruneSettings(**{name: arguments[name] for name in arguments.keys() & PruneSettings.model_fields})
    reconstruction = settings.reconstruction
    _check_model(model)
    parsed, weights = parse_pattern(pattern), WeightsInMemory(model)
    if not any(weights.layers):
        raise InputError("model: its decoder blocks hold neither linear layers nor experts, so nothing can be pruned")
    for index, layers in enumerate(weights.layers):
        for layer in layers:
            with prefix_errors(f"block {index}, {layer.name}"):
                parsed.groups(layer.d_in)
    with prefix_errors("calibration"):
        ids, unseen = _token_ids(calibration, tokenizer, model, settings)
    if reconstruction is not None and reconstruction.block is not None and propagate != "pruned":
        raise InputError("reconstruction.block: blocks are trained on pruned inputs; pass propagate='pruned'")
    if dense_target and reconstruction is None:
        raise InputError("dense_target: is for new weights; pass a reconstruction, or leave it out")
    if stop == "held_out" and not len(unseen):
        raise InputError("stop: held_out stops by held-out text, of which there is none; set held_out to 1 or more")
    counted = counting_rule(warmstart, between_rows)
    first, refine = WarmStart(warmstart, None, counted), Refine(settings, counted)
    prefix, blocks = find_blocks(model)

    def weight_of(index: int, layer: Layer) -> Tensor:
        return layer.view_in(blocks[index].get_parameter(layer.parameter).data).contiguous()

    def pattern_of(_block: int, _layer: str) -> Pattern:
        return parsed

    def prune_blocks() -> Iterator[PrunedBlock]:
        if propagate == "pruned":
            chain = Chain(weight_of, pattern_of, first, refine, reconstruction, settings)
            chain.start(replay := Replay(weights), ids, unseen, batch_size)
            for index in range(len(blocks)):
                yield chain.prune_next(replay, index)
        else:
            steps = [first, refine, fit_weights(reconstruction)]
            for index, grams in enumerate(capture(weights, ids, unseen, batch_size)):
                check_held_out(grams)
                layers = weights.layers[index]
                pruned = prune_block(index, layers, grams, partial(weight_of, index), pattern_of, steps)
                put_weights(blocks[index], layers, pruned.weights)
                yield pruned

    masks, losses, curves, epochs, training = {}, [], [], [], model.training
    model.eval()
    try:
        for index, pruned in enumerate(prune_blocks()):
            losses.extend(pruned.losses)
            curves.extend(pruned.curves)
            epochs.extend(pruned.epochs)
            for layer in weights.layers[index]:
                if layer.name in pruned.masks:
                    name = f"{prefix}.{index}.{layer.parameter}"
                    if name not in masks:
                        parameter = blocks[index].get_parameter(layer.parameter)
                        masks[name] = torch.ones(parameter.shape, dtype=torch.bool, device=parameter.device)
                    layer.view_in(masks[name]).copy_(pruned.masks[layer.name])
    finally:
        model.train(training)
    return Pruned(masks, losses, curves, epochs)


def _check_model(model: Any) -> None:
    if not isinstance(model, PreTrainedModel):
        raise InputError(f"model: expected a causal language model of transformers, not a {type(model).__name__}")
    for name, parameter in model.named_parameters():
        if parameter.is_meta or parameter.device != model.device or not parameter.is_floating_point():
            raise InputError(
                f"model: {name} is {parameter.dtype} on {parameter.device}; load all of it on one device, not quantised"
            )


def _token_ids(
    calibration: Any, tokenizer: PreTrainedTokenizerBase | None, model: PreTrainedModel, settings: PruneSettings
) -> tuple[Tensor, Tensor]:
    """Return the token ids of calibration, int64 [samples, seqlen], and of held-out text, int64 [held_out, seqlen]."""
    has_ids, seqlen = isinstance(calibration, Tensor), settings.seqlen
    if has_ids:
        if calibration.dtype != torch.int64 or calibration.ndim != 2 or not calibration.numel():
            raise InputError(f"token ids are int64 [samples, seqlen], not {calibration.dtype} {[*calibration.shape]}")
        if (least := int(calibration.min())) < 0:
            raise InputError(f"{least} is no token id")
        seqlen = calibration.shape[1]
    config = model.config.get_text_config().to_dict()
    if (most := context_length(config)) is not None and seqlen > most:
        raise InputError(f"samples of {seqlen} tokens, but the model takes {most}; set seqlen to {most} or less")
    if has_ids:
        ids, unseen = calibration, calibration[:0]
    else:
        documents = load(settings, "calibration") if isinstance(calibration, str) else calibration
        in_memory = isinstance(documents, list | tuple)
        if not isinstance(documents, Sequence) or (in_memory and not all(isinstance(text, str) for text in documents)):
            raise InputError("expected the name of a text, a list of documents, or a tensor of token ids")
        if tokenizer is None:
            raise InputError("text needs the model's tokenizer")
        if settings.join is not None:
            documents = [settings.join.join(documents)]
        ids, unseen = draw(documents, tokenizer, settings.samples, settings.held_out, seqlen, settings.seed)
    check_vocabulary(torch.cat([ids, unseen]), vocabulary_size(config))
    return ids, unseen
