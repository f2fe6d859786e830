"""The pages around the lessons: their terms, links, letters and messages are those of the lessons and the package."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
import runs
import torch
import yaml
from myst_parser.mdit_to_docutils.base import default_slugify
from seed_cache import seconds
from toy_book import REPOSITORY, ToyBook, executed

from llmfs import corpus
from llmfs.config import ConfigError, GPTConfig
from llmfs.gpt import GPT

BOOK = REPOSITORY / "book"
LESSONS = sorted((REPOSITORY / "lessons").glob("*.md"))
CODES = [path.name[:3] for path in LESSONS]
MOST_TERMS = 12  # links to the glossary in one lesson
FENCED = re.compile(r"^(`{3,})\{?.*?^\1$", re.DOTALL | re.MULTILINE)


def page(name: str) -> str:
    return (BOOK / f"{name}.md").read_text("utf8")


def lesson(code: str) -> str:
    return next(path for path in LESSONS if path.name.startswith(code)).read_text("utf8")


def anchors(text: str) -> set[str]:
    """The addresses of a page's headings, as MyST makes them."""
    return {default_slugify(heading) for heading in re.findall(r"^#{2,3} (.+)$", FENCED.sub("", text), re.MULTILINE)}


def glossary() -> dict[str, str]:
    """Each term -> its definition; two names of one thing share theirs."""
    entries = {}
    for block in re.findall(r"^```\{glossary\}\n(.*?)^```$", page("concepts"), re.DOTALL | re.MULTILINE):
        for entry in block.strip().split("\n\n"):
            lines = entry.splitlines()
            definition = " ".join(line.strip() for line in lines if line.startswith("  "))
            entries |= {line.lower(): definition for line in lines if not line.startswith("  ")}
    return entries


# Concepts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("term", sorted(glossary()))
def test_a_term_links_to_a_lesson_that_explains_it(term: str) -> None:
    links = re.findall(r"\]\(\.\./lessons/([^)#]+)#([^)]+)\)", glossary()[term])
    assert len(links) == 1
    name, anchor = links[0]
    text = (REPOSITORY / "lessons" / name).read_text("utf8")
    assert anchor in anchors(text)
    assert term in text.lower()


@pytest.mark.parametrize("path", LESSONS, ids=CODES)
def test_the_terms_that_a_lesson_links_are_in_the_glossary(path: Path) -> None:
    text = path.read_text("utf8")
    linked = re.findall(r"\{term\}`(?:[^`<]*<)?([^`<>]+)>?`", text)
    assert set(map(str.lower, linked)) <= set(glossary())
    assert len(linked) == len(set(map(str.lower, linked))) <= MOST_TERMS
    assert not any("{term}" in fence[0] for fence in FENCED.finditer(text))
    assert not re.search(r"^#.*\{term\}", text, re.MULTILINE)


# Misconceptions ----------------------------------------------------------------------------------------


def test_every_misconception_of_a_lesson_is_on_the_page() -> None:
    named, told = [], 0
    for path in LESSONS:
        text = path.read_text("utf8")
        told += text.count("{admonition} Misconception:")
        named += re.findall(r"\{admonition\} Misconception: .*\n:class: warning\n:name: (\S+)\n", text)
    linked = re.findall(r"\{ref\}`[^`<]+ <([^>]+)>`", page("misconceptions"))
    assert len(named) == told
    assert sorted(named) == sorted(linked)


@pytest.mark.parametrize("name", ["concepts", "learning_path", "misconceptions", "notation", "troubleshooting"])
def test_links_into_lessons_lead_somewhere(name: str) -> None:
    for target, anchor in re.findall(r"\.\./lessons/([\w.]+)(?:#([\w-]+))?", page(name)):
        path = REPOSITORY / "lessons" / target
        path = path if path.suffix else path.with_suffix(".md")
        assert path.is_file(), target
        assert not anchor or anchor in anchors(path.read_text("utf8")), f"{target}#{anchor}"


# Notation ----------------------------------------------------------------------------------------------


def test_every_letter_of_a_shape_is_explained() -> None:
    listed = set(re.findall(r"^\| `?([A-Za-z_]+)`?(?:, ([A-Z]))? \|", page("notation"), re.MULTILINE))
    letters = {letter for pair in listed for letter in pair if letter} | {"A", "Q"}  # these have a second job only
    used = set()
    for path in LESSONS:
        for shape in re.findall(r"#.*?\(((?:[\w /+-]+, )+[\w /+-]*)\)", path.read_text("utf8")):
            used |= set(re.findall(r"\b(?:[A-Z]|hd|Hkv|d_ff)\b", shape))
    assert {"B", "T", "C", "V", "hd", "Hkv"} <= used
    assert used - letters == set()


# Troubleshooting ---------------------------------------------------------------------------------------


def test_messages_are_those_of_the_package() -> None:
    text = " ".join(page("troubleshooting").split())
    with pytest.raises(ConfigError) as odd:
        GPTConfig(vocab_size=10, block_size=8, n_embd=30, n_head=4)
    assert str(odd.value) in text
    with pytest.raises(ConfigError) as unknown:
        GPTConfig.from_dict({"vocab_size": 10, "block_size": 8, "n_layers": 4})
    assert str(unknown.value).split("bias")[0] in text

    model = GPT(GPTConfig(vocab_size=10, block_size=16, n_layer=1, n_embd=16, n_head=2))
    with pytest.raises(ValueError, match="block_size") as long:
        model(torch.zeros(1, 17, dtype=torch.int64))
    assert str(long.value) in text
    with pytest.raises(corpus.CorpusError) as nowhere:
        corpus.load_texts("nosuch.txt")
    assert str(nowhere.value) in text


