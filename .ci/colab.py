"""The executed lessons as notebooks that run on Colab: each first installs the package.

jupyter-book build . && python .ci/colab.py owner/name FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat

EXECUTED = Path(__file__).resolve().parent.parent / "_build" / "html" / "_sources" / "lessons"


def main(repository: str, folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    notebooks = sorted(EXECUTED.glob("*.ipynb"))
    for path in notebooks:
        notebook = nbformat.read(path, as_version=4)
        install = nbformat.v4.new_code_cell(f"%pip install -q myst-nb git+https://github.com/{repository}")
        notebook.cells.insert(0, install)
        nbformat.write(notebook, folder / path.name)
    print(f"{len(notebooks)} notebooks in {folder}")
    return 0 if notebooks else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
