"""Exercises of L03: a stable softmax, attention equal to torch's, and their gradients by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from llmfs.exercises import Args, Exercise, Mistake


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------ a stable softmax


def _softmax_cases() -> list[Args]:
    return [
        (torch.tensor([1.0, 2.0, 3.0]),),
        (torch.tensor([[1000.0, 1001.0], [-1000.0, -1001.0], [0.5, 0.5]]),),  # no common maximum
        (torch.tensor([[0.3, -math.inf, 1.2]]),),  # a key that is masked out
        (_normal(0, 2, 3, 4),),  # B, T, S all different: a wrong axis shows
    ]


def _exp_over_sum(scores: Tensor, axis: int = -1) -> Tensor:
    e = scores.exp()
    return e / e.sum(dim=axis, keepdim=True)


def _one_maximum(scores: Tensor) -> Tensor:
    return _exp_over_sum(scores - scores.max())


def _one_sum(scores: Tensor) -> Tensor:
    e = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    return e / e.sum()


def _maximum_not_kept(scores: Tensor) -> Tensor:
    return _exp_over_sum(scores - scores.amax(dim=-1))


def _sum_not_kept(scores: Tensor) -> Tensor:
    e = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    return e / e.sum(dim=-1)


def _log_softmax(scores: Tensor) -> Tensor:
    return scores.log_softmax(dim=-1)


_FIRST_AXIS = (
    "Your softmax runs along the first axis. The keys are the last one: the weights of one query, one row, "
    "must add up to 1. Use dim=-1, which stays right when a batch axis is added in front."
)
_KEEPDIM = (
    "The maximum or the sum of each row has lost its axis: (T, S) has become (T,), and no longer stands "
    "beside its own row. Keep the axis with keepdim=True."
)

stable_softmax = Exercise(
    "stable softmax",
    right=lambda scores: scores.softmax(dim=-1),
    cases=_softmax_cases,
    mistakes=(
        Mistake(
            _exp_over_sum,
            "The formula is right, the numbers are not: exp(1000) is too large for a float and becomes inf, "
            "and inf/inf is nan. Take the row's maximum off first; a softmax does not notice a shift.",
        ),
        Mistake(
            _one_maximum,
            "You take the largest score of the whole tensor off. A row far below it becomes exp(-2000) = 0 "
            "everywhere, and 0/0 is nan. Every row needs its own maximum: amax(dim=-1, keepdim=True).",
        ),
        Mistake(
            _one_sum,
            "All the weights together add up to 1, but each row should: every query hands out its own "
            "weight of 1. Sum with dim=-1, keepdim=True.",
        ),
        Mistake(lambda scores: scores.softmax(dim=0), _FIRST_AXIS),
        Mistake(lambda scores: _exp_over_sum(scores - scores.amax(dim=0, keepdim=True), axis=0), _FIRST_AXIS),
        Mistake(_maximum_not_kept, _KEEPDIM),
        Mistake(_sum_not_kept, _KEEPDIM),
        Mistake(
            _log_softmax,
            "That is the logarithm of the softmax. Attention weights are the probabilities themselves.",
        ),
    ),
    tolerance=1e-4,  # a float near 1000 has no finer steps
)


# ------------------------------------------------------------------------------------------ attention


def _attention_cases() -> list[Args]:
    return [
        (_normal(1, 5, 8), _normal(2, 7, 8), _normal(3, 7, 3)),  # T 5, S 7, and values of another width
        (_normal(4, 2, 3, 4, 16), _normal(5, 2, 3, 4, 16), _normal(6, 2, 3, 4, 16)),  # B 2, H 3, T = S = 4
    ]


def _attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, axis: int = -1) -> Tensor:
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return (q @ k.transpose(-2, -1) * scale).softmax(dim=axis) @ v


def _other_scale(scale: Callable[[Tensor, Tensor], float]) -> Callable[..., Tensor]:
    return lambda q, k, v: _attention(q, k, v, scale=scale(q, k))


def _scaled_too_late(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _attention(q, k, v, scale=1.0) / math.sqrt(q.shape[-1])


def _roles_swapped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _attention(k, q, v)


def _weights_alone(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(dim=-1)


def _no_softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]) @ v


def _plain_transpose(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.permute(*range(k.dim() - 1, -1, -1)) / math.sqrt(q.shape[-1])).softmax(dim=-1) @ v


attention = Exercise(
    "attention",
    right=F.scaled_dot_product_attention,
    cases=_attention_cases,
    mistakes=(
        Mistake(
            _other_scale(lambda q, k: 1.0),
            "The scores are not scaled. Their spread grows with the width of q, and the softmax saturates; "
            "divide them by the square root of that width, q.shape[-1].",
        ),
        Mistake(
            _other_scale(lambda q, k: 1 / q.shape[-1]),
            "You divide by d. The variance of a score is d, so its standard deviation is √d: divide by the "
            "square root.",
        ),
        Mistake(
            lambda q, k, v: _attention(q, k, v, scale=1 / math.sqrt(v.shape[-1])),
            "You divide by the square root of the width of the values. A score is a sum over the width of q: take q.shape[-1].",
        ),
        Mistake(
            _other_scale(lambda q, k: math.sqrt(q.shape[-1])),
            "You multiply the scores by √d: that makes the spread larger still. Divide.",
        ),
        Mistake(
            _other_scale(lambda q, k: 1 / math.sqrt(k.shape[-2])),
            "You scale by the number of keys. What a dot product adds up is d channels, so the width "
            "counts: q.shape[-1].",
        ),
        Mistake(
            _scaled_too_late,
            "You scale after the softmax. By then it is saturated, and the weights no longer add up to 1. "
            "Scale the scores.",
        ),
        Mistake(
            lambda q, k, v: _attention(q, k, v, axis=-2),
            "Your softmax runs over the queries. Every query spreads a weight of 1 over the keys, and those "
            "are the last axis of the scores: dim=-1.",
        ),
        Mistake(
            _roles_swapped,
            "Queries and keys have changed places. The scores are (..., T, S): one row a query, one column "
            "a key, q @ k.mT.",
        ),
        Mistake(
            _weights_alone,
            "You return the weights. The output is what they collect: weights @ v.",
        ),
        Mistake(
            _no_softmax,
            "There is no softmax: the scores themselves are used as weights, and can be negative.",
        ),
        Mistake(
            _plain_transpose,
            "k.T turns all axes around, the batch's and the heads' too. Swap the last two alone: "
            "k.transpose(-2, -1), or k.mT.",
        ),
    ),
)


# ------------------------------------------------------------------------------------------ gradients


def _softmax_backward(weights: Tensor, grad: Tensor) -> Tensor:
    """The reference, by autograd. Any scores with these weights will do: their logarithms."""
    scores = weights.log().requires_grad_()
    (scores.softmax(dim=-1) * grad).sum().backward()
    assert scores.grad is not None
    return scores.grad


def _backward_cases() -> list[Args]:
    return [
        (torch.tensor([0.5, 0.25, 0.25]), torch.tensor([1.0, 0.0, 0.0])),
        (_normal(7, 2, 3, 5).softmax(dim=-1), _normal(8, 2, 3, 5)),
    ]


softmax_backward = Exercise(
    "softmax backward",
    right=_softmax_backward,
    cases=_backward_cases,
    mistakes=(
        Mistake(
            lambda w, g: w * g,
            "The term that the weights share is missing. All weights divide by one sum, so raising one "
            "score lowers every other weight: take off each row's mean gradient, (w * g).sum(-1, "
            "keepdim=True).",
        ),
        Mistake(
            lambda w, g: w * (1 - w) * g,
            "You use the diagonal of the Jacobian alone, the rule of a sigmoid. A score also moves the "
            "other weights of its row: dw_i/da_j = -w_i w_j for i ≠ j.",
        ),
        Mistake(
            lambda w, g: g - (w * g).sum(dim=-1, keepdim=True),
            "Nearly: the difference still has to be multiplied by w. A key with almost no weight gets "
            "almost no gradient.",
        ),
        Mistake(
            lambda w, g: w * (g - g.mean(dim=-1, keepdim=True)),
            "The mean of the gradients must be weighted by w: (w * g).sum(-1, keepdim=True).",
        ),
        Mistake(
            lambda w, g: w * (g - (w * g).sum()),
            "You sum over the whole tensor. Each row is a softmax of its own: sum with dim=-1, keepdim=True.",
        ),
        Mistake(
            lambda w, g: w * (g + (w * g).sum(dim=-1, keepdim=True)),
            "A sign: the other weights fall when a score rises, so the shared term is subtracted.",
        ),
    ),
)


def _attention_backward(q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """The reference: autograd through torch's own attention."""
    q, k, v = (x.detach().clone().requires_grad_() for x in (q, k, v))
    return torch.autograd.grad(F.scaled_dot_product_attention(q, k, v), (q, k, v), grad)


