"""Rule refine: the masks of one block after refinement, and what it did to every layer."""

import logging
import time

from job import block_of, device, run

from sparseswaps.artifacts import read_grams, read_masks, read_model, write_masks
from sparseswaps.errors import naming
from sparseswaps.files import write_csv
from sparseswaps.gram import row_loss
from sparseswaps.masks import check_mask
from sparseswaps.pattern import parse_pattern
from sparseswaps.refine import refine


def main(snakemake, settings):
    place = device(settings)
    model = read_model(snakemake.input.model)
    grams = read_grams(snakemake.input.gram, model)
    starts = read_masks(snakemake.input.masks, model)
    block = block_of(snakemake)
    pattern = parse_pattern(settings["pattern"])
    masks, rows = {}, []
    for layer in model.blocks[block]:
        name = model.tensor_name(block, layer.name)
        with naming(name):
            began = time.monotonic()
            weight = model.weight(block, layer).to(place)
            source = grams.reads[layer.name]
            gram, start = grams.matrix[source].to(place), starts[layer.name].to(place)
            result = refine(weight, gram, start, pattern, settings["max_swaps"])
            check_mask(result.mask, pattern)
            masks[layer.name] = result.mask
            row = {
                "block": block,
                "layer": layer.name,
                "d_out": layer.d_out,
                "d_in": layer.d_in,
                "kept": int(result.mask.sum()),
                "loss_before": float(result.loss_before.sum()),
                "loss_after": float(result.loss_after.sum()),
                "held_out_before": None,
                "held_out_after": None,
                "swaps": int(result.swaps.sum()),
                "max_row_swaps": int(result.swaps.max()),
                "rows": layer.d_out,
                "rows_certified": int(result.certified.sum()),
            }
            if source in grams.held_out:
                unseen = grams.held_out[source].to(place)
                row["held_out_before"] = float(row_loss(weight, unseen, start).sum())
                row["held_out_after"] = float(row_loss(weight, unseen, result.mask).sum())
            row["seconds"] = round(time.monotonic() - began, 3)
            rows.append(row)
            logging.info(
                "%s: error %.6g -> %.6g, %d swaps, %d of %d rows certified, drift %.1g",
                *(name, row["loss_before"], row["loss_after"], row["swaps"], row["rows_certified"], row["rows"]),
                float(result.drift.max()),
            )
    write_masks(snakemake.output.masks, masks, model, snakemake.params.key)
    write_csv(snakemake.output.losses, rows)
    before, after = (sum(row[column] for row in rows) for column in ("loss_before", "loss_after"))
    return f"error {before:.6g} -> {after:.6g}, {sum(row['swaps'] for row in rows)} swaps"


run(snakemake, main)
