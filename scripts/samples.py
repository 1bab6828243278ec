"""Rule samples: draw and tokenise the calibration sequences and the held-out ones."""

from job import run
from transformers import AutoTokenizer

from sparseswaps.artifacts import read_model, write_samples
from sparseswaps.text import draw, load


def main(snakemake, settings):
    model = read_model(snakemake.input.model)
    tokenizer = AutoTokenizer.from_pretrained(model.folder)
    documents = load(settings["text"], "calibration", settings["field"])
    calibration, held_out = draw(
        documents, tokenizer, settings["samples"], settings["held_out"], settings["seqlen"], settings["seed"]
    )
    write_samples(snakemake.output[0], calibration, held_out, model, snakemake.params.key)
    return f"{len(calibration)} samples and {len(held_out)} held out, from {len(documents)} documents"


run(snakemake, main)
