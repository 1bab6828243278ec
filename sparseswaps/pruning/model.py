"""Prune a model in memory: the workflow's stages from the calibration text to the masks, in one call."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparseswaps.base.errors import InputError, prefix_errors
from sparseswaps.calibration.capture import capture
from sparseswaps.calibration.documents import load
from sparseswaps.calibration.grams import Grams
from sparseswaps.calibration.sampling import check_vocabulary, draw
from sparseswaps.calibration.settings import BatchSize, Calibration, Seed
from sparseswaps.layer.pattern import counting_rule, parse_pattern
from sparseswaps.layer.settings import Criterion, Reconstruction, RefinementSettings
from sparseswaps.model.blocks import find_blocks, put_weights
from sparseswaps.model.directory import context_length, vocabulary_size
from sparseswaps.model.layers import Layer
from sparseswaps.model.weights import WeightsInMemory
from sparseswaps.pruning.block import PrunedBlock, check_held_out, prune_block
from sparseswaps.pruning.chain import prune_chain
from sparseswaps.pruning.reconstruct import Reconstruct, SetZeros
from sparseswaps.pruning.refine import Refine
from sparseswaps.pruning.warmstart import WarmStart


class PruneSettings(Calibration, RefinementSettings):
    """The arguments of `prune` that a configuration of the workflow has as well."""

    text: str = "embedded"
    warmstart: Criterion = "wanda"
    seed: Seed = 0
    reconstruction: Reconstruction | None = None
    batch_size: BatchSize


DEFAULTS = PruneSettings()


@dataclass(frozen=True)
class Pruned:
    """What `prune` did to a model.

    Attributes:
        masks: boolean, True where kept, by the name of each pruned parameter of the model, in its shape and on its
            device: what `keep_zeros` takes.
        losses: a row a layer, with the columns of the workflow's losses: `block`, `layer`, `d_out`, `d_in`, the
            calibration `tokens` it saw, the weights `kept`; the pruning error ||W X - (M * W) X||^2 of the warm start
            and of the mask, on calibration text (`loss_before`, `loss_after`) and on held-out text
            (`held_out_before`, `held_out_after`; None without such); `swaps`, and how many of its `rows` are at their
            local optimum (`rows_certified`); `seconds`; and others. `pandas.DataFrame(losses)` is the table.
        curves: both errors (`loss`, `held_out`) of each layer by the swaps that a row could make so far (`budget`).
    """

    masks: dict[str, Tensor]
    losses: list[dict[str, Any]]
    curves: list[dict[str, Any]]


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
    max_swaps: int | None = DEFAULTS.max_swaps,
    stop: str = DEFAULTS.stop,
    freeze: float = DEFAULTS.freeze,
    shrinkage: float = DEFAULTS.shrinkage,
    between_rows: bool = DEFAULTS.between_rows,
    reconstruction: Reconstruction | None = DEFAULTS.reconstruction,
    batch_size: int = DEFAULTS.batch_size,
) -> Pruned:
    """Prune a causal language model in place: calibrate it, mask every layer, and refine the masks by exact 1-swaps.

    The method is that of SparseSwaps (arXiv 2512.10922). The arguments are keys of the workflow's configuration, with
    its defaults, and of a model that is loaded in float32 on the CPU, where the workflow computes so, the masks are the
    workflow's, bit by bit, with as many threads (`torch.set_num_threads(1)` by default).

    Pruned are the linear layers of the decoder blocks, and the experts that transformers holds in one parameter for
    all. What the calibration text does not reach stays dense, by name in the log (`logging`), as are the figures of
    each layer once it is done. An error on the way leaves the blocks before it pruned.

    Args:
        model: a causal language model of transformers, whole on one device, in any floating dtype.
        tokenizer: the model's own; None will do where `calibration` is token ids.
        pattern: a sparsity per row, such as `"60%"` or 0.6, or N:M, such as `"2:4"`: N kept of every M.
        warmstart: the criterion that makes the first masks: `magnitude`, `wanda`, `ria`, `greedy`, `random`,
            `sparsegpt` or `admm`.
        calibration: `"embedded"`, the sources of Python's standard library, which needs no network; a .txt, .jsonl
            (gzipped or not) or .parquet file; the id of a data set of the hub; documents, of which those longer than
            `seqlen` give a sample each; or token ids, int64 [samples, seqlen], taken as they are and without
            held-out ones.
        samples: calibration sequences to draw.
        held_out: further sequences whose Gram matrices refinement never sees.
        seqlen: tokens per sequence.
        seed: of the draw.
        propagate: `"dense"` calibrates every block on the dense model's inputs; `"pruned"` on the outputs of the pruned
            blocks before it.
        max_swaps: swaps per row at most; None goes to the local optimum, 0 leaves the warm start as it is.
        stop: `"held_out"` takes a layer's mask before its error on held-out text rises; `"optimum"` does not look.
        freeze: part of each row's weights, those of highest Wanda score, that no swap prunes; in [0, 1).
        shrinkage: swaps are chosen by (1 - s) G + s diag(G) instead of G; in [0, 1].
        between_rows: whether rows exchange weights, too; then a matrix keeps what a sparsity says, its rows need not.
        reconstruction: how the kept weights are fitted to the masks; None leaves their values as they are. New values
            are rounded to the model's dtype, in the workflow to that of its files.
        batch_size: sequences per forward pass; less once a GPU is out of memory.

    Returns:
        The masks and the figures of all layers; the model itself is pruned, and in the mode that it was in.

    Raises:
        InputError: one line that names the argument or the layer. The model is none of transformers' or not whole on
            one device; an argument is none of its choices, the pattern does not divide a width, the text cannot be read
            or is too short, token ids are not the model's; an activation or a weight is not finite; or the GPU has no
            memory for a single sequence or row.
    """
    arguments = locals()
    settings = PruneSettings(**{name: arguments[name] for name in arguments.keys() & PruneSettings.model_fields})
    _check_model(model)
    parsed, weights = parse_pattern(pattern), WeightsInMemory(model)
    if not any(weights.layers):
        raise InputError("model: its decoder blocks hold neither linear layers nor experts, so nothing can be pruned")
    for index, layers in enumerate(weights.layers):
        for layer in layers:
            with prefix_errors(f"block {index}, {layer.name}"):
                parsed.blocks(layer.d_in)
    with prefix_errors("calibration"):
        ids, unseen = _token_ids(calibration, tokenizer, model, settings)
    if stop == "held_out" and not len(unseen):
        raise InputError("stop: held_out stops by held-out text, of which there is none")
    counted = counting_rule(warmstart, between_rows)
    steps = [
        WarmStart(warmstart, None, counted),
        Refine(settings, counted),
        SetZeros() if reconstruction is None else Reconstruct(reconstruction),
    ]
    prefix, blocks = find_blocks(model)

    @torch.inference_mode()
    def prune_one(index: int, grams: Grams) -> PrunedBlock:
        def weight_of(layer: Layer) -> Tensor:
            return layer.view_in(blocks[index].get_parameter(layer.parameter).data).contiguous()

        check_held_out(grams)
        return prune_block(index, weights.layers[index], grams, weight_of, lambda _block, _layer: parsed, steps)

    def prune_on_dense_inputs() -> Iterator[PrunedBlock]:
        for index, grams in enumerate(capture(weights, ids, unseen, batch_size)):
            pruned = prune_one(index, grams)
            put_weights(blocks[index], weights.layers[index], pruned.weights)
            yield pruned

    result, training = Pruned({}, [], []), model.training
    model.eval()
    try:
        chained = propagate == "pruned"
        results = prune_chain(weights, ids, unseen, batch_size, prune_one) if chained else prune_on_dense_inputs()
        for index, pruned in enumerate(results):
            result.losses.extend(pruned.losses)
            result.curves.extend(pruned.curves)
            for layer in weights.layers[index]:
                if layer.name in pruned.masks:
                    name, parameter = (
                        f"{prefix}.{index}.{layer.parameter}",
                        blocks[index].get_parameter(layer.parameter),
                    )
                    if name not in result.masks:
                        result.masks[name] = torch.ones(parameter.shape, dtype=torch.bool, device=parameter.device)
                    layer.view_in(result.masks[name]).copy_(pruned.masks[layer.name])
    finally:
        model.train(training)
    return result


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
    """Those to calibrate on, int64 [samples, seqlen], and held-out ones, int64 [held_out, seqlen]."""
    given, seqlen = isinstance(calibration, Tensor), settings.seqlen
    if given:
        if calibration.dtype != torch.int64 or calibration.ndim != 2 or not calibration.numel():
            raise InputError(f"token ids are int64 [samples, seqlen], not {calibration.dtype} {[*calibration.shape]}")
        if (least := int(calibration.min())) < 0:
            raise InputError(f"{least} is no token id")
        seqlen = calibration.shape[1]
    config = model.config.get_text_config().to_dict()
    if (most := context_length(config)) is not None and seqlen > most:
        raise InputError(f"samples of {seqlen} tokens (seqlen), but the model takes {most}")
    if given:
        ids, unseen = calibration, calibration[:0]
    else:
        documents = load(calibration, "calibration") if isinstance(calibration, str) else calibration
        in_memory = isinstance(documents, list | tuple)
        if not isinstance(documents, Sequence) or (in_memory and not all(isinstance(text, str) for text in documents)):
            raise InputError("expected the name of a text, a list of documents, or a tensor of token ids")
        if tokenizer is None:
            raise InputError("text needs the model's tokenizer")
        ids, unseen = draw(documents, tokenizer, settings.samples, settings.held_out, seqlen, settings.seed)
    check_vocabulary(torch.cat([ids, unseen]), vocabulary_size(config))
    return ids, unseen
