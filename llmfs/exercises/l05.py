"""L05: normalization, the residual stream, and an init that knows the depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfs.config import GPTConfig
from llmfs.exercises import Args, Exercise, Mistake, Result
from llmfs.gpt import GPT

Map = Callable[[Tensor], Tensor]  # (..., C) -> (..., C)


# LayerNorm ----------------------------------------------------------------------------------------


def _vectors(*shape: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + shift


def _layer_norm_cases() -> list[Args]:
    """Narrow vectors show the wrong variance, small ones a misplaced eps, odd gains a forgotten gain."""
    return [
        (_vectors(2, 5, 8, seed=0, shift=1.0), _vectors(8, seed=1, shift=2.0), _vectors(8, seed=2), 1e-5),
        (_vectors(3, 8, seed=3, scale=1e-3), torch.ones(8), torch.zeros(8), 1e-5),
        (_vectors(4, 4, seed=4, scale=30.0), _vectors(4, seed=5), _vectors(4, seed=6), 1e-3),
    ]


def _layer_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), gain, bias, eps)


def _standardized(x: Tensor, eps: float, *, dims: Any = -1, unbiased: bool = False) -> Tensor:
    mean, variance = x.mean(dims, keepdim=True), x.var(dims, keepdim=True, unbiased=unbiased)
    return (x - mean) / (variance + eps).sqrt()


def _eps_outside(x: Tensor, eps: float, unbiased: bool) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True, unbiased=unbiased) + eps)


layer_norm = Exercise(
    "layer_norm",
    right=_layer_norm,
    cases=_layer_norm_cases,
    mistakes=(
        Mistake(
            lambda x, gain, bias, eps: _standardized(x, eps, unbiased=True) * gain + bias,
            "your variance divides by C - 1, as `x.var()` does unless told otherwise: a statistician's "
            "estimate. LayerNorm divides by C, because the vector is all there is: pass "
            "`unbiased=False`",
        ),
        Mistake(
            lambda x, gain, bias, eps: _eps_outside(x, eps, unbiased=False) * gain + bias,
            "eps is added to the standard deviation; it belongs to the variance, inside the root. "
            "Vectors of ordinary size hide the difference, small ones show it",
        ),
        Mistake(
            lambda x, gain, bias, eps: _eps_outside(x, eps, unbiased=True) * gain + bias,
            "two slips at once: the variance divides by C - 1 where it should divide by C, and eps "
            "stands outside the root where it should stand inside",
        ),
        Mistake(
            lambda x, gain, bias, eps: _standardized(x, eps, dims=0) * gain + bias,
            "you normalize over the first dimension, which mixes different vectors (that is closer to "
            "BatchNorm). LayerNorm looks at one vector at a time: the last dimension",
        ),
        Mistake(
            lambda x, gain, bias, eps: _standardized(x, eps, dims=tuple(range(x.dim()))) * gain + bias,
            "one mean and one variance for the whole tensor: then a token changes with its neighbors. "
            "Take them over the last dimension, with `keepdim=True`",
        ),
        Mistake(
            lambda x, gain, bias, eps: _standardized(x, eps),
            "the vectors are normalized, but the gain and the bias are not used: multiply by one, add the other",
        ),
        Mistake(
            lambda x, gain, bias, eps: (
                (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + eps) * gain + bias
            ),
            "you divide by the variance; divide by its root, the standard deviation",
        ),
        Mistake(
            lambda x, gain, bias, eps: F.rms_norm(x, (x.shape[-1],), gain, eps) + bias,
            "the mean is not taken off: this is RMSNorm with a bias. Subtract each vector's mean first",
        ),
    ),
)


# RMSNorm ------------------------------------------------------------------------------------------


def _rms_norm_cases() -> list[Args]:
    return [
        (_vectors(2, 5, 8, seed=7, shift=1.0), _vectors(8, seed=8, shift=2.0), 1e-5),
        (_vectors(3, 8, seed=9, scale=1e-3), torch.ones(8), 1e-5),
        (_vectors(4, 4, seed=10, scale=30.0), _vectors(4, seed=11), 1e-3),
    ]


def _mean_square(x: Tensor, dims: Any = -1) -> Tensor:
    return x.square().mean(dims, keepdim=True)


rms_norm = Exercise(
    "rms_norm",
    right=lambda x, gain, eps: F.rms_norm(x, (x.shape[-1],), gain, eps),
    cases=_rms_norm_cases,
    mistakes=(
        Mistake(
            lambda x, gain, eps: F.layer_norm(x, (x.shape[-1],), gain, None, eps),
            "you take the mean off: that is LayerNorm without a bias. RMSNorm leaves the mean where it is",
        ),
        Mistake(
            lambda x, gain, eps: x / (x.square().sum(-1, keepdim=True) + eps).sqrt() * gain,
            "you divide by the length of the vector (the root of the *sum* of squares), so the result "
            "shrinks as C grows. RMS is the root of the *mean* of squares",
        ),
        Mistake(
            lambda x, gain, eps: x / (_mean_square(x).sqrt() + eps) * gain,
            "eps stands outside the root; add it to the mean square, then take the root",
        ),
        Mistake(
            lambda x, gain, eps: x / (_mean_square(x) + eps) * gain,
            "the root is missing: you divide by the mean square, not by the root mean square",
        ),
        Mistake(
            lambda x, gain, eps: x / (_mean_square(x, tuple(range(x.dim()))) + eps).sqrt() * gain,
            "one mean square for the whole tensor: each vector needs its own. Take the mean over the "
            "last dimension, with `keepdim=True`",
        ),
        Mistake(
            lambda x, gain, eps: x / (_mean_square(x) + eps).sqrt(), "the gain is not used: multiply by it at the end"
        ),
    ),
)


# The residual stream ------------------------------------------------------------------------------


def _stream_cases() -> list[Args]:
    """Parts and norms are plain functions, different from each other, so that each misuse shows."""
    a, b = _vectors(6, 6, seed=12), _vectors(6, 6, seed=13)

    def norm(gain: float) -> Map:
        return lambda x: gain * F.layer_norm(x, (6,))

    parts: list[Map] = [lambda x: torch.tanh(x @ a), lambda x: F.gelu(x @ b), lambda x: x.cumsum(-1)]
    return [
        (_vectors(2, 3, 6, seed=14), parts, [norm(1.0), norm(0.5), norm(2.0)], norm(3.0)),
        (_vectors(4, 6, seed=15, scale=10.0), parts[:1], [norm(0.7)], norm(1.5)),
        (_vectors(4, 6, seed=16), [], [], norm(1.5)),
    ]


def _through(step: Callable[[Tensor, Map, Map], Tensor], last: bool = True) -> Callable[..., Tensor]:
    """A whole stack from what it does at one part: step(x, part, norm) -> x."""

    def stack(x: Tensor, parts: Sequence[Map], norms: Sequence[Map], final_norm: Map) -> Tensor:
        for part, norm in zip(parts, norms):
            x = step(x, part, norm)
        return final_norm(x) if last else x

    return stack


def _normalize_the_stream(x: Tensor, part: Map, norm: Map) -> Tensor:
    x = norm(x)
    return x + part(x)


def _read_once(x: Tensor, parts: Sequence[Map], norms: Sequence[Map], final_norm: Map) -> Tensor:
    return final_norm(x + sum((part(norm(x)) for part, norm in zip(parts, norms)), torch.zeros_like(x)))


residual_stream = Exercise(
    "residual_stream",
    right=_through(lambda x, part, norm: x + part(norm(x))),
    cases=_stream_cases,
    mistakes=(
        Mistake(
            _through(lambda x, part, norm: x + part(norm(x)), last=False),
            "the final norm is missing: nothing has normalized the stream itself, and the head would "
            "read it at whatever size it has grown to",
        ),
        Mistake(
            _through(_normalize_the_stream),
            "you overwrite the stream with its normalized self (`x = norm(x)`), so nothing passes the "
            "part untouched. Normalize only what the part reads: `x + part(norm(x))`",
        ),
        Mistake(
            _through(lambda x, part, norm: norm(x + part(x))),
            "this is post-norm, the order of the 2017 paper: the sum is normalized. Pre-norm "
            "normalizes what the part reads",
        ),
        Mistake(
            _through(lambda x, part, norm: part(norm(x))),
            "there is no residual: each part's output replaces the stream. Add it to the stream",
        ),
        Mistake(
            _through(lambda x, part, norm: x + norm(part(x))),
            "you normalize what the part writes. The part should read normalized numbers: `part(norm(x))`",
        ),
        Mistake(
            _read_once,
            "every part reads the same x. They work one after the other: each reads the stream as the "
            "earlier ones left it",
        ),
    ),
)


# The scaled init ----------------------------------------------------------------------------------


def _models() -> list[Args]:
    """Small GPTs of different depth, MLP and head, at GPT-2's plain 0.02."""
    models = []
    for seed, settings in enumerate(
        (
            dict(n_layer=2, mlp="swiglu"),
            dict(n_layer=5, mlp="gelu", bias=True),
            dict(n_layer=8, mlp="swiglu", tie_weights=True),
        )
    ):
        generator = torch.Generator().manual_seed(seed)
        model = GPT(
            GPTConfig(vocab_size=11, block_size=8, n_head=2, n_embd=16, **settings),  # type: ignore[arg-type]
            generator=generator,
        )
        for p in model.parameters():
            nn.init.normal_(p, std=0.02, generator=generator)
        models.append((model,))
    return models


