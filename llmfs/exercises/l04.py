"""Exercises of L04: all heads in one product, shared keys and values, and taking a head out."""
from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from llmfs.exercises import Args, Exercise, Mistake


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------ all heads at once


def _multi_head_cases() -> list[Args]:
    """x (B, T, C), then W_q, W_k, W_v and W_o as a Linear keeps them: a row an output channel."""
    return [
        (_normal(1, 2, 5, 12), *(_normal(2 + i, 12, 12) for i in range(4)), 3),  # B 2, T 5, C 12, H 3
        (_normal(6, 1, 4, 8), *(_normal(7 + i, 8, 8) for i in range(4)), 4),  # T = H: a wrong view still fits
        (_normal(11, 3, 6, 8), *(_normal(12 + i, 8, 8) for i in range(4)), 1),
        # A layer that has lost a head: 2 heads of 4 channels each, but C = 12.
        (_normal(16, 2, 5, 12), *(_normal(17 + i, 8, 12) for i in range(3)), _normal(20, 12, 8), 2),
    ]


def _split(y: Tensor, n_head: int) -> Tensor:
    """(B, T, H hd) -> (B, H, T, hd)"""
    return y.view(*y.shape[:2], n_head, -1).transpose(1, 2)


def _merge(out: Tensor) -> Tensor:
    """(B, H, T, hd) -> (B, T, H hd)"""
    return out.transpose(1, 2).flatten(2)


def _no_transpose_in(y: Tensor, n_head: int) -> Tensor:
    B, T, width = y.shape
    return y.reshape(B, n_head, T, width // n_head)


def _strided(y: Tensor, n_head: int) -> Tensor:
    return y.view(*y.shape[:2], -1, n_head).permute(0, 3, 1, 2)


def _no_transpose_out(out: Tensor) -> Tensor:
    B, H, T, hd = out.shape
    return out.reshape(B, T, H * hd)


def _multi_head(x: Tensor, W_q: Tensor, W_k: Tensor, W_v: Tensor, W_o: Tensor, n_head: int, *,
                split: Callable[[Tensor, int], Tensor] = _split, merge: Callable[[Tensor], Tensor] = _merge,
                causal: bool = True, scale: Callable[[int, int], float] | None = None,
                turned: bool = False, mix: bool = True) -> Tensor:
    """Right as it stands; each keyword plants one mistake. scale: of (width of a head, width of all)."""
    if turned:
        W_q, W_k, W_v, W_o = W_q.T, W_k.T, W_v.T, W_o.T
    q, k, v = (split(x @ W.T, n_head) for W in (W_q, W_k, W_v))
    factor = None if scale is None else scale(q.shape[-1], q.shape[-1] * n_head)
    out = merge(F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=factor))
    return out @ W_o.T if mix else out


_WRONG_VIEW = (
    "You cut the heads out with a view straight to (B, H, T, hd). A view keeps the order of the numbers, so "
    "a \"head\" now holds all the channels of a few tokens. Cut the channels first, view(B, T, H, hd), and "
    "then swap the axes: transpose(1, 2)."
)
_WRONG_MERGE = (
    "The heads go in rightly, but come out wrong: (B, H, T, hd) is reshaped straight to (B, T, C), so one "
    "row mixes several tokens of one head. Put the axes back first: transpose(1, 2), then reshape."
)

multi_head = Exercise(
    "multi-head attention",
    right=_multi_head,
    cases=_multi_head_cases,
    mistakes=(
        Mistake(lambda *a: _multi_head(*a, split=_no_transpose_in), _WRONG_VIEW),
        Mistake(lambda *a: _multi_head(*a, split=_no_transpose_in, merge=_no_transpose_out), _WRONG_VIEW),
        Mistake(lambda *a: _multi_head(*a, merge=_no_transpose_out), _WRONG_MERGE),
        Mistake(
            lambda *a: _multi_head(*a, split=_strided),
            "Your heads take every H-th channel: view(B, T, hd, H). A head's channels stand side by side, so "
            "the heads come first: view(B, T, H, hd).",
        ),
        Mistake(
            lambda *a: _multi_head(*a, causal=False),
            "Tokens look ahead. Mask the scores with causal_mask(T, T): token t sees tokens 0 to t.",
        ),
        Mistake(
            lambda *a: _multi_head(*a, scale=lambda hd, width: 1 / math.sqrt(width)),
            "You divide the scores by the root of all the channels. The dot products are of one head: divide "
            "by √hd.",
        ),
        Mistake(
            lambda *a: _multi_head(*a, scale=lambda hd, width: 1.0),
            "The scores are not divided by √hd (L03 shows why they must be).",
        ),
        Mistake(
            lambda *a: _multi_head(*a, mix=False),
            "The heads stand side by side, but W_o is missing: it adds up what the heads found. Finish with "
            "@ W_o.T.",
        ),
        Mistake(
            lambda *a: _multi_head(*a, turned=True),
            "You multiply by the matrices as they are. A Linear keeps one row for each output channel, (out, "
            "in), so it is x @ W.T.",
        ),
    ),
    tolerance=1e-4,
)


