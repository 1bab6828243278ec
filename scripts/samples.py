"""Rule samples: draw and tokenise the calibration sequences and the held-out ones."""

from pathlib import Path

import torch
from job import run

from sparseswaps.base.errors import InputError, prefix_errors
from sparseswaps.calibration.documents import SETTINGS, load
from sparseswaps.calibration.sampling import check_vocabulary, draw
from sparseswaps.model.directory import read_config, vocabulary
from sparseswaps.model.loading import load_tokenizer
from sparseswaps.workflow.artifacts import digest, read_model, write_samples


def main(snakemake, settings):
    model = read_model(snakemake.input.model)
    tokenizer = load_tokenizer(model.folder, model.trust_remote_code)
    asked = (settings[name] for name in ("samples", "held_out", "seqlen", "seed"))
    calibration_key = f"config key calibrations.{snakemake.wildcards.calibration}"
    with prefix_errors(f"{calibration_key}.text, {settings['text']}"):
        documents = load(use="calibration", **{name: settings[name] for name in SETTINGS})
        if settings["join"] is not None:
            documents = [settings["join"].join(documents)]
        calibration, held_out = draw(documents, tokenizer, *asked)
        check_vocabulary(torch.cat([calibration, held_out]), vocabulary(read_config(Path(model.folder))))
    drawn = digest(calibration, held_out)
    pinned = settings["sha256"]
    if pinned is not None and drawn not in ([pinned] if isinstance(pinned, str) else pinned):
        raise InputError(f"{calibration_key}.sha256: the token ids that were drawn have another, {drawn}")
    write_samples(snakemake.output[0], calibration, held_out, model, snakemake.params.key)
    numbers = f"{len(calibration)} samples and {len(held_out)} held out, from {len(documents)} documents"
    return f"{numbers}; SHA-256 of the token ids {drawn}"


run(snakemake, main)
