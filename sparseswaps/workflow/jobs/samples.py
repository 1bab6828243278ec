"""Draw and tokenise the calibration sequences and the held-out sequences."""

from pathlib import Path

import torch

from sparseswaps.base.errors import InputError, prefix_errors
from sparseswaps.calibration.documents import load
from sparseswaps.calibration.sampling import check_vocabulary, draw
from sparseswaps.calibration.settings import TextSource
from sparseswaps.model.directory import read_config, vocabulary_size
from sparseswaps.model.loading import load_tokenizer
from sparseswaps.workflow.artifacts import digest, read_model, write_samples


def run(inputs, outputs, settings, context):
    model = read_model(inputs["model"])
    tokenizer = load_tokenizer(model.folder, model.trust_remote_code)
    sizes = (settings[name] for name in ("samples", "held_out", "seqlen", "seed"))
    key = f"config key calibrations.{context.wildcards['calibration']}"
    with prefix_errors(f"{key}.text, {settings['text']}"):
        documents = load(TextSource.of(settings), "calibration")
        if settings["join"] is not None:
            documents = [settings["join"].join(documents)]
        calibration, held_out = draw(documents, tokenizer, *sizes)
        check_vocabulary(torch.cat([calibration, held_out]), vocabulary_size(read_config(Path(model.folder))))
    drawn, pinned = digest(calibration, held_out), settings["sha256"]
    if pinned is not None and drawn not in ([pinned] if isinstance(pinned, str) else pinned):
        raise InputError(f"{key}.sha256: the SHA-256 of the drawn token ids is {drawn}; correct the key or the text")
    write_samples(outputs["samples"], calibration, held_out, model, context.provenance)
    counts = f"{len(calibration)} samples and {len(held_out)} held out, from {len(documents)} documents"
    return f"{counts}; SHA-256 of the token ids {drawn}"
