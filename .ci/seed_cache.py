"""Put the notebooks that pytest executed into the book's cache, so that the build need not execute them.

    python -m pytest --overwrite && python .ci/seed_cache.py

nbmake writes what it executed to ``_notebooks/``. The cache recognizes a notebook by its code and kernelspec;
conftest.py wrote both as the build will read them. The seconds that each execution took go along: the pages
show them (book/_ext/runs.py).
"""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "_notebooks"
CACHE = ROOT / "_build" / ".jupyter_cache"


def was_executed(notebook: nbformat.NotebookNode) -> bool:
    """Whether every code cell that holds code has been run."""
    cells = (cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip())
    return all(cell.execution_count for cell in cells)


def seconds(notebook: nbformat.NotebookNode) -> float | None:
    """From the first cell's beginning to the last one's end, by the times that nbclient noted; None: it did not."""
    noted = [stamp for cell in notebook.cells for stamp in cell.metadata.get("execution", {}).values()]
    times = [datetime.fromisoformat(stamp) for stamp in noted]
    return (max(times) - min(times)).total_seconds() if times else None


def main() -> int:
    CACHE.parent.mkdir(exist_ok=True)
    cache = get_cache(CACHE)
    seeded = 0
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        lesson = ROOT / "lessons" / f"{path.stem}.md"
        notebook = nbformat.read(path, as_version=4)
        if not lesson.is_file() or not was_executed(notebook):
            continue
        data = {"execution_seconds": seconds(notebook)}  # as myst-nb writes it where it executes a lesson
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # when it ran: the cache would take it for other code
        bundle = CacheBundleIn(notebook, str(lesson), data=data)
        cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
        seeded += 1
    print(f"{seeded} executed lessons are in the book's cache")
    return 0


if __name__ == "__main__":
    sys.exit(main())
