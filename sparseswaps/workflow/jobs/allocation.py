"""Say how sparse each layer becomes, where a pattern is not the same for all layers."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sparseswaps.base.errors import InputError, prefix_errors
from sparseswaps.base.files import write_json
from sparseswaps.base.progress import Part
from sparseswaps.layer.criteria import wanda_scores
from sparseswaps.layer.pattern import Pattern, PerRow, parse_pattern
from sparseswaps.model.layers import Layer
from sparseswaps.workflow.artifacts import block_file, read_grams, read_model

Allocation = list[dict[str, Pattern]]  # of each block, by layer name


def run(inputs, outputs, settings, context):
    model = read_model(inputs["model"])
    base, owl = parse_pattern(settings["pattern"]), settings["owl"]
    if owl is None:
        allocation = by_table(base, settings["layers"], model.blocks)
    else:
        shares, blocks = [], []
        with context.progress("blocks", "", [Part(len(model.blocks))]) as (report,):
            for block, layers in enumerate(model.blocks):
                grams = read_grams(f"{inputs['grams'][0]}/{block_file(block)}", model)
                read = grams.readers(layers)
                scores = [wanda_scores(model.weight(layer), grams.inputs(layer.name, "cpu").gram) for layer in read]
                shares.append(outlier_share(scores, owl["threshold"]))
                blocks.append(read)
                report(len(blocks), 0)
        allocation = by_outliers(base, shares, owl["spread"], blocks)
    labels = [{name: pattern.label for name, pattern in layers.items()} for layers in allocation]
    write_json(outputs["allocation"], labels)
    distinct = ["/".join(dict.fromkeys(layers.values())) for layers in labels]
    return ", ".join(f"block {block}: {patterns}" for block, patterns in enumerate(distinct))


def by_table(base: Pattern, table: Mapping[str, str | float], blocks: list[list[Layer]]) -> Allocation:
    """Return the patterns that a table says, and `base` for layers that the table does not name.

    The table names a block ("block03"), a layer in every block ("mlp.down_proj"), or one layer
    ("block03.mlp.down_proj"). The last goes before the second, the second before the first. Raises InputError when a
    name is none of the model's, or a value is no pattern.
    """
    used, allocation = set(), []
    for index, layers in enumerate(blocks):
        block = f"block{index:02d}"
        allocation.append({})
        for layer in layers:
            names = [name for name in (f"{block}.{layer.name}", layer.name, block) if name in table]
            used.update(names)
            with prefix_errors(f"config key patterns, layers.{names[0] if names else ''}"):
                allocation[-1][layer.name] = parse_pattern(table[names[0]]) if names else base
    if unknown := sorted(set(table) - used):
        raise InputError(f"config key patterns: layers.{unknown[0]} is no block or layer of the model")
    return allocation


def outlier_share(scores: list[Tensor], threshold: float) -> float:
    """Return the share of a block's Wanda scores, of any shapes, above `threshold` times their mean (OWL's LOD)."""
    count = sum(part.numel() for part in scores)
    limit = threshold * sum(float(part.sum(dtype=torch.float64)) for part in scores) / count
    return sum(int((part > limit).sum()) for part in scores) / count


def by_outliers(base: PerRow, shares: list[float], spread: float, blocks: list[list[Layer]]) -> Allocation:
    """Let blocks with more outliers keep more, and the whole model as much as `base` says (OWL, Yin et al., ICML 2024).

    Densities are in proportion to the blocks' `outlier_share` and differ by 2 `spread` (the paper's lambda) at most.
    Raises InputError when a block would keep nothing or everything.
    """
    lowest, highest = min(shares), max(shares)
    scaled = [2 * spread * (share - lowest) / (highest - lowest) if highest > lowest else 0.0 for share in shares]
    weights = [sum(layer.d_out * layer.d_in for layer in layers) for layers in blocks]
    mean = sum(above * weight for above, weight in zip(scaled, weights, strict=True)) / sum(weights)
    allocation = []
    for index, (above, layers) in enumerate(zip(scaled, blocks, strict=True)):
        sparsity = float(base.sparsity) + mean - above
        if not 0 < sparsity < 1:
            raise InputError(f"block {index} would be {sparsity:.1%} sparse; lower the pattern's owl.spread")
        # Of a decimal fraction, so that counts are exact wherever it is read.
        allocation.append(dict.fromkeys((layer.name for layer in layers), parse_pattern(f"{sparsity:.6f}")))
    return allocation
