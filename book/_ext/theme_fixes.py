"""Small repairs of the pages that Jupyter Book 1.0 makes.

* sphinx-thebe defines its constants twice on each page, which is an error in the browser's console, and
  prepares to load code from another host. The book has no live-code button: the extension is switched off.
* sphinx-exercise gives every exercise on a page the same id. An id must name one thing.
* sphinx-exercise registers its nodes for the builder ``singlehtml`` by name. For this builder Sphinx then
  no longer falls back to the nodes that the other extensions registered for ``html``.
* Search results show excerpts that are read with ``fetch``, which browsers refuse for pages opened from
  disk. There, excerpts are switched off before the search starts.
* The references are marked as a list whose entries are no list items, which confuses screen readers.
* The page at the root that leads to the first one is a fragment. It becomes a whole page.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

THEBE = "sphinx_thebe"
REPEATED_IDS = {"exercise-content", "solution-content"}
NO_EXCERPTS_FROM_DISK = "if (location.protocol === 'file:') DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;"


def _switch_off_thebe(app: Sphinx, config: Config) -> None:
    for listeners in app.events.listeners.values():
        for listener in list(listeners):
            if listener.handler.__module__ == THEBE:
                app.disconnect(listener.id)
    app.registry.css_files = [file for file in app.registry.css_files if "thebe" not in file[0]]


def _drop_repeated_ids(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    for section in doctree.findall(nodes.section):
        section["ids"] = [name for name in section["ids"] if name not in REPEATED_IDS]


def _unmark_references(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    if "body" in context:
        context["body"] = context["body"].replace(
            '<div role="list" class="citation-list">', '<div class="citation-list">'
        )


def _complete_redirect(app: Sphinx, error: Exception | None) -> None:
    page = Path(app.outdir) / "index.html"
    if error or not page.is_file() or not page.read_text("utf8").startswith("<meta"):
        return
    target = app.config.root_doc + ".html"
    page.write_text(
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{app.config.html_title}</title>\n'
        f'<meta http-equiv="refresh" content="0; url={target}"></head>\n'
        f'<body><p><a href="{target}">{app.config.html_title}</a></p></body></html>\n',
        "utf8",
    )


def _repair_singlehtml(app: Sphinx) -> None:
    handlers = app.registry.translation_handlers
    if "singlehtml" in handlers:
        handlers["singlehtml"] = {**handlers.get("html", {}), **handlers["singlehtml"]}


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_js_file(None, body=NO_EXCERPTS_FROM_DISK)
    app.connect("config-inited", _switch_off_thebe)
    app.connect("builder-inited", _repair_singlehtml)
    app.connect("doctree-resolved", _drop_repeated_ids)
    app.connect("html-page-context", _unmark_references)
    app.connect("build-finished", _complete_redirect, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
