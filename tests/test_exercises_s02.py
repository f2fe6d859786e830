"""S02's checks: right answers pass, and people's wrong ones are told what they look like."""

from __future__ import annotations

import numpy as np
import pytest

from llmfs.exercises import s02


def good_shape(a, b):
    n = max(len(a), len(b))
    a, b = (1,) * (n - len(a)) + tuple(a), (1,) * (n - len(b)) + tuple(b)
    out = []
    for p, q in zip(a, b):
        if p == q or q == 1:
            out.append(p)
        elif p == 1:
            out.append(q)
        else:
            raise ValueError
    return tuple(out)


def from_the_left(a, b):
    n = max(len(a), len(b))
    return good_shape(tuple(a) + (1,) * (n - len(a)), tuple(b) + (1,) * (n - len(b)))


def common_axes_only(a, b):
    n = min(len(a), len(b))
    return good_shape(a[len(a) - n :], b[len(b) - n :])


def never_raises(a, b):
    n = max(len(a), len(b))
    a, b = (1,) * (n - len(a)) + tuple(a), (1,) * (n - len(b)) + tuple(b)
    return [p if p >= q else q for p, q in zip(a, b)]


def repeats(a, b):
    n = max(len(a), len(b))
    a, b = (1,) * (n - len(a)) + tuple(a), (1,) * (n - len(b)) + tuple(b)
    if any(p % q and q % p for p, q in zip(a, b)):
        raise ValueError
    return tuple(max(p, q) for p, q in zip(a, b))


def the_larger(a, b):
    n = max(len(a), len(b))
    good_shape(a, b)
    a, b = (1,) * (n - len(a)) + tuple(a), (1,) * (n - len(b)) + tuple(b)
    return tuple(map(max, a, b))


@pytest.mark.parametrize(
    "answer, hint",
    [
        (from_the_left, "on the right"),
        (common_axes_only, "leading axes get lost"),
        (never_raises, "must raise a ValueError"),
        (repeats, "does not repeat"),
        (the_larger, "right but for empty arrays"),
        (lambda a, b: None, "nothing yet"),
        (lambda a, b: tuple(a), "should give"),
    ],
)
def test_broadcast_shape(answer, hint):
    assert s02.broadcast_shape(good_shape)
    result = s02.broadcast_shape(answer)
    assert not result and hint in result.message


def good_unbroadcast(grad, shape):
    padded = (1,) * (grad.ndim - len(shape)) + tuple(shape)
    for axis, size in enumerate(padded):
        if size == 1:
            grad = np.add.reduce(grad, axis=axis, keepdims=True)
    return grad.reshape(shape)


def averaged(grad, shape):
    return good_unbroadcast(grad, shape) * (np.prod(shape) / grad.size)


def leading_only(grad, shape):
    while grad.ndim > len(shape):
        grad = grad.sum(0)
    return grad


def axis_lost(grad, shape):
    grad = leading_only(grad, shape)
    for axis in reversed(range(grad.ndim)):
        if shape[axis] == 1 and grad.shape[axis] != 1:
            grad = grad.sum(axis)
    return grad


def one_copy(grad, shape):
    grad = grad[(0,) * (grad.ndim - len(shape))]
    for axis, size in enumerate(shape):
        grad = grad.take(range(size), axis=axis)
    return grad


@pytest.mark.parametrize(
    "answer, hint",
    [
        (averaged, "mean over the copies"),
        (leading_only, "was stretched too"),
        (axis_lost, "removes that axis"),
        (one_copy, "one copy's slope"),
        (lambda grad, shape: grad, "should"),
    ],
)
def test_unbroadcast(answer, hint):
    assert s02.unbroadcast(good_unbroadcast)
    result = s02.unbroadcast(answer)
    assert not result and hint in result.message


@pytest.mark.parametrize(
    "answer, hint",
    [
        (lambda A, B, G: (np.dot(G, B), np.dot(A, G)), "transposes are missing"),
        (lambda A, B, G: ((G @ B.T).T, (A.T @ G).T), "are the transposes of the gradients"),
        (lambda A, B, G: (np.einsum("nk,nm->km", A, G), np.einsum("nm,km->nk", G, B)), "wrong order"),
        (lambda A, B, G: (B * G, A * G), "product of two numbers"),
        (
            lambda A, B, G: (np.tile(B.sum(1), (len(A), 1)), np.tile(A.sum(0)[:, None], (1, B.shape[1]))),
            "G is not used",
        ),
        (lambda A, B, G: ..., "nothing yet"),
    ],
)
def test_matmul_gradients(answer, hint):
    assert s02.matmul_gradients(lambda A, B, G: (np.einsum("nm,km->nk", G, B), np.einsum("nk,nm->km", A, G)))
    result = s02.matmul_gradients(answer)
    assert not result and hint in result.message


def slopes(eps, *, both=True, as_float=True, factor=1.0):
    """Slopes by nudging a flat copy."""

    def answer(f, x):
        x = np.array(x, dtype=float) if as_float else np.array(x)
        out = []
        for i in range(x.size):
            up, down = x.copy(), x.copy()
            up.flat[i] += eps
            if both:
                down.flat[i] -= eps
            out.append(factor * (f(up) - f(down)) / (2 * eps if both else eps))
        return np.reshape(out, x.shape)

    return answer


def together(f, x):
    return (f(x + 1e-6) - f(x)) / 1e-6 * np.ones(x.shape)


@pytest.mark.parametrize(
    "answer, hint",
    [
        (slopes(1e-5, as_float=False), "whole numbers"),
        (slopes(1e-5, as_float=False, both=False), "whole numbers"),
        (together, "all elements at once"),
        (slopes(1.0, both=False), "so large"),
        (slopes(1.0), "so large"),
        (slopes(1e-30), "comes out as zero"),
        (slopes(1e-5, factor=2.0), "by 2 * eps"),
        (slopes(1e-5, both=False), "one side only"),
        (slopes(1e-6, both=False), "one side only"),
    ],
)
def test_numerical_gradient(answer, hint):
    assert s02.numerical_gradient(slopes(1e-6))
    assert s02.numerical_gradient(slopes(1e-4))
    result = s02.numerical_gradient(answer)
    assert not result and hint in result.message
