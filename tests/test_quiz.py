"""The {quiz} directive: what it writes, and what it refuses."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from bs4 import BeautifulSoup, Tag
from quiz import QuizError
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils
from toy_book import REPOSITORY

Render = Callable[..., BeautifulSoup]

GOOD = """\
:::{quiz} l01-q1
Which `text` is refused?

- [ ] A new *word*.
  > It falls back to bytes,
  > one by one.
- [x] None.
  > Any text is bytes.
:::
"""


@pytest.fixture
def render(tmp_path: Path) -> Render:
    """Build pages of Markdown with the quiz extension alone; returns the first."""

    def build(*pages: str) -> BeautifulSoup:
        source, target = tmp_path / "source", tmp_path / "html"
        source.mkdir(exist_ok=True)
        for number, page in enumerate(pages):
            (source / f"page{number}.md").write_text(f"# Page {number}\n\n{page}", "utf8")
        settings = {
            "extensions": ["myst_parser", "quiz"],
            "myst_enable_extensions": ["colon_fence"],
            "root_doc": "page0",
            "html_theme": "basic",
            "suppress_warnings": ["toc"],
        }
        with patch_docutils(), docutils_namespace():
            app = Sphinx(
                source,
                None,
                target,
                tmp_path / "doctrees",
                "html",
                settings,
                status=None,
                warning=io.StringIO(),
            )
            app.build()
        return BeautifulSoup((target / "page0.html").read_text("utf8"), "html.parser")

    return build


def options(soup: BeautifulSoup) -> list[Tag]:
    return soup.select("fieldset.quiz .quiz-option")


def test_a_question_is_a_fieldset_of_radio_buttons(render: Render) -> None:
    soup = render(GOOD)
    quiz = soup.select_one("fieldset.quiz")
    assert quiz["data-quiz"] == "l01-q1" and quiz["id"] == "quiz-l01-q1"
    assert quiz.find("legend").get_text() == "Which text is refused?"
    assert quiz.find("legend").find("code")
    buttons = quiz.select("label > input[type=radio]")
    assert [button["value"] for button in buttons] == ["1", "2"]
    assert len({button["name"] for button in buttons}) == 1


def test_each_option_says_whether_it_is_right_and_why(render: Render) -> None:
    wrong, right = options(render(GOOD))
    assert (wrong["data-correct"], right["data-correct"]) == ("false", "true")
    assert wrong.select_one(".quiz-text").get_text() == "A new word."
    assert "Not this one." in wrong.select_one("details").get_text()
    assert "one by one." in wrong.select_one("details").get_text()
    assert "Right." in right.select_one("details").get_text()


def test_the_explanations_are_reachable_without_a_script(render: Render) -> None:
    for option in options(render(GOOD)):
        details = option.find("details")
        assert details.find("summary").get_text(strip=True)
        assert not details.has_attr("open")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[ ] A new", "[x] A new", "exactly one option must be marked [x]; 2 are"),
        ("[x] None", "[ ] None", "exactly one option must be marked [x]; 0 are"),
        ("  > Any text is bytes.\n", "", "needs its explanation"),
        ("- [x] None.", "- None.", "begins with [ ] or [x]"),
        ("Which `text` is refused?\n", "", "no question"),
        (":::\n", "\nMore text.\n:::\n", "nothing after it"),
        ("l01-q1", "L01 Q1", "lower-case words"),
        ("- [ ] A new *word*.\n  > It falls back to bytes,\n  > one by one.\n", "", "at least two options"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(render: Render, old: str, new: str, message: str) -> None:
    head, found, tail = GOOD.rpartition(old)
    assert found
    with pytest.raises(QuizError) as refusal:
        render(head + new + tail)
    assert message in str(refusal.value)
    assert "page0.md" in str(refusal.value)


def test_an_id_is_used_once_on_a_page(render: Render) -> None:
    with pytest.raises(QuizError, match="already used in page0"):
        render(GOOD + "\n" + GOOD)


def test_an_id_is_used_once_in_the_book(render: Render) -> None:
    with pytest.raises(QuizError, match="already used in page0"):
        render(GOOD, GOOD)


def test_a_page_can_be_read_again(render: Render) -> None:
    render(GOOD)
    render(GOOD + "\nMore.\n")


def test_the_place_of_an_option_does_not_give_it_away() -> None:
    marks = [
        re.findall(r"^- \[([ x])\]", block, flags=re.M)
        for lesson in (REPOSITORY / "lessons").glob("*.md")
        for block in re.findall(r"^:::\{quiz\}.*?^:::$", lesson.read_text("utf8"), flags=re.M | re.S)
    ]
    places = Counter(options.index("x") for options in marks if len(options) == 3)
    assert sum(places.values()) > 50
    assert max(places.values()) < 0.5 * sum(places.values())
