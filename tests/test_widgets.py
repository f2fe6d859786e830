"""Widgets as a reader uses them, on pages opened from disk, compared with what the package computes.

python -m pytest -m browser tests/test_widgets.py
"""

from __future__ import annotations

import pytest
import torch
from chromium import Browser
from sphinx.application import Sphinx
from test_page_models import numbers_by_hand
from toy_book import ToyBook
from widget_page import (
    UNNAMED,
    assert_fits,
    click,
    inside,
    marked,
    open_lesson,
    small_model,
    small_tokenizer,
    start,
    turn,
    widget_book,
    write_into,
)
from widgets import ENGINE, WIDGETS  # book/_ext is on pytest's path; see pyproject.toml

from llmfs.quantize import quantized
from llmfs.sample import filter_logits, generate
from llmfs.scale import kv_cache_bytes

TEXT = "The fox met an owl: <|endoftext|> 🦉"
PROMPT = "Once upon a time"
PAGE = f"""# L03 Playing

:::{{widget}} tokenizer
:text: {TEXT}

What a lesson has computed of tokens.
:::

<div style="height: 3000px"></div>

:::{{widget}} sampling
:prompt: {PROMPT}

What a lesson has computed of probabilities.
:::
"""


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return small_model(tokenizer)


@pytest.fixture(scope="module")
def book(tmp_path_factory, model, tokenizer) -> ToyBook:
    return widget_book(tmp_path_factory.mktemp("book"), {"L03_Playing": PAGE}, {"book": (model, tokenizer)})


@pytest.fixture
def page(book, browser) -> Browser:
    """The page with the widgets, both of them started."""
    open_page(book, browser)
    for name in ("tokenizer", "sampling"):
        start(browser, name)
    return browser


def open_page(book: ToyBook, browser: Browser, **look) -> None:
    open_lesson(book, browser, "L03_Playing", **look)


# --- pages ---------------------------------------------------------------------------------------------


@marked
def test_without_scripts_the_result_of_the_lesson_is_there(book, browser):
    open_page(book, browser, scripts=False)
    assert "What a lesson has computed of tokens." in browser.evaluate("document.body.innerText")
    assert "What a lesson has computed of probabilities." in browser.evaluate("document.body.innerText")


@marked
def test_a_model_is_loaded_when_its_widget_comes_into_view(book, browser):
    open_page(book, browser)
    start(browser, "tokenizer")
    scripts = "Array.from(document.scripts, (script) => script.src.split('/').pop())"
    assert "tokenizer.js" in browser.evaluate(scripts) and "book.js" not in browser.evaluate(scripts)
    assert "What a lesson has computed of probabilities." in browser.evaluate("document.body.innerText")
    start(browser, "sampling")
    assert "book.js" in browser.evaluate(scripts)
    assert "What a lesson has computed" not in browser.evaluate("document.body.innerText")
    assert browser.complaints == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:", "blob:"))] == []


@marked
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_widgets_fit_the_page_in_both_themes(book, browser, width, theme):
    open_page(book, browser, width=width, theme=theme)
    for name in ("tokenizer", "sampling"):
        start(browser, name)
        assert_fits(browser, name, width)
    assert browser.complaints == []


@marked
def test_every_control_has_a_name_and_news_are_announced(page):
    assert page.evaluate(UNNAMED) == 0
    assert page.evaluate("document.querySelectorAll('.llmfs-widget [aria-live=polite]').length") == 2
    labels = page.evaluate("Array.from(document.querySelectorAll('.llmfs-widget'), (element) => element.ariaLabel)")
    assert labels == [WIDGETS["tokenizer"].label, WIDGETS["sampling"].label]


@marked
def test_a_page_without_a_widget_loads_none_of_the_scripts(book):
    files = [*ENGINE, *(f"widgets/{name}" for name in WIDGETS if f"{{widget}} {name}\n" in PAGE)]
    pages = [(book.html / name).read_text("utf8") for name in ("book/index.html", "lessons/L03_Playing.html")]
    without, with_widgets = ([f"js/{file}.js" in text for file in files] for text in pages)
    assert not any(without) and all(with_widgets)


