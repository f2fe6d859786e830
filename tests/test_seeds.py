"""What the lessons claim holds with other seeds too, so that none of them stands on luck.

python -m pytest -m slow tests/test_seeds.py -k "L04 and 1000"

Every lesson is executed with every seed shifted by the same number: other tales, other initial weights, other
batches and other draws, and the book's tokenizer and models trained anew on them. The models of a shift are kept in
a cache of its own, so that they are made once for all lessons; all lessons of a shift take most of an hour on one
core. What a lesson runs in a process of its own (two processes that must compute what one does) keeps its seeds.

A lesson that fails here says more than is true in general: mend the claim, and what the prose says of it.
"""

from __future__ import annotations

import inspect
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from lesson_deps import read_notebook
from nbclient import NotebookClient
from toy_book import FRONT_MATTER

from llmfs.corpus import cache_dir

ROOT = Path(__file__).resolve().parent.parent
LESSONS = sorted((ROOT / "lessons").glob("[LS]*.md"))
SHIFTS = (1000, 2000, 3000)
CELL_TIMEOUT = 3600  # seconds; the first lesson that asks for the book's model waits until it is trained


def shift_seeds(shift: int) -> None:
    """Add shift to every seed that is handed to torch, numpy or random from now on. Before llmfs is imported."""
    import random

    import numpy as np
    import torch

    def shifted(seed):
        if seed is None:  # left out: as random as ever
            return None
        if isinstance(seed, (str, bytes)):
            return f"{seed}+{shift}"
        if isinstance(seed, (list, tuple)):
            return [seed[0] + shift, *seed[1:]]
        return int(seed) + shift

    class Generator(torch.Generator):
        def manual_seed(self, seed):
            return super().manual_seed(shifted(seed))

    class Random(random.Random):
        def seed(self, a=None, version=2):
            super().seed(shifted(a), version)

    class Philox(np.random.Philox):  # its key is the seed of a batch
        def __init__(self, seed=None, counter=None, key=None):
            super().__init__(shifted(seed), counter, shifted(key))

    class RandomState(np.random.RandomState):
        def __init__(self, seed=None):
            super().__init__(shifted(seed))

    make_rng, seed_torch, seed_numpy = np.random.default_rng, torch.manual_seed, np.random.seed
    torch.Generator, random.Random = Generator, Random
    torch.manual_seed = torch.random.manual_seed = lambda seed: seed_torch(shifted(seed))
    np.random.Philox, np.random.RandomState = Philox, RandomState
    np.random.default_rng = lambda seed=None: make_rng(shifted(seed))
    np.random.seed = lambda seed=None: seed_numpy(shifted(seed))
    torch.manual_seed(0)  # the global generator, where nobody seeds it


DRAWS = """
import json, random
import numpy as np
import torch
from llmfs import chat, data, gpt, recipes, sft, tales

drawn = {
    "torch.Generator": torch.randn(2, generator=torch.Generator().manual_seed(7)).tolist(),
    "torch, never seeded": torch.randn(2).tolist(),
    "torch.manual_seed": (torch.manual_seed(7), torch.randn(2).tolist())[1],
    "random.Random": random.Random(7).random(),
    "random.Random of text": random.Random("7-0-0").random(),
    "np.random.default_rng": np.random.default_rng(7).random(),
    "np.random.default_rng of a list": np.random.default_rng([7, 1]).random(),
    "np.random.RandomState": np.random.RandomState(7).random(),
    "tales": next(iter(tales.stories(1, seed=0))).text,
    "held-out tales": recipes.held_out_tales(1)[0].text,
    "a batch": data.get_batch(np.arange(10_000), 2, 8, seed=0, step=0)[0].tolist(),
    "a batch of chats": [row.tolist() for row in sft.chat_batches([([1, 2, k], [False, True, True]) for k in range(99)], 2, 8)(0, 0)[:2]],
    "tokenizer": recipes.book_tokenizer(progress=False).encode(" ".join(tale.text for tale in tales.stories(9, seed=0)))[:99],
    "model": recipes.book_model("tiny", progress=False).history.loss,
}
print(json.dumps(drawn))
"""