# ------------------------------------------------------------------------------------------ grouped queries


def _grouped_cases() -> list[Args]:
    """q (B, H, T, hd), k and v (B, Hkv, S, hd). In the first, 1 < Hkv < H, or `repeat` would pass."""
    return [
        (_normal(seed, 2, H, 3, 8), _normal(seed + 1, 2, Hkv, 5, 8), _normal(seed + 2, 2, Hkv, 5, 8))
        for seed, H, Hkv in ((30, 6, 2), (40, 4, 1), (50, 3, 3))
    ]


def _interleave(k: Tensor, n: int) -> Tensor:
    return k.repeat_interleave(n, dim=1)


def _repeat(k: Tensor, n: int) -> Tensor:
    return k.repeat(1, n, 1, 1)


def _grouped(q: Tensor, k: Tensor, v: Tensor, *, share_k: Callable[[Tensor, int], Tensor] = _interleave,
             share_v: Callable[[Tensor, int], Tensor] = _interleave, scale: float | None = None) -> Tensor:
    n = q.shape[1] // k.shape[1]
    return F.scaled_dot_product_attention(q, share_k(k, n), share_v(v, n), scale=scale)


def _mean(k: Tensor, n: int) -> Tensor:
    return k.mean(dim=1, keepdim=True)


grouped = Exercise(
    "grouped queries",
    right=lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
    cases=_grouped_cases,
    mistakes=(
        Mistake(
            lambda q, k, v: _grouped(q, k, v, share_k=_repeat, share_v=_repeat),
            "`repeat` puts whole copies behind each other, k0 k1 k0 k1: neighboring query heads get other "
            "keys. Each key/value head must stand beside its own group, k0 k0 k1 k1: repeat_interleave(H // "
            "Hkv, dim=1).",
        ),
        Mistake(
            lambda q, k, v: _grouped(q, k, v, share_v=_repeat),
            "The keys are shared rightly, the values not: they need repeat_interleave too, or a head weighs "
            "with one head's keys and collects another's values.",
        ),
        Mistake(
            lambda q, k, v: _grouped(q, k, v, share_k=_repeat),
            "The values are shared rightly, the keys not: they need repeat_interleave too.",
        ),
        Mistake(
            lambda q, k, v: _grouped(q, k[:, :1], v[:, :1]),
            "Every query head uses the first key/value head. With Hkv heads, query head h belongs to "
            "key/value head h // (H // Hkv).",
        ),
        Mistake(
            lambda q, k, v: _grouped(q, k, v, share_k=_mean, share_v=_mean),
            "You average the key/value heads into one. They stay as they are; each serves a group of query "
            "heads.",
        ),
        Mistake(
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
            "Axis 1 of k and v still has Hkv heads, and q has H. That broadcasts for Hkv = 1 alone; "
            "otherwise give every query head its key/value head, with repeat_interleave(H // Hkv, dim=1).",
        ),
        Mistake(
            lambda q, k, v: F.scaled_dot_product_attention(q, *(_interleave(x, q.shape[1]) for x in (k, v))),  # type: ignore[arg-type]
            "Each key/value head is copied H times. One group has H // Hkv query heads.",
        ),
        Mistake(
            lambda q, k, v: _grouped(q, k, v, scale=1.0),
            "The heads are shared rightly; the scores are not divided by √hd.",
        ),
    ),
)


# ------------------------------------------------------------------------------------------ pruning


