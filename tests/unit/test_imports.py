import ast
import sys
import tomllib

import pytest
from helpers import REPOSITORY
from packaging.requirements import Requirement

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

WORKFLOW = ("embedded", "evaluation", "report", "workflow")  # the folders that need the extra `workflow`


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


def packages_imported(folder):
    """The packages beside the standard library and this one that a folder's modules import by a statement."""
    for path in (PACKAGE / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            yield from (name.partition(".")[0] for name in names)


@pytest.mark.parametrize("folder", BELOW)
def test_a_folder_imports_declared_packages_alone(folder):
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(project["optional-dependencies"]["workflow"] if folder in WORKFLOW else [])]
    declared = {Requirement(line).name for line in lines} | {"sparseswaps", *sys.stdlib_module_names}
    brought_along = {"httpx2", "llvmlite", "pydantic_core", "triton", "yaml"}  # by other packages; yaml is pyyaml
    assert set(packages_imported(folder)) <= declared | brought_along
