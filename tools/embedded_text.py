"""Write the embedded text and the two embedded lm-eval tasks from the standard library of the running Python.

    python tools/embedded_text.py           # write sparseswaps/embedded/text and sparseswaps/embedded/tasks
    python tools/embedded_text.py FOLDER    # write FOLDER/text and FOLDER/tasks

The files that come with the project were made by Python 3.11.7 (`sparseswaps.embedded.RELEASE`). A hash of a module's
dotted name puts the module into one of three splits: training text of the embedded model, calibration, or evaluation.
So no module of the evaluation split was calibrated on or trained on, whatever the release.

`text/calibration.jsonl` holds all modules of the calibration split. `text/evaluation.jsonl` holds the first modules of
the evaluation split, up to `EVALUATION_BYTES`. Each line is `{"module": name, "text": source}`, sorted by name.

The tasks ask about all modules of the evaluation split. `embedded_cloze` asks for an identifier that its context has
used before (as LAMBADA asks for a word). `embedded_choice` asks which of four lines of code comes next.
"""

import ast
import json
import keyword
import random
import re
import shutil
import sys
import sysconfig
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import accumulate, islice, zip_longest
from pathlib import Path
from typing import Any

from sparseswaps import embedded
from sparseswaps.base.files import write_atomically

EVALUATION_BYTES = 450_000  # twice what 256 windows of 256 tokens of the embedded model take

SEED = 0
ITEMS = (100, 500)  # fewest and most items a task
CONTEXT = (300, 600)  # fewest and most characters
CHOICES = 4

# Distributions leave these packages out (or add them), so only the training text may hold them.
_OPTIONAL = {"distutils", "ensurepip", "idlelib", "lib2to3", "test", "tests", "tkinter", "turtledemo"}
# Character tables and third-party code: no text to learn from, or not the standard library.
_SKIPPED = {"encodings", "site-packages", "dist-packages", "__pycache__"}
_WORD = re.compile(r"\b[A-Za-z_]\w{3,}")

_Document = tuple[str, str]
_Item = dict[str, Any]


def split_of(module: str) -> str:
    """Return the split of a module: 10 % evaluation, 20 % calibration, 70 % train, by a hash of its dotted name."""
    bucket = int.from_bytes(sha256(module.encode()).digest()[:4], "big") % 10
    return "evaluation" if bucket < 1 else "calibration" if bucket < 3 else "train"


def documents(split: str, stdlib: Path | None = None) -> list[_Document]:
    """Return the modules of one split as sorted `(dotted name, source)` pairs.

    `calibration` and `evaluation` hold packages that every distribution of Python installs. `train` also holds the
    test suite and other optional packages, where they are installed.
    """
    root = Path(stdlib or sysconfig.get_path("stdlib"))
    modules = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if _SKIPPED.intersection(parts) or parts[0].startswith(("config-", "_sysconfigdata")):
            continue
        if split != "train" and _OPTIONAL.intersection(parts):
            continue
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if split_of(module) != split:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # a few test files are written in other encodings on purpose
            continue
        if text.strip():
            modules.append((module, text))
    return sorted(modules)


def first(modules: list[_Document], size: int) -> list[_Document]:
    """Return the first modules, as many as `size` bytes hold."""
    totals = accumulate(len(text.encode()) for _, text in modules)
    return [module for module, total in zip(modules, totals, strict=True) if total <= size]


def cloze(modules: list[_Document]) -> list[_Item]:
    """Return items `{module, context, target}`: `target` is a space and an identifier of 4 or more characters.

    `context` ends where `target` follows in the module, begins at the beginning of a line, and holds the identifier at
    least twice. No module asks for the same identifier twice.

    Raises ValueError when the modules are too little text.
    """
    common = _common_words(modules)

    def candidates(module: str, text: str) -> Iterator[_Item]:
        targets = [
            (offset + match.start(), match[0])
            for offset, line in _code_lines(text)
            for match in re.finditer(r"(?<=\S) [A-Za-z_]\w{3,}", line)
            if _outside_strings(line[: match.start()]) and match[0][1:] not in common
        ]
        random.Random(f"{SEED}/{module}").shuffle(targets)
        used = set()
        for end, target in targets:
            context = _context(text, end)
            if context and target not in used and _words(context)[target[1:]] >= 2:
                used.add(target)
                yield {"module": module, "context": context, "target": target}

    return _spread("embedded_cloze", [candidates(*module) for module in modules])


