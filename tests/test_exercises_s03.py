"""The checks of S03 take right answers and name wrong ones, both written anew here."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llmfs.exercises import s03

# --- one layer -------------------------------------------------------------------------------------------


def by_torch(x, h, W, U, b):
    cell = nn.RNN(x.shape[2], h.shape[1], batch_first=True)
    with torch.no_grad():
        for p, value in zip(cell.parameters(), (W, U, b, torch.zeros_like(b))):
            p.copy_(value)
    return cell(x, h[None])[0].detach()


def loop(x, h, W, U, b, *, carry=True, bend=True, start=True, transpose=True):
    h = h if start else h * 0
    out = torch.empty(*x.shape[:2], len(b))
    for t in range(x.shape[1]):
        a = x[:, t] @ W.T + h @ (U.T if transpose else U) + b
        new = a.tanh() if bend else a
        out[:, t] = new
        h = new if carry else h
    return out


def test_rnn_layer_right():
    assert s03.rnn_layer(by_torch) and s03.rnn_layer(loop)


@pytest.mark.parametrize(
    "wrong, hint",
    [
        (lambda *a: loop(*a, carry=False), "nothing is carried on"),
        (lambda *a: loop(*a, bend=False), "not bent"),
        (lambda *a: loop(*a, start=False), "start from zeros"),
        (lambda *a: loop(*a, transpose=False), "h @ U.T"),
        (lambda *a: loop(*a)[:, -1], "last state alone"),
        (lambda *a: loop(*a).permute(1, 0, 2), r"\(T, B, C\)"),
        (lambda *a: None, "returns nothing yet"),
    ],
)
def test_rnn_layer_wrong(wrong, hint):
    result = s03.rnn_layer(wrong)
    assert not result
    pytest.importorskip("re").search(hint, result.message) or pytest.fail(result.message)


# --- slope -----------------------------------------------------------------------------------------------


def by_autograd(states, d_last, U):
    """Inputs that give these very states: a = atanh(h_t) - U h_(t-1)."""
    first = torch.zeros_like(d_last).requires_grad_()
    before = [torch.zeros_like(d_last), *states.unbind(1)][:-1]
    h = first
    for t, old in enumerate(before):
        h = torch.tanh(torch.atanh(states[:, t].double()) - old.double() @ U.double().T + h.double() @ U.double().T)
    return torch.autograd.grad((h * d_last).sum(), first)[0]


def back(states, d_last, U, *, slope=lambda h: 1 - h * h, order=reversed, steps=lambda n: range(n), matrix=None):
    d = d_last
    for t in order(list(steps(states.shape[1]))):
        d = (d * slope(states[:, t])) @ (U if matrix is None else matrix(U))
    return d


def bent_after(states, d_last, U):
    for t in range(states.shape[1] - 1, -1, -1):
        d_last = d_last @ U * (1 - states[:, t].square())
    return d_last


def test_slope_right():
    assert s03.slope_of_first_state(by_autograd) and s03.slope_of_first_state(back)


@pytest.mark.parametrize(
    "wrong, hint",
    [
        (lambda *a: back(*a, slope=torch.ones_like), "left out the tanh"),
        (lambda *a: back(*a, matrix=lambda U: U.T), "write dh @ U"),
        (lambda *a: back(*a, order=list), "Walk back"),
        (bent_after, "The order is wrong"),
        (lambda *a: back(*a, slope=lambda h: 1 - h.tanh() ** 2), "already are the outputs"),
        (lambda *a: back(*a, steps=lambda n: range(1, n)), "one step short"),
    ],
)
def test_slope_wrong(wrong, hint):
    result = s03.slope_of_first_state(wrong)
    assert not result and hint in result.message, result.message


# --- streams ---------------------------------------------------------------------------------------------


def plain_streams(tokens, B, T):
    text, length = tokens.tolist(), (len(tokens) - 1) // B
    pairs = []
    for k in range(length // T):
        places = [[b * length + k * T + t for t in range(T)] for b in range(B)]
        pairs.append(tuple(torch.tensor([[text[p + s] for p in row] for row in places]) for s in (0, 1)))
    return pairs


def rows_in_order(tokens, B, T):
    pairs, n = [], (len(tokens) - 1) // (B * T)
    for k in range(n):
        starts = [(k * B + b) * T for b in range(B)]
        pairs.append(tuple(torch.stack([tokens[s + d : s + d + T] for s in starts]) for d in (0, 1)))
    return pairs


def test_streams_right():
    assert s03.streams(plain_streams)


@pytest.mark.parametrize(
    "wrong, hint",
    [
        (rows_in_order, "row b + 1 continues row b"),
        (lambda t, B, T: [(x, x.clone()) for x, _ in plain_streams(t, B, T)], "Your y equals x"),
        (lambda t, B, T: [(x, torch.cat((x[:, 1:], x[:, :1]), 1)) for x, _ in plain_streams(t, B, T)], "within the piece"),
        (
            lambda t, B, T: [
                (t[:-1][: (len(t) - 1) // B * B].reshape(-1, B)[k : k + T].T, t[1:][: (len(t) - 1) // B * B].reshape(-1, B)[k : k + T].T)
                for k in range(0, (len(t) - 1) // B // T * T, T)
            ],
            "like cards",
        ),
    ],
)
def test_streams_wrong(wrong, hint):
    result = s03.streams(wrong)
    assert not result and hint in result.message, result.message
