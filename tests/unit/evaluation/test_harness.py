import json
import math
import re
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import write_tiny_model

from sparseswaps.base.errors import InputError
from sparseswaps.embedded import TASKS, TASKS_FOLDER
from sparseswaps.evaluation.harness import evaluate, plain_metrics
from sparseswaps.model.loading import load_model, load_tokenizer

ITEMS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny random Llama in `model`, and one with a NaN among its weights in `broken`."""
    folder = tmp_path_factory.mktemp("harness")
    for name in ("model", "broken"):
        write_tiny_model(folder / name, max_position_embeddings=1024)
    model = load_model(str(folder / "broken"), "cpu")
    model.model.norm.weight.data[3] = math.nan
    model.save_pretrained(folder / "broken")
    return folder


@pytest.fixture(autouse=True)
def isolated(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", None)


def read(folder: Path):
    return load_model(str(folder), "cpu"), load_tokenizer(str(folder))


def run(folder: Path, name: str = "model", dtype=torch.float32, context: int = 1024, **changes):
    """Return `evaluate` of a model."""
    model, tokenizer = read(folder / name)
    model.config.max_position_embeddings = context
    arguments = {"tasks": list(TASKS), "include": [TASKS_FOLDER], "limit": ITEMS, "batch_size": 3} | changes
    return evaluate(model.to(dtype), tokenizer, **arguments)


def items(task: str) -> list[dict]:
    return [json.loads(row) for row in (TASKS_FOLDER / f"{task}.jsonl").read_text().splitlines()[:ITEMS]]


@torch.no_grad()
def score(model, tokenizer, context: str, continuation: str) -> tuple[float, bool]:
    """Return the log-probability of a continuation, and whether all of its tokens are the likeliest."""
    ids, start = torch.tensor(tokenizer(context + continuation)["input_ids"]), len(tokenizer(context)["input_ids"])
    logprobs = model(input_ids=ids[None]).logits[0, start - 1 : -1].log_softmax(-1)
    target = ids[start:]
    return logprobs.gather(1, target[:, None]).sum().item(), bool((logprobs.argmax(-1) == target).all())


def test_both_tasks_agree_with_a_direct_computation(folder):
    result = run(folder)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["limit"] == ITEMS
    assert result["samples"] == dict.fromkeys(TASKS, ITEMS)
    assert set(result["versions"]) == {"lm_eval", *TASKS}
    loaded = read(folder / "model")
    cloze = result["results"]["embedded_cloze"]
    assert set(cloze) == {"acc", "acc_stderr", "perplexity", "perplexity_stderr"}
    scores = [score(*loaded, item["context"], item["target"]) for item in items("embedded_cloze")]
    assert cloze["perplexity"] == pytest.approx(math.exp(-sum(score for score, _ in scores) / ITEMS), rel=1e-4)
    assert cloze["acc"] == sum(greedy for _, greedy in scores) / ITEMS
    assert cloze["perplexity_stderr"] > 0
    choice = result["results"]["embedded_choice"]
    assert set(choice) == {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr"}
    plain, normed = [], []
    for item in items("embedded_choice"):
        scores = [score(*loaded, item["context"], "\n" + text)[0] for text in item["choices"]]
        plain.append(np.argmax(scores) == item["label"])
        normed.append(np.argmax(np.divide(scores, list(map(len, item["choices"])))) == item["label"])
    assert choice["acc"] == np.mean(plain)
    assert choice["acc_norm"] == np.mean(normed)
    assert choice["acc_stderr"] == pytest.approx(np.std(plain, ddof=1) / math.sqrt(ITEMS))


def test_one_task_bfloat16_and_a_short_context(folder):
    result = run(folder, tasks=["embedded_choice"], dtype=torch.bfloat16, context=128, limit=4)
    assert set(result["results"]) == {"embedded_choice"}
    assert result["samples"] == {"embedded_choice": 4}


def copy_of_cloze(folder: Path, name: str, **changes) -> Path:
    lines = (TASKS_FOLDER / "embedded_cloze.yaml").read_text().splitlines()
    lines = [line for line in lines if line.partition(":")[0] not in {"task", *changes}]
    lines += [f"{key}: {value}" for key, value in {"task": name, **changes}.items()]
    (folder / f"{name}.yaml").write_text("\n".join(lines))
    return folder


def test_few_shot_examples_are_those_that_lm_eval_draws(folder, tmp_path):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    include = copy_of_cloze(tmp_path, "cloze", num_fewshot=1, fewshot_split="test")
    ours = run(folder, tasks=["cloze"], include=[include])["results"]["cloze"]
    model, tokenizer = read(folder / "model")
    arguments = {"tasks": ["cloze"], "limit": ITEMS, "bootstrap_iters": 0}
    arguments["task_manager"] = TaskManager(include_path=[include], include_defaults=False)
    theirs = simple_evaluate(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3), **arguments)["results"]["cloze"]
    assert (ours["acc"], ours["perplexity"]) == (theirs["acc,none"], theirs["perplexity,none"])
    assert ours["perplexity"] != run(folder, tasks=["embedded_cloze"])["results"]["embedded_cloze"]["perplexity"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"tasks": ["embedded_choice"], "context": 2}, r"evaluation\.lm_eval\.tasks.*embedded_choice.*\b2$"),
        ({"tasks": ["embedded_choice"], "name": "broken"}, r"embedded_choice.*\b0\b.*nan"),  # the number of the item
        ({"tasks": ["embedded_cloze", "arc_nosuch"]}, r"evaluation\.lm_eval\.tasks.*'arc_nosuch'"),
        ({"tasks": ["gone"]}, r"evaluation\.lm_eval\.tasks.*gone"),  # its data are not there
    ],
)
def test_bad_input_is_named(folder, tmp_path, monkeypatch, arguments, named):
    # lm-eval looks beside this file for its own 14 000 definitions, which take several seconds to read.
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(tmp_path / "manager.py"))
    include = copy_of_cloze(tmp_path, "gone", dataset_kwargs="{file: gone.jsonl}")
    with pytest.raises(InputError, match=named):
        run(folder, **arguments, include=[TASKS_FOLDER, include])


def test_text_is_generated_by_the_whole_model(folder, tmp_path):
    """Requests are run again with smaller batches when memory is short."""
    copy_of_cloze(tmp_path, "words", output_type="generate_until", generation_kwargs="{max_gen_toks: 3, until: [xyz]}")
    definition = (tmp_path / "words.yaml").read_text().replace("metric: acc,", "metric: exact_match,")
    (tmp_path / "words.yaml").write_text(re.sub(".*metric: perplexity.*", "", definition))
    arguments = {"tasks": ["words"], "include": [tmp_path], "limit": 3}
    expected, sizes = run(folder, **arguments), []

    def whole():
        model, _ = read(folder / "model")
        own = model.generate

        def limited(input_ids, **more):
            sizes.append(len(input_ids))
            if len(input_ids) > 1:
                raise torch.OutOfMemoryError
            return own(input_ids=input_ids, **more)

        model.generate = limited
        return model

    assert run(folder, **arguments, whole=whole) == expected
    assert sizes == [3, 1, 1, 1]
    assert set(expected["results"]["words"]) == {"exact_match", "exact_match_stderr"}


def test_metrics():
    values = {"alias": "task", "sample_len": 10, "f1,none": np.float32(0.5), "f1_stderr,none": "N/A"}
    values |= {"exact_match,strict-match": 1, "exact_match_stderr,strict-match": math.nan}
    matches = {"exact_match@strict-match": 1.0, "exact_match@strict-match_stderr": None}
    assert plain_metrics(values) == {"f1": 0.5, "f1_stderr": None} | matches
