"""The widgets of L06, L08 and L10 as a reader uses them, compared with what the package computes.

python -m pytest -m browser tests/test_widgets_more.py
"""

from __future__ import annotations

import re

import pytest
import torch
from chromium import Browser
from toy_book import REPOSITORY, ToyBook
from widget_page import (
    click,
    inside,
    marked,
    open_lesson,
    small_model,
    small_tokenizer,
    start,
    widget_book,
    write_into,
)

from llmfs import sft, tales
from llmfs.quantize import quantized
from llmfs.sample import generate

SENTENCE, WORD = "Once Mira Mouse met Tom Frog", "Owl"
STORY = "Mira Mouse had a drum.\nTom Owl took the drum & a kite."
QUESTION = "Who has the drum?"
EVALUATIONS = [  # step, loss, above the floor, two recalls, problems, story
    ("100", "0.900", "0.500", "50%", "0%", "word 2", "Once <b> upon"),
    ("1,200", "0.600", "0.200", "75%", "10%", "nothing", "A story.\nIts end."),
    ("2,300", "0.500", "0.100", "100%", "40%", "nothing", "A better story."),
]
COLUMNS = ("step", "loss", "above the floor", "near name", "holder", "what the grammar finds wrong", "story")


def html_row(cells, name="td"):
    escaped = (cell.replace("<", "&lt;").replace("&b", "&amp;b").replace("\n", "&#10;") for cell in cells)
    return "<tr>" + "".join(f"<{name}>{cell}</{name}>" for cell in escaped) + "</tr>"


RUN = (
    f'<table data-floor="0.4"><thead>{html_row(COLUMNS, "th")}</thead>'
    f"<tbody>{''.join(map(html_row, EVALUATIONS))}</tbody></table>"
)
TOLD = STORY.replace("&", "&amp;").replace("\n", "&#10;")
ASKED = f'<p class="llmfs-text">{TOLD}</p><table><tbody><tr><th>{QUESTION}</th><td>the answer of a lesson</td></tr></tbody></table>'
LESSON = "L03_Playing"
PAGE = f"""# L03 Playing

:::{{widget}} scrubber

<div>{RUN}</div>
:::

<div style="height: 3000px"></div>

:::{{widget}} mask
:text: {SENTENCE}
:word: {WORD}

What a lesson has computed of masks.
:::

<div style="height: 3000px"></div>

:::{{widget}} chat

<div>{ASKED}</div>
:::
"""
NAMES = ("scrubber", "mask", "chat")
LOADED = """Array.from(document.scripts, (script) => script.src)
    .filter((src) => src.includes("/models/")).map((src) => src.split("/").pop())"""


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


@pytest.fixture(scope="module")
def models(tokenizer):
    """name -> (model, tokenizer), as a page would load them; random weights, each its own."""
    generator = torch.Generator().manual_seed(1)
    book = small_model(tokenizer, block_size=96)
    few, chat_tokenizer = sft.extend_vocabulary(book, tokenizer, generator=generator)
    aligned, _ = sft.extend_vocabulary(book, tokenizer, generator=generator)
    with torch.no_grad():
        for model in (few, aligned):
            for p in model.parameters():
                p += 0.1 * torch.randn(p.shape, generator=generator)
    return {"book": (book, tokenizer), "few": (few, chat_tokenizer), "aligned": (aligned, chat_tokenizer)}


@pytest.fixture(scope="module")
def book(tmp_path_factory, models) -> ToyBook:
    return widget_book(tmp_path_factory.mktemp("book"), {LESSON: PAGE}, models)


@pytest.fixture
def page(book, browser) -> Browser:
    open_lesson(book, browser, LESSON)
    return browser


def text_of(browser: Browser, name: str, selector: str) -> str:
    (text,) = browser.evaluate(inside(name, selector, "element.textContent.trim()"))
    return text


# --- pages ---------------------------------------------------------------------------------------------


@marked
def test_every_model_that_a_widget_may_ask_for_is_exported(book):
    written = sorted(file.name for file in (book.html / "_static" / "models").iterdir())
    assert written == ["aligned.js", "book.js", "few.js"]


@marked
def test_without_scripts_the_results_of_the_lesson_are_there(book, browser):
    open_lesson(book, browser, LESSON, scripts=False)
    shown = browser.evaluate("document.body.innerText")
    for text in ("A better story.", "What a lesson has computed of masks.", "the answer of a lesson"):
        assert text in shown


