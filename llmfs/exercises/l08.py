"""The checks of L08, Training the LLM."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from llmfs.exercises import Args, Exercise, Mistake, Result

# --- one step of AdamW ---------------------------------------------------------------------------------

Step = tuple[Tensor, Tensor, Tensor]  # the parameter, the mean and the mean square after the step


def _adamw(
    p: Tensor,
    grad: Tensor,
    mean: Tensor,
    square: Tensor,
    t: int,
    lr: float,
    decay: float,
    *,
    l2: bool = False,
    correct: bool = True,
    eps_inside: bool = False,
    forget: bool = False,
    late: bool = False,
) -> Step:
    """One step with beta 0.9 and 0.99 and eps 1e-8; the options plant mistakes."""
    if l2:
        grad = grad + decay * p
    mean, square = 0.9 * mean + 0.1 * grad, 0.99 * square + 0.01 * grad * grad
    m, v = (mean / (1 - 0.9**t), square / (1 - 0.99**t)) if correct else (mean, square)
    root = (v + 1e-8).sqrt() if eps_inside else v.sqrt() + 1e-8
    if late:
        return (p - lr * m / root) * (1 - lr * decay), mean, square
    shrunk = p if l2 or forget else p - lr * decay * p
    return shrunk - lr * m / root, mean, square


def _torch_adamw(p: Tensor, grad: Tensor, mean: Tensor, square: Tensor, t: int, lr: float, decay: float) -> Step:
    """The same step by `torch.optim.AdamW`."""
    weight = torch.nn.Parameter(p.clone())
    optimizer = torch.optim.AdamW([weight], lr=lr, betas=(0.9, 0.99), eps=1e-8, weight_decay=decay)
    optimizer.state[weight] = {
        "step": torch.tensor(float(t - 1)),
        "exp_avg": mean.clone(),
        "exp_avg_sq": square.clone(),
    }
    weight.grad = grad.clone()
    optimizer.step()
    state = optimizer.state[weight]
    return weight.detach(), state["exp_avg"], state["exp_avg_sq"]


def _adamw_cases() -> list[Args]:
    g = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(5, generator=g, dtype=torch.float64)  # noqa: E731
    zero = torch.zeros(5, dtype=torch.float64)
    return [
        (draw(), draw(), zero, zero, 1, 0.1, 0.5),
        (draw(), draw(), draw(), draw().square(), 7, 0.01, 0.1),
        (draw(), draw() * 1e-4, zero, zero, 1, 0.1, 0.0),
    ]


adamw_step = Exercise(
    "adamw_step",
    right=_torch_adamw,
    cases=_adamw_cases,
    tolerance=1e-9,
    mistakes=(
        Mistake(
            lambda *a: _adamw(*a, l2=True),
            "the decay went into the gradient: that is L2 regularization, which Adam divides away again. AdamW takes "
            "lr * decay * p off the weight itself, past both moments",
        ),
        Mistake(
            lambda *a: _adamw(*a, correct=False),
            "the moments start at zero and are too small at first: divide the mean by 1 - 0.9**t and the mean square "
            "by 1 - 0.99**t",
        ),
        Mistake(lambda *a: _adamw(*a, eps_inside=True), "eps is added to the root, not inside it: sqrt(v) + eps"),
        Mistake(
            lambda *a: _adamw(*a, late=True),
            "the weight decays after the step, and the step with it: take lr * decay * p off the old weight",
        ),
        Mistake(lambda *a: _adamw(*a, forget=True), "nothing decays yet: take lr * decay * p off the weight"),
    ),
)

# --- accumulation --------------------------------------------------------------------------------------


def _token_mean(parts: Sequence[tuple[float, int]]) -> float:
    return sum(loss for loss, _ in parts) / sum(n for _, n in parts)


mean_loss = Exercise(
    "mean_loss",
    right=_token_mean,
    cases=lambda: [([(6.0, 2), (1.0, 1)],), ([(4.0, 1), (3.0, 3)],), ([(3.0, 3), (0.0, 0), (5.0, 1)],)],
    mistakes=(
        Mistake(
            lambda parts: sum(loss / n for loss, n in parts) / len(parts),
            "that is the mean of the micro-batches' means: a token in a small micro-batch counts for more than one in "
            "a large one (and an empty micro-batch divides by zero). Add the sums, add the counts, divide once",
        ),
        Mistake(
            lambda parts: sum(loss / n for loss, n in parts if n) / len(parts),
            "that is the mean of the micro-batches' means: a token in a small micro-batch counts for more than one in "
            "a large one. Add the sums, add the counts, divide once",
        ),
        Mistake(
            lambda parts: sum(loss for loss, _ in parts) / len(parts),
            "you divide by the number of micro-batches; the mean over tokens divides by the number of tokens",
        ),
        Mistake(lambda parts: sum(loss for loss, _ in parts), "that is the sum; divide it by the number of tokens"),
    ),
)

# --- the learning rate ---------------------------------------------------------------------------------


def _best_rate(runs: dict[float, list[float]]) -> float:
    """The rate with the lowest mean held-out loss; a rate that diverged for any seed is out."""
    return min(
        (rate for rate in runs if all(map(math.isfinite, runs[rate]))),
        key=lambda rate: sum(runs[rate]) / len(runs[rate]),
    )


def _mean_of_finite(losses: list[float]) -> float:
    finite = list(filter(math.isfinite, losses))
    return sum(finite) / len(finite)


best_rate = Exercise(
    "best_rate",
    right=_best_rate,
    cases=lambda: [
        ({0.001: [2.0, 2.1], 0.01: [1.0, 1.9], 0.1: [1.4, 1.3]},),
        ({0.1: [math.nan, 1.0], 0.01: [1.5, 1.6], 0.001: [2.0, 2.0]},),
        ({0.01: [1.5, 1.6], 0.1: [math.inf, 0.9], 0.001: [1.6, 1.4]},),
    ],
    mistakes=(
        Mistake(
            lambda runs: min(runs, key=lambda rate: min(runs[rate])),
            "you take the luckiest single run: compare the means over the seeds",
        ),
        Mistake(
            lambda runs: min(runs, key=lambda rate: sum(runs[rate]) / len(runs[rate])),
            "a run whose loss became nan or inf spoils the comparison: nan < 1.0 and 1.0 < nan are both False, so min "
            "keeps whatever came first. Leave out the rates that diverged",
        ),
        Mistake(
            lambda runs: max(runs, key=lambda rate: sum(runs[rate]) / len(runs[rate])),
            "a lower loss is better: min, not max",
        ),
        Mistake(
            lambda runs: min(runs, key=lambda rate: _mean_of_finite(runs[rate])),
            "you average around the run that diverged; a rate that diverges for one seed is not safe. Leave it out",
        ),
        Mistake(
            lambda runs: max(rate for rate in runs if all(map(math.isfinite, runs[rate]))),
            "the largest rate that does not diverge is not yet the best one: compare the losses",
        ),
    ),
)

# --- a batch that survives a restart -------------------------------------------------------------------


def resumable_batch(answer: Callable[[int, int, int, int], Any]) -> Result:
    """answer(n_rows, B, seed, step) must give B row numbers, a pure function of seed and step."""
    name = "resumable_batch"
    try:
        first = [list(map(int, answer(100, 8, 0, step))) for step in range(6)]
        again = [list(map(int, answer(100, 8, 0, step))) for step in (3, 4, 5)]  # what a resumed run asks for
        other_seed = [list(map(int, answer(100, 8, 1, step))) for step in range(6)]
    except TypeError as error:
        return Result(name, False, f"expected a list of row numbers: {error}")
    if any(len(rows) != 8 or not all(0 <= row < 100 for row in rows) for rows in first + other_seed):
        return Result(name, False, "each batch holds B = 8 row numbers from 0 to n_rows - 1")
    if all(rows == first[0] for rows in first):
        return Result(name, False, "every step gets the same batch: the step must enter the seed of the generator")
    if again == first[:3]:
        return Result(
            name,
            False,
            "a resumed run sees the first batches again: your generator starts over with the process. "
            "Seed a new one from (seed, step) in every call",
        )
    if again != first[3:]:
        return Result(
            name,
            False,
            "the same (seed, step) gave two different batches: something outlives the call, a global "
            "generator perhaps. Seed a new one from (seed, step) in every call",
        )
    if other_seed == first:
        return Result(name, False, "another seed gives the same batches: the seed must enter too")
    if sum(a == b for a, b in zip(other_seed[0:5], first[1:6])) >= 4:
        return Result(
            name,
            False,
            "seed 1 sees what seed 0 sees, a step later: seed + step mixes up the two. Give the "
            "generator the pair, as numpy's default_rng([seed, step]) does",
        )
    return Result(name, True, "pure in (seed, step): a restart cannot be told from no restart")
