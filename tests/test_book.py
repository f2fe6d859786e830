"""The book's machinery: which changes execute a lesson again, and how strict a build is."""

from __future__ import annotations

import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import execute_ahead
import nbformat
import pytest
import roadmap
import yaml
from lesson_deps import STACK, dependencies, digest, read_notebook, stamp
from toy_book import FRONT_MATTER, REPOSITORY, ToyBook, executed


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A repository whose package has one chain of imports: top -> middle -> bottom."""
    sources = {
        "__init__": "",
        "bottom": "import math\n",
        "middle": "from llmfs import bottom\n",
        "top": "def use():\n    from . import middle\n    return middle\n",
        "alone": "",
        "cli": "import llmfs.top\n",
    }
    (tmp_path / "llmfs").mkdir()
    for name, source in sources.items():
        (tmp_path / "llmfs" / f"{name}.py").write_text(source)
    return tmp_path


def names(files: list[Path]) -> set[str]:
    return {path.stem for path in files} - {"__init__"}


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("from llmfs.top import use", {"top", "middle", "bottom"}),
        ("from llmfs import middle as m", {"middle", "bottom"}),
        ("import llmfs.alone", {"alone"}),
        ("import math", set()),
        ("%matplotlib inline\nfrom llmfs.alone import x", {"alone"}),
        ("!llmfs train --steps 3", {"cli", "top", "middle", "bottom"}),
        ("%%bash\nllmfs generate", {"cli", "top", "middle", "bottom"}),
        ('run(["torchrun", "-m", "llmfs.middle"])', {"middle", "bottom"}),
        ("def broken(:\n    pass", set()),
    ],
)
def test_a_cell_depends_on_what_it_imports_directly_or_not(package: Path, cell: str, expected: set[str]) -> None:
    assert names(dependencies([cell], package)) == expected


def test_the_pinned_stack_is_a_dependency_of_every_lesson(package: Path) -> None:
    (package / STACK).write_text("torch==2.13.0\n")
    assert dependencies(["1 + 1"], package) == [package / STACK]


def test_the_digest_changes_with_the_content_and_with_the_name(package: Path) -> None:
    alone, bottom = (package / "llmfs" / f"{name}.py" for name in ("alone", "bottom"))
    before = digest([bottom], package)
    bottom.write_text("import cmath\n")
    assert digest([bottom], package) != before
    alone.write_text("import cmath\n")
    assert digest([alone], package) != digest([bottom], package)


def test_a_stamped_lesson_keeps_its_lines_and_differs_only_in_its_kernelspec(package: Path) -> None:
    text = FRONT_MATTER + "# A\n\n```{code-cell} ipython3\nimport llmfs.alone\n```\n"
    stamped, files = stamp(text, package)
    assert names(files) == {"alone"}
    assert stamped.count("\n") == text.count("\n")
    before, after = read_notebook(text), read_notebook(stamped)
    assert after.metadata.kernelspec == {**before.metadata.kernelspec, "deps": digest(files, package)}
    assert [cell.source for cell in after.cells] == [cell.source for cell in before.cells]


def test_a_page_without_cells_is_left_alone(package: Path) -> None:
    assert stamp("# A page\n", package) == ("# A page\n", [])


def test_a_lesson_without_a_kernelspec_is_refused(package: Path) -> None:
    text = re.sub(r"kernelspec:\n(  .*\n)+", "", FRONT_MATTER) + "```{code-cell}\n1\n```\n"
    with pytest.raises(ValueError, match="kernelspec"):
        stamp(text, package)


@pytest.mark.parametrize("code, made", [("1", 0), ("book = recipes.book_model()", 1)])
def test_the_books_model_is_made_where_a_lesson_asks_for_it(code, made, monkeypatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(execute_ahead.subprocess, "run", lambda command, **_: commands.append(command))
    lesson = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    execute_ahead.make_book_model([lesson], REPOSITORY)
    assert len(commands) == made


# The roadmap --------------------------------------------------------------------------------------------


class Links(HTMLParser):
    """The links of a drawing, with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[dict[str, str | None]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found.append(dict(attrs))


def test_the_roadmap_marks_the_lesson_and_links_to_those_that_exist() -> None:
    addresses = {"L02": "L02_x.html", "L03": "#"}
    drawing = roadmap.lesson_map("L03", addresses.get)
    links = Links(drawing).found
    assert {link["href"] for link in links} == set(addresses.values())
    current = {link["aria-label"] for link in links if link.get("aria-current") == "page"}
    assert len(current) == 1 and current.pop().startswith("L03 Attention")


def test_the_roadmap_of_a_narrow_lesson_page_shows_the_neighbors() -> None:
    narrow = roadmap.lesson_map("L01", lambda code: None).split("<svg")[-1]
    assert all(name in narrow for name in ("Text", "L01", "L02")) and "L03" not in narrow


def test_a_side_lesson_is_on_a_line_that_joins_the_road() -> None:
    addresses = {"S01": "#", "S02": "S02_x.html", "L01": "L01_x.html"}
    wide, narrow = roadmap.lesson_map("S01", addresses.get).split("<svg")[1:]
    assert {link["href"] for link in Links(wide).found} == set(addresses.values())
    assert all(name in narrow for name in ("S01", "S02")) and "S03" not in narrow and "L10" not in wide


def test_every_lesson_has_a_station() -> None:
    codes = {page.removeprefix("lessons/")[:3] for page in table_of_contents() if page.startswith("lessons/")}
    assert codes <= set(roadmap.LESSONS)


def test_the_roadmap_as_a_file_is_up_to_date() -> None:
    kept = REPOSITORY / "book" / "_static" / "roadmap.svg"
    assert kept.read_text("utf8") == roadmap.standalone(), "run: python book/_ext/roadmap.py"


# The files of the repository -----------------------------------------------------------------------------


def table_of_contents() -> list[str]:
    toc = yaml.safe_load((REPOSITORY / "_toc.yml").read_text("utf8"))
    return [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]


def test_every_page_of_the_table_of_contents_exists() -> None:
    assert [page for page in table_of_contents() if not (REPOSITORY / f"{page}.md").is_file()] == []


@pytest.mark.parametrize("letter", ["L", "S"])
def test_every_lesson_is_in_the_book_in_order(letter: str) -> None:
    lessons = sorted(f"lessons/{path.stem}" for path in (REPOSITORY / "lessons").glob(f"{letter}[0-9][0-9]_*.md"))
    assert [page for page in table_of_contents() if page.startswith(f"lessons/{letter}")] == lessons


def test_every_module_is_in_the_api() -> None:
    page = (REPOSITORY / "book" / "api.md").read_text("utf8")
    documented = re.findall(r"automodule:: llmfs\.(\w+)", page)
    package = REPOSITORY / "llmfs"
    modules = [path.stem for path in package.glob("[a-z]*.py")]
    packages = [path.parent.name for path in package.glob("*/__init__.py")]
    assert sorted(documented) == sorted(modules + packages)


def test_the_stack_is_pinned_and_covers_what_the_package_needs() -> None:
    lines = (REPOSITORY / STACK).read_text("utf8").splitlines()
    entries = [line.split("#")[0].strip() for line in lines]
    pins = [entry for entry in entries if entry and not entry.startswith("-e")]
    assert "-e ." in entries
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][\w.]*", pin) for pin in pins), "exact pins, no local versions"
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf8"))["project"]
    needed = {re.split(r"[><=]", entry)[0] for entry in project["dependencies"]}
    assert needed <= {pin.split("==")[0] for pin in pins}