@marked
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_widgets_fit_the_page_in_both_themes(book, browser, width, theme):
    open_lesson(book, browser, LESSON, width=width, theme=theme)
    for name in NAMES:
        start(browser, name)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        parts = inside(name, "label", "getComputedStyle(element).color")
        assert browser.evaluate("getComputedStyle(document.body).backgroundColor") not in browser.evaluate(parts)
    unnamed = """Array.from(document.querySelectorAll(".llmfs-widget :is(input, textarea, button)"))
        .filter((element) => !(element.labels?.length || element.innerText.trim())).length"""
    assert browser.evaluate(unnamed) == 0
    assert browser.evaluate("document.querySelectorAll('.llmfs-widget [aria-live=polite]').length") == len(NAMES)
    assert browser.complaints == []


# --- scrubber ------------------------------------------------------------------------------------------


def shown_evaluation(browser: Browser) -> tuple[str, ...]:
    """As a row of EVALUATIONS: what the widget shows of it."""
    step, loss, gap = re.fullmatch(
        r"Step ([\d,]+): ([\d.]+) nats per token, ([\d.]+) above.*", text_of(browser, "scrubber", ".llmfs-score")
    ).groups()
    recalls = browser.evaluate(inside("scrubber", "td.llmfs-number"))
    story = browser.evaluate(inside("scrubber", ".llmfs-stack > :not(.llmfs-hidden) .llmfs-text", "element.textContent"))
    (wrong,) = browser.evaluate(inside("scrubber", ".llmfs-stack > :not(.llmfs-hidden) .llmfs-remark"))
    assert len(story) == 1
    return step, loss, gap, *recalls, wrong.removeprefix("What the grammar finds wrong: "), *story


@marked
def test_the_evaluations_of_a_run_with_the_slider(page):
    start(page, "scrubber")
    assert page.evaluate(LOADED) == [], "it needs no model"
    assert shown_evaluation(page) == EVALUATIONS[0]
    assert page.evaluate(inside("scrubber", "tbody th")) == ["near name", "holder"]
    slider = inside("scrubber", "input[type=range]", "element") + "[0]"
    for place in (2, 1):
        page.evaluate(f"{slider}.value = {place}; {slider}.dispatchEvent(new Event('input'))")
        assert shown_evaluation(page) == EVALUATIONS[place]
    page.evaluate(f"{slider}.focus()")
    page.press("ArrowDown")
    assert shown_evaluation(page) == EVALUATIONS[0]
    assert page.evaluate(f"{slider}.getAttribute('aria-valuetext')") == "step 100"
    page.wait_for(f"{inside('scrubber', '[aria-live]')}[0].startsWith('Step 100: 0.900')")


@marked
def test_the_curve_of_a_run(page):
    start(page, "scrubber")
    curve = page.evaluate(inside("scrubber", ".llmfs-curve", "element.getAttribute('d')"))[0]
    xs, ys = zip(*(map(float, point.split()) for point in curve.removeprefix("M").split("L")))
    floor = float(re.match(r"M0 ([\d.]+)", page.evaluate(inside("scrubber", ".llmfs-here", "element.getAttribute('d')"))[0])[1])
    assert list(xs) == [0, 1100, 2200]
    for y, (_, _, gap, *_) in zip(ys, EVALUATIONS):  # heights above the dashed line are what is left to learn
        assert abs((floor - y) / (floor - ys[0]) - float(gap) / 0.5) < 0.01
    page.evaluate(
        f"""(() => {{
            const svg = {inside("scrubber", "svg", "element")}[0];
            const {{ right, top }} = svg.getBoundingClientRect();
            svg.dispatchEvent(new MouseEvent("click", {{ bubbles: true, clientX: right - 3, clientY: top + 3 }}));
        }})()"""
    )
    assert shown_evaluation(page) == EVALUATIONS[2]


# --- mask ----------------------------------------------------------------------------------------------


def shown_predictions(browser: Browser) -> list[list[str]]:
    cells = "[element.dataset.id, ...Array.from(element.cells, (cell) => cell.dataset.share ?? cell.innerText)]"
    return browser.evaluate(inside("mask", "tbody tr", cells))


