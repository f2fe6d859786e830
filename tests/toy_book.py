"""A book of two short lessons, with the real configuration and extensions, to build in a temporary folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

FRONT_MATTER = """\
---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---
"""

LESSON_1 = """
# L01 Counting

```{roadmap} L01
```

A formula, $a^2 + b^2$, and a paper {cite:p}`vaswani2017attention`.

```{code-cell} ipython3
:tags: [remove-cell]

from myst_nb import glue

from llmfs.counting import count

glue("l01-count", count("a b"), display=False)
```

There are {glue:text}`l01-count:.1f` words.

```{literalinclude} ../llmfs/counting.py
:pyobject: count
```

| a | table | that is | wider | than a | telephone | because | it has | many columns |
|---|---|---|---|---|---|---|---|---|
| 11111 | 22222222 | 333333333 | 4444444 | 5555555 | 66666666 | 7777777 | 88888888 | 999999999 |

:::{quiz} l01-q1
How many words has `a b`, or $1 + 1$?

- [ ] One.
  > A space parts two words.
- [x] Two.
  > `a` and `b`.
:::

:::{exercise} Count lines
:label: l01-ex-lines
:nonumber:

Count the lines of a text.
:::

```{solution-start} l01-ex-lines
:class: dropdown
```

```{code-cell} ipython3
assert len("a\\nb".splitlines()) == 2
```

```{solution-end}
```

Next: [L02](L02_Drawing.md#a-line).
"""

LESSON_2 = """
# L02 Drawing

```{roadmap} L02
```

## A line

```{code-cell} ipython3
---
mystnb:
  image:
    alt: A square
---
from IPython.display import SVG

from llmfs.drawing import square

SVG(square())
```
"""

PACKAGE = {
    "__init__.py": "",
    "config.py": 'COLOR = "black"\n',
    "counting.py": 'def count(text):\n    """The number of words."""\n    return len(text.split())\n',
    "drawing.py": (
        "from llmfs.config import COLOR\n\n\n"
        "def square():\n"
        '    return f\'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9">'
        '<rect width="9" height="9" fill="{COLOR}"/></svg>\'\n'
    ),
}

TOC = """\
format: jb-book
root: book/index
chapters:
  - file: lessons/L01_Counting
  - file: lessons/L02_Drawing
  - file: book/references
"""


@dataclass
class ToyBook:
    """A repository with a book in it."""

    root: Path

    @classmethod
    def write(cls, root: Path) -> ToyBook:
        """Write the sources of the book; the configuration and the extensions are the real ones."""
        for name in ("_config.yml", "pyproject.toml", "conftest.py", "requirements.txt"):
            shutil.copy(REPOSITORY / name, root)
        for name in (".ci", "book/_ext", "book/_static"):
            shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("book/references.md", "book/references.bib"):
            shutil.copy(REPOSITORY / name, root / name)
        files = {
            "_toc.yml": TOC,
            "book/index.md": "# A toy book\n\n```{roadmap}\n```\n\n```{progress}\n```\n",
            "lessons/L01_Counting.md": FRONT_MATTER + LESSON_1,
            "lessons/L02_Drawing.md": FRONT_MATTER + LESSON_2,
            "tests/test_nothing.py": "def test_nothing():\n    pass\n",
        }
        files |= {f"llmfs/{name}": text for name, text in PACKAGE.items()}
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text, "utf8")
        return cls(root)

    @property
    def html(self) -> Path:
        return self.root / "_build" / "html"

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python in the book's folder."""
        return self._run(sys.executable, *arguments)

    def build(self, *, strict: bool = True) -> subprocess.CompletedProcess[str]:
        """Build the pages; strict: as .ci/run does."""
        options = ("-W", "-n", "--keep-going") if strict else ()
        return self._run(str(Path(sys.executable).with_name("jupyter-book")), "build", ".", *options)

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        # The toy's own llmfs comes before an installed one.
        environment = os.environ | {"PYTHONPATH": str(self.root), "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            command,
            cwd=self.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def replace(self, name: str, old: str, new: str) -> None:
        path = self.root / name
        text = path.read_text("utf8")
        assert old in text
        path.write_text(text.replace(old, new), "utf8")


def executed(log: str) -> list[str]:
    """The codes of the lessons that a build has executed."""
    return sorted(re.findall(r"(L\d\d)_\w+(?:\.md: Executing notebook|: executed in)", log))
