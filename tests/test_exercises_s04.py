"""The checks of S04 take right answers and name wrong ones, both written anew here."""

from __future__ import annotations

import pytest
import torch

from llmfs.exercises import s04

# --- the paper's GRU -------------------------------------------------------------------------------------


def gru(x, h, W, U, b, *, gate=torch.sigmoid, before=True, reset=True, keep=lambda z: (z, 1 - z), order=(0, 1, 2)):
    W, U, b = (p[list(order)] for p in (W, U, b))
    z, r = (gate(torch.einsum("bd,cd->bc", x, W[k]) + torch.einsum("be,ce->bc", h, U[k]) + b[k]) for k in (0, 1))
    r = r if reset else torch.ones_like(r)
    from_h = (r * h) @ U[2].mT if before else r * (h @ U[2].mT)
    old, new = keep(z)
    return old * h + new * torch.tanh(x @ W[2].mT + from_h + b[2])


def test_gru_right():
    assert s04.paper_gru(gru)


@pytest.mark.parametrize(
    "change, hint",
    [
        (dict(before=False), "PyTorch's cell"),
        (dict(reset=False), "no reset gate"),
        (dict(keep=lambda z: (1 - z, z)), "other way around"),
        (dict(order=(1, 0, 2)), "PyTorch's order"),
        (dict(gate=torch.tanh), "Gates are sigmoids"),
    ],
)
def test_gru_wrong(change, hint):
    result = s04.paper_gru(lambda *a: gru(*a, **change))
    assert not result and hint in result.message, result.message


# --- attention -------------------------------------------------------------------------------------------


def attend(h, values, real, W, U, w, *, mask=lambda e, real: e.where(real, -torch.inf), bend=torch.tanh, axis=1, after=None):
    B, S, _ = values.shape
    e = torch.empty(B, S)
    for b in range(B):
        for s in range(S):
            e[b, s] = (w * bend(W @ h[b] + U @ values[b, s])).sum()
    a = mask(e, real).softmax(axis)
    a = a if after is None else after(a, real)
    return torch.einsum("bs,bsd->bd", a, values), a


def test_attention_right():
    assert s04.additive_attention(attend)


@pytest.mark.parametrize(
    "change, hint",
    [
        (dict(mask=lambda e, real: e), "also fall on padding"),
        (dict(mask=lambda e, real: e, after=lambda a, real: a * real), "mask after the softmax"),
        (dict(mask=lambda e, real: e * real), "score of 0"),
        (dict(mask=lambda e, real: e.where(~real, -torch.inf)), "upside down"),
        (dict(axis=0), "along the batch"),
        (dict(bend=lambda a: a), "Without the tanh"),
    ],
)
def test_attention_wrong(change, hint):
    result = s04.additive_attention(lambda *a: attend(*a, **change))
    assert not result and hint in result.message, result.message


# --- reverse ---------------------------------------------------------------------------------------------


def turn(x, lengths, *, shift=0, same=False):
    out = x.clone()
    for b in range(len(x)):
        n = int(lengths[0 if same else b]) - shift
        for t in range(n):
            out[b, t] = x[b, n - 1 - t]
    return out


def test_reverse_right():
    assert s04.reverse_padded(turn)


@pytest.mark.parametrize(
    "wrong, hint",
    [
        (lambda x, n: x[:, torch.arange(x.shape[1] - 1, -1, -1)], "padding included"),
        (lambda x, n: turn(x, n, shift=1), "off by one"),
        (lambda x, n: turn(x, n, same=True), "one length for all"),
        (lambda x, n: x[list(range(len(x)))[::-1]], "reversed the batch"),
        (lambda x, n: torch.stack([r.roll(-int(k)) for r, k in zip(turn(x, n), n)]), "moved to the front"),
    ],
)
def test_reverse_wrong(wrong, hint):
    result = s04.reverse_padded(wrong)
    assert not result and hint in result.message, result.message
