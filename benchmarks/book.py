"""The book: seconds for each lesson, cold and warm builds, and how heavy the pages are."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.measure import Section, Settings, Table

ROOT = Path(__file__).resolve().parent.parent


def run(settings: Settings, root: Path = ROOT, junit: Path | None = None, build: bool = False) -> Section:
    """What can be read from an earlier run of the tests and build; build: also build now, cold and warm."""
    section = Section("book", "The book")
    builds = time_builds(root) if build else []
    seconds = junit_seconds(junit) if junit else notebook_seconds(root / "_notebooks") or cache_seconds(root)
    if seconds:
        rows = [[name, round(seconds[name], 1)] for name in sorted(seconds)]
        rows.append(["all", round(sum(seconds.values()), 1)])
        section.tables.append(Table("Seconds to execute a lesson", ["lesson", "seconds"], rows))
    if builds:
        section.tables.append(Table("Seconds to build the book", ["build", "seconds"], builds))
    pages = root / "_build" / "html"
    if pages.is_dir():
        section.tables.append(weights(pages))
    if not section.tables:
        section.notes.append(
            f"not measured: {root} holds no executed lessons (_notebooks) and no pages (_build/html); run "
            "`python -m pytest` or `jupyter-book build .` first, or give --build or --junit"
        )
    return section


def junit_seconds(path: Path) -> dict[str, float]:
    """{lesson: seconds} from the file of `pytest --junitxml`: the cases that nbmake executed."""
    found = {}
    for case in ET.parse(path).iter("testcase"):
        name = re.search(r"[LS]\d\d_\w+", f"{case.get('file') or ''} {case.get('classname')} {case.get('name')}")
        if name and not re.search(r"test_\w+", case.get("classname") or ""):
            found[name[0]] = float(case.get("time") or 0)
    return found


def notebook_seconds(folder: Path) -> dict[str, float]:
    """{lesson: seconds in its cells} from executed notebooks that say when each cell ran."""
    found = {}
    for path in sorted(folder.glob("*.ipynb")):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        times = [cell["metadata"]["execution"] for cell in cells if cell["metadata"].get("execution")]
        spans = [(_time(each, "iopub.status.busy"), _time(each, "iopub.status.idle")) for each in times]
        if spans:
            found[path.stem] = sum(end - start for start, end in spans)
    return found


def cache_seconds(root: Path) -> dict[str, float]:
    """{lesson: seconds} from the book's cache, where a build executed the lessons."""
    folder = root / "_build" / ".jupyter_cache"
    if not (folder / "global.db").is_file():
        return {}
    from jupyter_cache import get_cache  # type: ignore[import-untyped]

    records = get_cache(folder).list_cache_records()
    return {Path(r.uri).stem: r.data["execution_seconds"] for r in records if "execution_seconds" in (r.data or {})}


def weights(pages: Path) -> Table:
    """Kilobytes of each page: its HTML, that compressed, and the images that it shows."""
    table = Table("Weight of the pages, kB", ["page", "HTML", "HTML, gzip", "images"], [])
    for path in sorted(pages.rglob("*.html")):
        if path.relative_to(pages).parts[0].startswith("_"):
            continue
        data = path.read_bytes()
        sources = set(re.findall(r'<img[^>]+src="([^":]+)"', data.decode("utf-8", "replace")))
        images = sum(file.stat().st_size for s in sources if (file := path.parent / s).is_file())
        sizes = len(data), len(gzip.compress(data)), images
        table.rows.append([str(path.relative_to(pages)), *(round(n / 1e3) for n in sizes)])
    shared = sum(file.stat().st_size for file in (pages / "_static").rglob("*") if file.is_file())
    whole = sum(file.stat().st_size for file in pages.rglob("*") if file.is_file())
    for name, n_bytes in (("shared by all (_static)", shared), ("the whole site", whole)):
        table.rows.append([name, round(n_bytes / 1e3), "", ""])
    return table


def time_builds(root: Path) -> list[list[Any]]:
    """Build from nothing, then again, then with one page touched -> rows."""
    shutil.rmtree(root / "_build", ignore_errors=True)
    rows: list[list[Any]] = [["cold: every lesson executed", _build(root)], ["warm: nothing changed", _build(root)]]
    os.utime(root / "book" / "index.md")
    return [*rows, ["one page touched", _build(root)]]


def _build(root: Path) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "jupyter_book", "build", str(root)], check=True, stdout=subprocess.DEVNULL)
    return round(time.perf_counter() - began, 1)


def _time(fields: dict[str, str], name: str) -> float:
    return datetime.fromisoformat(fields[name]).timestamp()
