"""Rule perplexity: one model on one text."""

from dataclasses import asdict
from itertools import islice
from pathlib import Path

from evaluated import evaluated
from job import device, progress, run

from sparseswaps.base.errors import prefix_errors
from sparseswaps.base.files import write_json
from sparseswaps.base.progress import Part
from sparseswaps.calibration.documents import SETTINGS, load
from sparseswaps.calibration.sampling import check_vocabulary, tokenize
from sparseswaps.evaluation.perplexity import perplexity, windows
from sparseswaps.model.directory import read_config, vocabulary
from sparseswaps.model.loading import load_tokenizer
from sparseswaps.model.masked import load_pruned
from sparseswaps.workflow.artifacts import digest


def main(snakemake, settings):
    folder, masks, trusted = evaluated(snakemake, settings)
    tokenizer = load_tokenizer(folder, trusted)
    with prefix_errors(f"config key evaluation.perplexity.{snakemake.wildcards.text}.text, {settings['text']}"):
        documents = load(use="evaluation", **{name: settings[name] for name in SETTINGS})
        tokens = tokenize(tokenizer, settings["join"].join(islice(documents, settings["documents"])))
        cut = windows(tokens, settings["seqlen"], settings["windows"])
        check_vocabulary(cut, vocabulary(read_config(Path(folder))))
    model = load_pruned(folder, masks, device(settings), trusted)
    with progress(snakemake, "windows", "tokens", [Part(len(cut))]) as (report,):
        result = perplexity(model, cut, settings["batch_size"], report)
    write_json(snakemake.output[0], asdict(result) | {"token_ids": digest(cut), "key": snakemake.params.key})
    return f"perplexity {result.perplexity:.4f} over {result.windows} windows of {result.seqlen} tokens"


run(snakemake, main)
