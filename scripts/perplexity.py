"""Rule perplexity: one checkpoint on one text."""

from dataclasses import asdict

from job import device, evaluated, run

from sparseswaps.errors import naming
from sparseswaps.files import write_json
from sparseswaps.perplexity import perplexity, windows
from sparseswaps.pretrained import load_model, load_tokenizer
from sparseswaps.text import load, tokenize


def main(snakemake, settings):
    folder, trust_remote_code = evaluated(snakemake)
    with naming(f"evaluation text {settings['text']}"):
        documents = load(settings["text"], "evaluation", settings["field"])
        tokens = tokenize(load_tokenizer(folder, trust_remote_code), settings["join"].join(documents))
        cut = windows(tokens, settings["seqlen"], settings["windows"])
    result = perplexity(load_model(folder, device(settings), trust_remote_code), cut, settings["batch_size"])
    write_json(snakemake.output[0], asdict(result) | {"key": snakemake.params.key})
    return f"perplexity {result.perplexity:.4f} over {result.windows} windows of {result.seqlen} tokens"


run(snakemake, main)
