"""Two lm-eval tasks made from the embedded text, for machines that reach no data set.

`embedded_cloze` asks for an identifier that its context has used before (as LAMBADA asks for a word),
`embedded_choice` which of four lines of code comes next. Both are drawn from the modules of the evaluation split,
evenly, and are the same for the same documents and seed.
"""

import ast
import json
import keyword
import random
import re
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import yaml

from sparseswaps.base.errors import InputError
from sparseswaps.base.files import write_atomically

TASKS = ("embedded_cloze", "embedded_choice")
SEED = 0
ITEMS = (100, 500)  # fewest and most per task
CONTEXT = (300, 600)  # fewest and most characters
CHOICES = 4

_WORD = re.compile(r"\b[A-Za-z_]\w{3,}")
_Document = tuple[str, str]
_Item = dict[str, Any]


def cloze(documents: list[_Document], seed: int = SEED) -> list[_Item]:
    """Items `{module, context, target}`: `target` is a space and an identifier of 4 or more characters.

    `context` ends where `target` follows in the module, begins at a line's beginning, and holds the identifier at
    least twice. No module asks for the same identifier twice.

    Raises InputError when the documents are too little text.
    """
    common = _common_words(documents)

    def candidates(module: str, text: str) -> Iterator[_Item]:
        places = [
            (offset + match.start(), match[0])
            for offset, line in _code_lines(text)
            for match in re.finditer(r"(?<=\S) [A-Za-z_]\w{3,}", line)
            if _outside_strings(line[: match.start()]) and match[0][1:] not in common
        ]
        random.Random(f"{seed}/{module}").shuffle(places)
        asked = set()
        for end, target in places:
            context = _context(text, end)
            if context and target not in asked and _words(context)[target[1:]] >= 2:
                asked.add(target)
                yield {"module": module, "context": context, "target": target}

    return _spread("embedded_cloze", [candidates(*document) for document in documents])


def choice(documents: list[_Document], seed: int = SEED) -> list[_Item]:
    """Items `{module, context, choices, label}`: `choices[label]` is the line that follows `context`.

    `context` is whole lines, without the last line's end. The other choices are lines of other modules of the same
    indentation and about the same length. Every choice has at least 12 characters that are not blank and occurs once
    in all documents; the true one shares a word with its context. Each label is that of a quarter of the items.

    Raises InputError when the documents are too little text.
    """
    common = _common_words(documents)
    uses = Counter(line.strip() for _, text in documents for line in text.split("\n"))
    lines = {
        module: [
            (offset, line)
            for offset, line in _code_lines(text)
            if uses[line.strip()] == 1 and len("".join(line.split())) >= 12 and _outside_strings(line)
        ]
        for module, text in documents
    }
    pools = defaultdict(list)  # by indentation: (length, line, module)
    for module, rows in lines.items():
        for _, line in rows:
            pools[_indentation(line)].append((len(line.strip()), line, module))
    for pool in pools.values():
        pool.sort()

    def candidates(module: str, text: str) -> Iterator[_Item]:
        draw = random.Random(f"{seed}/{module}")
        for offset, line in draw.sample(lines[module], len(lines[module])):
            context = _context(text, offset - 1)
            if not context or not set(_words(context)) & set(_words(line)) - common:
                continue
            pool, length = pools[_indentation(line)], len(line.strip())
            low = bisect_left(pool, (length * 0.8,))
            high = bisect_right(pool, (length * 1.25 + 1,))
            others = [other for _, other, owner in pool[low:high] if owner != module]
            if len(others) >= CHOICES - 1:
                yield {
                    "module": module,
                    "context": context,
                    "choices": [line, *draw.sample(others, CHOICES - 1)],
                    "label": 0,
                }

    items = _spread("embedded_choice", [candidates(*document) for document in documents])
    labels = [index % CHOICES for index in range(len(items))]
    random.Random(seed).shuffle(labels)
    for item, label in zip(items, labels, strict=True):
        item["choices"].insert(label, item["choices"].pop(0))
        item["label"] = label
    return items


