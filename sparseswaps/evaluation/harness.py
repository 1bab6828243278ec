"""Tasks of lm-eval, run by its own code on a model in memory."""

import logging
import math
import os
import random
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparseswaps.base.errors import InputError
from sparseswaps.base.memory import halve_until_it_fits

_BOOTSTRAP = 1000  # draws for standard errors without a closed form (perplexity); 0 would switch off every other too


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: list[str],
    include: Sequence[Path],
    limit: int | None,
    batch_size: int,
) -> dict[str, Any]:
    """Run lm-eval tasks on a causal LM, with as many shots as each task's definition says: none unless it says some.

    The seeds are those of `lm_eval`'s command line, so that it gives the same numbers for the same model
    (docs/interoperation.md).

    Args:
        model: on the device that is to compute. Log-probabilities are float32, whatever the dtype of its weights.
        tokenizer: its own.
        tasks: names of tasks, groups or tags.
        include: folders of task definitions (YAML); a later one goes before an earlier one, and all before lm-eval's
            own of the same name. The latter are indexed, in several seconds, only when the folders lack one of `tasks`.
        limit: take only that many items of each task, from the beginning; None takes all.
        batch_size: requests per forward pass. With all their logits in float32, this is what most memory goes into;
            once the GPU has no more of it, all is begun again with half as many.

    Returns:
        Plain JSON: `results` {task or group: {metric: value, metric_stderr: value}}, None where lm-eval has no number,
        a filter other than "none" as part of the metric's name ("exact_match@strict-match"); `samples` {task: items
        evaluated}; `limit`; `versions` {"lm_eval": its version, task: the definition's version}.

    Raises:
        InputError: a task is unknown, its data is out of reach, an answer is longer than the
            model's context, or a log-likelihood is not finite.
    """
    os.environ["DISABLE_MULTIPROC"] = "1"  # lm-eval's bootstrap would fork this process, threads, CUDA and all
    os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] = "0"  # datasets would report local files too, and wait where it cannot
    # A second on top of torch and transformers, nearly all of it pandas and pyarrow, which `datasets` loads.
    import lm_eval
    import numpy as np
    import torch
    from lm_eval.config.evaluate_config import DEFAULT_SEED
    from lm_eval.evaluator import evaluate as run
    from lm_eval.models.huggingface import HFLM

    for chatty in ("lm_eval.models", "transformers.tokenization_utils_base"):  # a line for every item that is cut
        logging.getLogger(chatty).setLevel(logging.ERROR)

    def attempt(batch_size: int) -> dict[str, Any]:
        loaded = _load(tasks, include)  # anew: tasks keep their requests and draw few-shot examples as they go
        of_python, of_numpy, of_torch, of_shots = DEFAULT_SEED
        random.seed(of_python)
        np.random.seed(of_numpy)
        torch.manual_seed(of_torch)
        for task in loaded["tasks"].values():
            task.set_fewshot_seed(seed=of_shots)
        wrapped = HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            softmax_dtype="float32",  # in bfloat16 an answer's log-probability is rounded to about 0.25: choices tie
        )
        # simple_evaluate would spend a second more on facts about the machine, and ask the hub about the model.
        try:
            output = run(wrapped, loaded, limit=limit, bootstrap_iters=_BOOTSTRAP, log_samples=False)
        except AssertionError as error:
            raise InputError(
                f"evaluation.lm_eval.tasks: lm-eval gave up on {', '.join(tasks)}; it does so without a word when an "
                f"answer has more tokens than the model's context, here {wrapped.max_length}"
            ) from error
        for name, task in loaded["tasks"].items():
            _check_finite(name, task)
        return output

    output, _ = halve_until_it_fits(attempt, batch_size, "requests")
    return {
        "results": {name: _metrics(values) for name, values in output["results"].items()},
        "samples": {name: counts["effective"] for name, counts in output["n-samples"].items()},
        "limit": limit,
        "versions": {"lm_eval": lm_eval.__version__, **output["versions"]},
    }


def _load(tasks: list[str], include: Sequence[Path]) -> dict[str, Any]:
    """lm-eval's task objects; its thousands of definitions are read only where `include` does not have all `tasks`."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=list(include), include_defaults=False)
    if not set(tasks) <= set(manager.all_tasks):
        manager = TaskManager(include_path=list(include))
    for task in tasks:
        if task not in manager.all_tasks:
            where = f"neither lm-eval nor {', '.join(map(str, include))} has" if include else "lm-eval has no"
            raise InputError(f"evaluation.lm_eval.tasks: {where} task {task!r}; `lm_eval ls tasks` lists what there is")
    try:
        return manager.load(tasks)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"evaluation.lm_eval.tasks: the data of {', '.join(tasks)} cannot be read ({reason}); "
            "download it first, or name tasks whose data is local"
        ) from error


def _check_finite(name: str, task: Any) -> None:
    """Accuracies come out of broken log-likelihoods too, and look like numbers."""
    for request in task.instances:
        for response in request.resps:
            value = response[0] if isinstance(response, tuple) else response
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(
                    f"{name}: the log-likelihood of item {request.doc_id} is {value}; "
                    "the checkpoint's weights are broken, or its dtype overflows"
                )


def _metrics(values: dict[str, Any]) -> dict[str, float | None]:
    """lm-eval's {"acc,none": 0.5, "acc_stderr,none": "N/A", "alias": ...} as {"acc": 0.5, "acc_stderr": None}."""
    found = {}
    for key, value in values.items():
        metric, comma, chosen = key.rpartition(",")
        if comma:
            base = metric.removesuffix("_stderr")
            name = base if chosen == "none" else f"{base}@{chosen}"
            number = float(value) if isinstance(value, Real) else math.nan
            found[name + metric[len(base) :]] = number if math.isfinite(number) else None
    return found
