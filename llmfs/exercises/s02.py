"""Exercises of S02: the shape of a broadcast, its gradient, the gradients of a matrix product, slopes by nudging."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from llmfs.exercises import Args, Exercise, Mistake

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

# --- the shape of a broadcast --------------------------------------------------------------------------


def _aligned_left(a: Shape, b: Shape) -> Shape:
    pairs = itertools.zip_longest(a, b, fillvalue=1)
    return tuple(_fit(m, n) for m, n in pairs)


def _shorter(a: Shape, b: Shape) -> Shape:
    """Only the axes that both have."""
    return tuple(_fit(m, n) for m, n in zip(a[::-1], b[::-1]))[::-1]


def _unchecked(a: Shape, b: Shape) -> Shape:
    pairs = itertools.zip_longest(a[::-1], b[::-1], fillvalue=1)
    return tuple(max(m, n) for m, n in pairs)[::-1]


def _multiples(a: Shape, b: Shape) -> Shape:
    """Lets 2 stretch to 4."""
    pairs = list(itertools.zip_longest(a[::-1], b[::-1], fillvalue=1))
    if any(min(m, n) and max(m, n) % min(m, n) for m, n in pairs):
        raise ValueError("not a multiple")
    return tuple(max(m, n) for m, n in pairs)[::-1]


def _larger(a: Shape, b: Shape) -> Shape:
    """Right, but for a size of 0."""
    return tuple(max(m, n) for m, n in zip(np.broadcast_shapes(a, b), _unchecked(a, b)))


def _fit(m: int, n: int) -> int:
    if m != n and 1 not in (m, n):
        raise ValueError(f"{m} and {n} do not fit")
    return n if m == 1 else m


broadcast_shape = Exercise(
    "broadcast_shape",
    right=lambda a, b: np.broadcast_shapes(a, b),
    cases=lambda: [
        ((3, 4), (4,)),
        ((5, 1), (1, 3)),
        ((2, 3, 4), (3, 1)),
        ((), (2, 2)),
        ((3,), (4,)),
        ((4, 2), (4,)),
        ((2, 6), (2, 3)),
        ((7,), (7,)),
        ((3, 2), (5, 1, 2)),
        ((0, 3), (1, 3)),
    ],
    mistakes=(
        Mistake(
            _aligned_left,
            "you line the shapes up on the left. They are lined up on the right: the last axis of one meets the last "
            "axis of the other, and missing axes in front count as 1",
        ),
        Mistake(
            _shorter,
            "zip stops at the shorter shape, so leading axes get lost. An axis that one shape lacks counts as 1 "
            "(itertools.zip_longest has a fillvalue)",
        ),
        Mistake(
            _unchecked,
            "you take the larger size without asking whether the two fit: 3 and 4 must raise a ValueError. Only a size "
            "of 1 is stretched",
        ),
        Mistake(_multiples, "only a size of 1 is stretched: 3 does not repeat to fill 6"),
        Mistake(
            _larger,
            "right but for empty arrays: a 1 takes the other's size, and that may be 0; so take the size that is not 1, "
            "not the larger one",
        ),
    ),
)

# --- its gradient --------------------------------------------------------------------------------------


def _unbroadcast(grad: Array, shape: Shape, reduce: Callable[..., Array] = np.sum, keep: bool = True) -> Array:
    """Undo the stretching: `reduce` over every axis along which `shape` was repeated."""
    leading = grad.ndim - len(shape)
    grad = reduce(grad, axis=tuple(range(leading))) if leading else grad
    axes = tuple(i for i, n in enumerate(shape) if n == 1 and grad.shape[i] > 1)
    return reduce(grad, axis=axes, keepdims=keep) if axes else grad


def _unbroadcast_by_torch(grad: Array, shape: Shape) -> Array:
    x = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    x.broadcast_to(grad.shape).backward(torch.from_numpy(grad))
    assert x.grad is not None
    return x.grad.numpy()


def _only_leading(grad: Array, shape: Shape) -> Array:
    return grad.sum(axis=tuple(range(grad.ndim - len(shape)))) if grad.ndim > len(shape) else grad


def _first(grad: Array, shape: Shape) -> Array:
    """One of the copies instead of all of them."""
    while grad.ndim > len(shape):
        grad = grad[0]
    return grad[tuple(slice(0, n) for n in shape)]


def _draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).normal(size=shape)


unbroadcast = Exercise(
    "unbroadcast",
    right=_unbroadcast_by_torch,
    cases=lambda: [
        (_draw(4, 3), (3,)),
        (_draw(4, 3), (4, 1)),
        (_draw(2, 4, 3), (1, 3)),
        (_draw(4, 3), (4, 3)),
        (_draw(4, 3), ()),
        (_draw(5, 1), (1, 1)),
    ],
    mistakes=(
        Mistake(
            lambda grad, shape: _unbroadcast(grad, shape, np.mean),
            "that is the mean over the copies. A number that was used five times moves the loss through all five: its "
            "slope is the sum",
        ),
        Mistake(
            _only_leading,
            "the axes in front are summed away, but an axis of size 1 was stretched too: sum over it, and keep it with "
            "keepdims=True",
        ),
        Mistake(
            lambda grad, shape: _unbroadcast(grad, shape, keep=False),
            "the sum over a stretched axis removes that axis; keepdims=True leaves it with size 1, as the shape asks",
        ),
        Mistake(_first, "you keep one copy's slope and throw the others away; add them all up"),
    ),
)

# --- the gradients of a matrix product -----------------------------------------------------------------


def _matmul_by_torch(A: Array, B: Array, G: Array) -> tuple[Array, Array]:
    a, b = (torch.tensor(x, requires_grad=True) for x in (A, B))
    (a @ b).backward(torch.from_numpy(G))
    assert a.grad is not None and b.grad is not None
    return a.grad.numpy(), b.grad.numpy()


matmul_gradients = Exercise(
    "matmul_gradients",
    right=_matmul_by_torch,
    cases=lambda: [
        (_draw(2, 3), _draw(3, 4), _draw(2, 4)),
        (_draw(3, 3), _draw(3, 3, seed=1), _draw(3, 3, seed=2)),
        (_draw(5, 1), _draw(1, 2), _draw(5, 2)),
    ],
    mistakes=(
        Mistake(
            lambda A, B, G: (G @ B, A @ G),
            "the transposes are missing. Square matrices hide it: the shapes fit and the numbers are wrong. Each gradient "
            "has the shape of what it belongs to; only G @ B.T and A.T @ G have",
        ),
        Mistake(
            lambda A, B, G: (B @ G.T, G.T @ A),
            "these are the transposes of the gradients: dA must have the shape of A, so G stands first, G @ B.T",
        ),
        Mistake(
            lambda A, B, G: (A.T @ G, G @ B.T),
            "the two are right, in the wrong order: the gradient of A is the one that has the shape of A",
        ),
        Mistake(
            lambda A, B, G: (G * B, G * A),
            "that is the rule of the product of two numbers, element by element. In a matrix product each element of A "
            "meets a whole row of B",
        ),
        Mistake(
            lambda A, B, G: (np.ones_like(G) @ B.T, A.T @ np.ones_like(G)),
            "G is not used: the slope of the loss with respect to the product must be passed on to A and B",
        ),
    ),
)

# --- slopes by nudging ---------------------------------------------------------------------------------

Loss = Callable[[Array], float]


def _nudge(f: Loss, x: Array, eps: float = 1e-5, sides: int = 2) -> Array:
    """A slope for each element of x; the options plant mistakes."""
    x = np.asarray(x, dtype=float).copy()
    grad, start = np.zeros(x.shape), f(x)
    for i in np.ndindex(x.shape):
        old = x[i]
        x[i] = old + eps
        up = f(x)
        x[i] = old - eps
        grad[i] = (up - f(x)) / (2 * eps) if sides == 2 else (up - start) / eps
        x[i] = old
    return grad


def _all_at_once(f: Loss, x: Array) -> Array:
    return np.full(np.shape(x), (f(x + 1e-5) - f(x - 1e-5)) / 2e-5)


def _in_integers(f: Loss, x: Array, sides: int = 2) -> Array:
    """A copy keeps the type: what is stored in an array of whole numbers is cut off to one."""
    x = np.array(x)
    grad, start = np.zeros(x.shape), f(x)
    for i in np.ndindex(x.shape):
        old = x[i]
        x[i] = old + 1e-5
        up = f(x)
        x[i] = old - 1e-5
        grad[i] = (up - f(x)) / 2e-5 if sides == 2 else (up - start) / 1e-5
        x[i] = old
    return grad


WHOLE_NUMBERS = (
    "right for floats, but one input holds whole numbers, and what you store in an integer array is cut off to a whole "
    "number: 3 + 1e-5 becomes 3, and 3 - 1e-5 becomes 2. Turn x into floats first: x.astype(float)"
)


def _slope_cases() -> list[Args]:
    w = _draw(3)
    return [
        (lambda x: float((x**3).sum()), np.array([1.0, -2.0, 0.5])),
        (lambda x: float(np.tanh(x @ w).sum()), _draw(2, 3)),
        (lambda x: float((x * x).sum()), np.array([[3, 1], [0, -2]])),
        (lambda x: float(100 * x[0] * x[1]), np.array([2.0, 5.0])),
        (lambda x: float((1000 * x * x).sum()), np.array([0.0, 1.0])),  # bends: a nudge to one side shows
    ]


numerical_gradient = Exercise(
    "numerical_gradient",
    right=_nudge,
    cases=_slope_cases,
    tolerance=1e-4,
    mistakes=(
        Mistake(_in_integers, WHOLE_NUMBERS),
        Mistake(lambda f, x: _in_integers(f, x, sides=1), WHOLE_NUMBERS),
        Mistake(
            _all_at_once,
            "you nudge all elements at once, so each slope is the sum of all slopes. Nudge one element at a time",
        ),
        Mistake(
            lambda f, x: _nudge(f, x, eps=1.0, sides=1),
            "the nudge is so large that the slope changes along it; take about 1e-5",
        ),
        Mistake(
            lambda f, x: _nudge(f, x, eps=1.0),
            "the nudge is so large that the slope changes along it; take about 1e-5",
        ),
        Mistake(
            lambda f, x: np.zeros(np.shape(x)),
            "every slope comes out as zero: the nudge is so small that x + eps is x again. Take about 1e-5",
        ),
        *(
            Mistake(
                lambda f, x, eps=eps: _nudge(f, x, eps=eps, sides=1),
                "you nudge to one side only. Where the function bends, that is off by the bend times the nudge; nudge to "
                "both sides and divide by 2 * eps, and the two errors cancel",
            )
            for eps in (1e-3, 1e-4, 1e-5, 1e-6)
        ),
        Mistake(
            lambda f, x: 2 * _nudge(f, x),
            "from one side to the other the input moves by 2 * eps, not by eps",
        ),
    ),
)
