"""What made an artifact: the settings of its stage, the code that ran, and the versions it ran with.

Snakemake reruns a rule when its script or parameters change, but does not see the modules that a script imports. So
every rule has one parameter, the key below, which holds a digest of all of the project's code that its script runs.
"""

import ast
import hashlib
import json
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent.parent


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@cache
def _imports(path: Path) -> frozenset[Path]:
    """The project's own modules that a file imports anywhere in it, and the packages they lie in."""
    names = set()
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    found = set()
    for name in names:
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            for folder in (_ROOT, path.parent):  # a script also imports modules that lie beside it
                place = folder.joinpath(*parts[:depth])
                found.update(file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file())
    return frozenset(file for file in found if file.is_relative_to(_ROOT))


@cache
def _code(path: Path) -> str:
    """A file's syntax tree as text, without docstrings, comments or layout."""
    tree = _parsed(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return ast.dump(tree)


@cache
def source_digest(script: Path) -> str:
    """A digest of a script and of every module of this project that it imports, directly or not.

    Comments, docstrings and layout do not count. Imports inside functions do; dynamic imports are not seen.
    """
    reached, waiting = set(), [script.resolve()]
    while waiting:
        path = waiting.pop()
        if path not in reached:
            reached.add(path)
            waiting.extend(_imports(path))
    code = [(str(path.relative_to(_ROOT)), _code(path)) for path in sorted(reached)]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()[:16]


@cache
def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """The installed version of each package; "none" for one that is not installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def stage_key(script: Path, settings: dict[str, Any], packages: tuple[str, ...] = ()) -> str:
    """The one parameter of a rule: canonical JSON of its settings, its code's digest and the versions that matter."""
    key = {"settings": settings, "code": source_digest(script), "versions": versions(packages)}
    return json.dumps(key, sort_keys=True)