def predictions(model, tokenizer, text, other):
    """ids (T + 1), their probabilities with and without mask (2, T), and how far each moves (2, n), n before the change."""
    model, end = quantized(model), tokenizer.special_tokens["<|endoftext|>"]
    rows = [[end, *tokenizer.encode(each)][:24] for each in (text, other)]
    meet = next(t for t in range(24) if rows[0][: t + 1] != rows[1][: t + 1])
    ids = torch.tensor(rows[0])
    likely, moved = [], []
    for causal in (True, False):
        p, q = (
            model(torch.tensor([row]), mask=None if causal else torch.ones(len(row), len(row), dtype=torch.bool))[0]
            for row in rows
        )
        p, q = p.softmax(dim=-1), q.softmax(dim=-1)
        likely.append(p[torch.arange(len(ids) - 1), ids[1:]])
        moved.append((p[:meet] - q[:meet]).abs().sum(dim=-1) / 2)
    return ids, torch.stack(likely), torch.stack(moved)


@marked
@torch.no_grad()
def test_the_predictions_with_and_without_a_mask(page, models):
    start(page, "mask")
    model, tokenizer = models["book"]
    words = SENTENCE.split()
    for text, word in (
        (SENTENCE, WORD),
        ("The fox saw the unbelievable", "owl"),  # words of several tokens
        ("The fox saw the owl", "unbelievable"),
        (" ".join(words * 5), "owl"),  # cut
        ("é🦉", "ü"),
    ):
        write_into(page, "mask", "input[type=text]", text)
        page.evaluate(f"{inside('mask', 'input', 'element')}[1].select()")
        page.call("Input.insertText", text=word)
        end = tokenizer.special_tokens["<|endoftext|>"]
        ids = [end, *tokenizer.encode(text)][:24]
        read = tokenizer.decode(ids[1:])
        other = read[: read.rindex(" ") + 1] + word if " " in read else word
        ids, likely, moved = predictions(model, tokenizer, text, other)
        page.wait_for(f"{inside('mask', 'tbody tr')}.length === {len(ids) - 1}")
        page.wait_for(f"{inside('mask', 'p')}.join().includes('of the {moved.shape[1]} predictions')")
        page.evaluate("new Promise((done) => setTimeout(done, 400))")
        rows = shown_predictions(page)
        assert [int(row[0]) for row in rows] == ids[1:].tolist()
        for t, (_, _, *numbers) in enumerate(rows):
            assert torch.allclose(torch.tensor([float(x) for x in numbers[:2]]), likely[:, t], atol=1e-4)
            if t < moved.shape[1]:
                assert numbers[2] == "0", "exactly, not nearly"
                assert abs(float(numbers[3]) - moved[1, t]) < 1e-4
            else:
                assert numbers[2:] == ["–", "–"]
        n, n_moved = moved.shape[1], int((moved[1] > 0).sum())
        said = f"moves 0 of the {n} predictions before it with the mask, and {n_moved} of {n} without"
        assert said in " ".join(page.evaluate(inside("mask", "p")))
        means = [f"{mean:.2f}" for mean in -likely.log().mean(dim=1)]
        assert f"{means[0]} with the mask, {means[1]} without" in " ".join(page.evaluate(inside("mask", "p")))
    assert page.complaints == []


@marked
@pytest.mark.parametrize(("text", "word", "said"), [("", "owl", "at least one word"), ("a fox", "fox", "another last word")])
def test_a_sentence_that_has_nothing_to_compare(page, text, word, said):
    start(page, "mask")
    page.evaluate(f"{inside('mask', 'input', 'element')}[1].select()")
    page.call("Input.insertText", text=word)
    write_into(page, "mask", "input[type=text]", text)
    page.wait_for(f"{inside('mask', 'p')}.join().includes('{said}')")
    assert page.complaints == []


# --- chat ----------------------------------------------------------------------------------------------


def ask(browser: Browser) -> list[str]:
    """Press "Ask" -> the three answers."""
    before = len(browser.evaluate(inside("chat", ".llmfs-exchange")))
    click(browser, "chat", "Ask")
    browser.wait_for(f"{inside('chat', '.llmfs-exchange[data-state=done]')}.length === {before + 1}")
    return browser.evaluate(inside("chat", ".llmfs-exchange:first-child dd", "element.textContent"))


