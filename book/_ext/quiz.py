"""The ``{quiz}`` directive: a multiple-choice question that is written as a plain Markdown list.

    :::{quiz} l01-q1
    Which text does a byte-level tokenizer refuse?

    - [ ] A word that it has not met.
      > An unknown word falls back to its bytes.
    - [x] None.
      > Any text is a string of bytes, and every byte is a token.
    :::

The argument is the question's id, unique in the book. Everything above the list is the question; exactly
one option is marked ``[x]``; a quotation under each option says why it is right or wrong. The page gets a
``<fieldset>`` of radio buttons. Without JavaScript each explanation is in a ``<details>``; with it, quiz.js
shows the explanation of the option that the reader chooses.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import SphinxError
from sphinx.util.docutils import SphinxDirective

MARK = re.compile(r"\[( |x|X)\]\s+")
QUIZ_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class QuizError(SphinxError):
    """A question that cannot be asked as it is written."""

    category = "Quiz error"


class quiz_node(nodes.General, nodes.Element):
    """One question: a quiz_question, other blocks of the question, then quiz_option nodes."""


class quiz_question(nodes.Part, nodes.TextElement):
    """The first paragraph of the question: the legend of the fieldset."""


class quiz_option(nodes.Part, nodes.Element):
    """One option: a quiz_label, then a quiz_why."""


class quiz_label(nodes.Part, nodes.TextElement):
    """The text of an option."""


class quiz_why(nodes.Part, nodes.Element):
    """The explanation of an option."""


class QuizDirective(SphinxDirective):
    has_content = True
    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        self.quiz_id = self.arguments[0].strip()
        if not QUIZ_ID.fullmatch(self.quiz_id):
            raise self.problem("an id is lower-case words joined by hyphens, such as l01-q1")
        self._claim_id()

        body = nodes.container()
        self.state.nested_parse(self.content, self.content_offset, body)
        lists = [child for child in body.children if isinstance(child, nodes.bullet_list)]
        if len(lists) != 1 or body.children[-1] is not lists[0]:
            raise self.problem("write the question first, then one list of options, and nothing after it")
        question = body.children[:-1]
        if not question or not isinstance(question[0], nodes.paragraph):
            raise self.problem("there is no question above the options")

        options = [self._option(item) for item in lists[0].children]
        right = sum(option["correct"] for option in options)
        if right != 1:
            raise self.problem(f"exactly one option must be marked [x]; {right} are")
        if len(options) < 2:
            raise self.problem("a question needs at least two options")

        quiz = quiz_node(quiz_id=self.quiz_id, ids=[f"quiz-{self.quiz_id}"])
        quiz += quiz_question("", "", *question[0].children)
        quiz.extend(question[1:])
        for number, option in enumerate(options, start=1):
            option["quiz_id"], option["number"] = self.quiz_id, number
            quiz += option
        self.set_source_info(quiz)
        return [quiz]

    def problem(self, message: str) -> QuizError:
        source, line = self.get_source_info()
        return QuizError(f"{source}:{line}: quiz {self.quiz_id!r}: {message}")

    def _claim_id(self) -> None:
        places: dict[str, tuple[str, int]] = _places(self.env)
        here = (self.env.docname, self.lineno)
        other = places.setdefault(self.quiz_id, here)
        if other != here:
            raise self.problem(f"the id is already used in {other[0]}, line {other[1]}")

    def _option(self, item: nodes.Node) -> quiz_option:
        parts = list(item.children)
        text = parts[0] if parts else None
        first = text.children[0] if isinstance(text, nodes.paragraph) and text.children else None
        mark = MARK.match(first.astext()) if isinstance(first, nodes.Text) else None
        if mark is None:
            raise self.problem(f"an option begins with [ ] or [x]; this one does not: {item.astext()[:60]!r}")
        stripped = nodes.Text(first.astext()[mark.end() :])
        label = quiz_label("", "", stripped, *text.children[1:])
        if len(parts) != 2 or not isinstance(parts[1], nodes.block_quote):
            raise self.problem(
                "each option needs its explanation, a quotation (> ...) right under it: "
                f"{label.astext()[:60]!r}"
            )
        option = quiz_option(correct=mark[1] != " ")
        option += label
        option += quiz_why("", *parts[1].children)
        return option


def _places(env: BuildEnvironment) -> dict[str, tuple[str, int]]:
    """Where each id of the book is used: (page, line)."""
    if not hasattr(env, "llmfs_quizzes"):
        env.llmfs_quizzes = {}
    return env.llmfs_quizzes


def _purge(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    env.llmfs_quizzes = {key: place for key, place in _places(env).items() if place[0] != docname}


def _merge(app: Sphinx, env: BuildEnvironment, docnames: list[str], other: BuildEnvironment) -> None:
    for key, place in _places(other).items():
        mine = _places(env).setdefault(key, place)
        if mine != place:
            where = " and ".join(f"{name}, line {line}" for name, line in (mine, place))
            raise QuizError(f"quiz {key!r} is used in {where}")


# How the nodes are written as HTML ---------------------------------------------------------------------


def _visit_quiz(self: Any, node: quiz_node) -> None:
    self.body.append(self.starttag(node, "fieldset", CLASS="quiz", **{"data-quiz": node["quiz_id"]}))


def _depart_quiz(self: Any, node: quiz_node) -> None:
    self.body.append("</fieldset>\n")


def _visit_question(self: Any, node: quiz_question) -> None:
    self.body.append('<legend class="quiz-question">')


def _depart_question(self: Any, node: quiz_question) -> None:
    self.body.append("</legend>\n")


def _visit_option(self: Any, node: quiz_option) -> None:
    correct = "true" if node["correct"] else "false"
    self.body.append(f'<div class="quiz-option" data-correct="{correct}">\n')


def _depart_option(self: Any, node: quiz_option) -> None:
    self.body.append("</div>\n")


def _visit_label(self: Any, node: quiz_label) -> None:
    option = node.parent
    name = f"quiz-{option['quiz_id']}"
    self.body.append(
        f'<label class="quiz-label"><input type="radio" name="{name}" value="{option["number"]}">'
        '<span class="quiz-text">'
    )


def _depart_label(self: Any, node: quiz_label) -> None:
    self.body.append("</span></label>\n")


def _visit_why(self: Any, node: quiz_why) -> None:
    verdict = "Right." if node.parent["correct"] else "Not this one."
    self.body.append(
        f'<details class="quiz-why"><summary>Explanation of option {node.parent["number"]}</summary>\n'
        f'<div class="quiz-because"><p class="quiz-verdict">{verdict}</p>\n'
    )


def _depart_why(self: Any, node: quiz_why) -> None:
    self.body.append("</div></details>\n")


def _nothing(self: Any, node: nodes.Node) -> None:
    """Other builders show the contents of the nodes, without the form."""


def setup(app: Sphinx) -> dict[str, Any]:
    visitors = {
        quiz_node: (_visit_quiz, _depart_quiz),
        quiz_question: (_visit_question, _depart_question),
        quiz_option: (_visit_option, _depart_option),
        quiz_label: (_visit_label, _depart_label),
        quiz_why: (_visit_why, _depart_why),
    }
    for node, html in visitors.items():
        plain = (_nothing, _nothing)
        app.add_node(node, html=html, latex=plain, text=plain)
    app.add_directive("quiz", QuizDirective)
    app.connect("env-purge-doc", _purge)
    app.connect("env-merge-info", _merge)
    return {"version": "1", "env_version": 1, "parallel_read_safe": True, "parallel_write_safe": True}
