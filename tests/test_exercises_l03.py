"""The checks of L03: right answers pass, and each wrong answer gets the hint that is meant for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmfs.exercises import l03


def by_rows(function, x):
    """Apply a function of one row (S,) to every row of x (..., S)."""
    rows = [function(row) for row in x.reshape(-1, x.shape[-1])]
    return torch.stack(rows).reshape(x.shape)


# ------------------------------------------------------------------------------------------ stable softmax


def shares(x, axis):
    return x / x.sum(axis, keepdim=True)


def lifted(scores):
    return torch.exp(scores - scores.max(-1, keepdim=True).values)


def test_stable_softmax_passes():
    def row(scores):
        numbers = scores.numpy().astype(np.float64)
        e = np.exp(numbers - np.max(numbers))
        return torch.from_numpy(e / e.sum())

    assert l03.stable_softmax(lambda scores: by_rows(row, scores))
    assert l03.stable_softmax(lambda scores: (scores - torch.logsumexp(scores, -1, keepdim=True)).exp())


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda s: torch.exp(s) / torch.exp(s).sum(-1)[..., None], "inf/inf is nan"),
        (lambda s: shares(torch.exp(s - torch.max(s)), -1), "its own maximum"),
        (lambda s: lifted(s) / lifted(s).sum(), "each row should"),
        (lambda s: torch.nn.functional.softmax(s, 0), "dim=-1"),
        (lambda s: shares(torch.exp(s - s.max(0).values), 0), "dim=-1"),
        (lambda s: shares(torch.exp(s - s.max(-1).values), -1), "keepdim=True"),
        (lambda s: lifted(s) / lifted(s).sum(-1), "keepdim=True"),
        (lambda s: s - s.logsumexp(-1, keepdim=True), "logarithm"),
        (lambda s: torch.sigmoid(s), "off by"),  # no known mistake: described
        (lambda s: None, "returns nothing yet"),
    ],
)
def test_stable_softmax_hints(answer, hint):
    result = l03.stable_softmax(answer)
    assert not result and hint in result.message


# ------------------------------------------------------------------------------------------ attention


def test_attention_passes():
    def einsum(q, k, v):
        scores = torch.einsum("...td,...sd->...ts", q, k) * q.size(-1) ** -0.5
        e = torch.exp(scores - scores.amax(-1, keepdim=True))
        return torch.einsum("...ts,...sd->...td", e / e.sum(-1, keepdim=True), v)

    assert l03.attention(einsum)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda q, k, v: torch.softmax(torch.einsum("...td,...sd->...ts", q, k), -1) @ v, "not scaled"),
        (lambda q, k, v: torch.softmax(q @ k.mT / k.size(-1), -1) @ v, "divide by the square root"),
        (lambda q, k, v: torch.softmax(q @ k.mT * k.size(-1) ** 0.5, -1) @ v, "multiply"),
        (lambda q, k, v: torch.softmax(q @ k.mT / v.size(-2) ** 0.5, -1) @ v, "number of keys"),
        (lambda q, k, v: torch.softmax(q @ k.mT, -1) / k.size(-1) ** 0.5 @ v, "after the softmax"),
        (lambda q, k, v: torch.softmax(q @ k.mT / k.size(-1) ** 0.5, q.dim() - 2) @ v, "over the queries"),
        (lambda q, k, v: torch.softmax(k @ q.mT / k.size(-1) ** 0.5, -1) @ v, "changed places"),
        (lambda q, k, v: torch.softmax(q @ k.mT / k.size(-1) ** 0.5, -1), "return the weights"),
        (lambda q, k, v: (q @ k.mT / k.size(-1) ** 0.5) @ v, "no softmax"),
        (
            lambda q, k, v: (
                torch.softmax(q @ torch.einsum(k, [*range(k.dim())], [*range(k.dim())][::-1]) / k.size(-1) ** 0.5, -1)
                @ v
            ),
            "all axes",
        ),
        (lambda q, k, v: torch.zeros(q.shape[:-1] + v.shape[-1:]), "off by"),
        (lambda q, k, v: ..., "returns nothing yet"),
    ],
)
def test_attention_hints(answer, hint):
    result = l03.attention(answer)
    assert not result and hint in result.message


# ------------------------------------------------------------------------------------------ gradients


def jacobian(w):
    return torch.diag(w) - torch.outer(w, w)


def test_softmax_backward_passes():
    def with_jacobian(w, g):
        pairs = zip(w.reshape(-1, w.shape[-1]), g.reshape(-1, g.shape[-1]), strict=True)
        return torch.stack([jacobian(row) @ grad for row, grad in pairs]).reshape(w.shape)

    assert l03.softmax_backward(with_jacobian)


def test_softmax_backward_by_hand():
    # w = (1/2, 1/4, 1/4), g = (1, 0, 0): w g sums to 1/2, so ds = w (g - 1/2) = (1/4, -1/8, -1/8).
    ds = l03.softmax_backward.right(torch.tensor([0.5, 0.25, 0.25]), torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(ds, torch.tensor([0.25, -0.125, -0.125]))


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda w, g: torch.mul(g, w), "term that the weights share"),
        (lambda w, g: g * (w - w**2), "diagonal"),
        (lambda w, g: g - torch.einsum("...s,...s->...", w, g)[..., None], "multiplied by w"),
        (lambda w, g: w * g - w * g.sum(-1, keepdim=True) / g.shape[-1], "weighted by w"),
        (lambda w, g: w * g - w * torch.sum(w * g), "whole tensor"),
        (lambda w, g: w * g + w * torch.einsum("...s,...s->...", w, g)[..., None], "sign"),
        (lambda w, g: g, "off by"),
    ],
)
def test_softmax_backward_hints(answer, hint):
    result = l03.softmax_backward(answer)
    assert not result and hint in result.message


def backward(q, k, v, grad, *, shared=True, scale=True, through_v=True, through_k=True):
    """Attention's gradients, one row of one batch at a time."""
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    root = q.shape[-1] ** 0.5
    for b in range(len(q)):
        w = torch.softmax(q[b] @ k[b].T / root, -1)
        ds = torch.zeros_like(w)
        for t in range(len(w)):
            dw = v[b] @ grad[b, t]
            ds[t] = jacobian(w[t]) @ dw if shared else w[t] * dw
        ds = ds / root if scale else ds
        dq[b] = ds @ k[b]
        dk[b] = ds.T @ q[b] if through_k else ds @ q[b]
        dv[b] = w.T @ grad[b] if through_v else w @ grad[b]
    return dq, dk, dv


def test_attention_backward_passes():
    assert l03.attention_backward(backward)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda *a: backward(*a, scale=False), "factor 1/√d"),
        (lambda *a: backward(*a, shared=False), "shared term"),
        (lambda *a: backward(*a, through_v=False), "gradient of v"),
        (lambda *a: backward(*a, through_k=False), "gradient of k"),
        (lambda *a: tuple(reversed(backward(*a))), "another order"),
        (lambda *a: None, "returns nothing yet"),
    ],
)
def test_attention_backward_hints(answer, hint):
    result = l03.attention_backward(answer)
    assert not result and hint in result.message
