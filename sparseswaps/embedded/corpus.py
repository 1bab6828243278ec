"""The embedded text: the Python standard library's own sources, split by module name.

One document is one module. Its split is a hash of its dotted name, so that the three
splits are disjoint files, the same on every machine with the same Python, and stay
what they are when a distribution leaves some packages out.
"""

import hashlib
import sysconfig
from pathlib import Path

SPLITS = ("train", "calibration", "evaluation")

# Distributions leave these out (or add them), so only training text may hold them.
_OPTIONAL = {"distutils", "ensurepip", "idlelib", "lib2to3", "test", "tests", "tkinter", "turtledemo"}
# Character tables and third-party code: no text to learn from, or not the standard library.
_SKIPPED = {"encodings", "site-packages", "dist-packages", "__pycache__"}


def split_of(module: str) -> str:
    """The split of a module: 10 % evaluation, 20 % calibration, 70 % train, by a hash of its dotted name."""
    bucket = int.from_bytes(hashlib.sha256(module.encode()).digest()[:4], "big") % 10
    return "evaluation" if bucket < 1 else "calibration" if bucket < 3 else "train"


def documents(split: str, stdlib: Path | None = None) -> list[tuple[str, str]]:
    """The modules of one split as sorted `(dotted name, source)` pairs.

    `calibration` and `evaluation` draw from the packages that every distribution of Python installs;
    `train` also takes the test suite and other optional packages where they are there.

    Raises ValueError for an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    root = Path(stdlib or sysconfig.get_path("stdlib"))
    found = []
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
            found.append((module, text))
    return sorted(found)
