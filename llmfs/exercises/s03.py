"""Exercises of S03: the recurrence over a batch, the slope that reaches the first state, and batches that continue."""

from __future__ import annotations

import torch
from torch import Tensor

from llmfs.exercises import Args, Exercise, Mistake
from llmfs.rnn import Weights, rnn_step, scan


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------- one layer


def _rnn(x: Tensor, h: Tensor, W: Tensor, U: Tensor, b: Tensor) -> Tensor:
    """x (B, T, D), h (B, C) -> (B, T, C)."""
    return scan(rnn_step, x, (h,), Weights(W, U, b, torch.zeros_like(b)))[0]


def _rnn_cases() -> list[Args]:
    shapes = [(2, 5, 3, 4), (1, 6, 4, 4), (4, 4, 4, 4), (3, 1, 2, 5)]  # B, T, D, C
    return [
        (_normal(k, B, T, D), _normal(k + 10, B, C), _normal(k + 20, C, D), _normal(k + 30, C, C), _normal(k + 40, C))
        for k, (B, T, D, C) in enumerate(shapes)
    ]


def _no_carry(x: Tensor, h: Tensor, W: Tensor, U: Tensor, b: Tensor) -> Tensor:
    return torch.tanh(x @ W.T + (h @ U.T)[:, None] + b)


def _no_tanh(x: Tensor, h: Tensor, W: Tensor, U: Tensor, b: Tensor) -> Tensor:
    out = []
    for t in range(x.shape[1]):
        h = x[:, t] @ W.T + h @ U.T + b
        out.append(h)
    return torch.stack(out, 1)


def _last_only(x: Tensor, h: Tensor, W: Tensor, U: Tensor, b: Tensor) -> Tensor:
    return _rnn(x, h, W, U, b)[:, -1]


def _no_start(x: Tensor, h: Tensor, W: Tensor, U: Tensor, b: Tensor) -> Tensor:
    return _rnn(x, torch.zeros_like(h), W, U, b)


def _state_not_transposed(x: Tensor, h: Tensor, W: Tensor, U: Tensor, b: Tensor) -> Tensor:
    return _rnn(x, h, W, U.T, b)


def _time_first(x: Tensor, h: Tensor, W: Tensor, U: Tensor, b: Tensor) -> Tensor:
    return _rnn(x, h, W, U, b).transpose(0, 1)


rnn_layer = Exercise(
    "one layer, a whole batch",
    right=_rnn,
    cases=_rnn_cases,
    mistakes=(
        Mistake(
            _no_carry, "Every step starts from the first h: nothing is carried on. Put the new state into h, so that "
                       "the next round of the loop uses it."
        ),
        Mistake(_no_tanh, "Your states are not bent. Each is the tanh of the sum, and the bent one is carried on."),
        Mistake(
            _last_only, "You return the last state alone. The model predicts at every place: keep all states and stack "
                        "them along axis 1."
        ),
        Mistake(_no_start, "You start from zeros and never look at the h that was given. It is the state before x[:, 0]."),
        Mistake(
            _state_not_transposed, "For one state the formula says U @ h. A batch holds its states as rows, so it is "
                                   "h @ U.T. Without the transpose the shapes fit, for U is square, and the numbers "
                                   "are others."
        ),
        Mistake(
            _time_first, "Your numbers are right, but the axes are (T, B, C). Stack along axis 1 to get (B, T, C)."
        ),
    ),
)  # fmt: skip


# ------------------------------------------------------------------------------------ slope of the first state


def _backward(states: Tensor, d_last: Tensor, U: Tensor) -> Tensor:
    """states (B, T, C), d_last (B, C) -> the slope of the state before the first step, (B, C)."""
    dh = d_last
    for t in reversed(range(states.shape[1])):
        dh = (dh * (1 - states[:, t] ** 2)) @ U
    return dh


def _backward_cases() -> list[Args]:
    return [
        (_normal(k, B, T, C).tanh(), _normal(k + 5, B, C), _normal(k + 9, C, C) / 2)
        for k, (B, T, C) in enumerate([(1, 1, 3), (2, 4, 3), (3, 7, 5)])
    ]


def _no_bend(states: Tensor, d_last: Tensor, U: Tensor) -> Tensor:
    return _backward(torch.zeros_like(states), d_last, U)


def _transposed(states: Tensor, d_last: Tensor, U: Tensor) -> Tensor:
    return _backward(states, d_last, U.T)


def _forward_order(states: Tensor, d_last: Tensor, U: Tensor) -> Tensor:
    return _backward(states.flip(1), d_last, U)


def _bend_after(states: Tensor, d_last: Tensor, U: Tensor) -> Tensor:
    dh = d_last
    for t in reversed(range(states.shape[1])):
        dh = (dh @ U) * (1 - states[:, t] ** 2)
    return dh


