"""Check the built pages for what no builder complains about.

    python .ci/check_pages.py _build/html

Prints one line for each fault (page, kind, detail) and exits 1 if there is any. What is checked:

reference   a cross-reference, citation or link to a file or anchor that is not there
failed      a cell that ended in an error
stderr      output on stderr: warnings and progress bars
alt         an image without a text that says what it shows (the name of a file says nothing)
host        something that the page loads from another host (an ordinary link is fine)
markup      MyST markup, or a marker to be filled in, left in the text (in formulas {ref} is no markup)
glue        a number that the prose takes from a cell, and that is missing or empty
id          an id that is used twice on a page
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup, Tag

Fault = tuple[str, str]  # kind, detail

CODE = ("pre", "code", "script", "style")
MARKUP = re.compile(
    r":{3,}|`{3,}\s*\{|\{(?:glue|ref|numref|doc|eq|term|cite|py|code-cell|literalinclude)(?::[\w:]*)?\}|@@\w+@@"
)
REMOTE = re.compile(r"^\s*(?:(?:https?|wss?):)?//", re.IGNORECASE)
CSS_LOAD = re.compile(r"@import\s+(?:url\()?\s*[\"']?([^\"')\s;]+)|url\(\s*[\"']?([^\"')]+)", re.IGNORECASE)
SCRIPT_URL = re.compile(r"[\"'`]((?:https?:)?//[\w.-]+\.\w+[^\"'`]*)[\"'`]")
HARMLESS_URL = re.compile(r"//(?:www\.)?(?:w3|schema)\.org/")
FILE_NAME = re.compile(r"\.(?:png|svg|jpe?g|gif|webp|avif)$", re.IGNORECASE)
LOADING_RELS = {
    "stylesheet", "icon", "preload", "prefetch", "modulepreload", "preconnect", "dns-prefetch", "manifest",
}  # fmt: skip
GLUE_ROLE = re.compile(r"\{glue:text\}`")
CODE_FENCE = re.compile(r"^(`{3,})[^`\n]*\n.*?^\1`*[ \t]*$", re.MULTILINE | re.DOTALL)


@dataclass
class Page:
    """One HTML file of the site."""

    path: Path
    soup: BeautifulSoup
    source: str = ""  # its Markdown, where the site has it

    @property
    def article(self) -> Tag:
        return self.soup.find("article") or self.soup


@dataclass
class Site:
    """The pages under a folder, read once; anchors are looked up many times."""

    root: Path
    pages: dict[Path, Page] = field(default_factory=dict)
    _anchors: dict[Path, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root = self.root.resolve()
        for path in sorted(self.root.rglob("*.html")):
            if "_static" in path.relative_to(self.root).parts:  # the theme's own snippets
                continue
            markdown = self.root / "_sources" / path.relative_to(self.root).with_suffix(".md")
            source = markdown.read_text("utf8") if markdown.is_file() else ""
            self.pages[path] = Page(path, BeautifulSoup(path.read_text("utf8"), "html.parser"), source)

    def anchors(self, path: Path) -> set[str]:
        """The ids and names that a link to a page can end in."""
        if path not in self._anchors:
            tags = self.pages[path].soup.find_all(lambda tag: tag.has_attr("id") or tag.name == "a")
            self._anchors[path] = {tag[key] for tag in tags for key in ("id", "name") if tag.has_attr(key)}
        return self._anchors[path]


def broken_references(page: Page, site: Site) -> Iterator[Fault]:
    """Links that lead nowhere, and references that never became links."""
    for link in page.soup.find_all(["a", "area"], href=True):
        problem = _broken_link(link["href"], page, site)
        if problem:
            yield "reference", f"{link['href']}: {problem} ({link.get_text(' ', strip=True)[:40]!r})"
    for tag in page.soup.select("span.xref, code.xref.std, code.xref.eq"):
        # {py:...} without a link is how a name of another project looks.
        if tag.find_parent("a") is None:
            yield "reference", f"unresolved: {tag.get_text(' ', strip=True)!r}"
    for tag in page.soup.select(".bibtex-citation"):
        if not tag.find("a"):
            yield "reference", "a citation without an entry in the references"
    for tag in page.soup.select(".system-message, .problematic"):
        yield "reference", f"the builder's complaint: {tag.get_text(' ', strip=True)[:80]!r}"


def _broken_link(href: str, page: Page, site: Site) -> str | None:
    parts = urlsplit(href)
    if parts.scheme or parts.netloc or href in ("", "#"):
        return None
    if parts.path.startswith("/"):
        return "an absolute path does not work on pages opened from disk"
    target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
    if not target.is_file():
        return "no such file"
    anchor = unquote(parts.fragment)
    if anchor and target in site.pages and anchor not in site.anchors(target):
        return "no such anchor"
    return None


def failed_cells(page: Page, site: Site) -> Iterator[Fault]:
    for tag in page.soup.select(".output.traceback, .output.error"):
        lines = tag.get_text().strip().splitlines()
        yield "failed", lines[-1] if lines else "a cell"


def stderr_output(page: Page, site: Site) -> Iterator[Fault]:
    for tag in page.soup.select(".output.stderr"):
        yield "stderr", tag.get_text().strip()[:100]


def images_without_text(page: Page, site: Site) -> Iterator[Fault]:
    for image in page.soup.find_all("img"):
        alt, source = image.get("alt"), image.get("src", "")
        shown = source if len(source) < 80 else source[:80] + "..."
        in_text = image.find_parent("article") is not None  # elsewhere, a logo may be decoration
        if alt is None or (not alt.strip() and in_text):
            yield "alt", f"{shown}: no alternative text"
        elif FILE_NAME.search(alt.strip()) or (alt and alt == source):
            yield "alt", f"{shown}: the alternative text is the name of a file"
    for drawing in page.article.find_all("svg"):
        hidden = drawing.find_parent(attrs={"aria-hidden": "true"}) or drawing.get("aria-hidden") == "true"
        named = drawing.get("aria-label") or drawing.find("title") or drawing.find(attrs={"aria-label": True})
        if not hidden and not named and drawing.find_parent("svg") is None:
            yield "alt", "an <svg> without aria-label or <title>"


def loads_from_other_hosts(page: Page, site: Site) -> Iterator[Fault]:
    for tag in page.soup.find_all(True):
        yield from (("host", f"<{tag.name}> {address}") for address in _loads(tag) if REMOTE.match(address))
        if tag.name == "style":
            yield from (("host", f"<style> {address}") for address in _css_loads(tag.get_text()))
        if tag.has_attr("style"):
            yield from (("host", f"style= {address}") for address in _css_loads(tag["style"]))
        if tag.name == "script" and not tag.has_attr("src"):
            named = SCRIPT_URL.findall(tag.get_text())
            yield from (("host", f"<script> names {url}") for url in named if not HARMLESS_URL.search(url))


def _loads(tag: Tag) -> Iterator[str]:
    """The addresses that a browser fetches because of this tag alone."""
    if tag.name == "link":
        if LOADING_RELS & {rel.lower() for rel in tag.get("rel") or []}:
            yield tag.get("href", "")
    elif tag.name in ("a", "area", "base"):
        return
    elif tag.name in ("image", "use"):  # inside <svg>
        yield tag.get("href", tag.get("xlink:href", ""))
    else:
        for key in ("src", "data", "poster"):
            yield tag.get(key, "")
        for candidate in tag.get("srcset", "").split(","):
            yield from candidate.split()[:1]  # the address; its width or density follows


def _css_loads(css: str) -> Iterator[str]:
    for groups in CSS_LOAD.findall(css):
        address = groups[0] or groups[1]
        if REMOTE.match(address):
            yield address


def markup_left_over(page: Page, site: Site) -> Iterator[Fault]:
    for text in page.article.find_all(string=MARKUP):
        if not any(parent.name in CODE or "math" in parent.get_attribute_list("class") for parent in text.parents):
            yield "markup", text.strip()[:100]


def missing_glue(page: Page, site: Site) -> Iterator[Fault]:
    pasted = page.soup.select(".pasted-text")
    wanted = len(GLUE_ROLE.findall(CODE_FENCE.sub("", page.source)))
    if len(pasted) < wanted:
        yield "glue", f"{wanted} values are asked for, {len(pasted)} are on the page"
    for tag in pasted:
        if tag.get_text(strip=True).lower() in ("", "nan", "none", "inf", "-inf"):
            yield "glue", f"a value is {tag.get_text(strip=True)!r}: ...{_before(tag)}"


def _before(tag: Tag) -> str:
    previous = tag.previous_sibling
    return previous.get_text()[-40:].strip() if previous is not None else ""


def repeated_ids(page: Page, site: Site) -> Iterator[Fault]:
    counts = Counter(tag["id"] for tag in page.soup.find_all(id=True))
    for name, count in counts.items():
        if count > 1:
            yield "id", f"{name!r} is used {count} times"


def missing_local_files(page: Page, site: Site) -> Iterator[Fault]:
    """Scripts, styles and pictures that the page loads from the site itself."""
    for tag in page.soup.find_all(["script", "link", "img"]):
        for address in _loads(tag):
            parts = urlsplit(address)
            is_local = bool(parts.path) and not parts.scheme and not parts.netloc
            if is_local and not (page.path.parent / unquote(parts.path)).is_file():
                yield "reference", f"<{tag.name}> {address}: no such file"


CHECKS = (
    broken_references,
    missing_local_files,
    failed_cells,
    stderr_output,
    images_without_text,
    loads_from_other_hosts,
    markup_left_over,
    missing_glue,
    repeated_ids,
)


def check_site(root: Path) -> list[tuple[str, str, str]]:
    """Every fault of the site under root: (page, kind, detail)."""
    site = Site(root)
    faults = [
        (path.relative_to(site.root).as_posix(), kind, detail)
        for path, page in site.pages.items()
        for check in CHECKS
        for kind, detail in check(page, site)
    ]
    for sheet in sorted(site.root.rglob("*.css")):
        name = sheet.relative_to(site.root).as_posix()
        faults.extend((name, "host", address) for address in _css_loads(sheet.read_text("utf8")))
    return faults


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not Path(arguments[0], "index.html").is_file():
        print("usage: check_pages.py FOLDER, the folder with the book's index.html", file=sys.stderr)
        return 2
    root = Path(arguments[0])
    faults = check_site(root)
    for page, kind, detail in faults:
        print(f"{page}: {kind}: {detail}")
    pages = sum(1 for _ in root.rglob("*.html"))
    print(f"{pages} pages checked, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
