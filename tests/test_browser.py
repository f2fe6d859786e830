"""What readers see: pages opened from disk, in both themes, on a wide and on a narrow screen.

python -m pytest -m browser
"""

from __future__ import annotations

import json

import pytest
from chromium import PROGRAM, Browser
from toy_book import ToyBook

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(PROGRAM is None, reason="there is no chromium on the path"),
]

PAGES = (
    "index.html",
    "book/index.html",
    "book/references.html",
    "lessons/L01_Counting.html",
    "lessons/L02_Drawing.html",
)
CHOICE = """(number) => document.querySelectorAll(".quiz-option")[number]"""
SHOWN = """Array.from(document.querySelectorAll(".quiz-option"),
    (option) => option.querySelector(".quiz-feedback").innerText.trim())"""


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> ToyBook:
    book = ToyBook.write(tmp_path_factory.mktemp("book"))
    build = book.build()
    assert build.returncode == 0, build.stdout
    return book


def address(book: ToyBook, page: str) -> str:
    return (book.html / page).as_uri()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_whole_without_a_network(book: ToyBook, browser: Browser, page: str, width: int, theme: str) -> None:
    browser.open(address(book, page), width=width, theme=theme)
    assert browser.complaints == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert browser.evaluate("document.documentElement.dataset.theme") == theme
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("document.querySelectorAll('.math').length") == browser.evaluate(
        "document.querySelectorAll('.math > mjx-container').length"
    )


def test_one_roadmap_is_shown_at_each_width(book: ToyBook, browser: Browser) -> None:
    shown = """Array.from(document.querySelectorAll(".roadmap-svg"))
        .filter((drawing) => drawing.getBoundingClientRect().width > 0)
        .map((drawing) => drawing.classList[1])"""
    for width, expected in ((1440, "roadmap-wide"), (390, "roadmap-tall")):
        browser.open(address(book, "lessons/L01_Counting.html"), width=width)
        assert browser.evaluate(shown) == [expected]


def test_choosing_an_option_shows_its_explanation_alone(book: ToyBook, browser: Browser) -> None:
    browser.open(address(book, "lessons/L01_Counting.html"))
    assert browser.evaluate(SHOWN) == ["", ""]
    browser.evaluate("addEventListener('llmfs:quiz', (event) => { window.heard = event.detail })")

    browser.evaluate(f"({CHOICE})(0).querySelector('label').click()")
    wrong, nothing = browser.evaluate(SHOWN)
    assert wrong.startswith("Not this one.") and "A space parts two words." in wrong and nothing == ""
    assert browser.evaluate("window.heard") == {"id": "l01-q1", "correct": False}

    browser.evaluate(f"({CHOICE})(1).querySelector('label').click()")
    nothing, right = browser.evaluate(SHOWN)
    assert nothing == "" and right.startswith("Right.")
    assert browser.evaluate("window.heard") == {"id": "l01-q1", "correct": True}
    assert browser.complaints == []


def test_the_quiz_works_with_the_keyboard(book: ToyBook, browser: Browser) -> None:
    browser.open(address(book, "lessons/L01_Counting.html"))
    browser.evaluate(f"({CHOICE})(0).querySelector('input').focus()")
    browser.press(" ")
    assert browser.evaluate(SHOWN)[0].startswith("Not this one.")
    browser.press("ArrowDown")
    assert browser.evaluate(SHOWN)[1].startswith("Right.")


def test_the_explanations_are_announced(book: ToyBook, browser: Browser) -> None:
    browser.open(address(book, "lessons/L01_Counting.html"))
    live = "document.querySelectorAll('.quiz-feedback[aria-live=polite]').length"
    assert browser.evaluate(live) == 2


def test_without_a_script_the_explanations_are_behind_a_summary(book: ToyBook, browser: Browser) -> None:
    browser.open(address(book, "lessons/L01_Counting.html"), scripts=False)
    assert browser.evaluate("document.querySelectorAll('.quiz-why > summary').length") == 2


def test_a_solution_is_folded_and_opens_with_its_code(book: ToyBook, browser: Browser) -> None:
    browser.open(address(book, "lessons/L01_Counting.html"), width=390)
    shown = "document.querySelector('.solution .cell').checkVisibility({visibilityProperty: true})"
    assert not browser.evaluate(shown)
    browser.evaluate("document.querySelector('.solution button').click()")
    assert browser.evaluate(shown)


