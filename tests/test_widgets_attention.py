"""The widgets of L02 to L04 as a reader uses them, compared with what the package computes.

python -m pytest -m browser tests/test_widgets_attention.py
"""

from __future__ import annotations

import math

import pytest
import torch
from chromium import Browser
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

from llmfs.embeddings import apply_rope, rope_tables
from llmfs.gpt import attention_maps, hidden_states
from llmfs.quantize import quantized

TEXT = "Tom met Mira, and Tom met"
STORY = "The fox met the owl"
PAGES = {
    "L02_Turning": f"""# L02 Turning

:::{{widget}} embedding
:word: the

What a lesson has computed of neighbors.
:::

:::{{widget}} rope
:text: {STORY}
:layer: 2
:head: 1
:key: 2

What a lesson has computed of turns.
:::
""",
    "L03_Looking": f"""# L03 Looking

:::{{widget}} attention
:text: {TEXT}
:layer: 2
:head: 1

What a lesson has computed of weights.
:::

:::{{widget}} computation
:text: {TEXT}
:layer: 1
:head: 2

What a lesson has computed of outputs.
:::
""",
    "L04_Heads": f"""# L04 Heads

:::{{widget}} attention
:text: {TEXT}
:layer: 1
:head: 2
:heads: all

What a lesson has computed of heads.
:::
""",
}
ON_PAGE = {
    "L02_Turning": ("embedding", "rope"),
    "L03_Looking": ("attention", "computation"),
    "L04_Heads": ("attention",),
}
LONGEST = 24  # tokens that a sentence may have


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    """Two query heads share a key head, so that a widget that takes the wrong one is found."""
    return small_model(tokenizer, n_head=4, n_kv_head=2)


@pytest.fixture(scope="module")
def rounded(model):
    return quantized(model)


@pytest.fixture(scope="module")
def book(tmp_path_factory, model, tokenizer):
    return widget_book(tmp_path_factory.mktemp("book"), PAGES, {"book": (model, tokenizer)})


@pytest.fixture
def page(book, browser, request) -> Browser:
    """A page with all its widgets started; the test is parametrized with the lesson's name."""
    open_lesson(book, browser, request.param)
    for name in ON_PAGE[request.param]:
        start(browser, name)
    return browser


def on(lesson):
    return pytest.mark.parametrize("page", [lesson], indirect=True)


def read(tokenizer, text) -> torch.Tensor:
    """The ids (1, T) that a widget reads of a sentence."""
    return torch.tensor([[tokenizer.special_tokens["<|endoftext|>"], *tokenizer.encode(text)][:LONGEST]])


def labels(tokenizer, ids) -> list[str]:
    return ["(start)", *(tokenizer.decode([i]).replace(" ", "·") for i in ids[0, 1:].tolist())]


def number(text: str) -> float:
    return float(text.replace("−", "-").rstrip(" %"))


def texts(browser: Browser, name: str, selector: str) -> list[str]:
    return browser.evaluate(inside(name, selector, "element.textContent.trim()"))


def table(browser: Browser, name: str, number: int, part: str = "tbody") -> list[list[str]]:
    """The cells of a table, row by row."""
    cells = "Array.from(element.cells, (cell) => cell.textContent.trim())"
    rows = inside(name, f"{part} tr", f"[element.closest('table'), {cells}]")
    tables = f"Array.from(document.querySelectorAll('[data-widget=\"{name}\"] table'))"
    return browser.evaluate(f"{rows}.filter(([table]) => table === {tables}[{number}]).map(([, cells]) => cells)")


def press_option(browser: Browser, name: str, group: int, place: int) -> None:
    """Click one of the buttons of a choice."""
    groups = inside(name, ".llmfs-choice", "element")
    browser.evaluate(f"{groups}[{group}].querySelectorAll('button')[{place}].click()")


def options(browser: Browser, name: str, group: int) -> list[str]:
    groups = inside(name, ".llmfs-choice", "element")
    return browser.evaluate(f"Array.from({groups}[{group}].children, (button) => button.textContent)")


