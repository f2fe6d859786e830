"""Every page of the built book, as a reader's browser shows it: in both themes, on a wide and on a narrow screen.

jupyter-book build . && python -m pip install --no-deps -r .ci/browser.txt && python -m pytest -m browser tests/test_pages.py
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from chromium import PROGRAM, Browser
from widget_page import start

HTML = Path(__file__).resolve().parent.parent / "_build" / "html"
PAGES = sorted(path.relative_to(HTML).as_posix() for path in HTML.rglob("*.html") if "_static" not in path.parts)
PAGES = [page for page in PAGES if page != "index.html"]  # which leads to book/index.html
WITH_WIDGETS = [page for page in PAGES if 'class="llmfs-widget' in (HTML / page).read_text("utf8")]
MOST_BYTES = 2_000_000  # of a page with its styles, scripts and fonts, without images and what loads on demand

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(PROGRAM is None, reason="there is no chromium on the path"),
    pytest.mark.skipif(not PAGES, reason="the book is not built"),
]

STILL = """document.head.insertAdjacentHTML("beforeend",
    "<style>* { transition: none !important; animation: none !important; }</style>")"""
AXE = """axe.run(document, {resultTypes: ["violations"], preload: false}).then(({violations}) => violations
    .filter(({impact}) => impact === "serious" || impact === "critical")
    .map(({id, nodes}) => `${id}: ${nodes.slice(0, 3).map(({html, any}) =>
        html.slice(0, 160) + " " + (any[0]?.message ?? "")).join(" | ")}`))"""
UNDRAWN = """Array.from(document.querySelectorAll(".math"))
    .filter((formula) => !formula.querySelector("mjx-container")).length"""
WEIGHT = """performance.getEntriesByType("resource").filter(({initiatorType}) => initiatorType !== "img")
    .map(({name}) => name)"""
WIDE = """Array.from(document.querySelectorAll("main *"))
    .filter((element) => element.getBoundingClientRect().right > innerWidth + 1 && !element.closest(
        ".scroll-box, pre, .output, mjx-container, .pst-scrollable-table-container, .highlight"))
    .slice(0, 3).map((element) => element.outerHTML.slice(0, 120))"""


@pytest.fixture(scope="session")
def axe() -> str:
    package = pytest.importorskip("axe_playwright_python", reason="python -m pip install --no-deps -r .ci/browser.txt")
    return (Path(package.__file__).parent / "axe.min.js").read_text("utf8")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_whole_in_both_themes_and_on_both_screens(browser: Browser, axe: str, page: str) -> None:
    for theme, width in (("light", 1440), ("dark", 1440), ("light", 390), ("dark", 390)):
        browser.open((HTML / page).as_uri(), width=width, theme=theme)
        where = f"{page}, {theme}, {width} px"
        assert browser.complaints == [], where
        assert [url for url in browser.requests if not url.startswith(("file:", "data:", "blob:"))] == [], where
        too_wide = browser.evaluate("document.documentElement.scrollWidth") > width
        assert not too_wide, f"{where}: {browser.evaluate(WIDE)}"
        assert browser.evaluate(UNDRAWN) == 0, where
        if (theme, width) in (("light", 1440), ("dark", 390)):  # the slowest look, at every color and both layouts
            browser.evaluate(STILL)  # a color on its way to another is neither
            browser.evaluate(axe)
            assert browser.evaluate(AXE) == [], where


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_light_and_valid(browser: Browser, page: str) -> None:
    html5lib = pytest.importorskip("html5lib", reason="python -m pip install --no-deps -r .ci/browser.txt")
    parser = html5lib.HTMLParser()
    source = (HTML / page).read_bytes()
    parser.parse(source)
    lines = source.decode("utf8").split("\n")
    assert [
        (code, lines[line - 1][max(0, column - 80) : column + 20]) for (line, column), code, _ in parser.errors
    ] == []
    ids = Counter(re.findall(r'\sid="([^"]+)"', source.decode("utf8")))
    assert [name for name, times in ids.items() if times > 1] == []
    browser.open((HTML / page).as_uri())
    files = {url.partition("?")[0] for url in browser.evaluate(WEIGHT) if url.startswith("file:")}
    weight = len(source) + sum(Path(re.sub("^file://", "", url)).stat().st_size for url in files)
    assert weight < MOST_BYTES, f"{weight:,} bytes: {sorted(files)}"


CONTROLS = """Array.from(document.querySelectorAll(".llmfs-widget :is(button, input, textarea, select, [tabindex])"))
    .filter((control) => control.checkVisibility() && !control.disabled && control.tabIndex >= 0)"""
ROLES = {"button", "checkbox", "combobox", "radio", "slider", "spinbutton", "textbox"}


def start_widgets(browser: Browser) -> None:
    for name in browser.evaluate("Array.from(document.querySelectorAll('.llmfs-widget'), (e) => e.dataset.widget)"):
        start(browser, name)


@pytest.mark.parametrize("page", WITH_WIDGETS)
def test_a_finger_reaches_every_control_of_the_widgets(browser: Browser, page: str) -> None:
    browser.open((HTML / page).as_uri(), width=390, touch=True)
    assert browser.evaluate("matchMedia('(pointer: coarse)').matches")
    start_widgets(browser)
    sizes = f"{CONTROLS}.map((c) => [c.outerHTML.slice(0, 80), c.getBoundingClientRect().height])"
    assert [control for control, height in browser.evaluate(sizes) if height < 24] == []  # WCAG 2.2, 2.5.8
    browser.evaluate("window.heard = []")
    for number in range(browser.evaluate(f"{CONTROLS}.length")):
        control = f"{CONTROLS}[{number}]"
        kind = browser.evaluate(f"{control}.type ?? {control}.tagName")
        event = "input" if kind == "range" else "click"
        browser.evaluate(
            f"""{control}.addEventListener("{event}", (event) => {{
                window.heard.push({number});
                event.stopImmediatePropagation();
                event.preventDefault();
            }}, {{capture: true, once: true}})"""
        )
        far = browser.evaluate(f"{control}.value > ({control}.min + {control}.max) / 2") if kind == "range" else False
        browser.tap(control, across=(0.2 if far else 0.8) if kind == "range" else 0.5)
        browser.wait_for(f"window.heard.includes({number})")
    assert browser.complaints == []


@pytest.mark.parametrize("page", WITH_WIDGETS)
def test_keys_and_a_screen_reader_reach_every_control_of_the_widgets(browser: Browser, page: str) -> None:
    browser.open((HTML / page).as_uri())
    start_widgets(browser)
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    controls = [node for node in nodes if not node["ignored"] and node["role"]["value"] in ROLES]
    assert len(controls) >= browser.evaluate(f"{CONTROLS}.filter((c) => c.matches('button, input, select, textarea')).length")
    assert [node["role"]["value"] for node in controls if not node.get("name", {}).get("value", "").strip()] == []
    for widget in range(browser.evaluate("document.querySelectorAll('.llmfs-widget').length")):
        inside = f"document.querySelectorAll('.llmfs-widget')[{widget}]"
        mine = f"{CONTROLS}.filter((c) => {inside}.contains(c) && (c.type !== 'radio' || c.checked))"
        browser.evaluate(f"window.missing = new Set({mine}); {mine}[0].focus()")
        for _ in range(browser.evaluate("missing.size") + 5):
            browser.evaluate("missing.delete(document.activeElement)")
            browser.press("Tab")
        left = "Array.from(missing, (control) => control.outerHTML.slice(0, 120))"
        assert browser.evaluate(left) == []
    assert browser.complaints == []