def _slope_of_state(states: Tensor, d_last: Tensor, U: Tensor) -> Tensor:
    dh = d_last
    for t in reversed(range(states.shape[1])):
        dh = (dh * (1 - states[:, t].tanh() ** 2)) @ U
    return dh


def _one_short(states: Tensor, d_last: Tensor, U: Tensor) -> Tensor:
    return _backward(states[:, 1:], d_last, U)


slope_of_first_state = Exercise(
    "how much reaches the first state",
    right=_backward,
    cases=_backward_cases,
    mistakes=(
        Mistake(_no_bend, "You left out the tanh. Its slope where the output is h is 1 - h², one factor for each channel."),
        Mistake(
            _transposed, "Forward, a row of states goes through U.T. Backward it is the transpose of that, which is U: "
                         "write dh @ U."
        ),
        Mistake(_forward_order, "Walk back: the last step first. Loop over reversed(range(T))."),
        Mistake(
            _bend_after, "The order is wrong. Forward it is first U, then tanh; backward first the tanh, then U. "
                         "Multiply by 1 - h² before the matrix product."
        ),
        Mistake(
            _slope_of_state, "`states` already are the outputs of tanh. The slope is 1 - states² and not "
                             "1 - tanh(states)²."
        ),
        Mistake(
            _one_short, "You are one step short: the state asked for stands before the first step, so there are T "
                        "steps to go back."
        ),
    ),
)  # fmt: skip


# ------------------------------------------------------------------------------------------------- streams


def _streams(tokens: Tensor, B: int, T: int) -> list[tuple[Tensor, Tensor]]:
    """tokens (N,) -> pairs x, y (B, T); row b continues row b of the pair before."""
    length = (len(tokens) - 1) // B
    x = tokens[: B * length].view(B, length)
    y = tokens[1 : B * length + 1].view(B, length)
    return [(x[:, t : t + T], y[:, t : t + T]) for t in range(0, length - T + 1, T)]


def _row_after_row(tokens: Tensor, B: int, T: int) -> list[tuple[Tensor, Tensor]]:
    """Row b + 1 continues row b: the usual way to cut a text into independent rows."""
    n = (len(tokens) - 1) // (B * T)
    x, y = tokens[: n * B * T].view(n, B, T), tokens[1 : n * B * T + 1].view(n, B, T)
    return [(x[k], y[k]) for k in range(n)]


def _dealt_out(tokens: Tensor, B: int, T: int) -> list[tuple[Tensor, Tensor]]:
    length = (len(tokens) - 1) // B
    x, y = tokens[: B * length].view(length, B).T, tokens[1 : B * length + 1].view(length, B).T
    return [(x[:, t : t + T], y[:, t : t + T]) for t in range(0, length - T + 1, T)]


def _not_shifted(tokens: Tensor, B: int, T: int) -> list[tuple[Tensor, Tensor]]:
    return [(x, x) for x, _ in _streams(tokens, B, T)]


def _rolled(tokens: Tensor, B: int, T: int) -> list[tuple[Tensor, Tensor]]:
    return [(x, x.roll(-1, dims=1)) for x, _ in _streams(tokens, B, T)]


def _ragged(tokens: Tensor, B: int, T: int) -> list[tuple[Tensor, Tensor]]:
    length = (len(tokens) - 1) // B
    x, y = tokens[: B * length].view(B, length), tokens[1 : B * length + 1].view(B, length)
    return [(x[:, t : t + T], y[:, t : t + T]) for t in range(0, length, T)]


streams = Exercise(
    "batches that continue",
    right=_streams,
    cases=lambda: [(torch.arange(41), 2, 5), (torch.arange(30), 3, 4), (torch.arange(12) * 7 % 5, 1, 3)],
    mistakes=(
        Mistake(
            _row_after_row, "In your batches row b + 1 continues row b. Then the state that is carried from batch to "
                            "batch belongs to another place of the text. Cut the text into B long streams first, one "
                            "a row, and take T columns at a time."
        ),
        Mistake(
            _dealt_out, "You deal the tokens out to the rows like cards: neighbors in a row are B tokens apart in the "
                        "text. A stream is a stretch of the text: view(B, length), not view(length, B).T."
        ),
        Mistake(_not_shifted, "Your y equals x. The target is the token that follows: cut y from tokens[1:]."),
        Mistake(
            _rolled, "The last target of each piece is its own first token: you shifted within the piece. Shift the "
                     "whole text once, before you cut it."
        ),
        Mistake(_ragged, "Your last batch has fewer than T columns. Drop what does not fill a batch."),
    ),
)  # fmt: skip