def write(folder: Path, documents: list[_Document], seed: int = SEED) -> None:
    """Write `<task>.jsonl` and `<task>.yaml` for each of `TASKS` to `folder`.

    `documents` are the (module name, source) pairs of `sparseswaps.embedded.corpus.documents("evaluation")`.
    The YAML names its data by an absolute path, as lm-eval wants it: write again after moving the folder.

    Raises InputError when the documents are too little text for 100 items of each task.
    """
    items = {"embedded_cloze": cloze(documents, seed), "embedded_choice": choice(documents, seed)}
    for task in TASKS:
        data = (Path(folder) / f"{task}.jsonl").resolve()
        with write_atomically(data) as partial:
            rows = (json.dumps(item, ensure_ascii=False) + "\n" for item in items[task])
            partial.write_text("".join(rows), encoding="utf-8")
        with write_atomically(data.with_suffix(".yaml")) as partial:
            partial.write_text(yaml.safe_dump(_definition(task, data), sort_keys=False), encoding="utf-8")


def _definition(task: str, data: Path) -> dict[str, Any]:
    """The task as lm-eval reads it; `doc_to_*` are names of columns."""
    if task == "embedded_cloze":
        asked = {"output_type": "loglikelihood", "doc_to_target": "target"}
        metrics = {"acc": ("mean", True), "perplexity": ("perplexity", False)}
    else:
        asked = {
            "output_type": "multiple_choice",
            "doc_to_choice": "choices",
            "doc_to_target": "label",
            "target_delimiter": "\n",
        }
        metrics = {"acc": ("mean", True), "acc_norm": ("mean", True)}
    return {
        "task": task,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "context",
        **asked,
        "metric_list": [
            {"metric": metric, "aggregation": aggregation, "higher_is_better": better}
            for metric, (aggregation, better) in metrics.items()
        ],
        "metadata": {"version": 1.0},
    }


def _spread(task: str, streams: list[Iterator[_Item]]) -> list[_Item]:
    """One item from every stream in turn, so that the first few are spread over the modules as well as all are."""
    fewest, most = ITEMS
    drawn = (item for turn in zip_longest(*streams) for item in turn if item is not None)
    items = list(islice(drawn, most))
    if len(items) < fewest:
        raise InputError(f"{task}: the text gives {len(items)} items of at least {fewest}; pass more modules")
    return items


def _words(text: str) -> Counter[str]:
    return Counter(_WORD.findall(text))


def _common_words(documents: list[_Document]) -> set[str]:
    """Keywords, and words of more than a third of the modules: those can be guessed without reading the context."""
    modules = Counter(word for _, text in documents for word in _words(text))
    return {word for word, uses in modules.items() if uses > len(documents) / 3}.union(keyword.kwlist)


def _code_lines(text: str) -> list[tuple[int, str]]:
    """The (offset, line) pairs of the lines that are code: no blank lines, comments, or strings over several lines."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):  # a source of another Python version, or one with a null byte
        return []
    prose = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr) and node.end_lineno > node.lineno:
            prose.update(range(node.lineno, node.end_lineno + 1))
    found, offset = [], 0
    for number, line in enumerate(text.split("\n"), start=1):
        if number not in prose and re.match(r"\s*[A-Za-z_@]", line):
            found.append((offset, line))
        offset += len(line) + 1
    return found


def _outside_strings(before: str) -> bool:
    """Whether what follows `before` on its line is code: neither in quotes nor in a comment."""
    return "#" not in before and not before.count('"') % 2 and not before.count("'") % 2


def _indentation(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _context(text: str, end: int) -> str | None:
    """The lines before `end`; None where they are too few, end in white space, or hold a licence."""
    fewest, most = CONTEXT
    if end < fewest:
        return None
    start = 0 if end <= most else text.find("\n", end - most - 1, end) + 1
    context = text[start:end]
    if not fewest <= len(context) <= most or context[-1].isspace() or "copyright" in context.lower():
        return None
    return context
