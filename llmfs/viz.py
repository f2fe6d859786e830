"""Figures: every one drawn from values that were really computed. matplotlib is imported on first use."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, in an order whose neighbors differ in lightness too: readable without color vision.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#F0E442")


def use_style() -> None:
    """Set matplotlib up for the book: quiet axes, readable at the width of a page, sharp on any screen."""
    import cycler
    import matplotlib
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    set_matplotlib_formats("svg")
    matplotlib.rcParams.update(
        {
            "figure.figsize": (6.0, 3.2),
            "figure.facecolor": "white",
            "axes.facecolor": "white",
            "font.size": 12,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#dddddd",
            "axes.axisbelow": True,
            "axes.titlesize": 13,
            "legend.frameon": False,
            "lines.linewidth": 2.0,
            "axes.prop_cycle": cycler.cycler(color=list(COLORS)),
            "svg.hashsalt": "llmfs",
            "svg.fonttype": "path",
            "figure.constrained_layout.use": True,
        }
    )


def plot_attention(
    weights: Any,
    tokens: Sequence[str],
    ax: Axes | None = None,
    *,
    title: str = "",
    queries: Sequence[str] | None = None,
) -> Axes:
    """Attention weights (T, S) as a map: a row is a query, a column the key that it looks at. -> the axes.

    tokens: labels of the S keys; queries: of the T queries, where they are others. Raises ValueError where there are
    not so many.
    """
    import matplotlib.pyplot as plt

    weights = np.asarray(weights, dtype=float)
    queries = tokens if queries is None else queries
    if weights.shape != (len(queries), len(tokens)):
        raise ValueError(
            f"weights have shape {weights.shape}, but there are {len(queries)} queries and {len(tokens)} keys"
        )
    ax = plt.gca() if ax is None else ax
    ax.imshow(weights, cmap="Blues", vmin=0, vmax=1)
    ax.set_xticks(range(len(tokens)), [visible(t) for t in tokens], rotation=90, fontsize=8)
    ax.set_yticks(range(len(queries)), [visible(t) for t in queries], fontsize=8)
    ax.set(title=title, xlabel="key: looked at", ylabel="query: looking")
    ax.grid(False)
    return ax


def show_tokens(pieces: Sequence[str], *, ids: Sequence[int] | None = None) -> Any:
    """The tokens of a text as colored boxes, for a notebook -> an IPython HTML object. ids: shown on hovering."""
    from IPython.display import HTML

    boxes = []
    for i, piece in enumerate(pieces):
        title = f' title="id {ids[i]}"' if ids is not None else ""
        line_end = "<br>" if "\n" in piece else ""
        # The color stands here and not in the book's style sheet, so that Jupyter shows it too.
        style = f"background: {COLORS[i % 5]}47; border-radius: 3px; display: inline-block; white-space: pre"
        boxes.append(f'<span class="llmfs-token" style="{style}"{title}>{html.escape(visible(piece))}</span>{line_end}')
    return HTML(f'<div class="llmfs-tokens">{"".join(boxes)}</div>')


def visible(token: str) -> str:
    """A token with its spaces and line ends made visible."""
    return token.replace(" ", "·").replace("\n", "↵").replace("\t", "→")
