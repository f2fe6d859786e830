"""The checks of L04: right answers pass, and each wrong answer gets the hint that is meant for it."""
from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from llmfs.exercises import l04

# ------------------------------------------------------------------------------------------ all heads at once


def heads_in_loops(x, W_q, W_k, W_v, W_o, H, *, root=None, ahead=False, o=True, channels=None):
    """One text, one head, one query at a time. channels: which ones a head has."""
    hd = W_q.shape[0] // H
    total = torch.zeros(x.shape[0], x.shape[1], W_o.shape[0])
    side_by_side = torch.zeros(x.shape[0], x.shape[1], H * hd)
    for b in range(x.shape[0]):
        for h in range(H):
            mine = list(range(h * hd, h * hd + hd)) if channels is None else channels(h, H, hd)
            q, k, v = (x[b] @ W[mine].T for W in (W_q, W_k, W_v))
            for t in range(x.shape[1]):
                end = x.shape[1] if ahead else t + 1
                scores = (k[:end] @ q[t]) / (math.sqrt(hd) if root is None else root(hd, H))
                found = torch.softmax(scores, 0) @ v[:end]
                total[b, t] += W_o[:, h * hd:h * hd + hd] @ found
                side_by_side[b, t, h * hd:h * hd + hd] = found
    return total if o else side_by_side


def by_axes(cut, glue):
    """A vectorized answer with the reader's own way to cut heads out and glue them together."""
    def answer(x, W_q, W_k, W_v, W_o, H):
        B, T, _ = x.shape
        q, k, v = (cut(torch.einsum("btc,dc->btd", x, W), B, T, H) for W in (W_q, W_k, W_v))
        scores = torch.einsum("bhtd,bhsd->bhts", q, k) / q.shape[-1] ** 0.5
        scores += torch.full((T, T), -torch.inf).triu(1)
        return glue(scores.softmax(-1) @ v, B, T) @ W_o.T
    return answer


def right_cut(y, B, T, H):
    return y.view(B, T, H, y.shape[-1] // H).permute(0, 2, 1, 3)


def right_glue(out, B, T):
    return torch.cat(list(out.unbind(1)), dim=-1)


def hasty_cut(y, B, T, H):
    return y.view(B, H, T, -1)


def hasty_glue(out, B, T):
    return out.contiguous().view(B, T, -1)


def test_multi_head_passes():
    assert l04.multi_head(heads_in_loops)
    assert l04.multi_head(by_axes(right_cut, right_glue))


@pytest.mark.parametrize(("answer", "hint"), [
    (by_axes(hasty_cut, right_glue), "view(B, T, H, hd)"),
    (by_axes(hasty_cut, hasty_glue), "view(B, T, H, hd)"),
    (by_axes(right_cut, hasty_glue), "Put the axes back first"),
    (by_axes(lambda y, B, T, H: y.view(B, T, -1, H).movedim(-1, 1), right_glue), "every H-th channel"),
    (lambda *a: heads_in_loops(*a, ahead=True), "look ahead"),
    (lambda *a: heads_in_loops(*a, root=lambda hd, H: (hd * H) ** 0.5), "of one head"),
    (lambda *a: heads_in_loops(*a, root=lambda hd, H: 1.0), "not divided"),
    (lambda *a: heads_in_loops(*a, o=False), "W_o is missing"),
    (lambda x, *a: heads_in_loops(x, *(W.T for W in a[:4]), a[4]), "x @ W.T"),
    (lambda x, *a: x, "off by"),  # no known mistake: described
    (lambda *a: None, "returns nothing yet"),
])
def test_multi_head_hints(answer, hint):
    result = l04.multi_head(answer)
    assert not result and hint in result.message


# ------------------------------------------------------------------------------------------ grouped queries


def plain(q, k, v):
    return torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1) @ v


