"""Graded exercises: the reader writes a function, the check says what it gets wrong and, if it can, why.

A check knows the right answer (the package's own, or a library's) and the mistakes that people make. It runs all
of them on the same inputs: an answer that fails the way a known mistake fails is told which one it looks like.
One module a lesson: `llmfs.exercises.l01` and so on.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Args = tuple[Any, ...]


@dataclass(frozen=True)
class Mistake:
    """A known wrong answer, and what to tell someone whose answer behaves like it."""

    wrong: Callable[..., Any]
    hint: str


@dataclass(frozen=True)
class Result:
    """What a check found. It shows its message in a notebook and counts as True where the answer passed."""

    name: str
    passed: bool
    message: str

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return f"{'✓' if self.passed else '✗'} {self.name}: {self.message}"


@dataclass(frozen=True)
class Exercise:
    """A check. Call it with the reader's function.

    right: the reference. cases: makes the inputs, a list of argument tuples (made anew for every run, so that an
    answer that changes its arguments harms nobody). mistakes: tried in order. tolerance: for floats, absolute and
    relative.
    """

    name: str
    right: Callable[..., Any]
    cases: Callable[[], Sequence[Args]]
    mistakes: tuple[Mistake, ...] = ()
    tolerance: float = 1e-5

    def __call__(self, answer: Callable[..., Any]) -> Result:
        """Run the answer on every case -> what was found."""
        if not callable(answer):
            return Result(self.name, False, f"give the check your function, not a {type(answer).__name__}")
        cases = list(self.cases())
        expected = [_outcome(self.right, case) for case in cases]
        got = [_outcome(answer, case) for case in cases]
        failed = [i for i in range(len(cases)) if not self._same(got[i], expected[i])]
        if not failed:
            return Result(self.name, True, f"right on all {len(cases)} cases")
        if all(value is None or value is Ellipsis for value in got):
            return Result(self.name, False, "your function returns nothing yet; write its body and run the cell again")
        for mistake in self.mistakes:
            if all(self._same(_outcome(mistake.wrong, case), out) for case, out in zip(cases, got)):
                return Result(self.name, False, mistake.hint)
        return Result(self.name, False, self._difference(cases[failed[0]], expected[failed[0]], got[failed[0]]))

    def _same(self, a: Any, b: Any) -> bool:
        return same(a, b, self.tolerance)

    def _difference(self, case: Args, expected: Any, got: Any) -> str:
        """The first failing case, for an answer that looks like no known mistake."""
        inputs = ", ".join(_brief(value) for value in case)
        if isinstance(got, _Raised):
            return f"on the input {inputs} your function raised {got.text}"
        return f"on the input {inputs} {self._gap(expected, got)}"

    def _gap(self, expected: Any, got: Any) -> str:
        """What differs; of long lists, the first element that does."""
        if isinstance(expected, torch.Tensor) and isinstance(got, torch.Tensor):
            if expected.shape != got.shape:
                return f"the shape should be {tuple(expected.shape)}, but it is {tuple(got.shape)}"
            if expected.dtype == got.dtype or expected.is_floating_point() == got.is_floating_point():
                gap = (expected.double() - got.double()).abs().max().item()
                return f"the result is off by up to {gap:.3g}"
            return f"the numbers should be {expected.dtype}, but are {got.dtype}"
        if isinstance(expected, (list, tuple)) and isinstance(got, (list, tuple)):
            if len(expected) != len(got):
                return f"it should give {len(expected)} elements, but gives {len(got)}: {_brief(expected)}, not {_brief(got)}"
            if max(len(repr(expected)), len(repr(got))) > _BRIEF:
                i = next((i for i, pair in enumerate(zip(expected, got)) if not self._same(*pair)), 0)
                return f"element {i} of the result is wrong: {self._gap(expected[i], got[i])}"
        return f"it should give {_brief(expected)}, but gives {_brief(got)}"


@dataclass(frozen=True)
class _Raised:
    """An exception as an outcome. One of a subclass will do where its base is expected."""

    kind: type[BaseException]
    text: str


def _outcome(function: Callable[..., Any], case: Args) -> Any:
    try:
        return function(*copy.deepcopy(case))
    except Exception as error:
        return _Raised(type(error), f"{type(error).__name__}: {error}")


def same(a: Any, b: Any, tolerance: float = 1e-5) -> bool:
    """Is the result a like the expected b? Tensors and arrays by shape and value, floats within the tolerance, nan equals nan."""
    if isinstance(a, _Raised) or isinstance(b, _Raised):
        return isinstance(a, _Raised) and isinstance(b, _Raised) and issubclass(a.kind, b.kind)
    if isinstance(a, (torch.Tensor, np.ndarray)) or isinstance(b, (torch.Tensor, np.ndarray)):
        if not all(isinstance(x, (torch.Tensor, np.ndarray, list, tuple, float, int)) for x in (a, b)):
            return False
        try:
            x, y = torch.as_tensor(a).detach().double(), torch.as_tensor(b).detach().double()
        except (ValueError, TypeError):
            return False
        return x.shape == y.shape and torch.allclose(x, y, rtol=tolerance, atol=tolerance, equal_nan=True)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key], tolerance) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(x, y, tolerance) for x, y in zip(a, b))
    if isinstance(a, float) or isinstance(b, float):
        try:
            return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance) or (math.isnan(a) and math.isnan(b))
        except TypeError:
            return False
    return bool(a == b)


_BRIEF = 120  # characters


def _brief(value: Any, limit: int = _BRIEF) -> str:
    """One line for one value."""
    if isinstance(value, (torch.Tensor, np.ndarray)) and math.prod(value.shape) > 8:
        return f"<tensor of shape {tuple(value.shape)}>"
    if isinstance(value, _Raised):
        return f"a {value.kind.__name__}"
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
