"""A digest of the code that computes: the syntax trees of what a stage's job imports, without comments, docstrings,
type hints, error messages, log lines and labels of progress.
"""

import ast
import hashlib
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # the package's folder
PROSE = re.compile(r"[A-Za-z]\w*[,;:]? [A-Za-z]")  # two words: no key, name, format or separator of an algorithm
SILENT = ("logging", "logger")  # statements that call these compute nothing
LABELLED = {"progress", "show_progress", "prefix_errors"}  # calls whose texts only label progress and errors


@cache
def code_digest(job: str, folders: tuple[str, ...], words: tuple[str, ...] = ()) -> str:
    """Return a digest of a job's module and of the modules in `folders` that it imports, directly or not.

    Names are those within the package: `workflow.jobs.refine` of a job, `layer` of a folder, `workflow.artifacts` of a
    module. `words` are the folders whose texts count, as a report's do.
    """
    digest = hashlib.sha256()
    for path in sorted(reachable(job, folders)):
        name = path.relative_to(ROOT).as_posix()
        digest.update(f"{name}\n{skeleton(path, name.startswith(words))}\n".encode())
    return digest.hexdigest()[:8]


def reachable(job: str, folders: tuple[str, ...]) -> set[Path]:
    """Return the files of a job's module and of the modules in `folders` that it imports, directly or not."""
    start = module_file(job)
    paths = [ROOT.joinpath(*folder.split(".")) for folder in folders]
    within = {start.parent, *paths, *(path.with_suffix(".py") for path in paths)}
    reached, waiting = set(), [start]
    while waiting:
        path = waiting.pop()
        if path not in reached:
            reached.add(path)
            waiting.extend(file for file in imports(path) if not within.isdisjoint([file, *file.parents]))
    return reached


def module_file(name: str) -> Path:
    return ROOT.joinpath(*name.split(".")).with_suffix(".py")


@cache
def imports(path: Path) -> frozenset[Path]:
    """Return the package's own modules that a file imports anywhere in it."""
    names = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    files = (module_file(name.removeprefix("sparseswaps.")) for name in names if name.startswith("sparseswaps."))
    return frozenset(file for file in files if file.is_file())


@cache
def skeleton(path: Path, words: bool) -> str:
    """Return a file's syntax tree as text, without what computes nothing; with its texts if `words` is true."""
    transformer = _WithoutDocstringsAndHints() if words else _WithoutWords()
    return ast.dump(transformer.visit(parse(path)))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


class _WithoutDocstringsAndHints(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        """Keep the field of a class, without its type; a variable that gets a value keeps the value."""
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)


class _WithoutWords(_WithoutDocstringsAndHints):
    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        call = node.value
        owner = call.func.value if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) else None
        if isinstance(owner, ast.Name) and owner.id in SILENT:
            return ast.Pass()
        return super().visit_Expr(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        node.exc = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
        if name in LABELLED:
            node.args = [ast.Constant("") if is_text(argument) else argument for argument in node.args]
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        prose = isinstance(node.value, str) and PROSE.search(node.value)
        return ast.Constant("") if prose else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        texts = [part.value for part in node.values if isinstance(part, ast.Constant)]
        return ast.Constant("") if any(map(PROSE.search, texts)) else self.generic_visit(node)


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
