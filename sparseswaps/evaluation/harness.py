"""Scores of a model on the tasks of lm-eval."""

import logging
import math
import os
import random
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import datasets.config
import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparseswaps.base.errors import InputError, prefix_errors
from sparseswaps.calibration.activations import Keep, keep_in_memory
from sparseswaps.model.mask_file import Masks
from sparseswaps.model.weights import Weights

# lm-eval tells the reader of every log how to pass options to a task that has a function for its data.
logging.getLogger("lm_eval.api.task").addFilter(lambda record: "--metadata" not in record.getMessage())

BOOTSTRAP = 1000  # draws for standard errors without a closed form (perplexity); 0 would switch off all standard errors


def evaluate(
    model: PreTrainedModel | Weights,
    tokenizer: PreTrainedTokenizerBase,
    tasks: list[str],
    include: Sequence[Path],
    limit: int | None,
    batch_size: int,
    masks: Masks | None = None,
    whole: Callable[[], PreTrainedModel] | None = None,
    keep: Keep = keep_in_memory,
) -> dict[str, Any]:
    """Run lm-eval tasks on a causal LM, with the number of shots of each task's definition (by default none).

    lm-eval makes the requests and the metrics; `score` answers requests for log-likelihoods block after block, with
    float32 log-probabilities for weights of any dtype. The seeds are the defaults of lm-eval's command line, which
    therefore gives the same numbers for the same model (docs/interoperation.md).

    Args:
        tasks: names of tasks, groups or tags.
        include: folders of task definitions (YAML). A definition replaces one of the same name in an earlier folder or
            in lm-eval. lm-eval's own definitions take seconds to read, and are read only when the folders lack a task.
        limit: the largest number of items per task, counted from the beginning; None takes all.
        batch_size: requests per forward pass, halved whenever the GPU runs out of memory.
        whole: loads the whole pruned model, for tasks that generate text. None: `model` is in memory.
        model, masks, keep: as for `score`.

    Returns plain JSON: `results` {task or group: {metric: value, metric_stderr: value}}, None where lm-eval has no
    number, with a filter other than "none" in the metric's name ("exact_match@strict-match"); `samples` {task: number
    of items}; `limit`; `versions` {"lm_eval": its version, task: the definition's version}.
    Raises InputError when a task is unknown, its data cannot be read, an answer is longer than the model's context, or
    a log-likelihood is not finite.
    """
    os.environ["DISABLE_MULTIPROC"] = "1"  # lm-eval's bootstrap would fork this process with its threads and CUDA
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # else local files are reported to the hub, with a wait for it
    import lm_eval  # takes a second on top of torch and transformers
    from lm_eval.config.evaluate_config import DEFAULT_SEED
    from lm_eval.evaluator import evaluate as run

    from sparseswaps.evaluation.lm import BlockwiseLM

    for logger in ("lm_eval.models", "transformers.tokenization_utils_base"):  # they log a line for each truncated item
        logging.getLogger(logger).setLevel(logging.ERROR)
    loaded = _load_tasks(tasks, include)
    python_seed, numpy_seed, torch_seed, fewshot_seed = DEFAULT_SEED
    random.seed(python_seed)
    np.random.seed(numpy_seed)
    torch.manual_seed(torch_seed)
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=fewshot_seed)
    lm = BlockwiseLM(model, tokenizer, batch_size, masks, whole, keep)
    # simple_evaluate would spend another second on facts about the machine, and ask the hub about the model.
    with prefix_errors(f"evaluation.lm_eval.tasks, {', '.join(tasks)}"):
        output = run(lm, loaded, limit=limit, bootstrap_iters=BOOTSTRAP, log_samples=False)
    for name, task in loaded["tasks"].items():
        _check_finite(name, task)
    return {
        "results": {name: plain_metrics(values) for name, values in output["results"].items()},
        "samples": {name: counts["effective"] for name, counts in output["n-samples"].items()},
        "limit": limit,
        "versions": {"lm_eval": lm_eval.__version__, **output["versions"]},
    }


def _load_tasks(tasks: list[str], include: Sequence[Path]) -> dict[str, Any]:
    """Return lm-eval's task objects. Its own definitions are read only when `include` lacks one of `tasks`."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=list(include), include_defaults=False)
    if not set(tasks) <= set(manager.all_tasks):
        manager = TaskManager(include_path=list(include))
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        sources = " or ".join(["lm-eval", *map(str, include)])
        raise InputError(f"evaluation.lm_eval.tasks: {unknown[0]!r} is no task of {sources}; see `lm_eval ls tasks`")
    try:
        return manager.load(tasks)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"evaluation.lm_eval.tasks: the data of {', '.join(tasks)} cannot be read ({reason}); "
            "download it first, or name tasks whose data is local"
        ) from error


def _check_finite(name: str, task: Any) -> None:
    """Raise InputError for a log-likelihood that is not finite, from which an accuracy would look like any other."""
    for request in task.instances:
        for response in request.resps:
            value = response[0] if isinstance(response, tuple) else response
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(
                    f"{name}: the log-likelihood of item {request.doc_id} is {value}; "
                    "the checkpoint's weights are broken, or its dtype overflows"
                )


def plain_metrics(values: dict[str, Any]) -> dict[str, float | None]:
    """Return lm-eval's {"acc,none": 0.5, "acc_stderr,none": "N/A", "alias": ""} as {"acc": 0.5, "acc_stderr": None}."""
    metrics = {}
    for key, value in values.items():
        metric, comma, used_filter = key.rpartition(",")
        if comma:
            base = metric.removesuffix("_stderr")
            name = base if used_filter == "none" else f"{base}@{used_filter}"
            number = float(value) if isinstance(value, Real) else math.nan
            metrics[name + metric[len(base) :]] = number if math.isfinite(number) else None
    return metrics