def write_sentence(browser: Browser, name: str, text: str, group: int, expected: list[str]) -> None:
    """Write it, and wait until its tokens are there: `group` is the choice that shows them."""
    write_into(browser, name, "input", text)
    groups = inside(name, ".llmfs-choice", "element")
    shown = f"Array.from({groups}[{group}].children, (button) => button.textContent)"
    browser.wait_for(f"JSON.stringify({shown}) === JSON.stringify({expected!r})")


# --- pages ---------------------------------------------------------------------------------------------


@marked
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("lesson", PAGES)
def test_widgets_fit_the_page_and_every_control_has_a_name(book, browser, lesson, width, theme):
    open_lesson(book, browser, lesson, width=width, theme=theme)
    for name in ON_PAGE[lesson]:
        start(browser, name)
        assert_fits(browser, name, width)
    assert browser.evaluate(UNNAMED) == 0
    spoken = browser.evaluate("document.querySelectorAll('.llmfs-widget [aria-live=polite]').length")
    assert spoken == len(ON_PAGE[lesson])
    assert browser.complaints == []


@marked
@pytest.mark.parametrize("lesson", PAGES)
def test_without_scripts_the_results_of_the_lesson_are_there(book, browser, lesson):
    open_lesson(book, browser, lesson, scripts=False)
    shown = browser.evaluate("document.body.innerText")
    assert shown.count("What a lesson has computed") == len(ON_PAGE[lesson])


# --- embedding -----------------------------------------------------------------------------------------


def nearest(rounded, id, n=10):
    """-> the ids of the n nearest tokens, and the cosines of all."""
    vectors = torch.nn.functional.normalize(rounded.embed.weight.detach().double(), dim=1)  # (V, C)
    cosine = vectors @ vectors[id]  # (V,)
    return [i for i in cosine.argsort(descending=True).tolist() if i != id][:n], cosine


def shown_neighbors(browser):
    ids = browser.evaluate(inside("embedding", "tbody button", "Number(element.dataset.id)"))
    return ids, [number(row[1]) for row in table(browser, "embedding", 0)]


@marked
@on("L02_Turning")
def test_the_nearest_tokens(page, rounded, tokenizer):
    def check(id):
        ids, cosine = nearest(rounded, id)
        shown, numbers = shown_neighbors(page)
        assert shown == ids
        assert numbers == pytest.approx(cosine[ids].tolist(), abs=0.0051)
        assert f"(token {id})" in texts(page, "embedding", "caption")[0]
        mean = (cosine.sum() - 1) / (len(cosine) - 1)
        assert f"mean cosine is {mean:.2f}".replace("-", "−") in texts(page, "embedding", ".llmfs-remark")[0]
        return ids

    [id] = tokenizer.encode(" the")
    ids = check(id)
    click(page, "embedding", texts(page, "embedding", "tbody button")[1])  # walk on to a neighbor
    check(ids[1])

    parts = tokenizer.encode(" foxglove")  # a word of several tokens: each can be chosen
    write_into(page, "embedding", "input", " foxglove ")
    check(parts[0])
    press_option(page, "embedding", 0, len(parts) - 1)
    check(parts[-1])

    choose = f"""(() => {{ const list = {inside("embedding", "select", "element")}[0];
        list.value = "300"; list.dispatchEvent(new Event("change")); }})()"""
    page.evaluate(choose)
    check(300)
    names = page.evaluate(inside("embedding", "option", "[Number(element.value), element.textContent]"))
    assert sorted(id for id, _ in names) == list(range(tokenizer.vocab_size))
    assert dict(map(tuple, names))[id] == "the"

    write_into(page, "embedding", "input", "")  # the space alone is a token
    check(tokenizer.encode(" ")[0])
    assert page.complaints == []


# --- rope ----------------------------------------------------------------------------------------------


def turned_pair(rounded, tokenizer, layer, head, query_at, key_at):
    """The last query and the key at place 2 of the story, turned to other places (hd) each."""
    ids = read(tokenizer, STORY)
    block = rounded.blocks[layer]
    with torch.no_grad():
        q, k, _ = block.attn.project(block.attn_norm(hidden_states(rounded, ids)[layer]), None)
        k = block.attn.share_heads(k)
    places = torch.tensor([query_at, key_at])
    pair = torch.stack((q[0, head, -1], k[0, head, 2]))[None, None]  # (1, 1, 2, hd)
    return apply_rope(pair, *rope_tables(places, pair.shape[-1]))[0, 0]


