"""What the lessons cost: seconds to run, from the executions that the build used, and minutes to read.

``{lesson-runs}`` is a table with a row for each lesson, in the order of the book, and below it the machine and
the versions. ``{lesson-seconds}`L03``` and ``{lesson-minutes}`L03``` are one number each, for tables that are
written by hand. Nothing is typed: myst-nb keeps the seconds of each execution in the cache, and
``.ci/seed_cache.py`` puts them there for lessons that pytest has executed. A lesson that the build did not
execute (``execute_notebooks: off``) has a dash.

The numbers are filled in when all pages have been read, so a page that shows them is written in every build.
"""

from __future__ import annotations

import ast
import importlib.metadata
import os
import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.builders import Builder
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective, SphinxRole
from sphinx.util.nodes import make_refnode

WORDS_A_MINUTE = 200
LINES_A_MINUTE = 15  # of code that is read with care
VERSIONS = ("torch", "numpy", "transformers", "tokenizers", "tiktoken", "matplotlib", "jupyter-book")
UNKNOWN = "–"

FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
SOLUTION = re.compile(r"^`{3,}\{solution-start\}.*?^`{3,}\{solution-end\}\n`{3,}$", re.DOTALL | re.MULTILINE)
CODE_CELL = re.compile(r"^(`{3,})\{code-cell\}[^\n]*\n(.*?)^\1$", re.DOTALL | re.MULTILINE)
INCLUDE = re.compile(r"^(`{3,})\{literalinclude\} (\S+)\n(.*?)^\1$", re.DOTALL | re.MULTILINE)
HIDDEN = re.compile(r"\b(?:hide-input|remove-cell|remove-input)\b")
MARKUP = re.compile(r"^(?:`{3,}|:{3,}|:[\w-]+:|\([\w-]+\)=).*$", re.MULTILINE)  # fences, options, targets
WORD = re.compile(r"\w+(?:['’]\w+)*")


# How long a lesson takes to read -----------------------------------------------------------------------


def reading_minutes(text: str, folder: Path) -> int:
    """Minutes to read a lesson: its prose, and the code that is not folded away; without solutions.

    text: the lesson's source; folder: where it lies, for the files that it includes.
    """
    words, lines = words_and_lines(text, folder)
    return max(1, round(words / WORDS_A_MINUTE + lines / LINES_A_MINUTE))


def words_and_lines(text: str, folder: Path) -> tuple[int, int]:
    """-> (words of prose, lines of visible code)."""
    text = SOLUTION.sub("", FRONT_MATTER.sub("", text))
    visible = [cell[2] for cell in CODE_CELL.finditer(text) if not HIDDEN.search(cell[2])]
    lines = sum(_is_code(line) for cell in visible for line in cell.splitlines())
    lines += sum(_included_lines(folder / found[2], found[3]) for found in INCLUDE.finditer(text))
    prose = MARKUP.sub("", INCLUDE.sub("", CODE_CELL.sub("", text)))
    return len(WORD.findall(prose)), lines


def _is_code(line: str) -> bool:
    return bool(line.strip()) and not re.match(r":[\w-]+:", line)


def _included_lines(path: Path, options: str) -> int:
    """The lines that a literalinclude shows: a whole file, or the object that ``:pyobject:`` names."""
    source = path.read_text("utf8")
    named = re.search(r"^:pyobject: (\S+)$", options, re.MULTILINE)
    if not named:
        return sum(map(_is_code, source.splitlines()))
    scope: ast.AST = ast.parse(source)
    for name in named[1].split("."):
        scope = next(node for node in ast.iter_child_nodes(scope) if getattr(node, "name", None) == name)
    return sum(map(_is_code, (ast.get_source_segment(source, scope) or "").splitlines()))


# What a build knows ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One lesson of the book."""

    page: str  # "lessons/L03_The_Attention_Mechanism"
    title: str
    minutes: int
    seconds: float | None  # None: not executed
    wants_gpu: bool  # it computes on a GPU where there is one

    @property
    def code(self) -> str:
        return self.page.removeprefix("lessons/")[:3]


def lesson_runs(env: BuildEnvironment) -> list[Run]:
    """Every lesson of the book, in the order of its table of contents."""
    executed: dict[str, Any] = getattr(env, "nb_metadata", {})
    runs = []
    for page in _pages(env, env.config.root_doc):
        if not page.startswith("lessons/"):
            continue
        path = Path(env.doc2path(page))
        text = path.read_text("utf8")
        data = (executed.get(page) or {}).get("exec_data") or {}
        minutes = reading_minutes(text, path.parent)
        runs.append(Run(page, env.titles[page].astext(), minutes, data.get("runtime"), "cuda" in text))
    return runs


