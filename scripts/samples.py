"""Rule samples: draw and tokenise the calibration sequences and the held-out ones."""

from job import run

from sparseswaps.artifacts import read_model, write_samples
from sparseswaps.errors import naming
from sparseswaps.pretrained import load_tokenizer
from sparseswaps.text import draw, load


def main(snakemake, settings):
    model = read_model(snakemake.input.model)
    tokenizer = load_tokenizer(model.folder, model.trust_remote_code)
    asked = (settings[name] for name in ("samples", "held_out", "seqlen", "seed"))
    with naming(f"calibration text {settings['text']}"):
        documents = load(settings["text"], "calibration", settings["field"])
        calibration, held_out = draw(documents, tokenizer, *asked)
    write_samples(snakemake.output[0], calibration, held_out, model, snakemake.params.key)
    return f"{len(calibration)} samples and {len(held_out)} held out, from {len(documents)} documents"


run(snakemake, main)