def test_the_search_works_from_disk(book: ToyBook, browser: Browser) -> None:
    browser.open(address(book, "search.html") + "?q=telephone")
    results = """new Promise((done) => {
        const look = () => {
            const links = document.querySelectorAll("#search-results li a");
            links.length ? done(links[0].innerText) : setTimeout(look, 50);
        };
        look();
    })"""
    assert browser.evaluate(results) == "L01 Counting"
    assert browser.complaints == []


OVERVIEW = """Array.from(document.querySelectorAll(".progress-list > li"), (row) => row.innerText)"""


IMPORT = """async (text) => {
    const input = document.querySelector(".progress-overview input[type=file]");
    const status = document.querySelector(".progress-status");
    status.textContent = "";
    const files = new DataTransfer();
    files.items.add(new File([text], "progress.json"));
    input.files = files.files;
    input.dispatchEvent(new Event("change"));
    while (!status.textContent) await new Promise((done) => setTimeout(done, 20));
    return status.textContent;
}"""


def import_progress(browser: Browser, text: str) -> str:
    """Hand a file to the import button -> what the page says of it."""
    return browser.evaluate(f"({IMPORT})({json.dumps(text)})")


def finish_lesson(browser: Browser, page: str) -> None:
    """Answer the question of a lesson's page, and tick its exercise and the lesson."""
    browser.open(page)
    browser.evaluate(f"({CHOICE})(1).querySelector('label').click()")
    browser.evaluate(
        "document.querySelectorAll('.progress-check input:not(:checked)').forEach((input) => input.click())"
    )
    assert "1 of 1 questions, 1 of 1 exercises" in browser.evaluate(
        "document.querySelector('.progress-lesson').innerText"
    )


def test_progress_is_remembered_and_can_be_moved_and_cleared(book: ToyBook, browser: Browser) -> None:
    for _ in range(8):  # where the machine is busy, Chromium loses what one page in ten stores
        finish_lesson(browser, address(book, "lessons/L01_Counting.html"))
        browser.open(address(book, "book/index.html"), width=390)
        if "✓" in browser.evaluate(OVERVIEW)[0]:
            break
    first, second = browser.evaluate(OVERVIEW)
    assert "L01 Counting ✓" in first and "1 of 1 questions, 1 of 1 exercises" in first and "✓" not in second
    assert browser.evaluate("document.querySelector('.progress-list progress').value") == 3
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    kept = browser.evaluate("localStorage.getItem('llmfs-progress')")
    browser.evaluate("document.querySelector('.progress-list a').click()")

    browser.open(address(book, "book/index.html"))
    browser.evaluate("window.confirm = () => true; document.querySelectorAll('.progress-button')[2].click()")
    assert "✓" not in "".join(browser.evaluate(OVERVIEW))
    for wrong in ("no JSON", "{}", '{"version": 2}', "null"):
        assert import_progress(browser, wrong).startswith("Nothing was imported")
    hostile = '{"version": 1, "lessons": {"L02": "<img src=x onerror=alert(1)>", "L01": true}}'
    assert import_progress(browser, hostile) == "Imported."
    first, second = browser.evaluate(OVERVIEW)
    assert (
        "✓" in first and "✓" not in second and "<img" not in browser.evaluate("localStorage.getItem('llmfs-progress')")
    )
    assert import_progress(browser, kept) == "Imported."
    assert "1 of 1 questions" in browser.evaluate(OVERVIEW)[0]
    assert browser.complaints == []


def test_nothing_can_leave_the_page(book: ToyBook, browser: Browser) -> None:
    browser.open(address(book, "lessons/L01_Counting.html"))
    for attempt in (
        "fetch('https://example.com/').then(() => 'sent', () => 'refused')",
        "new Promise((done) => { const image = new Image(); image.onload = () => done('sent');"
        " image.onerror = () => done('refused'); image.src = 'https://example.com/x.png'; })",
        "navigator.sendBeacon('https://example.com/', 'x') ? 'queued' : 'refused'",
    ):
        assert browser.evaluate(attempt) in ("refused", "queued")
    assert sum("Content Security Policy" in complaint for complaint in browser.complaints) >= 3
