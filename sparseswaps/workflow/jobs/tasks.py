"""Write the embedded lm-eval tasks."""

from pathlib import Path

from sparseswaps.embedded.corpus import documents
from sparseswaps.embedded.tasks import write


def run(inputs, outputs, settings, context):
    write(Path(outputs["tasks"][0]).parent, documents("evaluation"))
    return ", ".join(outputs["tasks"])