@marked
def test_a_second_build_writes_no_model_again(book):
    files = sorted((book.html / "_static" / "models").iterdir())
    assert [file.name for file in files] == ["book.js", "tokenizer.js"]
    before = [file.stat().st_mtime_ns for file in files]
    assert book.build().returncode == 0
    assert [file.stat().st_mtime_ns for file in files] == before


@marked
def test_where_a_model_is_missing_the_result_stays(book, browser):
    path = book.html / "_static" / "models" / "book.js"
    hidden = path.rename(path.with_suffix(".hidden"))
    try:
        open_page(book, browser)
        found = """document.querySelector('[data-widget="sampling"]')"""
        browser.evaluate(f"{found}.scrollIntoView({{behavior: 'instant'}})")
        browser.wait_for(f"{found}.dataset.state === 'failed'")
        shown = browser.evaluate(f"{found}.innerText")
        assert "What a lesson has computed of probabilities." in shown and "could not be loaded" in shown
    finally:
        hidden.rename(path)


# --- tokenizer -----------------------------------------------------------------------------------------


def shown_tokens(browser: Browser) -> list[int]:
    return browser.evaluate(inside("tokenizer", ".llmfs-piece", "Number(element.dataset.id)"))


def shown_counts(browser: Browser) -> dict[str, int]:
    rows = inside("tokenizer", "[data-count]", "[element.dataset.count, Number(element.cells[1].innerText)]")
    return dict(browser.evaluate(rows))


@marked
def test_the_tokens_of_a_text_as_it_is_typed(page, tokenizer):
    assert shown_tokens(page) == tokenizer.encode(TEXT)
    for text in ("", "  The geese's  tokens are 123 é語🦉", "a<|endoftext|>b"):
        write_into(page, "tokenizer", "textarea", text)
        assert shown_tokens(page) == tokenizer.encode(text)
        counts = shown_counts(page)
        assert counts["tokens"] == len(tokenizer.encode(text))
        assert counts["characters"] == len(text) and counts["bytes"] == len(text.encode())
    assert page.complaints == []


@marked
def test_the_merges_of_a_chosen_word(page, tokenizer):
    write_into(page, "tokenizer", "textarea", "The farm")
    page.evaluate(f"{inside('tokenizer', '.llmfs-piece', 'element')}[0].focus()")
    for _ in range(len(tokenizer.encode("The farm")) - 1):
        page.press("ArrowDown")
    page.press(" ")
    lines = page.evaluate(inside("tokenizer", ".llmfs-steps li", "element.querySelectorAll('.llmfs-part').length"))
    assert lines[0] == len(" farm") and lines[-1] == len(tokenizer.encode(" farm"))
    assert "·farm" in page.evaluate(inside("tokenizer", ".llmfs-title"))[-1]
    page.wait_for(f"{inside('tokenizer', '[aria-live]')}[0].startsWith('{len(tokenizer.encode('The farm'))} tokens')")


# --- sampling ------------------------------------------------------------------------------------------


def shown_distribution(browser: Browser) -> dict[str, tuple[float, float]]:
    rows = inside("sampling", "tbody tr", "[element.dataset.id, ...Array.from(element.cells, (c) => c.innerText)]")
    return {id: (float(a.rstrip(" %")), float(b.rstrip(" %"))) for id, _, a, b, _ in browser.evaluate(rows)}


def next_logits(model, tokenizer, ids):
    with torch.no_grad():
        return quantized(model)(torch.tensor([[tokenizer.special_tokens["<|endoftext|>"], *ids]]))[:, -1]


def written(browser: Browser) -> str:
    return browser.evaluate(inside("sampling", ".llmfs-written", "element.textContent"))[0]


def steady(browser: Browser) -> None:
    browser.wait_for(f"!{inside('sampling', 'button')}.includes('Stop')")


