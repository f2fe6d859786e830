"""The checks themselves: right answers pass, each kind of wrong one gets its own hint."""

from __future__ import annotations

import torch

from llmfs.exercises import Exercise, Mistake, same

MEAN = Exercise(
    "mean",
    right=lambda x: x.mean(-1),
    cases=lambda: [(torch.arange(6.0).view(2, 3),), (torch.ones(1, 4),)],
    mistakes=(Mistake(lambda x: x.sum(-1), "that is the sum"), Mistake(lambda x: x.mean(0), "that is the other axis")),
)


def test_right_answer_passes():
    assert MEAN(lambda x: x.sum(-1) / x.shape[-1]).passed


def test_known_mistake_gets_its_hint():
    result = MEAN(lambda x: torch.einsum("bt->b", x))
    assert not result and result.message == "that is the sum"
    assert MEAN(lambda x: x.sum(0) / x.shape[0]).message == "that is the other axis"


def test_unknown_mistake_is_described():
    assert "off by up to 1" in MEAN(lambda x: x.mean(-1) + 1).message
    assert "shape should be (2,)" in MEAN(lambda x: x).message
    assert "raised ZeroDivisionError" in MEAN(lambda x: 1 / 0).message
    assert "returns nothing yet" in MEAN(lambda x: ...).message
    assert "not a int" in MEAN(3).message


def test_an_answer_that_changes_its_input_harms_nobody():
    def destructive(x):
        out = x.mean(-1)
        x.zero_()
        return out

    assert MEAN(destructive).passed and MEAN(destructive).passed


def test_same():
    nan = float("nan")
    assert same({"a": [1.0, nan]}, {"a": (1.0 + 1e-9, nan)}) and not same([1], [1, 2]) and not same("1", 1.0)
    assert (
        same(torch.ones(2), [1.0, 1.0]) and not same(torch.ones(2), torch.ones(1, 2)) and not same("a", torch.ones(1))
    )
