"""The whole book as one PDF, printed by a headless Chromium from the book in a single page.

    jupyter-book build . && python .ci/make_pdf.py _build/llm-from-scratch.pdf

Nothing is executed again: the build finds the lessons in its cache.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SINGLE = ROOT / "_build" / "singlehtml"
PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-pdf-header-footer")
DRAWING = "--virtual-time-budget=300000"  # milliseconds, for the formulas; it ends sooner when nothing is left to do


def main(target: Path) -> int:
    if PROGRAM is None:
        print("there is no chromium on the path")
        return 1
    builder = Path(sys.executable).with_name("jupyter-book")
    subprocess.run(
        [builder, "build", ROOT, "--builder", "custom", "--custom-builder", "singlehtml"],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    page = SINGLE / "book.html"
    shutil.copyfile(SINGLE / "book" / "index.html", page)  # its styles and figures are named from here
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [PROGRAM, *OPTIONS, DRAWING, f"--user-data-dir={profile}", f"--print-to-pdf={target}", page.as_uri()],
            check=True,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=600,
        )
    size = target.stat().st_size
    print(f"{target}: {size:,} bytes")
    return 0 if size > 1_000_000 else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute()))