@marked
def test_the_distribution_under_the_dials(page, model, tokenizer):
    logits = next_logits(model, tokenizer, tokenizer.encode(PROMPT))
    learned = logits.softmax(dim=-1)[0]
    for dial, value, settings in (
        ("Temperature", 1, {}),
        ("Temperature", 0.5, {"temperature": 0.5}),
        ("Top-k", 2, {"temperature": 0.5, "top_k": 3}),
        ("Temperature", 0, {"temperature": 0.0, "top_k": 3}),
    ):
        turn(page, "sampling", dial, value)
        now = filter_logits(logits, **settings).softmax(dim=-1)[0]
        rows = shown_distribution(page)
        others = rows.pop("")
        assert {int(id) for id in rows} == set(learned.topk(10).indices.tolist())
        for id, (before, after) in rows.items():
            assert abs(before - 100 * learned[int(id)]) < 0.06 and abs(after - 100 * now[int(id)]) < 0.06
        assert f"{int((now > 0).sum())} of {len(now)} tokens" in page.evaluate(inside("sampling", ".llmfs-remark"))[0]
        rest = sum(now[id] for id in range(len(now)) if str(id) not in rows)
        assert abs(others[1] - 100 * rest) < 0.06


@marked
def test_tokens_are_drawn_with_the_seed(page, model, tokenizer):
    ids = tokenizer.encode(PROMPT)
    write_into(page, "sampling", "input[type=number]", "7")
    turn(page, "sampling", "Top-k", 4)  # the fifth of its values: 10
    for u in numbers_by_hand(7, 3):
        p = filter_logits(next_logits(model, tokenizer, ids), top_k=10).softmax(dim=-1)[0].double()
        ids.append(int((p.cumsum(dim=0) <= u).sum()))
        click(page, "sampling", "Draw one token")
        assert written(page) == tokenizer.decode(ids[len(tokenizer.encode(PROMPT)) :])


@marked
@pytest.mark.parametrize("with_cache", [True, False])
def test_writing_on_is_greedy_at_temperature_zero(page, model, tokenizer, with_cache):
    end = tokenizer.special_tokens["<|endoftext|>"]
    prompt = [end, *tokenizer.encode(PROMPT)]
    room = model.config.block_size - len(prompt)
    steps = generate(quantized(model), torch.tensor([prompt]), min(25, room), temperature=0.0, stop={end})
    expected = [int(token) for token in steps]
    if not with_cache:
        page.evaluate(f"{inside('sampling', 'input[type=checkbox]', 'element')}[0].click()")
    turn(page, "sampling", "Temperature", 0)
    click(page, "sampling", "Write on")
    steady(page)
    assert written(page) == tokenizer.decode([id for id in expected if id != end])
    remark = page.evaluate(inside("sampling", ".llmfs-remark"))[1]
    n_read = min(len(prompt) + len(expected), model.config.block_size) - 1
    if with_cache:
        kilobytes = kv_cache_bytes(model.config, 1, n_read, itemsize=4) / 1000
        assert f"values of {n_read} tokens" in remark and f"{kilobytes:.0f} kB" in remark
    else:
        assert f"read all {n_read} tokens again" in remark
    click(page, "sampling", "Start again")
    assert written(page) == ""


# --- the directive -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (":::{widget} clock\nx\n:::", "not 'clock'"),
        (":::{widget} tokenizer\n:prompt: a\n\nx\n:::", "not 'prompt'"),
        (":::{widget} tokenizer\n:::", "no content"),
    ],
)
def test_a_widget_that_cannot_work_is_refused(tmp_path, source, message):
    (tmp_path / "index.md").write_text(f"# A page\n\n{source}\n", "utf8")
    warnings = tmp_path / "warnings"
    with warnings.open("w", encoding="utf8") as stream:
        settings = {"extensions": ["myst_parser", "widgets"], "myst_enable_extensions": ["colon_fence"]}
        out = tmp_path / "out"
        Sphinx(tmp_path, None, out, out, "dummy", settings, status=None, warning=stream).build()
    assert message in warnings.read_text("utf8")
