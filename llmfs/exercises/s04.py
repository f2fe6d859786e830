"""Exercises of S04: the paper's GRU, additive attention with padding, and rows turned around within their lengths."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llmfs.exercises import Args, Exercise, Mistake
from llmfs.rnn import AdditiveAttention


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------- the paper's GRU

Gru = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def _gru(x: Tensor, h: Tensor, W: Tensor, U: Tensor, b: Tensor) -> Tensor:
    """x (B, D), h (B, C), parts in the order update, reset, candidate -> (B, C)."""
    z = torch.sigmoid(x @ W[0].T + h @ U[0].T + b[0])
    r = torch.sigmoid(x @ W[1].T + h @ U[1].T + b[1])
    n = torch.tanh(x @ W[2].T + (r * h) @ U[2].T + b[2])
    return z * h + (1 - z) * n


def _gru_cases() -> list[Args]:
    return [
        (_normal(k, B, D), _normal(k + 1, B, C), _normal(k + 2, 3, C, D), _normal(k + 3, 3, C, C), _normal(k + 4, 3, C))
        for k, (B, D, C) in enumerate([(2, 3, 4), (1, 4, 4), (5, 2, 3)])
    ]


def _reset_behind(x: Tensor, h: Tensor, W: Tensor, U: Tensor, b: Tensor) -> Tensor:
    z = torch.sigmoid(x @ W[0].T + h @ U[0].T + b[0])
    r = torch.sigmoid(x @ W[1].T + h @ U[1].T + b[1])
    n = torch.tanh(x @ W[2].T + r * (h @ U[2].T) + b[2])
    return z * h + (1 - z) * n


def _no_reset(x: Tensor, h: Tensor, W: Tensor, U: Tensor, b: Tensor) -> Tensor:
    z = torch.sigmoid(x @ W[0].T + h @ U[0].T + b[0])
    n = torch.tanh(x @ W[2].T + h @ U[2].T + b[2])
    return z * h + (1 - z) * n


def _swapped_ends(x: Tensor, h: Tensor, W: Tensor, U: Tensor, b: Tensor) -> Tensor:
    z = torch.sigmoid(x @ W[0].T + h @ U[0].T + b[0])
    r = torch.sigmoid(x @ W[1].T + h @ U[1].T + b[1])
    n = torch.tanh(x @ W[2].T + (r * h) @ U[2].T + b[2])
    return (1 - z) * h + z * n


def _torch_order(x: Tensor, h: Tensor, W: Tensor, U: Tensor, b: Tensor) -> Tensor:
    swap = [1, 0, 2]
    return _gru(x, h, W[swap], U[swap], b[swap])


def _tanh_gates(x: Tensor, h: Tensor, W: Tensor, U: Tensor, b: Tensor) -> Tensor:
    z = torch.tanh(x @ W[0].T + h @ U[0].T + b[0])
    r = torch.tanh(x @ W[1].T + h @ U[1].T + b[1])
    n = torch.tanh(x @ W[2].T + (r * h) @ U[2].T + b[2])
    return z * h + (1 - z) * n


paper_gru = Exercise(
    "the GRU of the paper",
    right=_gru,
    cases=_gru_cases,
    mistakes=(
        Mistake(
            _reset_behind, "That is PyTorch's cell: the reset gate behind the matrix, r * (h @ U.T). The paper resets the "
                           "state before the matrix, (r * h) @ U.T. With one channel they are equal, with more they are "
                           "not."
        ),
        Mistake(_no_reset, "You compute no reset gate, or do not use it: the candidate sees r * h in place of h."),
        Mistake(
            _swapped_ends, "Your update gate works the other way around: here z keeps the old state, z * h + (1 - z) * n. "
                           "Papers differ in this; the formula of the exercise decides."
        ),
        Mistake(_torch_order, "You took the parts in PyTorch's order, reset first. Here it is update, reset, candidate."),
        Mistake(
            _tanh_gates, "Gates are sigmoids, between 0 and 1. With tanh a gate can be negative and turn a state around."
        ),
    ),
)  # fmt: skip


# -------------------------------------------------------------------------------------- attention with padding


def _attention(
    h: Tensor, values: Tensor, real: Tensor, W: Tensor, U: Tensor, w: Tensor
) -> tuple[Tensor, Tensor]:
    """h (B, C), values (B, S, D), real (B, S) -> found (B, D), weights (B, S), by the package's module."""
    module = AdditiveAttention(W.shape[1], U.shape[1], len(w))
    with torch.no_grad():
        for linear, weight in ((module.q_proj, W), (module.k_proj, U), (module.score, w[None])):
            linear.weight.copy_(weight)
        found, weights = module(h, module.k_proj(values), values, real)
    return found, weights


def _attention_cases() -> list[Args]:
    cases: list[Args] = []
    for k, (B, S, C, D, A) in enumerate([(2, 5, 3, 4, 6), (1, 3, 4, 4, 4), (3, 3, 2, 6, 5)]):
        lengths = torch.tensor([S, 1, 2])[:B]
        real = torch.arange(S) < lengths[:, None]
        values = 3 * _normal(k + 1, B, S, D)
        cases.append((_normal(k, B, C), values, real, _normal(k + 2, A, C), _normal(k + 3, A, D), _normal(k + 4, A)))
    return cases


