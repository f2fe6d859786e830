"""The checks of L02: right answers pass, and each wrong answer gets the hint that is meant for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from llmfs.exercises import l02

# ------------------------------------------------------------------------------ the lookup, backward


def scattered(ids, grad, vocab_size):
    out, rows = torch.zeros(vocab_size, grad.shape[-1]), grad.reshape(-1, grad.shape[-1])
    return out.index_add_(0, ids.reshape(-1), rows)


def one_hot_product(ids, grad, vocab_size):
    onehot = torch.eye(vocab_size)[ids]
    return torch.einsum("btv,btc->vc", onehot, grad)


def assigned(ids, grad, vocab_size):
    out = np.zeros((vocab_size, grad.shape[-1]), dtype=np.float32)
    for b in range(ids.shape[0]):
        for t in range(ids.shape[1]):
            out[ids[b, t]] = grad[b, t]
    return torch.from_numpy(out)


def first_assigned(ids, grad, vocab_size):
    out, seen = torch.zeros(vocab_size, grad.shape[-1]), set()
    for i, g in zip(ids.reshape(-1).tolist(), grad.reshape(-1, grad.shape[-1]), strict=True):
        if i not in seen:
            out[i] = g
        seen.add(i)
    return out


def averaged(ids, grad, vocab_size):
    out = torch.zeros(vocab_size, grad.shape[-1])
    for i in range(vocab_size):
        if (ids == i).any():
            out[i] = grad[ids == i].mean(0)
    return out


def test_lookup_gradient_passes():
    assert l02.lookup_gradient(scattered) and l02.lookup_gradient(one_hot_product)


def test_lookup_gradient_by_hand():
    ids, grad = torch.tensor([[1, 1]]), torch.tensor([[[1.0, 2.0], [10.0, 20.0]]])
    assert l02.lookup_gradient.right(ids, grad, 3).tolist() == [[0, 0], [11, 22], [0, 0]]


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (assigned, "has replaced the others"),
        (first_assigned, "has replaced the others"),
        (averaged, "mean over the places"),
        (lambda i, g, V: g.reshape(-1, g.shape[-1]).sum(0).expand(V, -1), "sum of all gradients"),
        (lambda i, g, V: scattered(i, g, V)[sorted(set(i.reshape(-1).tolist()))], "rows that were used"),
        (lambda i, g, V: scattered(i, g, V).T, "(C, V)"),
        (lambda i, g, V: g.clone(), "what the lookup gave"),
        (lambda i, g, V: scattered(i, -g, V), "off by"),  # no known mistake: described
        (lambda i, g, V: None, "returns nothing yet"),
    ],
)
def test_lookup_gradient_hints(answer, hint):
    result = l02.lookup_gradient(answer)
    assert not result and hint in result.message


# ------------------------------------------------------------------------------ sinusoids


def waves(n, C, *, sine=0, cosine=1, exponent=lambda c: c - c % 2, start=0, sign=-1.0):
    """One number at a time; `exponent` says which power a channel has, times C."""
    out = np.zeros((n, C))
    for t in range(n):
        for c in range(C):
            angle = (t + start) * 10000 ** (sign * exponent(c) / C)
            out[t, c] = {sine: np.sin, cosine: np.cos}[c % 2](angle)
    return out


def test_sinusoids_pass():
    assert l02.sinusoids(waves)
    assert l02.sinusoids(lambda n, C: torch.from_numpy(waves(n, C)).float())


def test_sinusoids_by_hand():
    """n = 2, C = 4: the angles at position 1 are 1 and 1/100."""
    table = l02.sinusoids.right(2, 4)
    expected = torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.8414710, 0.5403023, 0.0099998, 0.9999500]])
    torch.testing.assert_close(table, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda n, C: np.concatenate((waves(n, C)[:, ::2], waves(n, C)[:, 1::2]), 1), "before all the cosines"),
        (lambda n, C: waves(n, C, sine=1, cosine=0), "changed places"),
        (lambda n, C: waves(n, C, exponent=lambda c: c), "frequency of its own"),
        (lambda n, C: waves(n, C, exponent=lambda c: c // 2), "half of what"),
        (lambda n, C: waves(n, C, exponent=lambda c: 2 * (c - c % 2)), "twice what"),
        (lambda n, C: waves(n, C, sign=1.0), "divide by it"),
        (lambda n, C: waves(n, C, start=1), "begin at 1"),
        (lambda n, C: waves(n, C).T, "(C, n)"),
        (lambda n, C: torch.zeros(n, C), "off by"),
        (lambda n, C: ..., "returns nothing yet"),
    ],
)
def test_sinusoids_hints(answer, hint):
    result = l02.sinusoids(answer)
    assert not result and hint in result.message


# ------------------------------------------------------------------------------ a rotary score


def turn(x, t, *, halves=True, exponent=2.0, sign=1):
    """Pairs as complex numbers: turning is multiplying by e^(i angle)."""
    x = x.double()
    hd = x.shape[-1]
    a, b = (x[: hd // 2], x[hd // 2 :]) if halves else (x[0::2], x[1::2])
    angles = sign * t * 10000.0 ** (-exponent * torch.arange(hd // 2).double() / hd)
    return torch.complex(a, b) * torch.polar(torch.ones_like(angles), angles)


def dot(a, b):
    return (a * b.conj()).real.sum()


def test_rope_score_passes():
    assert l02.rope_score(lambda q, k, m, n: dot(turn(q, m), turn(k, n)))
    assert l02.rope_score(lambda q, k, m, n: dot(turn(q, m - n), turn(k, 0)).item())


def test_rope_score_by_hand():
    """Two channels turn by one radian a position: the angle between equal vectors is the distance."""
    x = torch.tensor([1.0, 0.0])
    assert l02.rope_score.right(x, x, 5, 3).item() == pytest.approx(np.cos(2.0), abs=1e-6)


def sinusoid_added(x, t):
    return x.double() + torch.from_numpy(waves(t + 1, len(x))[t])


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda q, k, m, n: torch.dot(q, k), "Nothing is turned"),
        (lambda q, k, m, n: dot(turn(q, m), turn(k, 0)), "Only the query"),
        (lambda q, k, m, n: dot(turn(q, 0), turn(k, n)), "Only the key"),
        (lambda q, k, m, n: dot(turn(q, m + n), turn(k, 0)), "sum m + n"),
        (lambda q, k, m, n: dot(turn(q, m, sign=-1), turn(k, n, sign=-1)), "wrong way"),
        (lambda q, k, m, n: dot(turn(q, m, halves=False), turn(k, n, halves=False)), "2i and 2i + 1"),
        (lambda q, k, m, n: dot(turn(q, m, exponent=1), turn(k, n, exponent=1)), "too fast"),
        (lambda q, k, m, n: dot(turn(q, m), turn(k, n)) / len(q) ** 0.5, "division by √hd"),
        (lambda q, k, m, n: sinusoid_added(q, m) @ sinusoid_added(k, n), "turn, and add nothing"),
        (lambda q, k, m, n: dot(turn(q, m), turn(k, n)) * 2, "off by"),
        (lambda q, k, m, n: None, "returns nothing yet"),
    ],
)
def test_rope_score_hints(answer, hint):
    result = l02.rope_score(answer)
    assert not result and hint in result.message


# ------------------------------------------------------------------------------ tying


def assign(embed, head):
    head.weight = embed.weight


def assign_the_other_way(embed, head):
    embed.weight = head.weight


def copy_into(embed, head):
    with torch.no_grad():
        head.weight.copy_(embed.weight)


def copy_of(embed, head):
    head.weight = nn.Parameter(embed.weight.clone().detach())


def wrap(embed, head):
    head.weight = nn.Parameter(embed.weight)


def share_data(embed, head):
    head.weight.data = embed.weight.data


def transpose(embed, head):
    head.weight = nn.Parameter(embed.weight.detach().T.contiguous())


def frozen(embed, head):
    embed.weight.requires_grad_(False)
    head.weight = embed.weight


def fresh(embed, head):
    embed.weight = head.weight = nn.Parameter(torch.zeros(7, 3))


def rebind(embed, head):
    head = embed  # noqa: F841


def half(embed, head):
    with torch.no_grad():
        head.weight.copy_(embed.weight / 2)


@pytest.mark.parametrize("answer", [assign, assign_the_other_way])
def test_tying_passes(answer):
    assert l02.tying(answer)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (copy_into, "copied the values"),
        (copy_of, "copied the values"),
        (wrap, "share memory"),
        (share_data, "share memory"),
        (transpose, "do not transpose"),
        (frozen, "takes no gradient"),
        (fresh, "neither the table's nor the head's"),
        (rebind, "nothing is tied yet"),
        (half, "neither one parameter nor"),
        (lambda embed, head: None, "nothing is tied yet"),
        (lambda embed, head: embed.wait, "raised AttributeError"),
        (lambda embed, head: head.weight.data.copy_(embed.weight.T), "neither is transposed"),
    ],
)
def test_tying_hints(answer, hint):
    result = l02.tying(answer)
    assert not result and hint in result.message