def choice(modules: list[_Document]) -> list[_Item]:
    """Return items `{module, context, choices, label}`: `choices[label]` is the line that follows `context`.

    `context` is whole lines, without the end of the last line. The other choices are lines of other modules of the same
    indentation and about the same length. Every choice has at least 12 characters that are not blank and occurs once
    in all modules. The true choice shares a word with its context. Each label is the label of a quarter of the items.

    Raises ValueError when the modules are too little text.
    """
    common = _common_words(modules)
    uses = Counter(line.strip() for _, text in modules for line in text.split("\n"))
    lines = {
        module: [
            (offset, line)
            for offset, line in _code_lines(text)
            if uses[line.strip()] == 1 and len("".join(line.split())) >= 12 and _outside_strings(line)
        ]
        for module, text in modules
    }
    pools = defaultdict(list)  # by indentation: (length, line, module)
    for module, rows in lines.items():
        for _, line in rows:
            pools[_indentation(line)].append((len(line.strip()), line, module))
    for pool in pools.values():
        pool.sort()

    def candidates(module: str, text: str) -> Iterator[_Item]:
        draw = random.Random(f"{SEED}/{module}")
        for offset, line in draw.sample(lines[module], len(lines[module])):
            context = _context(text, offset - 1)
            if not context or not set(_words(context)) & set(_words(line)) - common:
                continue
            pool, length = pools[_indentation(line)], len(line.strip())
            low = bisect_left(pool, (length * 0.8,))
            high = bisect_right(pool, (length * 1.25 + 1,))
            others = [other for _, other, owner in pool[low:high] if owner != module]
            if len(others) >= CHOICES - 1:
                choices = [line, *draw.sample(others, CHOICES - 1)]
                yield {"module": module, "context": context, "choices": choices, "label": 0}

    items = _spread("embedded_choice", [candidates(*module) for module in modules])
    labels = [index % CHOICES for index in range(len(items))]
    random.Random(SEED).shuffle(labels)
    for item, label in zip(items, labels, strict=True):
        item["choices"].insert(label, item["choices"].pop(0))
        item["label"] = label
    return items


def write(folder: Path) -> None:
    """Write `text/*.jsonl` and `tasks/*.jsonl` to `folder`, and the licence of Python beside the text."""
    evaluation = documents("evaluation")
    parts = {"calibration": documents("calibration"), "evaluation": first(evaluation, EVALUATION_BYTES)}
    for name, modules in parts.items():
        _write_lines(folder / "text" / f"{name}.jsonl", ({"module": module, "text": text} for module, text in modules))
    shutil.copyfile(Path(sysconfig.get_path("stdlib")) / "LICENSE.txt", folder / "text" / "LICENSE.txt")
    for task, items in zip(embedded.TASKS, (cloze(evaluation), choice(evaluation)), strict=True):
        _write_lines(folder / "tasks" / f"{task}.jsonl", items)


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with write_atomically(path) as partial:
        partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _spread(task: str, streams: list[Iterator[_Item]]) -> list[_Item]:
    """Return one item from every stream in turn, so that the first few items are from as many modules as possible."""
    fewest, most = ITEMS
    items = list(islice((item for turn in zip_longest(*streams) for item in turn if item is not None), most))
    if len(items) < fewest:
        raise ValueError(f"{task}: the text gives {len(items)} items of at least {fewest}; pass more modules")
    return items


def _words(text: str) -> Counter[str]:
    return Counter(_WORD.findall(text))


def _common_words(modules: list[_Document]) -> set[str]:
    """Return keywords and the words of more than a third of the modules: these can be guessed without the context."""
    counts = Counter(word for _, text in modules for word in _words(text))
    return {word for word, count in counts.items() if count > len(modules) / 3}.union(keyword.kwlist)


def _code_lines(text: str) -> list[tuple[int, str]]:
    """Return the (offset, line) pairs of code: no blank lines, comments, or strings over several lines."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):  # a source of another Python version, or one with a null byte
        return []
    prose = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr) and node.end_lineno > node.lineno:
            prose.update(range(node.lineno, node.end_lineno + 1))
    pairs, offset = [], 0
    for number, line in enumerate(text.split("\n"), start=1):
        if number not in prose and re.match(r"\s*[A-Za-z_@]", line):
            pairs.append((offset, line))
        offset += len(line) + 1
    return pairs


def _outside_strings(before: str) -> bool:
    """Return whether the text after `before` on a line is code: neither in quotes nor in a comment."""
    return "#" not in before and not before.count('"') % 2 and not before.count("'") % 2


def _indentation(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _context(text: str, end: int) -> str | None:
    """Return the lines before `end`; None where the lines are too few, end in white space, or hold a licence."""
    fewest, most = CONTEXT
    if end < fewest:
        return None
    start = 0 if end <= most else text.find("\n", end - most - 1, end) + 1
    context = text[start:end]
    if not fewest <= len(context) <= most or context[-1].isspace() or "copyright" in context.lower():
        return None
    return context


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else embedded.TEXT.parent)
