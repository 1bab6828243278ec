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


def imported(*paths):
    """Yield the dotted names that modules import by a statement."""
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("folder", [path.parent.name for path in PACKAGE.glob("*/__init__.py")])
def test_a_folder_imports_the_folders_below_it_alone(folder):
    names = imported(*(PACKAGE / folder).rglob("*.py"))
    parts = {name.split(".")[1] for name in names if name.startswith("sparseswaps.")}
    assert {part for part in parts if (PACKAGE / part).is_dir()} - {folder} <= BELOW[folder]


def test_the_oracle_is_imported_by_its_backend_alone():
    modules = [path for path in PACKAGE.rglob("*.py") if "sparseswaps.layer.swaps.reference" in imported(path)]
    assert modules == [PACKAGE / "layer" / "swaps" / "backends.py"]


@pytest.mark.parametrize("folder", BELOW)
def test_a_folder_imports_declared_packages_alone(folder):
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(project["optional-dependencies"]["workflow"] if folder in WORKFLOW else [])]
    declared = {Requirement(line).name for line in lines} | {"sparseswaps", *sys.stdlib_module_names}
    brought_along = {"httpx2", "llvmlite", "pydantic_core", "triton", "yaml"}  # by other packages; yaml is pyyaml
    packages = {name.partition(".")[0] for name in imported(*(PACKAGE / folder).rglob("*.py"))}
    assert packages <= declared | brought_along
