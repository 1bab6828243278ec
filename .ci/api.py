"""Write docs/api/sparseswaps.html, the page of the package's public names, from their docstrings."""

from pathlib import Path
from types import ModuleType

import pdoc.doc
import pdoc.render

import sparseswaps

PAGE = Path(__file__).parent.parent / "docs" / "api" / "sparseswaps.html"


def render_page() -> str:
    # pdoc sees only names that a module already has, and the public names are imported when they are used.
    public = ModuleType(sparseswaps.__name__, sparseswaps.__doc__)
    vars(public).update({name: getattr(sparseswaps, name) for name in sparseswaps.__all__}, __all__=sparseswaps.__all__)
    pdoc.render.configure(docformat="google", include_undocumented=False, search=False, show_source=False)
    module = pdoc.doc.Module(public)
    return pdoc.render.html_module(module, {module.modulename: module})


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(render_page(), encoding="utf-8")
