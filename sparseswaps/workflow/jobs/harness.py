"""Score a model on the configured tasks with lm-eval's own harness."""

from pathlib import Path

import datasets.config
from huggingface_hub import constants

from sparseswaps.base.files import write_json
from sparseswaps.calibration.activations import choose_keep
from sparseswaps.embedded import TASKS, TASKS_FOLDER
from sparseswaps.evaluation.harness import evaluate
from sparseswaps.model.loading import load_tokenizer
from sparseswaps.model.masked import load_pruned
from sparseswaps.model.weights import WeightsOnDisk
from sparseswaps.workflow.artifacts import evaluated_model
from sparseswaps.workflow.context import device_of


def run(inputs, outputs, settings, context):
    if set(settings["tasks"]) <= set(TASKS):  # all data is local: nothing may wait for a network that is missing
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True  # both have read the environment already
    model, masks = evaluated_model(inputs)
    device, dtype = device_of(settings), settings["dtype"]
    own = [Path(settings["include"])] if settings["include"] else []
    result = evaluate(
        WeightsOnDisk(model, device, dtype),
        load_tokenizer(model.folder, model.trust_remote_code),
        settings["tasks"],
        include=[TASKS_FOLDER, *own],
        limit=settings["limit"],
        batch_size=settings["batch_size"],
        masks=masks,
        whole=lambda: load_pruned(model, masks, device, dtype),
        keep=choose_keep(settings["activations"], Path(outputs["scores"]).parent),
    )
    write_json(outputs["scores"], result | {"provenance": context.provenance})
    return ", ".join(f"{task} acc {values['acc']:.4f}" for task, values in result["results"].items() if "acc" in values)