def _prune_cases() -> list[Args]:
    """W_q, W_k, W_v and W_o (C, C), the head that goes, and H: four heads of 3 channels each."""
    return [(*(_normal(60 + i, 12, 12) for i in range(4)), head, 4) for head in (0, 1, 3)]


def _others(head: int, n_head: int, hd: int) -> Tensor:
    """The channels of all the other heads."""
    channels = torch.arange(n_head * hd)
    return channels[channels // hd != head]


def _prune(W_q: Tensor, W_k: Tensor, W_v: Tensor, W_o: Tensor, head: int, n_head: int, *,
           keep: Callable[[int, int, int], Tensor] = _others,
           axes: tuple[int | None, ...] = (0, 0, 0, 1)) -> tuple[Tensor, ...]:
    """Right as it stands. keep: the channels that stay; axes: the axis in each matrix, None: untouched."""
    channels = keep(head, n_head, W_q.shape[0] // n_head)
    return tuple(W if axis is None else W.index_select(axis, channels)
                 for W, axis in zip((W_q, W_k, W_v, W_o), axes))


def _not_every_nth(head: int, n_head: int, hd: int) -> Tensor:
    channels = torch.arange(n_head * hd)
    return channels[channels % n_head != head]


def _wrong_axes(*axes: int | None) -> Callable[..., tuple[Tensor, ...]]:
    return lambda *args: _prune(*args, axes=axes)


def _wrong_channels(keep: Callable[[int, int, int], Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    return lambda *args: _prune(*args, keep=keep)


def _zeroed(*args: Tensor | int, axes: tuple[int | None, ...]) -> tuple[Tensor, ...]:
    """The head's rows or columns stay, but hold zeros."""
    matrices = [W.clone() for W in args[:4] if isinstance(W, Tensor)]
    head, hd = int(args[4]), matrices[0].shape[0] // int(args[5])
    for W, axis in zip(matrices, axes):
        if axis is not None:
            W.narrow(axis, head * hd, hd).zero_()
    return tuple(matrices)


_ZEROED = (
    "You set the head to zero. That gives the same outputs, but saves nothing: the matrices must become "
    "smaller by hd rows or columns."
)

prune = Exercise(
    "prune a head",
    right=_prune,
    cases=_prune_cases,
    mistakes=(
        Mistake(
            _wrong_axes(0, 0, 0, 0),
            "W_q, W_k and W_v are right. W_o reads the heads: what a head hands over enters through hd of "
            "its *columns*. Its rows are the channels of the output, and those all stay.",
        ),
        Mistake(
            _wrong_axes(1, 1, 1, 0),
            "Rows and columns have changed places. W_q, W_k and W_v write the heads, so a head is hd of "
            "their *rows* (a row is an output channel); W_o reads them, so there it is hd *columns*.",
        ),
        Mistake(
            _wrong_axes(1, 1, 1, 1),
            "W_o is right. In W_q, W_k and W_v a head is hd *rows*: a row is an output channel. The columns "
            "are the channels of x, and every head reads all of them.",
        ),
        Mistake(
            _wrong_axes(0, 0, 0, None),
            "W_o still has the columns of the head that is gone, so the shapes no longer fit. Take them out "
            "too.",
        ),
        Mistake(
            _wrong_channels(_not_every_nth),
            "You take out every H-th channel. A head's channels stand side by side: head * hd to "
            "(head + 1) * hd.",
        ),
        Mistake(
            _wrong_channels(lambda head, n_head, hd: _others(head, hd, n_head)),
            "You cut a block of H channels. A head is hd = C // H channels wide.",
        ),
        Mistake(
            _wrong_channels(lambda head, n_head, hd: torch.arange(head * hd, (head + 1) * hd)),
            "You keep that one head and throw the others away. It is the other way round.",
        ),
        Mistake(lambda *args: _zeroed(*args, axes=(None, None, None, 1)), _ZEROED),
        Mistake(lambda *args: _zeroed(*args, axes=(0, 0, 0, 1)), _ZEROED),
        Mistake(
            _wrong_channels(lambda head, n_head, hd: _others((head - 1) % n_head, n_head, hd)),
            "The head before the one that was asked for is gone. Heads count from 0: head * hd to "
            "(head + 1) * hd.",
        ),
    ),
)
