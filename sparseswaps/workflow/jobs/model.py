"""Check a model's files and describe them: tensors and their hashes, decoder blocks, linear layers."""

from dataclasses import replace

from sparseswaps.base.progress import Part
from sparseswaps.model.checkpoint import Checkpoint
from sparseswaps.model.description import describe
from sparseswaps.model.directory import locate, weight_files
from sparseswaps.model.hub import download
from sparseswaps.workflow.artifacts import write_model


def run(inputs, outputs, settings, context):
    source, revision = settings["source"], settings["revision"]
    folder = locate(source, revision) if revision is None else download(source, revision)
    size = sum((folder / name).stat().st_size for name in weight_files(folder))
    work = Part(len(Checkpoint(folder).files), likely=size / 1e6)
    with context.progress("tensors", "MB", [work]) as (report,):
        described = describe(folder, settings["trust_remote_code"], report)
    model = replace(described, source=source, revision=revision)
    write_model(outputs["model"], model)
    layers = sum(map(len, model.blocks))
    return f"{folder}: {len(model.blocks)} blocks, {layers} layers, left dense: {model.left_dense or 'none'}"