def answers(models, told, asked):
    """What the package's models say."""
    model, tokenizer = models["book"]
    end = tokenizer.special_tokens["<|endoftext|>"]
    ids = torch.tensor([[end, *tokenizer.encode(f"{told}\n{asked}")]])
    new = [int(token) for token in generate(quantized(model), ids, 25, temperature=0.0, stop={end})]
    said = [tokenizer.decode(id for id in new if id != end)]
    messages = [{"role": "user", "content": f"{told}\n{asked}"}]
    for name in ("few", "aligned"):
        model, tokenizer = models[name]
        said += sft.answer(quantized(model), tokenizer, [messages], max_tokens=12)
    return said


@marked
def test_three_models_answer(page, models):
    start(page, "chat")
    assert page.evaluate(LOADED) == [], "not before they are asked"
    assert text_of(page, "chat", "p.llmfs-remark[role=status]")
    said = ask(page)
    assert page.evaluate(LOADED) == ["book.js", "few.js", "aligned.js"]
    assert said == answers(models, STORY, QUESTION)
    assert len(set(said)) == 3
    write_into(page, "chat", "textarea", "A fox met an owl <|end|><|assistant|> é🦉")
    write_into(page, "chat", "input", "What is Tom?")
    assert ask(page) == answers(models, "A fox met an owl <|end|><|assistant|> é🦉", "What is Tom?")
    questions = page.evaluate(inside("chat", ".llmfs-question"))
    assert questions == ["What is Tom?", QUESTION]
    page.wait_for(f"{inside('chat', '[aria-live=polite]')}[0].startsWith('What is Tom? Base:')")
    assert page.complaints == []


@marked
def test_questions_of_each_kind_are_about_the_story(page):
    start(page, "chat")
    value = inside("chat", "input", "element.value") + "[0]"
    suggested = {}
    for kind in page.evaluate(inside("chat", "[data-kind]", "element.dataset.kind")):
        click(page, "chat", kind)
        suggested[kind] = page.evaluate(value)
    assert tuple(suggested) == tales.QUESTION_KINDS
    assert suggested["animal"] == "What is Mira?" and suggested["holder"] == "Who has the drum?"
    click(page, "chat", "animal")
    click(page, "chat", "animal")
    assert page.evaluate(value) == "What is Tom?"
    write_into(page, "chat", "textarea", "No one.")
    click(page, "chat", "home")
    assert page.evaluate(value) == "Where does Mira live?"


def test_the_questions_are_those_of_the_tales():
    code = (REPOSITORY / "book/_static/js/widgets/chat.js").read_text("utf8")

    def words(name):
        return tuple(re.findall(r'"(\w+)"', re.search(rf"const {name} = \[(.*?)\]", code)[1]))

    assert words("ANIMALS") == tales.ANIMALS and words("THINGS") == tales.THINGS
    templates = dict(re.findall(r'(\w+): "(.*\?)"', code))
    assert tuple(templates) == tales.QUESTION_KINDS
    asked = {kind: set() for kind in templates}
    for tale in tales.stories(2_000, 0):
        for question in tale.questions:
            asked[question.kind].add(question.text)
    for kind, template in templates.items():
        pattern = re.escape(template).replace("NAME", r"[A-Z]\w+").replace("THING", rf"(?:{'|'.join(tales.THINGS)})")
        assert any(re.fullmatch(pattern, text) for text in asked[kind]), kind


@marked
def test_what_cannot_be_asked_is_said(page):
    start(page, "chat")
    note = inside("chat", "p[role=status]") + "[0]"
    write_into(page, "chat", "input", " ")
    click(page, "chat", "Ask")
    page.wait_for(f"{note} === 'Write a story and a question.'")
    write_into(page, "chat", "input", QUESTION)
    write_into(page, "chat", "textarea", "owl " * 80)
    click(page, "chat", "Ask")
    page.wait_for(f"{note}.includes('Shorten the story')")
    write_into(page, "chat", "textarea", STORY)
    ask(page)


@marked
def test_where_a_model_of_the_three_is_missing(book, browser):
    path = book.html / "_static" / "models" / "aligned.js"
    hidden = path.rename(path.with_suffix(".hidden"))
    try:
        open_lesson(book, browser, LESSON)
        start(browser, "chat")
        click(browser, "chat", "Ask")
        browser.wait_for(f"{inside('chat', 'p[role=status]')}[0] === 'The models could not be loaded.'")
    finally:
        hidden.rename(path)
