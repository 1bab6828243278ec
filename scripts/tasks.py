"""Rule tasks: the embedded lm-eval tasks."""

from pathlib import Path

from job import run

from sparseswaps.embedded.corpus import documents
from sparseswaps.embedded.tasks import write


def main(snakemake, settings):
    write(Path(snakemake.output[0]).parent, documents("evaluation"))
    return ", ".join(snakemake.output)


run(snakemake, main)
