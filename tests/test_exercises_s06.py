"""S06's checks: right answers pass, and people's wrong ones are told what they look like."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmfs.exercises import s06
from llmfs.gpt import GPT


def flops(c, n, T, *, forward=1, back=2, head=1, table=0, kv=None, gates=3, scores=4):
    """Product by product."""
    kv = (kv or c.n_kv_head) * (c.n_embd // c.n_head)
    each = [c.n_embd**2] * 2 + [c.n_embd * kv] * 2 + [c.n_embd * c.d_ff] * gates
    weights = sum(each) * c.n_layer + (head + table) * c.vocab_size * c.n_embd
    return n * (forward + back) * (2 * weights + scores * c.n_embd * T * c.n_layer)


@pytest.mark.parametrize(
    "answer, hint",
    [
        (lambda c, n, T: flops(c, n, T, back=0), "forward pass alone"),
        (lambda c, n, T: flops(c, n, T, scores=0), "weighted sums are missing"),
        (lambda c, n, T: flops(c, n, T, scores=4 / 3), "two more backward"),
        (lambda c, n, T: flops(c, n, T, scores=2), "with all keys"),
        (lambda c, n, T: flops(c, n, T, head=0), "the head is missing"),
        (lambda c, n, T: 6 * n * GPT(c).n_params(), "every parameter counts the table"),
        (lambda c, n, T: flops(c, n, T, table=1), "a lookup copies a row"),
        (lambda c, n, T: flops(c, n, T, kv=c.n_head), "may be fewer"),
        (lambda c, n, T: flops(c, n, T, scores=4 * c.n_kv_head / c.n_head), "every query head still meets"),
        (lambda c, n, T: flops(c, n, T, gates=2), "three matrices"),
        (lambda c, n, T: flops(c, 1, T), "one token's share"),
        (lambda c, n, T: flops(c, n * T, T), "not the number of sequences"),
        (lambda c, n, T: flops(c, n, T, back=1), "should give"),
    ],
)
def test_train_flops(answer, hint):
    assert s06.train_flops(flops)
    result = s06.train_flops(answer)
    assert not result and hint in result.message, result


def norms(shards):
    return [np.sqrt((shard.numpy() ** 2).sum()) for shard in shards]


@pytest.mark.parametrize(
    "answer, hint",
    [
        (lambda shards: float(np.sum(norms(shards))), "their squares do"),
        (lambda shards: float(np.mean(norms(shards))), "the mean of the norms"),
        (lambda shards: float(norms(shards)[0]), "first process's own share"),
        (lambda shards: float(np.max(norms(shards))), "the largest share"),
        (lambda shards: float(np.sum(np.square(norms(shards)))), "the root is missing"),
        (lambda shards: float(np.sqrt(sum((s**2).mean().item() for s in shards))), "forgets how large"),
        (lambda shards: sum(shards).norm().item(), "not copies to be added"),
        (lambda shards: float(np.sqrt(np.mean(np.square(norms(shards))))), "should give"),
    ],
)
def test_global_norm(answer, hint):
    assert s06.global_norm(lambda shards: float(np.linalg.norm(norms(shards))))
    result = s06.global_norm(answer)
    assert not result and hint in result.message, result


def int8(weight, scales, rounding=np.rint):
    numbers = np.clip(rounding(weight.numpy() / scales.numpy()[:, None]), -128, 127)
    return torch.from_numpy(numbers.astype(np.int8)), scales


def peaks(weight):
    return torch.from_numpy(np.abs(weight.numpy()).max(axis=1))


@pytest.mark.parametrize(
    "answer, hint",
    [
        (lambda w: int8(w, torch.full((len(w),), w.abs().max().item() / 127)), "one scale for the whole matrix"),
        (lambda w: ((w / (s := w.abs().max(0).values / 127)).round().to(torch.int8), s), "each column"),
        (lambda w: int8(w, peaks(w) / 127, np.trunc), "round first"),
        (lambda w: int8(w, peaks(w) / 128), "so it is cut"),
        (lambda w: int8(w, w.max(1).values / 127), "the largest magnitude"),
        (lambda w: ((w * (127 / peaks(w))[:, None]).round(), peaks(w) / 127), "still floats"),
        (lambda w: (int8(w, peaks(w) / 127)[0], 127 / peaks(w)), "upside down"),
        (lambda w: (int8(w, peaks(w) / 127)[0], peaks(w)[:, None] / 127), "without a second dimension"),
        (lambda w: (int8(w, s := peaks(w) / 127)[0] * s[:, None], s), "multiplied them by the scales"),
    ],
)
def test_to_int8(answer, hint):
    assert s06.to_int8(lambda w: int8(w, peaks(w) / 127))
    result = s06.to_int8(answer)
    assert not result and hint in result.message, result


def test_to_int8_that_wraps_around():
    def wraps(w):
        scales = peaks(w) / 128
        numbers = torch.round(w / scales[:, None]).to(torch.int32)
        return ((numbers + 128) % 256 - 128).to(torch.int8), scales

    assert "wraps around" in s06.to_int8(wraps).message
