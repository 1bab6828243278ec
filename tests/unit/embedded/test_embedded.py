import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from zipfile import ZipFile

import pytest
from helpers import REPOSITORY
from transformers import AutoTokenizer

from sparseswaps import embedded
from sparseswaps.calibration.documents import load
from sparseswaps.calibration.sampling import draw, tokenize
from sparseswaps.evaluation.perplexity import windows


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(embedded.MODEL)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def items(task: str) -> list[dict]:
    return read(embedded.TASKS_FOLDER / f"{task}.jsonl")


def test_no_module_is_for_calibration_and_evaluation(tokenizer):
    names = ("calibration", "evaluation")
    calibration, evaluation = ({row["module"] for row in read(embedded.TEXT / f"{name}.jsonl")} for name in names)
    asked = {item["module"] for task in embedded.TASKS for item in items(task)}
    assert not calibration & (evaluation | asked)
    assert (len(calibration), len(evaluation)) == (86, 31)
    parts = [load("embedded", name) for name in names]
    assert [sum(len(text.encode()) for text in part) for part in parts] == [1_524_372, 446_979]
    assert len(windows(tokenize(tokenizer, "\n\n".join(parts[1])), 256)) > 256  # enough for an evaluation


def test_the_calibration_text_is_enough(tokenizer):  # for any seed: more samples than documents, so all are read
    calibration, held_out = draw(load("embedded", "calibration"), tokenizer, 128, 32, 256, seed=0)
    assert (calibration.shape, held_out.shape) == ((128, 256), (32, 256))


@pytest.mark.parametrize("task", embedded.TASKS)
def test_items_are_many_and_spread(task):
    rows = items(task)
    assert len(rows) == 500
    counts = Counter(row["module"] for row in rows)
    assert len(counts) > 30
    assert max(counts.values()) <= 25
    assert len({row["module"] for row in rows[:30]}) == 30
    assert all(300 <= len(row["context"]) <= 600 for row in rows)
    assert not any("copyright" in row["context"].lower() for row in rows)


def test_labels_are_balanced_and_without_order():
    labels = [item["label"] for item in items("embedded_choice")]
    assert Counter(labels) == dict.fromkeys(range(4), 125)
    assert len(set(pairwise(labels))) == 16


def test_a_wheel_holds_all_files(tmp_path):
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, tmp_path)
    shutil.copytree(REPOSITORY / "sparseswaps", tmp_path / "sparseswaps", ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta; build_meta.build_wheel('wheel')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, env=os.environ, check=True, capture_output=True)
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    files = {str(path.relative_to(tmp_path)) for path in (tmp_path / "sparseswaps").rglob("*") if path.is_file()}
    assert {name for name in ZipFile(wheel).namelist() if name.startswith("sparseswaps/")} == files
