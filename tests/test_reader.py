"""What stands around each page: description, policy, notebook, launch buttons, and the list of lessons to track."""

from __future__ import annotations

import json
import re

import pytest
from toy_book import ToyBook


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> ToyBook:
    book = ToyBook.write(tmp_path_factory.mktemp("book"))
    book.replace("_config.yml", 'llmfs_repository: ""', 'llmfs_repository: "owner/name"')
    (book.root / "book" / "_static" / "llm-from-scratch.pdf").write_bytes(b"%PDF")
    build = book.build()
    assert build.returncode == 0, build.stdout
    return book


def test_the_head_describes_the_page_and_lets_it_load_nothing_from_elsewhere(book: ToyBook) -> None:
    page = (book.html / "lessons" / "L01_Counting.html").read_text("utf8")
    assert '<meta property="og:title" content="L01 Counting">' in page
    assert re.search(r'<meta name="description" content="A formula,[^"<]+">', page)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy and "connect-src 'self'" in policy[1] and "http" not in policy[1]
    assert page.index("Content-Security-Policy") < page.index("<script")


def test_a_lesson_offers_its_executed_notebook_the_pdf_and_places_to_run(book: ToyBook) -> None:
    page = (book.html / "lessons" / "L01_Counting.html").read_text("utf8")
    for file in (
        "_sources/lessons/L01_Counting.ipynb",
        "_sources/lessons/L01_Counting.md",
        "_static/llm-from-scratch.pdf",
    ):
        assert f"../{file}" in page and (book.html / file).is_file()
    notebook = json.loads((book.html / "_sources/lessons/L01_Counting.ipynb").read_text("utf8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code and all(cell["execution_count"] for cell in code)
    assert "mybinder.org/v2/gh/owner/name/HEAD?urlpath=lab/tree/lessons/L01_Counting.md" in page
    assert "colab.research.google.com/github/owner/name/blob/notebooks/L01_Counting.ipynb" in page
    assert "mybinder" not in (book.html / "book" / "references.html").read_text("utf8")


def test_the_tracker_knows_every_lesson_question_and_exercise(book: ToyBook) -> None:
    text = (book.html / "_static" / "progress-data.js").read_text("utf8")
    lessons = json.loads(text.removeprefix("window.LLMFS_LESSONS = ").rstrip(";\n"))
    assert [lesson["id"] for lesson in lessons] == ["L01", "L02"]
    assert lessons[0]["quizzes"] == ["l01-q1"] and lessons[0]["exercises"] == ["l01-ex-lines"]
    assert (book.html / lessons[0]["page"]).is_file() and lessons[0]["title"] == "L01 Counting"


def test_the_root_leads_to_the_first_page(book: ToyBook) -> None:
    page = (book.html / "index.html").read_text("utf8")
    assert page.startswith("<!DOCTYPE html>") and "url=book/index.html" in page
