"""Draw formulas with a MathJax that is part of the book, so that pages need no network.

The files come from the package sphinx-mathjax-offline (MathJax 3, Apache-2.0). Of its 24 MB only the parts
that the SVG output needs are copied. SVG output needs no web fonts, which some browsers refuse to load for
pages that are opened from disk.
"""

from __future__ import annotations

import shutil
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config

SCRIPT = "tex-svg.js"
PARTS = (SCRIPT, "input/tex/extensions")


def _mathjax_folder() -> Path:
    package = distribution("sphinx-mathjax-offline")
    script = next(file for file in package.files or () if file.name == SCRIPT)
    return Path(str(package.locate_file(script))).parent


def _set_path(app: Sphinx, config: Config) -> None:
    config.mathjax_path = f"mathjax/{SCRIPT}"


def _copy(app: Sphinx) -> None:
    if app.builder.format != "html":
        return
    source, target = _mathjax_folder(), Path(app.outdir) / "_static" / "mathjax"
    for part in PARTS:
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, dirs_exist_ok=True)
        else:
            shutil.copy2(source / part, target / part)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("config-inited", _set_path)
    app.connect("builder-inited", _copy)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
