"""What a reader finds around a page: a description, the executed notebook, a tracker of progress.

* Each page says in its head what it is about, for search engines and previews of links, and what it may load: nothing
  but the book's own files.
* The download button of a lesson also offers its executed notebook, and the whole book as PDF where there is one.
* With ``llmfs_repository`` set in _config.yml (``owner/name`` on GitHub), lessons have buttons for Binder and Colab.
* ``{progress}`` shows all lessons with what the reader has finished. `js/progress.js` fills it from the browser's own
  storage; this extension tells it which lessons, quizzes and exercises there are.
"""

from __future__ import annotations

import contextlib
import html
import json
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from jupyter_cache import get_cache
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

LESSONS = "lessons/"
PDF = "llm-from-scratch.pdf"
# Scripts and styles stand in the pages too (the theme's), so "unsafe-inline"; formulas draw fonts as data. "file:" is
# for a book that is opened from disk, where 'self' means nothing. What a reader types cannot leave the page.
POLICY = (
    "default-src 'self' file: data: blob: 'unsafe-inline'; connect-src 'self' file: data: blob:; object-src 'none'; "
    "form-action 'self' file:; base-uri 'none'"
)


class progress_node(nodes.General, nodes.Element):
    """The place of the tracker."""


class ProgressDirective(SphinxDirective):
    """The reader's progress through all lessons."""

    def run(self) -> list[nodes.Node]:
        return [progress_node()]


def _visit_progress(self: Any, node: progress_node) -> None:
    self.body.append(
        '<section class="progress-overview" aria-label="Your progress">'
        "<noscript><p>With scripts switched on, this page shows which lessons you have finished.</p></noscript>"
        "</section>\n"
    )
    raise nodes.SkipNode


def _nothing(self: Any, node: nodes.Node) -> None:
    raise nodes.SkipNode


def lessons_of(env: BuildEnvironment) -> list[dict[str, Any]]:
    """Every lesson in the order of the contents, with the ids of its quizzes and exercises."""
    quizzes: dict[str, list[str]] = {}
    for name, (docname, _) in getattr(env, "llmfs_quizzes", {}).items():
        quizzes.setdefault(docname, []).append(name)
    exercises: dict[str, list[str]] = {}
    for label, entry in getattr(env, "sphinx_exercise_registry", {}).items():
        if entry.get("type") == "exercise":
            exercises.setdefault(entry["docname"], []).append(label)
    order = [name for name in _reading_order(env, env.config.root_doc) if name.startswith(LESSONS)]
    return [
        {
            "id": Path(name).name.partition("_")[0],
            "title": env.titles[name].astext(),
            "page": name + ".html",
            "quizzes": sorted(quizzes.get(name, [])),
            "exercises": sorted(exercises.get(name, [])),
        }
        for name in order
    ]


def _reading_order(env: BuildEnvironment, docname: str) -> list[str]:
    children = env.toctree_includes.get(docname, [])
    return [docname, *(name for child in children for name in _reading_order(env, child))]


def _write_lessons(app: Sphinx, error: Exception | None) -> None:
    """Beside the pages: the list of lessons for the tracker, and the executed notebooks."""
    if error or app.builder.format != "html":
        return
    out = Path(app.outdir)
    data = json.dumps(lessons_of(app.env), ensure_ascii=False)
    (out / "_static" / "progress-data.js").write_text(f"window.LLMFS_LESSONS = {data};\n", encoding="utf-8")
    cache = get_cache(app.env.mystnb_config.execution_cache_path)  # type: ignore[attr-defined]
    for path in (out.parent / "jupyter_execute" / LESSONS).glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        with contextlib.suppress(KeyError):  # myst-nb writes those that the cache knew without their outputs
            _, notebook = cache.merge_match_into_notebook(notebook)
        folder = out / "_sources" / LESSONS
        folder.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, folder / path.name)


def _describe(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Add to the page's head."""
    title = html.escape(context.get("title") or app.config.html_title, quote=True)
    text = html.escape(describe(doctree) or f"A page of {app.config.html_title}.", quote=True)
    context["metatags"] = (
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="description" content="{text}">\n'
        f'<meta property="og:type" content="article">\n'
        f'<meta property="og:site_name" content="{html.escape(app.config.html_title, quote=True)}">\n'
        f'<meta property="og:title" content="{title}">\n'
        f'<meta property="og:description" content="{text}">\n' + context.get("metatags", "")
    )
    if pagename.startswith(LESSONS):
        context["ipynb_source"] = f"{pagename}.ipynb"


def _offer_pdf(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Add the PDF, put into book/_static before the build, to the download button. The theme made the button."""
    if not (Path(app.srcdir) / "book" / "_static" / PDF).is_file():
        return
    for group in context.get("header_buttons", []):
        if group.get("label") == "download-buttons":
            group["buttons"].append(
                {
                    "type": "link",
                    "url": context["pathto"](f"_static/{PDF}", 1),
                    "text": "book.pdf",
                    "icon": "fas fa-book",
                    "tooltip": "Download the whole book",
                    "label": "download-book-button",
                }
            )


def _offer_launch(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Buttons that open a lesson elsewhere. Colab reads the branch "notebooks", which .github/workflows makes."""
    repository = app.config.llmfs_repository
    if not repository or not pagename.startswith(LESSONS):
        return
    binder = f"https://mybinder.org/v2/gh/{repository}/HEAD?urlpath=lab/tree/{pagename}.md"
    colab = f"https://colab.research.google.com/github/{repository}/blob/notebooks/{Path(pagename).name}.ipynb"
    buttons = [
        {
            "type": "link",
            "url": url,
            "text": name,
            "icon": icon,
            "tooltip": f"Open in {name}",
            "label": f"launch-{name}",
        }
        for name, url, icon in (("Binder", binder, "fas fa-cloud"), ("Colab", colab, "fas fa-cloud-arrow-up"))
    ]
    context["header_buttons"].append(
        {
            "type": "group",
            "tooltip": "Run this lesson elsewhere",
            "icon": "fas fa-rocket",
            "buttons": buttons,
            "label": "launch-buttons",
        }
    )


def describe(doctree: nodes.document | None, limit: int = 200) -> str:
    """The page's first paragraph of its own, cut at a word."""
    if doctree is None:
        return ""
    for paragraph in doctree.findall(nodes.paragraph):
        if isinstance(paragraph.parent, nodes.section) and len(paragraph.astext()) > 40:
            text = " ".join(paragraph.astext().split())
            return text if len(text) <= limit else text[:limit].rpartition(" ")[0] + " …"
    return ""


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_node(progress_node, html=(_visit_progress, None), latex=(_nothing, None), text=(_nothing, None))
    app.add_directive("progress", ProgressDirective)
    app.add_js_file("progress-data.js", loading_method="defer")
    app.add_js_file("js/progress.js", loading_method="defer")
    app.add_css_file("css/progress.css")
    app.connect("html-page-context", _describe)
    app.connect("html-page-context", _offer_pdf, priority=502)
    app.connect("html-page-context", _offer_launch, priority=502)
    app.add_config_value("llmfs_repository", "", "html", [str])
    app.connect("build-finished", _write_lessons)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