def shown_score(browser):
    return number(texts(browser, "rope", ".llmfs-score")[0].split(" = ")[-1])


@marked
@on("L02_Turning")
def test_the_score_of_turned_vectors(page, rounded, tokenizer):
    hd = rounded.config.head_size
    layer, head = 1, 0
    for query_at, key_at in ((9, 5), (0, 0), (31, 4), (3, 20)):
        turn(page, "rope", "Query at m", query_at)
        turn(page, "rope", "Key at n", key_at)
        q, k = turned_pair(rounded, tokenizer, layer, head, query_at, key_at)
        assert shown_score(page) == pytest.approx((q @ k).item() / math.sqrt(hd), abs=1e-3)
        rows = table(page, "rope", 0)
        assert [row[0] for row in rows] == [f"query at {query_at}", f"key at {key_at}"]
        for vector, row in zip((q, k), rows):
            assert [number(cell) for cell in row[1:5]] == pytest.approx(vector[:4].tolist(), abs=0.0051)
        # The dot stands on the curve, at the distance.
        distance = query_at - key_at
        point = page.evaluate(inside("rope", ".llmfs-point", "element.getAttribute('d')"))[0]
        curve = page.evaluate(inside("rope", ".llmfs-curve", "element.getAttribute('d')"))[0][1:].split("L")
        x, y = map(float, point[1:].removesuffix("h0").split())
        assert x == distance + (len(curve) - 1) / 2
        assert [x, y] == pytest.approx([float(n) for n in curve[int(x)].split()], abs=0.01)

    # Another head has another pair.
    press_option(page, "rope", 0, 0)
    press_option(page, "rope", 1, 3)
    q, k = turned_pair(rounded, tokenizer, 0, 3, 3, 20)
    assert shown_score(page) == pytest.approx((q @ k).item() / math.sqrt(hd), abs=1e-3)


@marked
@on("L02_Turning")
def test_moving_both_changes_the_vectors_and_not_the_score(page):
    score, vectors = shown_score(page), table(page, "rope", 0)
    click(page, "rope", "Both ten on")
    click(page, "rope", "Both one on")
    after = table(page, "rope", 0)
    assert after[0][0] == "query at 20" and after[1][0] == "key at 16"
    assert shown_score(page) == score
    assert vectors[0][1:] != after[0][1:] and vectors[1][1:] != after[1][1:]
    turn(page, "rope", "Query at m", 31)  # the last place of this model
    disabled = dict(page.evaluate(inside("rope", ".llmfs-button", "[element.textContent, element.disabled]")))
    assert disabled == {"Both one on": True, "Both ten on": True, "Both ten back": False}
    assert page.complaints == []


# --- attention -----------------------------------------------------------------------------------------


def shown_row(browser: Browser, number_of_table: int) -> list[tuple[str, str, float]]:
    rows = table(browser, "attention", number_of_table)
    return [(place, label, number(weight)) for place, label, weight, _ in rows]


def expected_row(weights, names) -> list[tuple[str, str, float]]:
    """A row (S,) of weights as the table shows it: the six strongest, and the rest in one."""
    order = sorted(range(len(weights)), key=lambda s: (-weights[s], s))
    rows = [(str(s), names[s], 100 * weights[s]) for s in order[:6]]
    if order[6:]:
        rows.append(("", f"{len(order[6:])} others", 100 * sum(weights[s] for s in order[6:])))
    return rows


def assert_row(browser, number_of_table, weights, names):
    shown, expected = shown_row(browser, number_of_table), expected_row(weights.tolist(), names)
    assert [row[:2] for row in shown] == [row[:2] for row in expected]
    assert [row[2] for row in shown] == pytest.approx([row[2] for row in expected], abs=0.051)


def drawn(browser: Browser, selector: str, T: int) -> torch.Tensor:
    """The shades of a map (T, T), read from its paths."""
    shades = torch.zeros(T, T)
    paths = browser.evaluate(
        inside("attention", selector, "[Number(element.getAttribute('opacity')), element.getAttribute('d')]")
    )
    for shade, path in paths:
        for cell in path.removeprefix("M").split("M"):
            s, t = cell.removesuffix("h1v1h-1z").split()
            shades[int(t), int(s)] = shade
    return shades


