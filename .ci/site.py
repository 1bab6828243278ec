"""A hook of mkdocs (mkdocs.yml): the site holds README, the pages of docs/ and every file that they link to.

Each file keeps its path in the repository. So the same relative links lead somewhere on GitHub and on the site.
"""

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from sparseswaps.pruning.settings import DEFAULTS

REPOSITORY = Path(__file__).parent.parent
LINK = re.compile(r"\]\(([^)#:\s]+)")  # to a file, not to https://


def linked_files(pages: list[Path]) -> set[Path]:
    """Return pages and the files that they link to, directly or by other pages."""
    files: set[Path] = set()
    while pages:
        page = pages.pop()
        files.add(page)
        if page.suffix == ".md":
            links = {(page.parent / link).resolve() for link in LINK.findall(page.read_text(encoding="utf-8"))}
            pages += [file for file in links - files if file.is_file()]
    return files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of docs/ by the linked files of the repository. mkdocs calls this function."""
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
    pages = [REPOSITORY / "README.md", *REPOSITORY.glob("docs/*.md")]
    for path in sorted(linked_files(pages) | {REPOSITORY / "docs" / "site.css"}):
        files.append(File.generated(config, path.relative_to(REPOSITORY).as_posix(), abs_src_path=str(path)))
    return files


class Defaults(griffe.Extension):
    """Show the values of the defaults that a signature takes from `DEFAULTS`."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        for parameter in func.parameters:
            name, _, key = str(parameter.default).partition(".")
            if name == "DEFAULTS":
                parameter.default = repr(getattr(DEFAULTS, key))