def _pages(env: BuildEnvironment, page: str) -> Iterator[str]:
    for child in env.toctree_includes.get(page, []):
        yield child
        yield from _pages(env, child)


def processor() -> str:
    """The name of the processor, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, named), platform.processor() or platform.machine())


def gpu() -> str | None:
    """The name of the first CUDA device, or None."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def machine() -> list[tuple[str, str]]:
    """What the build can say of where it runs: (name, value)."""
    rows = [
        ("processor", f"{processor()}, {os.cpu_count()} cores"),
        ("threads", os.environ.get("OMP_NUM_THREADS") or "as many as torch takes"),
        ("GPU", gpu() or "none"),
        ("system", f"{platform.system()} {platform.machine()}"),
        ("Python", platform.python_version()),
    ]
    return rows + [(name, importlib.metadata.version(name)) for name in VERSIONS]


# The markup --------------------------------------------------------------------------------------------


class runs_table(nodes.General, nodes.Element):
    """Stands for the tables until all pages have been read."""


class run_number(nodes.Inline, nodes.Element):
    """Stands for one number of one lesson; its ``code`` is the lesson's, its ``unit`` seconds or minutes."""


class RunsDirective(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        _showing(self.env).add(self.env.docname)
        return [runs_table()]


class NumberRole(SphinxRole):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        _showing(self.env).add(self.env.docname)
        return [run_number(code=self.text.strip(), unit=self.unit)], []


def _showing(env: BuildEnvironment) -> set[str]:
    """The pages that show numbers of runs."""
    if not hasattr(env, "llmfs_runs"):
        env.llmfs_runs = set()
    return env.llmfs_runs


def _fill_in(app: Sphinx, doctree: nodes.document, page: str) -> None:
    numbers, tables = list(doctree.findall(run_number)), list(doctree.findall(runs_table))
    if not numbers and not tables:
        return
    runs = lesson_runs(app.env)
    by_code = {run.code: run for run in runs}
    for number in numbers:
        if number["code"] not in by_code:
            raise ValueError(f"{page} asks for lesson {number['code']!r}; there are {', '.join(by_code)}")
        found = by_code[number["code"]]
        number.replace_self(nodes.Text(whole(found.seconds if number["unit"] == "seconds" else found.minutes)))
    for place in tables:
        place.replace_self([_runs(app.builder, page, runs), _grid(machine(), ("what", "where the pages were built"))])


def whole(number: float | None) -> str:
    """A number for people: 0.4 -> "1", 95.6 -> "96", None -> a dash."""
    return UNKNOWN if number is None else f"{max(1, round(number)):,}"


def _runs(builder: Builder, page: str, runs: list[Run]) -> nodes.table:
    card, cpu = gpu(), processor()
    rows: list[tuple[nodes.Node | str, ...]] = []
    for run in runs:
        link = make_refnode(builder, page, run.page, "", nodes.Text(run.title))
        rows.append((link, whole(run.seconds), card if card and run.wants_gpu else cpu))
    known = [run.seconds for run in runs if run.seconds is not None]
    rows.append(("all lessons", whole(sum(known) if len(known) == len(runs) else None), ""))
    return _grid(rows, ("lesson", "seconds", "device"))


def _grid(rows: list[Any], head: tuple[str, ...]) -> nodes.table:
    group = nodes.tgroup(cols=len(head))
    group += [nodes.colspec(colwidth=1) for _ in head]
    group += nodes.thead("", _row(head))
    group += nodes.tbody("", *map(_row, rows))
    return nodes.table("", group)


def _row(cells: tuple[nodes.Node | str, ...]) -> nodes.row:
    inline = (nodes.Text(cell) if isinstance(cell, str) else cell for cell in cells)
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", cell)) for cell in inline))


def _purge(app: Sphinx, env: BuildEnvironment, page: str) -> None:
    _showing(env).discard(page)


def _merge(app: Sphinx, env: BuildEnvironment, pages: list[str], other: BuildEnvironment) -> None:
    _showing(env).update(_showing(other))


def _write_again(app: Sphinx, env: BuildEnvironment) -> list[str]:
    return sorted(_showing(env))


def setup(app: Sphinx) -> dict[str, Any]:
    for node in (runs_table, run_number):
        app.add_node(node)
    app.add_directive("lesson-runs", RunsDirective)
    for unit in ("seconds", "minutes"):
        app.add_role(f"lesson-{unit}", NumberRole(unit))
    handlers: dict[str, Callable[..., Any]] = {
        "env-purge-doc": _purge,
        "env-merge-info": _merge,
        "env-updated": _write_again,
        "doctree-resolved": _fill_in,
    }
    for event, handler in handlers.items():
        app.connect(event, handler)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