def test_every_citation_key_has_its_form() -> None:
    text = (REPOSITORY / "book" / "references.bib").read_text("utf8")
    keys = re.findall(r"^@\w+\{(\S+),$", text, re.MULTILINE)
    years = re.findall(r"^  year = \{(\d{4})\},$", text, re.MULTILINE)
    assert len(keys) == len(set(keys)) == len(years)
    assert all(re.fullmatch(rf"[a-z]+{year}[a-z]+", key) for key, year in zip(keys, years, strict=True))


# Real builds ---------------------------------------------------------------------------------------------


def test_only_lessons_whose_code_changed_are_executed_again(tmp_path: Path) -> None:
    book = ToyBook.write(tmp_path)

    first = book.build()
    assert first.returncode == 0, first.stdout
    assert executed(first.stdout) == ["L01", "L02"]
    assert ("executing 2 lessons, 2 at a time" in first.stdout) == (execute_ahead.cores() >= 2)
    assert book.python(".ci/check_pages.py", "_build/html").returncode == 0

    assert executed(book.build().stdout) == []

    book.replace("llmfs/config.py", "black", "gray")  # which L02 imports through drawing
    assert executed(book.build().stdout) == ["L02"]
    figures = [path.read_text() for path in book.html.glob("_images/*.svg")]
    assert any("gray" in figure for figure in figures)

    book.replace("llmfs/counting.py", "The number of words", "How many words")
    changed = book.build()
    assert executed(changed.stdout) == ["L01"]
    assert "How many words" in (book.html / "lessons" / "L01_Counting.html").read_text("utf8")


def test_an_error_in_a_cell_fails_every_build(tmp_path: Path) -> None:
    book = ToyBook.write(tmp_path)
    book.replace("llmfs/counting.py", "return len", "return 1 / 0, len")
    for _ in range(2):
        build = book.build(strict=False)
        assert build.returncode != 0
        assert "ZeroDivisionError" in build.stdout


def test_the_build_executes_nothing_that_pytest_has_executed(tmp_path: Path) -> None:
    book = ToyBook.write(tmp_path)
    tests = book.python("-m", "pytest", "--overwrite")
    assert tests.returncode == 0, tests.stdout
    assert "3 passed" in tests.stdout

    seeded = book.python(".ci/seed_cache.py")
    assert "2 executed lessons" in seeded.stdout

    build = book.build()
    assert build.returncode == 0, build.stdout
    assert executed(build.stdout) == []
    assert 'There are <span class="pasted-text">2.0</span>' in (book.html / "lessons" / "L01_Counting.html").read_text(
        "utf8"
    )


def test_pytest_reports_a_lesson_that_fails(tmp_path: Path) -> None:
    book = ToyBook.write(tmp_path)
    book.replace("llmfs/counting.py", "return len", "return 1 / 0, len")
    tests = book.python("-m", "pytest")
    assert tests.returncode == 1
    assert "1 failed, 2 passed" in tests.stdout