def _by_hand(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, *, scale_back: bool = True, whole_softmax: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    scale = 1 / math.sqrt(q.shape[-1])
    w = (q @ k.mT * scale).softmax(dim=-1)  # (..., T, S)
    dw = grad @ v.mT  # (..., T, S)
    ds = w * (dw - (w * dw).sum(dim=-1, keepdim=True)) if whole_softmax else w * dw
    ds = ds * scale if scale_back else ds
    return ds @ k, ds.mT @ q, w.mT @ grad


def _value_by_weights(q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, _ = _by_hand(q, k, v, grad)
    return dq, dk, (q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1) @ grad


def _key_untransposed(q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    w = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1)
    dw = grad @ v.mT
    ds = w * (dw - (w * dw).sum(dim=-1, keepdim=True)) / math.sqrt(q.shape[-1])
    return ds @ k, ds @ q, w.mT @ grad


def _attention_backward_cases() -> list[Args]:
    return [(_normal(9, 2, 4, 8), _normal(10, 2, 4, 8), _normal(11, 2, 4, 8), _normal(12, 2, 4, 8))]


attention_backward = Exercise(
    "attention backward",
    right=_attention_backward,
    cases=_attention_backward_cases,
    mistakes=(
        Mistake(
            lambda *a: _by_hand(*a, scale_back=False),
            "The gradients of q and k lack the factor 1/√d: the scores were scaled on the way forward, so "
            "their gradient is scaled on the way back.",
        ),
        Mistake(
            lambda *a: _by_hand(*a, whole_softmax=False),
            "The way back through the softmax lacks its shared term; `softmax_backward` of the exercise before has it.",
        ),
        Mistake(
            _value_by_weights,
            "The gradient of v goes the other way through the weights: what a key gave to every query comes "
            "back from every query, weights.mT @ grad.",
        ),
        Mistake(
            _key_untransposed,
            "The gradient of k needs the scores' gradient transposed, (S, T) @ (T, d): a key gathers from all queries.",
        ),
        Mistake(
            lambda *a: _by_hand(*a)[::-1],
            "These are the right gradients in another order: return dq, dk, dv.",
        ),
    ),
    tolerance=1e-4,
)
