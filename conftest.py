"""Let ``pytest --nbmake`` execute the lessons as they are written: lessons/*.md.

nbmake knows .ipynb files only. Each lesson is converted to one under ``_notebooks/``, which is at the same
depth as ``lessons/``, so that a lesson's relative paths hold. (nbmake ignores whatever is under ``_build/``.)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from lesson_deps import read_notebook, stamp  # book/_ext is on pytest's path; see pyproject.toml
from nbmake.pytest_items import NotebookItem

ROOT = Path(__file__).parent
LESSONS = ROOT / "lessons"
NOTEBOOKS = ROOT / "_notebooks"


def convert(lesson: Path) -> Path:
    """Write a lesson as a notebook, with the front matter that the book's build would give it."""
    text, _ = stamp(lesson.read_text("utf8"), ROOT)
    notebook = NOTEBOOKS / f"{lesson.stem}.ipynb"
    NOTEBOOKS.mkdir(exist_ok=True)
    nbformat.write(read_notebook(text), notebook)
    return notebook


class LessonFile(pytest.File):
    def collect(self) -> Iterator[pytest.Item]:
        yield NotebookItem.from_parent(self, filename=str(convert(self.path)))


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if file_path.parent == LESSONS and file_path.suffix == ".md" and parent.config.getoption("--nbmake"):
        return LessonFile.from_parent(parent, path=file_path)
    return None
