"""The page check finds each fault that is planted, and finds none in a sound page."""

from __future__ import annotations

from pathlib import Path

import check_pages
import pytest

SOUND = """
<!DOCTYPE html>
<html><head>
  <link rel="stylesheet" href="_static/book.css">
  <link rel="canonical" href="https://example.org/">
  <script src="_static/book.js"></script>
  <script>const here = "https://www.w3.org/2000/svg";</script>
</head><body>
  <a href="index.html"><img src="_static/logo.svg" alt=""></a>
  <article>
    <h1 id="top">A page</h1>
    <p>The loss is <span class="pasted-text">1.25</span>, as
       <a href="https://example.org/paper">a paper</a> says; see <a href="other.html#there">there</a>
       and <a href="#top">the top</a>.
       <code>{glue:text}</code> writes a number; <code class="xref py py-class">Tensor</code> is not ours.</p>
    <pre>:::{note} in a listing</pre>
    <div class="output stream">1</div>
    <img src="_static/logo.svg" alt="Three squares.">
    <svg role="img" aria-label="A line"></svg>
    <svg aria-hidden="true"></svg>
  </article>
</body></html>
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    files = {
        "index.html": SOUND,
        "other.html": '<article><h2 id="there">There</h2></article>',
        "_static/book.css": "body { background: url(data:image/png;base64,AA==) }",
        "_static/book.js": "",
        "_static/logo.svg": "",
        "_static/macros.html": "<img>",
        "_sources/index.md": "The loss is {glue:text}`loss:.2f`.\n\n```md\n{glue:text}`shown`\n```\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, "utf8")
    return tmp_path


def faults(site: Path) -> list[tuple[str, str]]:
    return [(kind, detail) for _, kind, detail in check_pages.check_site(site)]


def test_a_sound_site_has_no_faults(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert faults(site) == []
    assert check_pages.main([str(site)]) == 0
    assert "0 faults" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "planted"),
    [
        ("reference", '<a href="nowhere.html">x</a>'),
        ("reference", '<a href="other.html#nowhere">x</a>'),
        ("reference", '<a href="#nowhere">x</a>'),
        ("reference", '<a href="/other.html">x</a>'),
        ("reference", '<span class="xref std std-ref">a-label</span>'),
        ("reference", '<span class="xref myst">file.md</span>'),
        ("reference", '<code class="xref std std-numref">fig-x</code>'),
        ("reference", '<span class="bibtex-citation">[]</span>'),
        ("reference", '<div class="system-message">no such role</div>'),
        ("reference", '<img src="_images/nowhere.png" alt="A dog.">'),
        ("reference", '<script src="nowhere.js"></script>'),
        ("failed", '<div class="output traceback"><pre>Traceback\nValueError: no</pre></div>'),
        ("stderr", '<div class="output stderr"><pre>FutureWarning: soon</pre></div>'),
        ("alt", '<img src="_static/logo.svg">'),
        ("alt", '<img src="_static/logo.svg" alt=" ">'),
        ("alt", '<img src="_static/logo.svg" alt="_static/logo.svg">'),
        ("alt", '<img src="_static/logo.svg" alt="../_images/0a1b.png">'),
        ("alt", "<svg><path/></svg>"),
        ("host", '<script src="https://cdn.example.org/x.js"></script>'),
        ("host", '<script src="//cdn.example.org/x.js"></script>'),
        ("host", '<link rel="stylesheet" href="https://fonts.example.org/css">'),
        ("host", '<link rel="preconnect" href="https://fonts.example.org">'),
        ("host", '<img src="https://example.org/x.png" alt="A dog.">'),
        ("host", '<img srcset="_static/logo.svg 1x, https://example.org/x.png 2x" alt="A dog.">'),
        ("host", '<iframe src="https://example.org"></iframe>'),
        ("host", '<video poster="https://example.org/x.png"></video>'),
        ("host", '<svg aria-label="x"><image href="https://example.org/x.png"/></svg>'),
        ("host", "<style>@import 'https://example.org/x.css';</style>"),
        ("host", "<style>@font-face { src: url(https://example.org/x.woff) }</style>"),
        ("host", "<p style=\"background: url('//example.org/x.png')\">x</p>"),
        ("host", '<script>import("https://cdn.example.org/x.js")</script>'),
        ("markup", "<p>{glue:text}`loss`</p>"),
        ("markup", "<p>:::{note}</p>"),
        ("markup", "<p>```{figure} x</p>"),
        ("markup", "<p>see {ref}`x`</p>"),
        ("markup", "<p>says {cite:p}`x`</p>"),
        ("markup", "<p>takes @@MINUTES@@ minutes</p>"),
        ("glue", '<span class="pasted-text"></span>'),
        ("glue", '<span class="pasted-text">nan</span>'),
        ("id", '<p id="top">x</p>'),
    ],
)
def test_a_planted_fault_is_found(site: Path, kind: str, planted: str) -> None:
    page = site / "index.html"
    page.write_text(SOUND.replace("</article>", f"{planted}</article>"), "utf8")
    assert [found for found, _ in faults(site)] == [kind]
    assert check_pages.main([str(site)]) == 1


def test_a_value_that_the_page_lacks_is_found(site: Path) -> None:
    page = site / "index.html"
    page.write_text(SOUND.replace('<span class="pasted-text">1.25</span>', ""), "utf8")
    assert faults(site) == [("glue", "1 values are asked for, 0 are on the page")]


@pytest.mark.parametrize(
    "css", ["@import url(https://x.org/a.css);", "a { background: url('//x.org/a.png') }"]
)
def test_a_style_sheet_that_loads_from_another_host_is_found(site: Path, css: str) -> None:
    (site / "_static" / "book.css").write_text(css, "utf8")
    assert [kind for kind, _ in faults(site)] == ["host"]


def test_a_folder_without_a_book_is_refused(tmp_path: Path) -> None:
    assert check_pages.main([str(tmp_path)]) == 2
    assert check_pages.main([]) == 2
