"""What the tests of the widgets share: a toy book with the scripts, a small model, and a reader's hands.

`test_widgets.py` has the widgets of L01 and L09 and all that holds for every widget, `test_widgets_attention.py` those
of L02 to L04, `test_widgets_more.py` those of L06, L08 and L10. A file of tests wraps `small_tokenizer`, `small_model` and `widget_book` in fixtures of its own.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from chromium import PROGRAM, Browser
from test_page_models import random_model
from toy_book import REPOSITORY, ToyBook

from llmfs import tales
from llmfs.checkpoint import save_checkpoint
from llmfs.config import GPTConfig
from llmfs.gpt import GPT
from llmfs.tokenizer import BPETokenizer

# The book's models, without the training: what the test has saved.
RECIPES = """
from types import SimpleNamespace

from llmfs.checkpoint import load_checkpoint


def book_model():
    checkpoint = load_checkpoint({folder!r})
    return SimpleNamespace(model=checkpoint.model, tokenizer=checkpoint.tokenizer)


def book_tokenizer():
    return book_model().tokenizer
"""
CHAT = """
from llmfs.checkpoint import load_checkpoint


def book_few_model():
    checkpoint = load_checkpoint({few!r})
    return checkpoint.model, checkpoint.tokenizer


def book_aligned_model():
    checkpoint = load_checkpoint({aligned!r})
    return checkpoint.model, checkpoint.tokenizer
"""

browser_only = [
    pytest.mark.browser,
    pytest.mark.skipif(PROGRAM is None, reason="there is no chromium on the path"),
]


def marked(test):
    for mark in browser_only:
        test = mark(test)
    return test


def small_tokenizer() -> BPETokenizer:
    texts = [tale.text for tale in tales.stories(300, 0)]
    return BPETokenizer.train(texts, 400, special_tokens=["<|endoftext|>"])


def small_model(tokenizer: BPETokenizer, **changes) -> GPT:
    config = GPTConfig(tokenizer.vocab_size, block_size=32, n_layer=2, n_head=2, n_embd=32, d_ff=48, qk_norm=True)
    return random_model(config.replace(**changes))


def widget_book(root: Path, pages: dict[str, str], models: dict[str, tuple[GPT, BPETokenizer]]) -> ToyBook:
    """Build a book of these lessons, name -> Markdown, with these models: "book", and "few" and "aligned" or neither."""
    book = ToyBook.write(root)
    saved = {
        name: str(save_checkpoint(book.root / f"run-{name}", model, tokenizer=tokenizer))
        for name, (model, tokenizer) in models.items()
    }
    shutil.copytree(REPOSITORY / "llmfs", book.root / "llmfs", dirs_exist_ok=True)
    chapters = "".join(f"  - file: lessons/{name}\n" for name in pages)
    files = {
        "_toc.yml": f"format: jb-book\nroot: book/index\nchapters:\n{chapters}  - file: book/references\n",
        "llmfs/recipes.py": RECIPES.format(folder=saved["book"]),
        **{f"lessons/{name}.md": text for name, text in pages.items()},
    }
    if "few" in saved:
        files["llmfs/chat.py"] = CHAT.format(**saved)
    for name, text in files.items():
        (book.root / name).write_text(text, "utf8")
    build = book.build()
    assert build.returncode == 0, build.stdout
    assert "page models: writing book" in build.stdout
    return book


def open_lesson(book: ToyBook, browser: Browser, lesson: str, **look) -> None:
    browser.open((book.html / "lessons" / f"{lesson}.html").as_uri(), **look)


def start(browser: Browser, name: str) -> None:
    """Scroll to a widget and wait until it has taken the place of the static result."""
    found = f"""document.querySelector('[data-widget="{name}"]')"""
    browser.evaluate(f"{found}.scrollIntoView({{behavior: 'instant'}})")
    browser.wait_for(f"{found}.dataset.state === 'ready'")


def inside(name: str, selector: str, what: str = "element.innerText.trim()") -> str:
    """An expression: `what` for every element that the selector finds in the widget."""
    return f"""Array.from(document.querySelectorAll('[data-widget="{name}"] {selector}'), (element) => {what})"""


def click(browser: Browser, name: str, text: str) -> None:
    browser.evaluate(f"{inside(name, 'button', 'element')}.find((b) => b.innerText.trim() === {text!r}).click()")


def write_into(browser: Browser, name: str, selector: str, text: str) -> None:
    """Replace what is in a field by typing."""
    browser.evaluate(f"{inside(name, selector, 'element')}[0].select()")
    browser.call("Input.insertText", text=text)
    browser.evaluate("document.activeElement.blur()")


def turn(browser: Browser, name: str, dial: str, value: float) -> None:
    """Move a dial of a widget."""
    browser.evaluate(
        f"""(() => {{
            const label = {inside(name, "label", "element")}.find((label) => label.innerText === {dial!r});
            label.control.value = {value};
            label.control.dispatchEvent(new Event("input", {{bubbles: true}}));
        }})()"""
    )


def assert_fits(browser: Browser, name: str, width: int) -> None:
    """The widget is no wider than the screen, and its words differ from the ground that they stand on."""
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    colors = browser.evaluate(
        f"""(() => {{
            const style = getComputedStyle(document.querySelector('[data-widget="{name}"] button'));
            return [style.color, getComputedStyle(document.body).backgroundColor];
        }})()"""
    )
    assert colors[0] != colors[1]


UNNAMED = """Array.from(document.querySelectorAll(".llmfs-widget :is(input, textarea, select, button)"))
    .filter((element) => !(element.labels?.length || element.innerText.trim())).length"""
