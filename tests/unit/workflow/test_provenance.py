import re
import tomllib
from pathlib import Path

import pytest
import yaml
from helpers import REPOSITORY

from sparseswaps.workflow import provenance
from sparseswaps.workflow.provenance import source_digest, stage_key


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A small project of its own: script -> package.a -> package.b, and package.c that nobody imports."""
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    files = {
        "scripts/stage.py": "from helper import run\n\nfrom package.a import f\n\nrun(f)\n",
        "scripts/helper.py": "def run(f):\n    return f()\n",
        "package/__init__.py": "",
        "package/a.py": '"""Docs."""\n\n\ndef f():\n    """Docs."""\n    from package import b\n\n    return b.x\n',
        "package/b.py": "x = 1\n",
        "package/c.py": "y = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def digest(project: Path) -> str:
    for function in (provenance._imports, provenance._code, provenance.source_digest):
        function.cache_clear()
    return source_digest(project / "scripts/stage.py")


@pytest.mark.parametrize(
    ("file", "old", "new", "counts"),
    [
        ("scripts/stage.py", "run(f)", "run(f) or 1", True),
        ("scripts/helper.py", "f()", "f() or 1", True),
        ("package/a.py", "b.x", "b.x + 1", True),
        ("package/b.py", "1", "2", True),
        ("package/__init__.py", "", "z = 1", True),
        ("package/c.py", "1", "2", False),
        ("package/a.py", "Docs.", "Other words.", False),
        ("package/b.py", "x = 1", "# why\nx  =  1", False),
    ],
)
def test_what_changes_a_digest(project, file, old, new, counts):
    before = digest(project)
    path = project / file
    path.write_text(path.read_text().replace(old, new) if old else new)
    assert (digest(project) != before) is counts


def test_the_key_does_not_depend_on_the_order_of_settings(project):
    script = project / "scripts/stage.py"
    assert stage_key(script, {"a": 1, "b": [2]}) == stage_key(script, {"b": [2], "a": 1})
    assert stage_key(script, {"a": 1}) != stage_key(script, {"a": 2})


def test_plotting_is_no_part_of_refinement():
    reached, waiting = set(), [REPOSITORY / "scripts" / "refine.py"]
    while waiting:
        path = waiting.pop()
        if path not in reached:
            reached.add(path)
            waiting.extend(provenance._imports(path))
    names = {path.stem for path in reached}
    assert {"refine", "job", "engine", "reference", "batched", "cpu", "gram", "artifacts", "masks"} <= names
    assert not {"figures", "tables", "report", "perplexity", "harness", "blocks", "text", "study"} & names
    assert not {"criteria", "sparsegpt", "admm", "reconstruct", "rebuild", "allocation"} & names


def test_pins_are_the_same_for_pip_and_conda():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((REPOSITORY / "envs" / "sparseswaps.yaml").read_text())
    conda = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert sorted(conda) == sorted(project["dependencies"])
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in conda)
