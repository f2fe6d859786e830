"""Execute the lessons two at a time before Sphinx reads them, one after the other.

A lesson's products are small: on two cores two processes of one thread each get more done than one of two threads. So
the lessons that the book's cache does not know are executed here, each with half of the cores, and put into the cache,
where myst-nb finds them. One that fails is left to myst-nb, which executes it again and reports the error as ever.
The book's model, for which most of them would wait, is made before, with all cores.

With one core, or another execution mode than "cache", nothing is done here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn, JupyterCacheAbstract
from jupyter_cache.executors.utils import single_nb_execution
from lesson_deps import read_notebook, stamp
from myst_nb.core.read import is_myst_markdown_notebook
from nbformat import NotebookNode
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

logger = logging.getLogger(__name__)

AT_A_TIME = 2
BOOK_MODEL = re.compile(r"\bbook_model\(")


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def waiting(docnames: list[str], env: BuildEnvironment, cache: JupyterCacheAbstract) -> dict[Path, NotebookNode]:
    """The notebooks among the pages to be read that are not in the cache, as they will be read."""
    found = {}
    for path in (Path(env.doc2path(docname)) for docname in docnames):
        text = path.read_text("utf8")
        if not is_myst_markdown_notebook(text):
            continue
        notebook = read_notebook(stamp(text, Path(env.srcdir))[0])
        try:
            cache.match_cache_notebook(notebook)
        except KeyError:
            found[path] = notebook
    return found


def make_book_model(notebooks: Iterable[NotebookNode], root: Path) -> None:
    """Train the book's model where one of the notebooks asks for it and it is not there yet; a progress bar shows how.

    What goes wrong here goes wrong in the notebook again, and is reported there.
    """
    if any(BOOK_MODEL.search(cell.source) for notebook in notebooks for cell in notebook.cells):
        subprocess.run([sys.executable, "-c", "from llmfs import recipes; recipes.book_model()"], cwd=root)


@contextmanager
def threads(n: int) -> Iterator[None]:
    """While this holds, a new process computes with n threads, unless whoever started the build has said how many."""
    said = "OMP_NUM_THREADS" in os.environ
    os.environ.setdefault("OMP_NUM_THREADS", str(n))
    try:
        yield
    finally:
        if not said:
            del os.environ["OMP_NUM_THREADS"]


def execute_ahead(app: Sphinx, env: BuildEnvironment, docnames: list[str]) -> None:
    """Execute what the pages to be read need, and put it into the cache."""
    config = env.mystnb_config  # type: ignore[attr-defined]
    if config.execution_mode != "cache" or cores() < AT_A_TIME:
        return
    cache = get_cache(config.execution_cache_path)
    notebooks = waiting(docnames, env, cache)
    if len(notebooks) < AT_A_TIME:
        return
    make_book_model(notebooks.values(), Path(env.srcdir))
    logger.info("executing %d lessons, %d at a time", len(notebooks), AT_A_TIME)
    pool = ThreadPoolExecutor(AT_A_TIME)
    with threads(cores() // AT_A_TIME):
        try:
            running = {
                pool.submit(
                    single_nb_execution,
                    notebooks[path],
                    cwd=str(path.parent),
                    timeout=config.execution_timeout,
                    allow_errors=config.execution_allow_errors,
                ): path
                for path in sorted(notebooks, reverse=True)  # the last ones of the book take longest
            }
            for n, future in enumerate(as_completed(running), start=1):
                path = running[future]
                if future.exception() or future.result().err:
                    logger.info("%s: failed (%d of %d)", path.stem, n, len(running))
                    continue
                seconds = future.result().time
                logger.info("%s: executed in %.0f seconds (%d of %d)", path.stem, seconds, n, len(running))
                bundle = CacheBundleIn(notebooks[path], str(path), data={"execution_seconds": seconds})
                cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C nothing new is begun


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("env-before-read-docs", execute_ahead)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