def head_by_head(q, k, v, which_k=lambda h, H, Hkv: h * Hkv // H, which_v=None):
    H, Hkv = q.shape[1], k.shape[1]
    which_v = which_k if which_v is None else which_v
    heads = [plain(q[:, h], k[:, which_k(h, H, Hkv)], v[:, which_v(h, H, Hkv)]) for h in range(H)]
    return torch.stack(heads, dim=1)


def in_groups(q, k, v):
    """No copies at all: the queries get a group axis, over which k and v are broadcast."""
    B, H, T, hd = q.shape
    return plain(q.view(B, k.shape[1], -1, T, hd), k[:, :, None], v[:, :, None]).reshape(B, H, T, hd)


def modulo(h, H, Hkv):
    return h % Hkv


def test_grouped_passes():
    assert l04.grouped(head_by_head) and l04.grouped(in_groups)


@pytest.mark.parametrize(("answer", "hint"), [
    (lambda q, k, v: head_by_head(q, k, v, modulo), "k0 k0 k1 k1"),
    (lambda q, k, v: head_by_head(q, k, v, which_v=modulo), "the values not"),
    (lambda q, k, v: head_by_head(q, k, v, modulo, lambda h, H, Hkv: h * Hkv // H), "the keys not"),
    (lambda q, k, v: head_by_head(q, k, v, lambda h, H, Hkv: 0), "the first key/value head"),
    (lambda q, k, v: plain(q, k.mean(1, True), v.mean(1, True)), "average"),
    (plain, "still has Hkv heads"),
    (lambda q, k, v: plain(q, *(x.repeat_interleave(q.shape[1], 1) for x in (k, v))), "copied H times"),
    (lambda q, k, v: head_by_head(q * q.shape[-1] ** 0.5, k, v), "not divided"),
    (lambda q, k, v: q, "off by"),
    (lambda q, k, v: ..., "returns nothing yet"),
])
def test_grouped_hints(answer, hint):
    result = l04.grouped(answer)
    assert not result and hint in result.message


# ------------------------------------------------------------------------------------------ pruning


def without(matrix, head, n_head, axis, width=None):
    """NumPy takes the head's channels out along an axis."""
    hd = matrix.shape[axis] // n_head if width is None else width
    return torch.from_numpy(np.delete(matrix.numpy(), np.s_[head * hd:(head + 1) * hd], axis=axis))


def pruned(axes, by=lambda n_head: None):
    def answer(*matrices_head_n_head):
        *matrices, head, n_head = matrices_head_n_head
        return tuple(without(W, head, n_head, axis, by(n_head)) for W, axis in zip(matrices, axes))
    return answer



def chunked(W_q, W_k, W_v, W_o, head, n_head):
    def drop(W, dim):
        parts = list(W.chunk(n_head, dim=dim))
        del parts[head]
        return torch.cat(parts, dim=dim)
    return [drop(W_q, 0), drop(W_k, 0), drop(W_v, 0), drop(W_o, 1)]


def zeroed(rows_too):
    def answer(W_q, W_k, W_v, W_o, head, n_head):
        W_o.view(W_o.shape[0], n_head, -1)[:, head] = 0
        for W in (W_q, W_k, W_v) if rows_too else ():
            W.view(n_head, -1, W.shape[1])[head] = 0
        return W_q, W_k, W_v, W_o
    return answer


def every_fourth(W_q, W_k, W_v, W_o, head, n_head):
    keep = [i for i in range(W_q.shape[0]) if i % n_head != head]
    return W_q[keep], W_k[keep], W_v[keep], W_o[:, keep]


def only(W_q, W_k, W_v, W_o, head, n_head):
    return (*(W.chunk(n_head)[head] for W in (W_q, W_k, W_v)), W_o.chunk(n_head, dim=1)[head])


def test_prune_passes():
    assert l04.prune(pruned((0, 0, 0, 1))) and l04.prune(chunked)


@pytest.mark.parametrize(("answer", "hint"), [
    (pruned((0, 0, 0, 0)), "W_q, W_k and W_v are right"),
    (pruned((1, 1, 1, 0)), "changed places"),
    (pruned((1, 1, 1, 1)), "W_o is right"),
    (lambda *a: (*chunked(*a)[:3], a[3]), "still has the columns"),
    (every_fourth, "side by side"),
    (pruned((0, 0, 0, 1), by=lambda n_head: n_head), "hd = C // H"),
    (only, "the other way round"),
    (zeroed(False), "saves nothing"),
    (zeroed(True), "saves nothing"),
    (lambda *a: chunked(*a[:4], a[4] - 1, a[5]), "count from 0"),
    (lambda *a: a[:4], "shape should be (9, 12)"),  # no known mistake: described
    (lambda *a: None, "returns nothing yet"),
])
def test_prune_hints(answer, hint):
    result = l04.prune(answer)
    assert not result and hint in result.message
