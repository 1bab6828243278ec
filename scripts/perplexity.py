"""Rule perplexity: one checkpoint on one text."""

from dataclasses import asdict

import torch
from job import device, evaluated, run
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparseswaps.files import write_json
from sparseswaps.perplexity import perplexity, windows
from sparseswaps.text import load, tokenize


def main(snakemake, settings):
    folder, place = evaluated(snakemake), device(snakemake)
    documents = load(settings["text"], "evaluation", settings["field"])
    tokens = tokenize(AutoTokenizer.from_pretrained(folder), settings["join"].join(documents))
    cut = windows(tokens, settings["seqlen"], settings["windows"])
    dtype = "auto" if place == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().to(place)
    result = perplexity(model, cut, settings["batch_size"])
    write_json(snakemake.output[0], asdict(result) | {"key": snakemake.params.key})
    return f"perplexity {result.perplexity:.4f} over {result.windows} windows of {result.seqlen} tokens"


run(snakemake, main)
