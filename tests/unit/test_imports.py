"""What each folder of the package may import."""

import ast

import pytest
from helpers import REPOSITORY

PACKAGE = REPOSITORY / "sparseswaps"
BELOW = {
    "base": set(),
    "embedded": {"base"},
    "layer": {"base"},
    "model": {"base", "embedded", "layer"},
    "calibration": {"base", "embedded", "layer", "model"},
    "pruning": {"base", "calibration", "embedded", "layer", "model"},
    "evaluation": {"base", "calibration", "embedded", "layer", "model"},
    "report": {"base"},
    "workflow": {"base", "calibration", "embedded", "evaluation", "layer", "model", "pruning", "report"},
}


def imported(path):
    """The names of the package's own modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sparseswaps"):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("sparseswaps"))


def test_every_folder_is_known():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(BELOW)


@pytest.mark.parametrize("folder", BELOW)
def test_a_folder_imports_the_folders_below_it_alone(folder):
    folders = {
        name.split(".")[1]
        for path in (PACKAGE / folder).rglob("*.py")
        for name in imported(path)
        if name.count(".") >= 1 and (PACKAGE / name.split(".")[1]).is_dir()
    }
    assert folders - {folder} <= BELOW[folder]


def test_the_oracle_is_imported_by_its_backend_alone():
    modules = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "sparseswaps.layer.swaps.reference" in set(imported(path))
    }
    assert modules == {"layer/swaps/backends.py"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=lambda path: path.parent.name)
def test_a_folders_own_file_says_what_lives_there(path):
    body = ast.parse(path.read_text()).body
    assert isinstance(body[0].value.value, str)
    assert path.parent == PACKAGE or len(body) == 1 or path.parent.name == "embedded"
