"""The ``{widget}`` directive: a part of a page that readers can play with, and what it shows without a script.

    :::{widget} tokenizer
    :text: The fox met an owl.

    ```{glue:} l01-widget
    ```
    :::

The argument is a name of ``WIDGETS``, the options are those that the widget has there; they become ``data-``
attributes. The content is a real result that a cell has computed: it is what the page shows before its scripts have
run, and without them. ``_static/js/widget.js`` finds the widget when it comes into view, loads the models that it
computes with, and puts the working widget in the place of the content.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective


@dataclass(frozen=True)
class Widget:
    """One kind of widget; its code is ``_static/js/widgets/NAME.js``."""

    label: str  # what it is, for readers who do not see it
    models: tuple[str, ...]  # what it loads to begin, names of page_models.MODELS
    options: tuple[str, ...] = ()  # what a page can set
    later: tuple[str, ...] = ()  # what it loads when a reader asks for it


WIDGETS = {
    "tokenizer": Widget("Try the tokenizer", ("tokenizer",), ("text",)),
    "embedding": Widget("Find a token's neighbors in the table", ("book",), ("word",)),
    "rope": Widget("Turn a query and a key by their positions", ("book",), ("text", "layer", "head", "key")),
    "attention": Widget("See where a head looks", ("book",), ("text", "layer", "head", "heads")),
    "computation": Widget("Follow one head's computation", ("book",), ("text", "layer", "head")),
    "mask": Widget("Take the causal mask away", ("book",), ("text", "word")),
    "scrubber": Widget("Move through the training run", ()),
    "sampling": Widget("Choose the next token", ("book",), ("prompt",)),
    "chat": Widget("Ask three models", (), later=("book", "few", "aligned")),
}

ENGINE = ("tokenizer", "model", "sample", "chat", "widget")  # _static/js, in the order in which they are loaded


class widget_node(nodes.General, nodes.Element):
    """A widget; its children are what the page shows without a script."""


class WidgetDirective(SphinxDirective):
    required_arguments = 1
    has_content = True
    option_spec: ClassVar = {
        name: directives.unchanged_required for widget in WIDGETS.values() for name in widget.options
    }

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        if name not in WIDGETS:
            raise self.error(f"{{widget}} takes one of {', '.join(WIDGETS)}, not {name!r}")
        widget = WIDGETS[name]
        if unknown := sorted(set(self.options) - set(widget.options)):
            raise self.error(f"the widget {name!r} has the options {widget.options}, not {unknown[0]!r}")
        if not self.content:
            raise self.error(f"the widget {name!r} has no content to show where scripts do not run")
        node = widget_node(widget=name, options=dict(self.options))
        self.state.nested_parse(self.content, self.content_offset, node)
        _pages(self.env).setdefault(self.env.docname, set()).add(name)
        self.set_source_info(node)
        return [node]


def models_in_use(env: BuildEnvironment) -> set[str]:
    """The models that the widgets of all pages load."""
    widgets = [WIDGETS[name] for names in _pages(env).values() for name in names]
    return {model for widget in widgets for model in (*widget.models, *widget.later)}


def _pages(env: BuildEnvironment) -> dict[str, set[str]]:
    """Page -> the widgets on it."""
    if not hasattr(env, "llmfs_widgets"):
        env.llmfs_widgets = {}  # type: ignore[attr-defined]
    return env.llmfs_widgets  # type: ignore[attr-defined, no-any-return]


def _purge(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    _pages(env).pop(docname, None)


def _merge(app: Sphinx, env: BuildEnvironment, docnames: Collection[str], other: BuildEnvironment) -> None:
    _pages(env).update({page: names for page, names in _pages(other).items() if page in docnames})


def _add_scripts(app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """A page without a widget loads none of the scripts."""
    names = sorted(_pages(app.env).get(pagename, ()))
    if names:
        app.add_css_file("css/widgets.css")
        for file in (*ENGINE, *(f"widgets/{name}" for name in names)):
            app.add_js_file(f"js/{file}.js", defer="defer")


def _visit(self: Any, node: widget_node) -> None:
    data = {f"data-{name}": text for name, text in node["options"].items()}
    widget = WIDGETS[node["widget"]]
    data |= {"data-widget": node["widget"], "data-models": " ".join(widget.models)}
    attributes = {"role": "group", "aria-label": widget.label, **data}
    self.body.append(self.starttag(node, "div", CLASS="llmfs-widget", **attributes))


def _depart(self: Any, node: widget_node) -> None:
    self.body.append("</div>\n")


def _nothing(self: Any, node: nodes.Node) -> None:
    """Other builders show the content alone."""


def setup(app: Sphinx) -> dict[str, Any]:
    plain = (_nothing, _nothing)
    app.add_node(widget_node, html=(_visit, _depart), latex=plain, text=plain)
    app.add_directive("widget", WidgetDirective)
    app.connect("env-purge-doc", _purge)
    app.connect("env-merge-info", _merge)
    app.connect("html-page-context", _add_scripts)
    return {"version": "1", "env_version": 1, "parallel_read_safe": True, "parallel_write_safe": True}
