"""The ``{roadmap}`` directive: the ten lessons as stations on one line, from text to answers.

On the landing page ``{roadmap}`` draws the whole map. On a lesson's page ``{roadmap} L03`` draws a smaller
one with that station marked; a lesson beside the ten, ``{roadmap} S01``, is on a line of its own that joins
the road. Stations whose lessons are in the book link to them. Each map is drawn twice, for wide and for
narrow columns; the style sheet shows the one that fits.

``python book/_ext/roadmap.py`` writes the map for pages outside the book to ``book/_static/roadmap.svg``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

LinkTo = Callable[[str], str | None]  # lesson ("L03") -> address, or None where the book does not have it


@dataclass(frozen=True)
class Station:
    """One stop: a lesson, or one of the two ends of the line."""

    code: str  # "L03", or "" at the ends
    name: str
    what: str

    @property
    def spoken(self) -> str:
        return f"{self.code} {self.name}: {self.what}".strip()


LINE = (
    Station("", "Text", "where it starts"),
    Station("L01", "Tokens", "text as numbers"),
    Station("L02", "Vectors", "words as points"),
    Station("L03", "Attention", "words look around"),
    Station("L04", "Heads", "several at once"),
    Station("L05", "Depth", "layers that train"),
    Station("L06", "Mask", "no look ahead"),
    Station("L07", "GPT", "one whole model"),
    Station("L08", "Training", "it learns to write"),
    Station("L09", "Sampling", "it picks its words"),
    Station("L10", "Chat", "it answers"),
    Station("", "Answers", "where it ends"),
)
# The lessons beside the ten, and the station at which their line joins the road.
SIDE_LINES = (
    (
        Station("S01", "Corpus", "look before you count"),
        Station("S02", "Gradients", "which way to move"),
        Station("S03", "RNNs", "one word at a time"),
        Station("S04", "LSTMs", "gates, then attention"),
        Station("L01", "Tokens", "where the road begins"),
    ),
    (
        Station("L10", "Chat", "where the road ends"),
        Station("S05", "GPT-2", "weights of others"),
        Station("S06", "Scale", "more of everything"),
    ),
)
LESSONS = tuple(dict.fromkeys(stop.code for line in (LINE, *SIDE_LINES) for stop in line if stop.code))

# The map as a file of its own has no style sheet of the book around it.
FILE_STYLE = """
.roadmap-svg { color: #1f2937; font-family: system-ui, sans-serif; }
.roadmap-track { fill: none; stroke: #94a3b8; stroke-width: 4; }
.roadmap-dot { fill: #1d4ed8; }
.roadmap-end .roadmap-dot { fill: #ffffff; stroke: #94a3b8; stroke-width: 4; }
.roadmap-code { fill: #ffffff; font-weight: 700; }
.roadmap-name { fill: currentColor; font-weight: 700; }
.roadmap-what { fill: currentColor; opacity: 0.8; }
@media (prefers-color-scheme: dark) {
  .roadmap-svg { color: #e5e7eb; }
  .roadmap-end .roadmap-dot { fill: #0f172a; }
}
"""


@dataclass(frozen=True)
class Layout:
    """Where the stations stand, in pixels."""

    css_class: str
    width: int
    height: int
    radius: int
    places: tuple[tuple[int, int], ...]
    track: str  # the path of the line
    beside: bool  # names to the right of the stations, not under them
    show_what: bool


def _two_rows() -> Layout:
    step, top, bottom, middle = 122, 36, 170, 114
    xs = [70 + step * column for column in range(6)]
    left, right = xs[0] - 66, xs[-1] + 66  # clear of the words under the last and the first station
    turn = (
        f"M{xs[0]} {top} H{right - 14} q14 0 14 14 V{middle - 14} q0 14 -14 14 "
        f"H{left + 14} q-14 0 -14 14 V{bottom - 14} q0 14 14 14 H{xs[-1]}"
    )
    places = tuple((x, y) for y in (top, bottom) for x in xs)
    return Layout("roadmap-wide", 750, 236, 24, places, turn, beside=False, show_what=True)


def _one_row(count: int) -> Layout:
    """As wide as the page; few stations have room to say what they are."""
    margin, show_what = (32, False) if count > 6 else (74, True)
    step = (750 - 2 * margin) / (count - 1)
    places = tuple((round(margin + step * column), 22) for column in range(count))
    track = f"M{places[0][0]} 22 H{places[-1][0]}"
    return Layout("roadmap-wide", 750, 76 if show_what else 58, 16, places, track, beside=False, show_what=show_what)


def _column(count: int) -> Layout:
    places = tuple((28, 30 + 56 * row) for row in range(count))
    track = f"M28 {places[0][1]} V{places[-1][1]}"
    height = 60 + 56 * (count - 1)
    return Layout("roadmap-tall", 320, height, 22, places, track, beside=True, show_what=True)


def draw(
    layout: Layout, stations: Sequence[Station], current: str | None, link_to: LinkTo, style: str = ""
) -> str:
    """One map as an <svg> element."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="roadmap-svg {layout.css_class}"'
        f' viewBox="0 0 {layout.width} {layout.height}">'
    ]
    if style:
        parts.append(f"<title>The roadmap of LLM From Scratch</title><style>{style}</style>")
    parts.append(f'<path class="roadmap-track" d="{layout.track}"/>')
    parts.extend(
        _stop(layout, place, station, current, link_to)
        for place, station in zip(layout.places, stations, strict=True)
    )
    parts.append("</svg>")
    return "\n".join(parts)


def _stop(
    layout: Layout, place: tuple[int, int], station: Station, current: str | None, link_to: LinkTo
) -> str:
    x, y = place
    classes = ["roadmap-stop"]
    if not station.code:
        classes.append("roadmap-end")
    is_current = bool(station.code) and station.code == current
    if is_current:
        classes.append("roadmap-current")
    address = link_to(station.code) if station.code else None
    radius = layout.radius if station.code else layout.radius * 0.5
    # A ring around the station says "you are here" to readers who do not see its color.
    ring = f'<circle class="roadmap-ring" cx="{x}" cy="{y}" r="{radius + 4:g}"/>' if is_current else ""
    dot = f'<circle class="roadmap-dot" cx="{x}" cy="{y}" r="{radius:g}"/>'
    shapes = ring + dot + _labels(layout, x, y, station)
    here = ' aria-current="page"' if is_current else ""
    spoken = escape(station.spoken, quote=True)
    if address is None:
        return f'<g class="{" ".join(classes)}" role="img" aria-label="{spoken}">{shapes}</g>'
    href = escape(address, quote=True)
    return f'<a class="{" ".join(classes)}" href="{href}" aria-label="{spoken}"{here}>{shapes}</a>'


def _labels(layout: Layout, x: int, y: int, station: Station) -> str:
    """The texts of a station: its code inside, its name (and what it is) under or beside it."""
    size = layout.radius * 0.62
    code = _text("roadmap-code", x, y + size * 0.36, station.code, size, "middle") if station.code else ""
    anchor = "start" if layout.beside else "middle"
    name_x = x + layout.radius + 14 if layout.beside else x
    name_y = y - 3 if layout.beside else y + layout.radius + 18
    name_size = 16 if layout.show_what else 12
    name = _text("roadmap-name", name_x, name_y, station.name, name_size, anchor)
    if not layout.show_what:
        return code + name
    return code + name + _text("roadmap-what", name_x, name_y + 18, station.what, 13, anchor)


def _text(css_class: str, x: float, y: float, text: str, size: float, anchor: str) -> str:
    return (
        f'<text class="{css_class}" x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )


def whole_map(link_to: LinkTo) -> str:
    """The landing page's map, for wide and for narrow columns."""
    wide = draw(_two_rows(), LINE, None, link_to)
    return wide + "\n" + draw(_column(len(LINE)), LINE, None, link_to)


def lesson_map(current: str, link_to: LinkTo) -> str:
    """A lesson's map: its whole line in one row or, in a narrow column, the stations next to it."""
    line, index = next(
        (line, i) for line in (LINE, *SIDE_LINES) for i, station in enumerate(line) if station.code == current
    )
    nearby = line[max(0, index - 1) : index + 2]
    wide = draw(_one_row(len(line)), line, current, link_to)
    return wide + "\n" + draw(_column(len(nearby)), nearby, current, link_to)


class roadmap_node(nodes.General, nodes.Element):
    """A map; its ``current`` is the code of the page's lesson, or None."""


class RoadmapDirective(SphinxDirective):
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        current = self.arguments[0] if self.arguments else None
        if current is not None and current not in LESSONS:
            raise self.error(f"{{roadmap}} takes one of {', '.join(LESSONS)}, not {current!r}")
        # A lesson that joins the book adds a link to each map.
        self.env.note_dependency(str(Path(self.env.srcdir) / "_toc.yml"))
        return [roadmap_node(current=current)]


def _visit(self: Any, node: roadmap_node) -> None:
    builder = self.builder

    def link_to(code: str) -> str | None:
        pages = sorted(builder.env.found_docs)
        page = next((name for name in pages if name.startswith(f"lessons/{code}_")), None)
        return builder.get_relative_uri(builder.current_docname, page) if page else None

    drawing = lesson_map(node["current"], link_to) if node["current"] else whole_map(link_to)
    kind = "roadmap roadmap-lesson" if node["current"] else "roadmap"
    self.body.append(f'<nav class="{kind}" aria-label="Roadmap of the lessons">\n{drawing}\n</nav>\n')
    raise nodes.SkipNode


def _skip(self: Any, node: roadmap_node) -> None:
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_node(roadmap_node, html=(_visit, None), latex=(_skip, None), text=(_skip, None))
    app.add_directive("roadmap", RoadmapDirective)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def standalone() -> str:
    """The wide map as a file that reads in light and dark."""
    return draw(_two_rows(), LINE, None, lambda code: None, style=FILE_STYLE) + "\n"


if __name__ == "__main__":
    target = Path(__file__).parent.parent / "_static" / "roadmap.svg"
    target.write_text(standalone(), "utf8")