Found = tuple[Tensor, Tensor]


def _scores(h: Tensor, values: Tensor, W: Tensor, U: Tensor, w: Tensor) -> Tensor:
    return torch.tanh((h @ W.T)[:, None] + values @ U.T) @ w


def _take(weights: Tensor, values: Tensor) -> Found:
    return (weights[:, :, None] * values).sum(1), weights


def _no_mask(h: Tensor, values: Tensor, real: Tensor, W: Tensor, U: Tensor, w: Tensor) -> Found:
    return _take(_scores(h, values, W, U, w).softmax(-1), values)


def _mask_after(h: Tensor, values: Tensor, real: Tensor, W: Tensor, U: Tensor, w: Tensor) -> Found:
    return _take(_scores(h, values, W, U, w).softmax(-1) * real, values)


def _mask_zero(h: Tensor, values: Tensor, real: Tensor, W: Tensor, U: Tensor, w: Tensor) -> Found:
    return _take(_scores(h, values, W, U, w).masked_fill(~real, 0.0).softmax(-1), values)


def _mask_upside_down(h: Tensor, values: Tensor, real: Tensor, W: Tensor, U: Tensor, w: Tensor) -> Found:
    return _take(_scores(h, values, W, U, w).masked_fill(real, -torch.inf).softmax(-1), values)


def _over_batch(h: Tensor, values: Tensor, real: Tensor, W: Tensor, U: Tensor, w: Tensor) -> Found:
    return _take(_scores(h, values, W, U, w).masked_fill(~real, -torch.inf).softmax(0), values)


def _no_tanh(h: Tensor, values: Tensor, real: Tensor, W: Tensor, U: Tensor, w: Tensor) -> Found:
    scores = ((h @ W.T)[:, None] + values @ U.T) @ w
    return _take(scores.masked_fill(~real, -torch.inf).softmax(-1), values)


additive_attention = Exercise(
    "additive attention with padding",
    right=_attention,
    cases=_attention_cases,
    mistakes=(
        Mistake(_no_mask, "Your weights also fall on padding. Set the scores where real is False to -inf before the softmax."),
        Mistake(
            _mask_after, "You mask after the softmax: the weights of a row no longer add up to 1, and the padding has had "
                         "its say in the sum. Mask the scores, before."
        ),
        Mistake(_mask_zero, "A score of 0 is a score like any other: e⁰ = 1. Use -inf, whose exponential is 0."),
        Mistake(_mask_upside_down, "Your mask is upside down: real is True where there is a token."),
        Mistake(
            _over_batch, "Your softmax runs along the batch. The weights over the S places of one source add up to 1: the "
                         "last axis."
        ),
        Mistake(
            _no_tanh, "Without the tanh the query's part, w · W h, is the same for every place, and the softmax does not "
                      "see it: every query looks at the same place."
        ),
    ),
)  # fmt: skip


# -------------------------------------------------------------------------------------- reverse padded rows


def _reverse(x: Tensor, lengths: Tensor) -> Tensor:
    """x (B, T), lengths (B,) -> (B, T)."""
    return torch.stack([torch.cat((row[:n].flip(0), row[n:])) for row, n in zip(x, lengths.tolist())])


def _off_by_one(x: Tensor, lengths: Tensor) -> Tensor:
    return _reverse(x, (lengths - 1).clamp(min=0))


def _first_length(x: Tensor, lengths: Tensor) -> Tensor:
    return _reverse(x, torch.full_like(lengths, int(lengths[0])))


def _rotated(x: Tensor, lengths: Tensor) -> Tensor:
    return torch.stack([torch.cat((row[n:], row[:n].flip(0))) for row, n in zip(x, lengths.tolist())])


reverse_padded = Exercise(
    "turn padded rows around",
    right=_reverse,
    cases=lambda: [
        (torch.tensor([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]]), torch.tensor([3, 5])),
        (torch.tensor([[5, 0, 0], [6, 7, 0], [7, 8, 9]]), torch.tensor([1, 2, 3])),
        (torch.tensor([[3, 1, 4, 1, 5, 9]]), torch.tensor([4])),
    ],
    mistakes=(
        Mistake(
            lambda x, lengths: x.flip(1), "You turned the whole rows around, padding included: now short rows begin with "
                                          "padding. Reverse the first lengths[b] entries alone."
        ),
        Mistake(
            _rotated, "The tokens are reversed, but the padding has moved to the front. It stays on the right."
        ),
        Mistake(lambda x, lengths: x.flip(0), "You reversed the batch. Time is axis 1."),
        Mistake(_off_by_one, "You are off by one: entry t of a row of n comes from n - 1 - t."),
        Mistake(_first_length, "You use one length for all rows; each has its own."),
    ),
)  # fmt: skip