def test_every_file_of_a_corpus_is_named() -> None:
    text = page("troubleshooting")
    for known in corpus.list_corpora():
        assert f"`{known.name}`" in text
        files = [file.name for file in known.parts().values()]
        assert all(f"`{name}`" in text for name in files[:4] if "/" not in name)
        assert not files or any(f"`{name}`" in text for name in files)


# Learning path, API, references, table of contents -----------------------------------------------------


def test_every_lesson_is_in_the_table_of_the_learning_path() -> None:
    rows = re.findall(
        r"^\| \[(\w+)\] \| \{lesson-minutes\}`(\w+)` \| \{lesson-seconds\}`(\w+)` \|[^|]+\|[^|]+\|$",
        page("learning_path"),
        re.MULTILINE,
    )
    assert all(code == minutes == seconds for code, minutes, seconds in rows)
    assert sorted(code for code, _, _ in rows) == CODES


def test_every_module_says_where_it_is_taught() -> None:
    for section in page("api").split("\n### ")[1:]:
        assert re.search(r"\{doc\}`\w+ <\.\./lessons/\w+>`", section), section.splitlines()[0]
        assert all((BOOK / f"{target}.md").is_file() for target in re.findall(r"<(\.\./lessons/\w+)>", section))


def test_every_paper_has_an_address() -> None:
    entries = re.findall(r"^@\w+\{.*?^\}", (BOOK / "references.bib").read_text("utf8"), re.DOTALL | re.MULTILINE)
    assert [
        entry.splitlines()[0] for entry in entries if not re.search(r"^  (?:url|doi) = ", entry, re.MULTILINE)
    ] == []


def test_the_pages_are_in_the_book() -> None:
    toc = yaml.safe_load((REPOSITORY / "_toc.yml").read_text("utf8"))
    files = {chapter["file"] for part in toc["parts"] for chapter in part["chapters"]}
    for name in ("learning_path", "concepts", "notation", "misconceptions", "troubleshooting", "runs"):
        assert f"book/{name}" in files
        assert f"({name}.md)" in page("index")


# Runs --------------------------------------------------------------------------------------------------

TEXT = """\
---
kernelspec:
  name: python3
---

# A title

Four words stand here.

```{code-cell} ipython3
a = 1

print(a)
```

```{code-cell} ipython3
:tags: [hide-input]

b = 2
```

```{literalinclude} part.py
:pyobject: Part.run
```

```{solution-start} x
:class: dropdown
```

These words do not count.

```{code-cell} ipython3
c = 3
```

```{solution-end}
```
"""


def test_reading_counts_prose_and_visible_code(tmp_path: Path) -> None:
    (tmp_path / "part.py").write_text("class Part:\n    def run(self):\n        x = 1\n\n        return x\n")
    assert runs.words_and_lines(TEXT, tmp_path) == (6, 2 + 3)
    assert runs.reading_minutes(TEXT, tmp_path) == 1
    long = TEXT.replace("Four words", "Four words " * 200)
    assert runs.reading_minutes(long, tmp_path) == 2


def test_numbers_are_written_for_people() -> None:
    assert [runs.whole(n) for n in (None, 0.2, 95.6, 1234.0)] == [runs.UNKNOWN, "1", "96", "1,234"]


def test_the_seconds_of_a_notebook_go_from_its_first_cell_to_its_last() -> None:
    cells = [nbformat.v4.new_code_cell("1"), nbformat.v4.new_markdown_cell("text"), nbformat.v4.new_code_cell("2")]
    times = {0: ("10:00:00.500000", "10:00:02"), 2: ("10:00:02", "10:01:00.750000")}
    for k, (begin, end) in times.items():
        stamps = {"iopub.execute_input": begin, "shell.execute_reply": end}
        cells[k].metadata["execution"] = {name: f"2026-01-02T{time}Z" for name, time in stamps.items()}
    assert seconds(nbformat.v4.new_notebook(cells=cells)) == pytest.approx(60.25)
    assert seconds(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])) is None


def test_the_table_of_runs_has_the_seconds_of_the_build(tmp_path: Path) -> None:
    book = ToyBook.write(tmp_path)
    text = "# Runs\n\n```{lesson-runs}\n```\n\nL02: {lesson-minutes}`L02` min, {lesson-seconds}`L02` s.\n"
    (tmp_path / "book" / "runs.md").write_text(text)
    book.replace("_toc.yml", "  - file: book/references\n", "  - file: book/references\n  - file: book/runs\n")
    first = book.build()
    assert first.returncode == 0, first.stdout

    def table() -> str:
        html = (book.html / "book" / "runs.html").read_text("utf8")
        return " ".join(re.sub(r"<[^>]+>", " ", html).split())

    assert re.search(r"L01 Counting \d+ ", table()) and re.search(r"L02: 1 min, \d+ s\.", table())
    assert re.search(r"all lessons \d+", table()) and "torch" in table()

    second = book.build()  # nothing is executed, and the numbers come from the cache
    assert second.returncode == 0 and executed(second.stdout) == []
    assert re.search(r"all lessons \d+", table())