def _scales(change: Callable[[GPT], Any]) -> Callable[[GPT], dict[str, Tensor]]:
    """What `change` did to a model -> by how much each parameter grew or shrank, by name."""

    def measure(model: GPT) -> dict[str, Tensor]:
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        change(model)
        return {name: p.detach() / before[name] for name, p in model.named_parameters()}

    return measure


def _scale(suffixes: tuple[str, ...], factor: Callable[[int], float]) -> Callable[[GPT], dict[str, Tensor]]:
    """Multiply what is named so by factor(L)."""

    @torch.no_grad()
    def change(model: GPT) -> None:
        for name, p in model.named_parameters():
            if name.endswith(suffixes):
                p.mul_(factor(model.config.n_layer))

    return _scales(change)


_WRITERS = ("o_proj.weight", "down_proj.weight")


def _right_factor(n_layer: int) -> float:
    return 1 / math.sqrt(2 * n_layer)


_scaled_init = Exercise(
    "scaled_init",
    right=_scale(_WRITERS, _right_factor),
    cases=_models,
    mistakes=(
        Mistake(
            _scale((), _right_factor),
            "no weight has changed. Change the weights in place, under `torch.no_grad()`: "
            "`block.attn.o_proj.weight.mul_(...)`",
        ),
        Mistake(
            _scale(("o_proj.weight", "up_proj.weight"), _right_factor),
            "you scale the up projection. It reads the stream; the matrix that writes to it is `down_proj`",
        ),
        Mistake(
            _scale(("o_proj.weight",), _right_factor),
            "attention's writer is scaled, the MLP's is not: `mlp.down_proj` writes to the stream too",
        ),
        Mistake(
            _scale(("down_proj.weight",), _right_factor),
            "the MLP's writer is scaled, attention's is not: `attn.o_proj` writes to the stream too",
        ),
        Mistake(
            _scale(("_proj.weight",), _right_factor),
            "you scale every matrix of the block. Only the two that write into the stream start "
            "smaller; the others read normalized numbers, and their size does not add up over the "
            "layers",
        ),
        Mistake(
            _scale(_WRITERS, lambda n: 1 / math.sqrt(n)),
            "your factor is 1/√L, but each block writes twice, once from attention and once from the "
            "MLP: 2L writers add up",
        ),
        Mistake(
            _scale(_WRITERS, lambda n: 1 / (2 * n)),
            "the root is missing: it is the *variances* of 2L independent writers that add up, so "
            "their size grows like √(2L), and that is what to divide by",
        ),
        Mistake(
            _scale(_WRITERS, lambda n: math.sqrt(2 * n)),
            "you multiply by √(2L); divide, so that the sum of all the writers stays the same size",
        ),
    ),
)


def scaled_init(answer: Any) -> Result:
    """Check a function that scales a GPT's writers in place; what it returns does not matter."""
    return _scaled_init(_scales(answer) if callable(answer) else answer)
