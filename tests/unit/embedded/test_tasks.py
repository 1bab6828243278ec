import json
import re
from collections import Counter
from itertools import pairwise

import pytest
import yaml

from sparseswaps.base.errors import InputError
from sparseswaps.embedded.corpus import documents
from sparseswaps.embedded.tasks import TASKS, choice, cloze, write


@pytest.fixture(scope="module")
def held_out() -> list[tuple[str, str]]:
    return documents("evaluation")


@pytest.fixture(scope="module")
def cloze_items(held_out):
    return cloze(held_out)


@pytest.fixture(scope="module")
def choice_items(held_out):
    return choice(held_out)


def test_cloze_asks_for_an_identifier_that_its_context_holds(held_out, cloze_items):
    source = dict(held_out)
    for item in cloze_items:
        context, target = item["context"], item["target"]
        assert re.fullmatch(r" [A-Za-z_]\w{3,}", target)
        assert len(re.findall(rf"\b{target[1:]}\b", context)) >= 2
        assert not context[-1].isspace()  # exactly one blank in between
        assert 300 <= len(context) <= 600
        text = source[item["module"]]
        places = [match.start() for match in re.finditer(re.escape(context + target) + r"\b", text)]
        assert any(place == 0 or text[place - 1] == "\n" for place in places)


def test_choice_asks_for_the_line_that_follows(held_out, choice_items):
    source = dict(held_out)
    for item in choice_items:
        text, context, true = source[item["module"]], item["context"], item["choices"][item["label"]]
        assert ("\n" + text + "\n").count(f"\n{context}\n{true}\n") == 1
        assert 300 <= len(context) <= 600


def test_choices_differ_in_nothing_but_what_they_say(held_out, choice_items):
    lines = {module: set(text.split("\n")) for module, text in held_out}
    for item in choice_items:
        choices = item["choices"]
        true = choices[item["label"]]
        assert len(set(choices)) == 4
        assert len({len(line) - len(line.lstrip()) for line in choices}) == 1
        for line in choices:
            assert len("".join(line.split())) >= 12
            assert (line in lines[item["module"]]) == (line is true)
            assert 0.75 < len(line.strip()) / len(true.strip()) < 1.4


def test_labels_are_balanced_and_without_order(choice_items):
    labels = [item["label"] for item in choice_items]
    assert Counter(labels) == dict.fromkeys(range(4), len(labels) // 4)
    assert len(set(pairwise(labels))) == 16


@pytest.mark.parametrize("make", [cloze, choice])
def test_items_are_many_spread_and_decided_by_the_seed(held_out, make, request):
    items = request.getfixturevalue(f"{make.__name__}_items")
    assert len(items) == 500
    per_module = Counter(item["module"] for item in items)
    assert len(per_module) > 30
    assert max(per_module.values()) <= 25
    assert len({item["module"] for item in items[:30]}) == 30
    assert not any("copyright" in item["context"].lower() for item in items)
    some = held_out[::2]
    assert make(some, seed=5) == make(some, seed=5) != make(some, seed=6)


def test_write(held_out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("tasks", held_out[::2], seed=3)
    assert sorted(path.name for path in (tmp_path / "tasks").iterdir()) == sorted(
        f"{task}.{suffix}" for task in TASKS for suffix in ("jsonl", "yaml")
    )
    for task, make in zip(TASKS, (cloze, choice), strict=True):
        definition = yaml.safe_load((tmp_path / "tasks" / f"{task}.yaml").read_text())
        assert definition["task"] == task
        assert definition.get("target_delimiter") == {"embedded_choice": "\n"}.get(task)
        data = definition["dataset_kwargs"]["data_files"]["test"]
        assert data == str(tmp_path / "tasks" / f"{task}.jsonl")
        with open(data, encoding="utf-8") as rows:
            assert [json.loads(row) for row in rows] == make(held_out[::2], seed=3)


def test_too_little_text(held_out, tmp_path):
    with pytest.raises(InputError, match="embedded_cloze"):
        write(tmp_path / "tasks", held_out[:4])
    assert not (tmp_path / "tasks").exists()
    with pytest.raises(InputError, match="embedded_choice"):
        choice([("broken", "def f(:\n" * 1000), ("short", "x = 1\n")])
