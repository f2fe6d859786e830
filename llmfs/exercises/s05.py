"""The checks of S05, Starting from GPT-2."""

from __future__ import annotations

import json
from typing import Any, Literal

import torch
from torch import Tensor

from llmfs.exercises import Args, Exercise, Mistake

# --- the header of a safetensors file ------------------------------------------------------------------


def _read_header(
    data: bytes,
    *,
    order: Literal["little", "big"] = "little",
    length: bool = True,
    offsets: bool = True,
    cover: bool = True,
    whole: bool = False,
    metadata: bool = False,
) -> dict[str, Any]:
    """The tensors that a file lists; the options plant mistakes."""
    n = int.from_bytes(data[:8], order)
    if length and (len(data) < 8 or 8 + n > len(data)):
        raise ValueError("the header is longer than the file")
    header: dict[str, Any] = json.loads(data[8 : 8 + n])
    if not metadata:
        header.pop("__metadata__", None)
    room = len(data) if whole else max(0, len(data) - 8 - n)
    place = 0  # where the next tensor must begin
    for start, end in sorted(entry["data_offsets"] for entry in header.values() if "data_offsets" in entry):
        if offsets and end > room:
            raise ValueError("a tensor lies past the end of the file")
        if offsets and cover and (start != place or end < start):
            raise ValueError("a gap, an overlap, or an end before its start")
        place = end
    if offsets and cover and place != room:
        raise ValueError("bytes at the end belong to no tensor")
    return header


def _file(header: dict[str, Any], n_bytes: int, claim: int | None = None) -> bytes:
    """A file with this header and so many bytes behind it; claim: the length that it gives its header."""
    text = json.dumps(header).encode()
    return (len(text) if claim is None else claim).to_bytes(8, "little") + text + bytes(n_bytes)


def _two(*offsets: list[int]) -> dict[str, Any]:
    return {
        name: {"dtype": "F32", "shape": [2], "data_offsets": place}
        for name, place in zip(("wte.weight", "ln_f.bias"), offsets)
    }


def _header_cases() -> list[Args]:
    tensors = {
        "wte.weight": {"dtype": "F32", "shape": [5, 2], "data_offsets": [0, 40]},
        "ln_f.bias": {"dtype": "F16", "shape": [2], "data_offsets": [40, 44]},
    }
    return [
        (_file(tensors, 44),),
        (_file({"__metadata__": {"format": "pt"}, **tensors}, 44),),
        (_file(tensors, 44, claim=2**40),),
        (_file(tensors, 43),),
        (_file({"wte.weight": {"dtype": "F32", "shape": [500], "data_offsets": [0, 2000]}}, 40),),
        (b"\x02\x00\x00",),
        (_file({}, 0, claim=2**40),),
        (_file(_two([0, 8], [4, 12]), 12),),  # overlap
        (_file(_two([0, 8], [12, 20]), 20),),  # gap
        (_file(_two([0, 8], [8, 4]), 4),),  # ends before it starts
        (_file(_two([8, 16], [0, 8]), 16),),  # in another order: no fault
        (_file(tensors, 50),),  # six bytes of nobody
    ]


read_header = Exercise(
    "read_header",
    right=_read_header,
    cases=_header_cases,
    mistakes=(
        Mistake(
            lambda data: _read_header(data, order="big"),
            "the eight bytes are a little-endian number, the lowest byte first",
        ),
        Mistake(
            lambda data: _read_header(data, length=False),
            "a file may claim a longer header than it has: compare the claim with the file's length before you slice, "
            "for a slice past the end is silently short; raise ValueError, also where there are not even eight bytes",
        ),
        Mistake(
            lambda data: _read_header(data, offsets=False),
            "a tensor may claim bytes that the file does not have: compare the end of its data_offsets with the bytes "
            "behind the header",
        ),
        Mistake(
            lambda data: _read_header(data, cover=False),
            "you look at the ends only. Two tensors may claim the same bytes, or one may end before it starts: sort by "
            "the start, and let each begin where the one before ends, and the last end where the file ends",
        ),
        Mistake(
            lambda data: _read_header(data, length=False, offsets=False),
            "you believe the file: refuse a header longer than the file and tensors that do not cover the bytes behind "
            "it exactly, with ValueError",
        ),
        Mistake(
            lambda data: _read_header(data, whole=True, cover=False),
            "data_offsets count from the end of the header, not from the start of the file",
        ),
        Mistake(
            lambda data: _read_header(data, metadata=True),
            "__metadata__ is a note by the one who wrote the file, not a tensor: leave it out",
        ),
    ),
)

# --- back to GPT-2's fused projection ------------------------------------------------------------------


def _fuse_cases() -> list[Args]:
    g = torch.Generator().manual_seed(0)
    return [tuple(torch.randn(C, C, generator=g) for _ in range(3)) for C in (4, 6)]


