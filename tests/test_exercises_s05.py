"""S05's checks: right answers pass, and people's wrong ones are told what they look like."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch

from llmfs.exercises import s05


def header(data, *, order="<Q", trust_length=False, trust_offsets=False, cover=True, start=None, keep=False):
    if not trust_length and len(data) < 8:
        raise ValueError("too short")
    (n,) = struct.unpack(order, data[:8].ljust(8, b"\0"))
    if not trust_length and n > len(data) - 8:
        raise ValueError("lies")
    listed = json.loads(data[8 : n + 8].decode())
    tensors = {name: entry for name, entry in listed.items() if keep or name != "__metadata__"}
    behind = len(data[n + 8 if start is None else start :])
    if not trust_offsets and any(e.get("data_offsets", [0, 0])[1] > behind for e in tensors.values()):
        raise ValueError("past the end")
    places = sorted(e["data_offsets"] for e in tensors.values() if "data_offsets" in e)
    edges = [0, *(edge for place in places for edge in place), behind]
    if cover and not trust_offsets and (edges != sorted(edges) or edges[::2] != edges[1::2]):
        raise ValueError("not covered exactly")
    return tensors


@pytest.mark.parametrize(
    "answer, hint",
    [
        (lambda d: header(d, order=">Q"), "little-endian"),
        (lambda d: header(d, trust_length=True), "before you slice"),
        (lambda d: header(d, trust_offsets=True), "claim bytes that the file does not have"),
        (lambda d: header(d, trust_length=True, trust_offsets=True), "you believe the file"),
        (lambda d: header(d, cover=False), "at the ends only"),
        (lambda d: header(d, start=0, cover=False), "count from the end of the header"),
        (lambda d: header(d, keep=True), "__metadata__ is a note"),
        (lambda d: json.loads(d), "raised"),
    ],
)
def test_read_header(answer, hint):
    assert s05.read_header(header)
    result = s05.read_header(answer)
    assert not result and hint in result.message, result


@pytest.mark.parametrize(
    "answer, hint",
    [
        (lambda q, k, v: torch.hstack([q, k, v]), "not turned"),
        (lambda q, k, v: torch.vstack([q, k, v]), "(3C, C)"),
        (lambda q, k, v: torch.vstack([w.t() for w in (q, k, v)]), "on top of each other"),
        (lambda q, k, v: torch.vstack([q, k, v]).T.unflatten(1, (3, -1)).mT.flatten(1), "take turns"),
        (lambda q, k, v: torch.vstack([q, k, v]).view(len(q), 3 * len(q)), "moves none of them"),
        (lambda q, k, v: q, "the shape should be"),
    ],
)
def test_fuse_qkv(answer, hint):
    assert s05.fuse_qkv(lambda q, k, v: torch.hstack([q.t(), k.t(), v.t()]))
    result = s05.fuse_qkv(answer)
    assert not result and hint in result.message, result


def grow(table, rows):
    return torch.from_numpy(np.concatenate([table.numpy(), np.broadcast_to(rows, (len(rows), table.shape[1]))]))


@pytest.mark.parametrize(
    "answer, hint",
    [
        (lambda t, n: torch.nn.functional.pad(t, (0, 0, 0, n)), "logit of 0"),
        (lambda t, n: torch.vstack([t.mean(0)] * n + [t]), "new ids come last"),
        (lambda t, n: grow(t, np.full((n, 3), t.numpy().mean())), "mean of all numbers"),
        (lambda t, n: torch.vstack([t] + [t[-1]] * n), "copies of the last one"),
        (lambda t, n: torch.vstack([t] + [t.sum(0)] * n), "divide it by their number"),
        (lambda t, n: torch.vstack([t, torch.ones(n, 3)]), "off by up to"),
    ],
)
def test_extend_table(answer, hint):
    assert s05.extend_table(lambda t, n: grow(t, np.stack([t.numpy().mean(axis=0)] * n)))
    result = s05.extend_table(answer)
    assert not result and hint in result.message, result


def thaw(step, steps, n_layer):
    part = steps / (n_layer + 1)
    return [step >= part * (n_layer - block) for block in range(n_layer)]


@pytest.mark.parametrize(
    "answer, hint",
    [
        (lambda *a: thaw(*a)[::-1], "from the bottom"),
        (lambda s, n, L: [s >= n / (L + 1) * (L - 1 - i) for i in range(L)], "one block too many"),
        (lambda s, n, L: [i == L - int(s / n * (L + 1)) for i in range(L)], "stays thawed"),
        (lambda s, n, L: [s >= n / (L + 1) * i for i in range(L)], "two things"),
        (lambda s, n, L: [s >= n / L * (L - i) for i in range(L)], "n_layer + 1"),
        (lambda *a: [not trains for trains in thaw(*a)], "frozen ones"),
        (lambda s, n, L: [True] * L, "should give"),
    ],
)
def test_thawed(answer, hint):
    assert s05.thawed(thaw)
    result = s05.thawed(answer)
    assert not result and hint in result.message, result
