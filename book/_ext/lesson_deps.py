"""Execute a lesson again when the code that it imports has changed, and only then.

jupyter-cache recognizes a notebook by its code cells and its ``kernelspec`` metadata. It does not look at
the package: after a change in ``llmfs`` the book would show the new source beside old output. This extension

1. finds the modules of ``llmfs`` that a lesson imports, directly or through other modules,
2. tells Sphinx that the page depends on them, so that a change makes Sphinx read the page again, and
3. writes a hash of them into the page's ``kernelspec``, so that the cache no longer recognizes the notebook.

``requirements.txt`` counts as one of the files: another version of torch may give other numbers.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from IPython.core.inputtransformer2 import TransformerManager
from myst_nb.core.read import is_myst_markdown_notebook, read_myst_markdown_notebook
from myst_parser.config.main import MdParserConfig
from nbformat import NotebookNode
from sphinx.application import Sphinx

PACKAGE = "llmfs"
STACK = "requirements.txt"
FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?\n)---[ \t]*\n", re.DOTALL)
KERNELSPEC = re.compile(r"^kernelspec:[ \t]*(?:\{.*\}[ \t]*\n|\n(?:[ \t]+.*\n)+)", re.MULTILINE)


def read_notebook(text: str) -> NotebookNode:
    """The notebook that the book's build sees in the text of a lesson."""
    # Without colon_fence, a code cell nested in a ::: block would count as a cell of its own.
    return read_myst_markdown_notebook(text, config=MdParserConfig(enable_extensions={"colon_fence"}))


def stamp(text: str, root: Path) -> tuple[str, list[Path]]:
    """Write the hash of a lesson's dependencies into its front matter.

    text: the lesson's source; root: the repository. Returns the stamped text, with the same number of
    lines, and the files that it depends on. A page that is not a notebook comes back as it is.
    """
    if not is_myst_markdown_notebook(text):
        return text, []
    cells = [cell.source for cell in read_notebook(text).cells if cell.cell_type == "code"]
    files = dependencies(cells, root)
    front = FRONT_MATTER.match(text)
    block = front and KERNELSPEC.search(front[1])
    if not front or not block:
        raise ValueError("a lesson's front matter needs a 'kernelspec:' block; see any other lesson")
    fields = yaml.safe_load(block[0])["kernelspec"] | {"deps": digest(files, root)}
    flow = yaml.safe_dump({"kernelspec": fields}, default_flow_style=None, width=10_000)
    # Blank lines keep the line numbers of warnings and tracebacks right.
    padding = "\n" * (block[0].count("\n") - flow.count("\n"))
    start, end = (front.start(1) + position for position in block.span())
    return text[:start] + flow + padding + text[end:], files


def dependencies(cells: Iterable[str], root: Path) -> list[Path]:
    """Every file under root whose change can change what these code cells print, sorted."""
    waiting = {name for cell in cells for name in _names_in_cell(cell)}
    seen: set[str] = set()
    files = {root / STACK} if (root / STACK).is_file() else set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        path = _module_file(name, root)
        if path is None:  # `from llmfs.gpt import GPT` also offers the name llmfs.gpt.GPT, which is no module
            continue
        files.add(path)
        is_package = path.name == "__init__.py"
        found = _imported_names(ast.parse(path.read_text("utf8")), name if is_package else _parent(name))
        if _parent(name):
            found.add(_parent(name))  # importing a module runs its package's __init__ first
        waiting |= found - seen
    return sorted(files)


def digest(files: Iterable[Path], root: Path) -> str:
    """A short hash of the names and contents of the files."""
    total = hashlib.sha256()
    for path in files:
        total.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()[:16]


def _names_in_cell(cell: str) -> set[str]:
    """Dotted names under the package that a cell imports, or names in a command that it runs."""
    code = TransformerManager().transform_cell(cell)  # magics and !commands become calls
    try:
        names = _imported_names(ast.parse(code), "")
    except SyntaxError:  # a cell that shows an error on purpose
        names = set()
    names.update(re.findall(rf"\b{PACKAGE}\.\w+", code))  # ["-m", "llmfs.train"]
    if re.search(rf"""(?:system|getoutput|cell_magic)\(.*\b{PACKAGE} \w""", code, re.DOTALL):  # !llmfs train
        names.add(f"{PACKAGE}.cli")
    return names


def _imported_names(tree: ast.AST, package: str) -> set[str]:
    """Dotted names under PACKAGE that a syntax tree imports anywhere; relative ones start at package."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return {name for name in names if name.split(".")[0] == PACKAGE}


def _module_file(name: str, root: Path) -> Path | None:
    base = root.joinpath(*name.split("."))
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _on_source_read(app: Sphinx, docname: str, source: list[str]) -> None:
    source[0], files = stamp(source[0], Path(app.srcdir))
    for path in files:
        app.env.note_dependency(str(path))


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", _on_source_read)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