def draw(shift: int | None, cache: Path) -> dict[str, Any]:
    """What each source of random numbers gives, with seeds shifted; None: in a Python that nobody touched."""
    code = ("" if shift is None else first_cell(shift)) + DRAWS
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(cache), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def first_cell(shift: int) -> str:
    return f"{inspect.getsource(shift_seeds)}\n\nshift_seeds({shift})\ndel shift_seeds\n"


def environment(cache: Path) -> dict[str, str]:
    """With what is made kept in cache; corpora are read from where they are."""
    data = os.environ.get("LLMFS_DATA") or str(cache_dir())
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "LLMFS_CACHE": str(cache), "LLMFS_DATA": data, "PYTHONPATH": path}


@pytest.mark.slow
def test_every_source_of_random_numbers_is_shifted(tmp_path: Path) -> None:
    untouched, none, some, other = (draw(shift, tmp_path / f"{shift}") for shift in (None, 0, *SHIFTS[:2]))
    same_at_zero = {name for name in none if none[name] == untouched[name]}
    assert set(none) - same_at_zero <= {"torch, never seeded", "random.Random of text"}
    for a, b in ((none, some), (none, other), (some, other)):
        assert {name for name in a if a[name] == b[name]} == set()


def test_nothing_else_makes_random_numbers() -> None:
    """Lessons and package use the sources that are shifted, and no others."""
    known = {"Random", "default_rng", "Generator", "Philox", "manual_seed", "fork_rng"}
    for path in [*LESSONS, *(ROOT / "llmfs").rglob("*.py")]:
        cells = path.read_text("utf8")
        if path.suffix == ".md":
            cells = "\n".join(cell.source for cell in read_notebook(cells).cells if cell.cell_type == "code")
        used = set(re.findall(r"(?<![\w.])(?:(?:np|numpy|torch)\.)?random\.([A-Za-z]\w*)", cells))
        assert used <= known, f"{path.name}: {sorted(used - known)}; shift_seeds should know of it"


LESSON = f"""{FRONT_MATTER}
```{{code-cell}} ipython3
import random
assert random.Random(5).random() == {random.Random(5).random()}  # by luck
```

```{{code-cell}} ipython3
:tags: [raises-exception]
1 / 0
```

```{{code-cell}} ipython3
assert random.Random(5).random() == random.Random(5).random()  # whatever the seed
```
"""


def test_a_cell_that_stands_on_luck_is_found(tmp_path: Path) -> None:
    lesson = tmp_path / "lesson.md"
    lesson.write_text(LESSON, "utf8")
    assert failures(execute(lesson, 0)) == []
    [failure] = failures(execute(lesson, SHIFTS[0]))
    assert "# by luck" in failure and "AssertionError" in failure


@pytest.mark.slow
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem[:3])
@pytest.mark.parametrize("shift", SHIFTS)
def test_a_lesson_holds_with_other_seeds(shift: int, lesson: Path) -> None:
    notebook = execute(lesson, shift)
    failed = failures(notebook)
    assert not failed, f"{len(failed)} cells fail with seeds shifted by {shift}:\n\n" + "\n\n".join(failed)


def execute(lesson: Path, shift: int) -> nbformat.NotebookNode:
    """The lesson's notebook, each cell executed whether or not those before it failed."""
    notebook = read_notebook(lesson.read_text("utf8"))
    notebook.cells.insert(0, nbformat.v4.new_code_cell(first_cell(shift)))
    client = NotebookClient(
        notebook, timeout=CELL_TIMEOUT, allow_errors=True, resources={"metadata": {"path": str(lesson.parent)}}
    )
    return client.execute(env=environment(cache_dir() / f"seeds-{shift}"))


def failures(notebook: nbformat.NotebookNode) -> list[str]:
    """The cells that should not have raised, each with its error."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type != "code" or "raises-exception" in cell.metadata.get("tags", []):
            continue
        for output in cell.outputs:
            if output.output_type == "error":
                trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(output.traceback))
                found.append(f"{cell.source}\n---\n{trace[-1500:]}")
    return found
