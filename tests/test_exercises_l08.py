"""L08's checks: right answers pass, and people's wrong ones are told what they look like."""

from __future__ import annotations

import itertools
import math
import random
import statistics

import numpy as np
import pytest
import torch

from llmfs.exercises import l08


def good_adamw(p, g, m, v, t, lr, decay):
    m = m.lerp(g, 0.1)
    v = v.lerp(g**2, 0.01)
    update = (m / (1 - 0.9**t)) / ((v / (1 - 0.99**t)).sqrt() + 1e-8)
    return p * (1 - lr * decay) - lr * update, m, v


def adam_with_l2(p, g, m, v, t, lr, decay):
    return good_adamw(p, g + decay * p, m, v, t, lr, 0.0)


def no_correction(p, g, m, v, t, lr, decay):
    m, v = m * 0.9 + g * 0.1, v * 0.99 + g.pow(2) * 0.01
    return p - lr * (m / (torch.sqrt(v) + 1e-8) + decay * p), m, v


def eps_under_the_root(p, g, m, v, t, lr, decay):
    m, v = m * 0.9 + g * 0.1, v * 0.99 + g.pow(2) * 0.01
    return p - lr * decay * p - lr * (m / (1 - 0.9**t)) / torch.sqrt(v / (1 - 0.99**t) + 1e-8), m, v


def no_decay(p, g, m, v, t, lr, decay):
    return good_adamw(p, g, m, v, t, lr, 0.0)


@pytest.mark.parametrize(
    "answer, hint",
    [
        (adam_with_l2, "L2 regularization"),
        (no_correction, "start at zero"),
        (eps_under_the_root, "eps is added to the root"),
        (no_decay, "nothing decays"),
        (lambda *a: None, "nothing yet"),
        (lambda *a: good_adamw(*a)[0], "should give"),
    ],
)
def test_adamw_step(answer, hint):
    assert l08.adamw_step(good_adamw)
    result = l08.adamw_step(answer)
    assert not result and hint in result.message


@pytest.mark.parametrize(
    "answer, hint",
    [
        (lambda parts: statistics.mean(s / n for s, n in parts), "mean of the micro-batches' means"),
        (lambda parts: np.mean([s / n if n else 0.0 for s, n in parts]).item(), "mean of the micro-batches' means"),
        (lambda parts: np.mean([s for s, _ in parts]).item(), "number of micro-batches"),
        (lambda parts: math.fsum(s for s, _ in parts), "that is the sum"),
    ],
)
def test_mean_loss(answer, hint):
    assert l08.mean_loss(lambda parts: (lambda s, n: sum(s) / sum(n))(*zip(*parts)))
    result = l08.mean_loss(answer)
    assert not result and hint in result.message


def sane(runs):
    means = {rate: statistics.fmean(losses) for rate, losses in runs.items() if np.isfinite(losses).all()}
    return sorted(means, key=means.__getitem__)[0]


@pytest.mark.parametrize(
    "answer, hint",
    [
        (
            lambda runs: min((loss, rate) for rate, losses in runs.items() for loss in losses if loss == loss)[1],
            "luckiest",
        ),
        (lambda runs: min(runs, key=lambda r: statistics.fmean(runs[r])), "nan"),
        (lambda runs: max(runs, key=lambda r: statistics.fmean(runs[r])), "min, not max"),
        (lambda runs: max(r for r in runs if np.isfinite(runs[r]).all()), "largest rate"),
    ],
)
def test_best_rate(answer, hint):
    assert l08.best_rate(sane)
    result = l08.best_rate(answer)
    assert not result and hint in result.message


def test_resumable_batch():
    assert l08.resumable_batch(lambda n, B, seed, step: np.random.default_rng([seed, step]).integers(n, size=B))

    generators: dict[int, random.Random] = {}

    def stateful(n, B, seed, step):
        return [generators.setdefault(seed, random.Random(seed)).randrange(n) for _ in range(B)]

    def restarts(n, B, seed, step, calls=itertools.count()):
        call = next(calls)
        return np.random.default_rng([seed, call if call < 6 else call - 6 if call < 9 else call - 9]).integers(
            n, size=B
        )

    for answer, hint in [
        (stateful, "two different batches"),
        (restarts, "first batches again"),
        (lambda n, B, seed, step: random.Random(seed).choices(range(n), k=B), "same batch"),
        (lambda n, B, seed, step: random.Random(step).choices(range(n), k=B), "another seed"),
        (lambda n, B, seed, step: random.Random(seed + step).choices(range(n), k=B), "a step later"),
        (lambda n, B, seed, step: range(3), "B = 8"),
        (lambda n, B, seed, step: None, "list of row numbers"),
    ]:
        result = l08.resumable_batch(answer)
        assert not result and hint in result.message, (hint, result)