@marked
@on("L03_Looking")
def test_where_a_token_looks(page, rounded, tokenizer):
    ids = read(tokenizer, TEXT)
    names = labels(tokenizer, ids)
    maps = attention_maps(rounded, ids)[:, 0]  # (L, H, T, T)
    assert options(page, "attention", 2) == names
    assert_row(page, 0, maps[1, 0, -1], names)  # as the page begins: the last token
    for layer, head, place in ((1, 0, 3), (0, 3, 5), (1, 2, 0)):
        press_option(page, "attention", 0, layer)
        press_option(page, "attention", 1, head)
        press_option(page, "attention", 2, place)
        assert_row(page, 0, maps[layer, head, place, : place + 1], names)
        assert (drawn(page, ".llmfs-map-cells .llmfs-cell", len(names)) - maps[layer, head]).abs().max() < 0.0251
        assert f"Layer {layer + 1}, head {head + 1}" in texts(page, "attention", ".llmfs-title")
    page.wait_for(f"{inside('attention', '[aria-live]')}[0].includes('(start) looks most at (start), 100.0 %')")


@marked
@on("L03_Looking")
def test_rows_are_reached_with_keys_and_with_the_mouse(page, rounded, tokenizer):
    ids = read(tokenizer, TEXT)
    names = labels(tokenizer, ids)
    weights = attention_maps(rounded, ids)[1, 0, 0]  # (T, T)
    page.evaluate(f"{inside('attention', '.llmfs-map-rows button', 'element')}[0].focus()")
    page.press("ArrowDown")
    page.press("ArrowDown")
    page.press(" ")
    assert_row(page, 0, weights[2, :3], names)
    cells = "document.querySelector('.llmfs-map-cells')"
    page.evaluate(f"{cells}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    box = page.evaluate(f"(({{x, y, width, height}}) => [x, y, width, height])({cells}.getBoundingClientRect())")
    at = dict(x=box[0] + box[2] / 2, y=box[1] + box[3] * 4.5 / len(names), button="left", clickCount=1)
    for kind in ("mousePressed", "mouseReleased"):
        page.call("Input.dispatchMouseEvent", type=kind, **at)
    assert_row(page, 0, weights[4, :5], names)
    pressed = page.evaluate(inside("attention", ".llmfs-map-rows button", "element.ariaPressed === 'true'"))
    assert pressed.index(True) == 4 and sum(pressed) == 1


@marked
@on("L03_Looking")
def test_a_sentence_of_the_reader(page, rounded, tokenizer):
    long = "The fox and the owl and the hen " * 5
    for text in (long, "Mira sat", ""):
        ids = read(tokenizer, text)
        names = labels(tokenizer, ids)
        write_sentence(page, "attention", text, 2, names)
        assert_row(page, 0, attention_maps(rounded, ids)[1, 0, 0, -1], names)
        cut = f"first {LONGEST} of these {1 + len(tokenizer.encode(text))} tokens"
        assert (cut in texts(page, "attention", ".llmfs-remark")[0]) == (text == long)
    write_sentence(page, "attention", "é", 2, ["(start)", "\\xc3", "\\xa9"])  # parts of a character
    assert page.complaints == []


@marked
@on("L04_Heads")
def test_maps_and_means_of_all_heads(page, rounded, tokenizer):
    for text in (TEXT, "The hen and the fox"):
        ids = read(tokenizer, text)
        names = labels(tokenizer, ids)
        write_sentence(page, "attention", text, 1, names)
        maps = attention_maps(rounded, ids)[:, 0]  # (L, H, T, T)
        rows = table(page, "attention", 0)
        assert [row[0] for row in rows] == [f"{layer}.{head}" for layer in (1, 2) for head in (1, 2, 3, 4)]
        for row, weights in zip(rows, maps.flatten(0, 1)):
            expected = by_hand(weights.tolist(), ids[0].tolist())
            for cell, mean in zip(row[1:], expected):
                assert cell == "–" if mean is None else number(cell) == pytest.approx(100 * mean, abs=0.051)
        for place in (6, 1):
            press_option(page, "attention", 0, place)
            assert_row(page, 1, maps.flatten(0, 1)[place, -1], names)
        small = drawn(page, ".llmfs-maps button:nth-child(4) .llmfs-cell", len(names))
        assert (small - maps[0, 3]).abs().max() < 0.0251
    assert page.complaints == []


def by_hand(weights, ids):
    """Mean weight on the token before, after earlier copies and on the start."""
    T = len(ids)
    behind = [
        sum(weights[t][s + 1] for s in range(t) if ids[s] == ids[t]) for t in range(T) if ids[t] in ids[:t]
    ]  # fmt: skip
    before = [weights[t][t - 1] for t in range(1, T)]
    start = [weights[t][0] for t in range(1, T)]
    return [sum(values) / len(values) if values else None for values in (before, behind, start)]


# --- computation ---------------------------------------------------------------------------------------


@marked
@on("L03_Looking")
def test_one_heads_computation(page, rounded, tokenizer):
    ids = read(tokenizer, TEXT)
    names = labels(tokenizer, ids)
    hd = rounded.config.head_size
    for layer, head, t in ((0, 1, len(names) - 1), (1, 2, 4), (1, 3, 0)):
        press_option(page, "computation", 1, layer)
        press_option(page, "computation", 2, head)
        press_option(page, "computation", 0, t)
        attn, norm = rounded.blocks[layer].attn, rounded.blocks[layer].attn_norm
        with torch.no_grad():
            x = norm(hidden_states(rounded, ids)[layer])
            q, k, v = attn.project(x, rounded.rope_at(torch.arange(len(names))))
            k, v = attn.share_heads(k)[0, head, : t + 1], attn.share_heads(v)[0, head, : t + 1]  # (t + 1, hd)
        q = q[0, head, t]  # (hd,)
        products = k @ q
        scores = products / math.sqrt(hd)
        powers = (scores - scores.max()).exp()
        weights = powers / powers.sum()
        torch.testing.assert_close(weights, attention_maps(rounded, ids)[layer, 0, head, t, : t + 1])
        output = weights @ v  # (hd,)

        columns = torch.column_stack((products, scores, powers, weights, k[:, :4]))
        rows = table(page, "computation", 0)
        assert [row[0] for row in rows] == names[: t + 1]
        assert_numbers(rows, columns, digits=(2, 2, 3, 3, 2, 2, 2, 2))
        [sums] = table(page, "computation", 0, "tfoot")
        assert number(sums[3]) == pytest.approx(powers.sum().item(), abs=6e-4) and sums[4] == "1.000"

        rows = table(page, "computation", 1)
        assert_numbers(rows, torch.column_stack((weights, v[:, :4])), digits=(3, 2, 2, 2, 2))
        [sums] = table(page, "computation", 1, "tfoot")
        assert [number(cell) for cell in sums[2:]] == pytest.approx(output[:4].tolist(), abs=0.0051)

        asked, product, channel = texts(page, "computation", ".llmfs-formula")
        first_four = ", ".join(signed(x) for x in q[:4].tolist())
        assert f"q ({hd}) = ({first_four}, … {hd - 4} more)" in asked
        best = int(weights.argmax())
        assert f" = {signed(products[best].item())}; divided by √{hd}: {signed(scores[best].item())}" in product
        assert channel.endswith(f" = {signed(output[0].item())}")
    assert page.complaints == []


def signed(x: float) -> str:
    return f"{x:.2f}".replace("-", "−")


def assert_numbers(rows, expected, digits):
    for row, values in zip(rows, expected.tolist(), strict=True):
        for cell, value, places in zip(row[1:], values, digits, strict=True):
            assert number(cell) == pytest.approx(value, abs=0.51 * 10**-places + 1e-4)


@marked
@on("L03_Looking")
def test_the_computation_of_another_sentence(page, tokenizer):
    for text in ("The hen", "", "The fox and the owl " * 8):
        names = labels(tokenizer, read(tokenizer, text))
        write_sentence(page, "computation", text, 0, names)
        assert [row[0] for row in table(page, "computation", 1)] == names
    assert page.complaints == []