fuse_qkv = Exercise(
    "fuse_qkv",
    right=lambda q, k, v: torch.cat((q, k, v)).T.contiguous(),
    cases=_fuse_cases,
    mistakes=(
        Mistake(
            lambda q, k, v: torch.cat((q, k, v), dim=1),
            "side by side, but not turned: nn.Linear keeps (out, in), Conv1D (in, out)",
        ),
        Mistake(
            lambda q, k, v: torch.cat((q, k, v), dim=0),
            "that is (3C, C), the weight of one nn.Linear for all three; Conv1D keeps (in, out), here (C, 3C)",
        ),
        Mistake(
            lambda q, k, v: torch.cat((q.T, k.T, v.T), dim=0),
            "each is turned, but they stand on top of each other: they lie side by side, along the last dimension",
        ),
        Mistake(
            lambda q, k, v: torch.stack((q.T, k.T, v.T), dim=-1).flatten(1),
            "the columns of q, k and v take turns; q's columns come first, then k's, then v's",
        ),
        Mistake(
            lambda q, k, v: torch.stack((q, k, v)).reshape(q.shape[0], -1),
            "reshape reads the numbers in their order and moves none of them: turn each, then put them side by side",
        ),
    ),
)

# --- rows for new tokens -------------------------------------------------------------------------------


def _table_cases() -> list[Args]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(V, 3, generator=g) * 0.1 + torch.tensor([1.0, -2.0, 0.5]), n) for V, n in ((5, 1), (8, 3))]


def _grown(table: Tensor, rows: Tensor) -> Tensor:
    return torch.cat((table, rows))


extend_table = Exercise(
    "extend_table",
    right=lambda table, n: _grown(table, table.mean(0).expand(n, -1)),
    cases=_table_cases,
    mistakes=(
        Mistake(
            lambda table, n: _grown(table, torch.zeros(n, table.shape[1])),
            "rows of zeros give the new tokens a logit of 0 everywhere. Where all other logits are negative, as in the "
            "real GPT-2, that makes them the likeliest tokens of all",
        ),
        Mistake(
            lambda table, n: torch.cat((table.mean(0).expand(n, -1), table)),
            "the new rows stand in front, so every old token has the row of another: new ids come last",
        ),
        Mistake(
            lambda table, n: _grown(table, table.mean().expand(n, table.shape[1])),
            "that is the mean of all numbers: take the mean row, over the tokens (dim 0), one number a channel",
        ),
        Mistake(
            lambda table, n: _grown(table, table[-1:].expand(n, -1)),
            "the new tokens begin as copies of the last one, and take half of its probability or more",
        ),
        Mistake(
            lambda table, n: _grown(table, table.sum(0).expand(n, -1)),
            "that is the sum of the rows; divide it by their number",
        ),
    ),
)

# --- gradual unfreezing --------------------------------------------------------------------------------


def _thawed(
    step: int, steps: int, n_layer: int, *, shift: int = 0, bottom: bool = False, one: bool = False
) -> list[bool]:
    """Which blocks train, the lowest first; the options plant mistakes."""
    n = min(n_layer, step * (n_layer + 1) // steps + shift)
    flags = [n_layer - n <= i < (n_layer - n + 1 if one else n_layer) for i in range(n_layer)]
    return flags[::-1] if bottom else flags


thawed = Exercise(
    "thawed",
    right=_thawed,
    cases=lambda: [
        *((0, 80, 3), (19, 80, 3), (20, 80, 3), (45, 80, 3), (79, 80, 3), (6, 10, 4), (0, 6, 1), (5, 6, 1)),
        *((3, 8, 12), (4, 10, 3)),  # parts that do not come out whole
    ],
    mistakes=(
        Mistake(
            lambda *a: _thawed(*a, bottom=True),
            "you thaw from the bottom: the lowest blocks are the most general, so the top block thaws first",
        ),
        Mistake(
            lambda *a: _thawed(*a, shift=1),
            "one block too many: in the first part every block is frozen, and only the head and the norm learn",
        ),
        Mistake(
            lambda *a: _thawed(*a, one=True),
            "a block that is thawed stays thawed; you freeze it again when the next one's turn comes",
        ),
        Mistake(
            lambda step, steps, n_layer: _thawed(step, steps, n_layer, shift=1, bottom=True),
            "two things: the top block thaws first, and in the first part none is thawed",
        ),
        Mistake(
            lambda step, steps, n_layer: [n_layer - step * n_layer // steps <= i for i in range(n_layer)],
            "there is one part more than there are blocks, n_layer + 1: the first is for the head alone",
        ),
        Mistake(
            lambda *a: [not flag for flag in _thawed(*a)],
            "True stands for a block that trains; yours are the frozen ones",
        ),
    ),
)
