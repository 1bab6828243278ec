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
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sparseswaps"):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("sparseswaps"))


@pytest.mark.parametrize("folder", [path.parent.name for path in PACKAGE.glob("*/__init__.py")])
def test_a_folder_imports_the_folders_below_it_alone(folder):
    names = [name for path in (PACKAGE / folder).rglob("*.py") for name in imported(path) if "." in name]
    folders = {name.split(".")[1] for name in names if (PACKAGE / name.split(".")[1]).is_dir()}
    assert folders - {folder} <= BELOW[folder]


def test_the_oracle_is_imported_by_its_backend_alone():
    modules = [path for path in PACKAGE.rglob("*.py") if "sparseswaps.layer.swaps.reference" in imported(path)]
    assert modules == [PACKAGE / "layer" / "swaps" / "backends.py"]
