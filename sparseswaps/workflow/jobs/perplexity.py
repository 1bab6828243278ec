"""Measure the perplexity of a model on one text."""

from dataclasses import asdict
from itertools import islice
from pathlib import Path

from sparseswaps.base.errors import prefix_errors
from sparseswaps.base.files import write_json
from sparseswaps.base.progress import Part
from sparseswaps.calibration.activations import choose_keep
from sparseswaps.calibration.documents import load
from sparseswaps.calibration.sampling import check_vocabulary, tokenize
from sparseswaps.calibration.settings import TextSource
from sparseswaps.evaluation.perplexity import perplexity, windows
from sparseswaps.model.directory import read_config, vocabulary_size
from sparseswaps.model.loading import load_tokenizer
from sparseswaps.model.weights import WeightsOnDisk
from sparseswaps.workflow.artifacts import digest, evaluated_model
from sparseswaps.workflow.context import device_of


def run(inputs, outputs, settings, context):
    model, masks = evaluated_model(inputs)
    tokenizer = load_tokenizer(model.folder, model.trust_remote_code)
    with prefix_errors(f"config key evaluation.perplexity.{context.wildcards['text']}.text, {settings['text']}"):
        documents = load(TextSource.of(settings), "evaluation")
        ids = tokenize(tokenizer, settings["join"].join(islice(documents, settings["documents"])))
        cut = windows(ids, settings["seqlen"], settings["windows"])
        check_vocabulary(cut, vocabulary_size(read_config(Path(model.folder))))
    weights = WeightsOnDisk(model, device_of(settings), settings["dtype"])
    keep = choose_keep(settings["activations"], Path(outputs["perplexity"]).parent)
    with context.progress("windows", "blocks", [Part(len(cut), likely=weights.depth * len(cut))]) as (report,):
        result = perplexity(weights, cut, settings["batch_size"], masks, keep, report)
    write_json(outputs["perplexity"], asdict(result) | {"token_ids": digest(cut), "provenance": context.provenance})
    return f"perplexity {result.perplexity:.4f} over {result.windows} windows of {result.seqlen} tokens"
