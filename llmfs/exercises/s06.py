"""The checks of S06, At scale."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from llmfs.config import GPTConfig
from llmfs.exercises import Args, Exercise, Mistake
from llmfs.quantize import quantize_rows
from llmfs.scale import flops_per_token, n_params

# --- the operations of a training ------------------------------------------------------------------------


def _matrices(config: GPTConfig, kv_heads: int | None = None, mlp: int = 3) -> int:
    """The weights of the blocks' matrices; the options plant mistakes."""
    C = config.n_embd
    kv = (config.kv_heads if kv_heads is None else kv_heads) * config.head_size
    return config.n_layer * (2 * C * C + 2 * C * kv + mlp * C * config.ff_size)


def _flops(config: GPTConfig, n_tokens: int, length: int, *, weights: int | None = None, scores: float = 12.0) -> float:
    weights = _matrices(config) + config.n_embd * config.vocab_size if weights is None else weights
    return n_tokens * (6 * weights + scores * config.n_layer * config.n_embd * length)


def _flops_cases() -> list[Args]:
    shape = dict(vocab_size=1000, block_size=256, n_layer=3, n_head=4, n_embd=64, d_ff=160)
    return [
        (GPTConfig(**shape), 1_000_000, 256),  # type: ignore[arg-type]
        (GPTConfig(**shape), 1_000_000, 64),  # type: ignore[arg-type]
        (GPTConfig(**{**shape, "n_kv_head": 2}), 5_000, 128),  # type: ignore[arg-type]
    ]


train_flops = Exercise(
    "train_flops",
    right=lambda config, n_tokens, length: n_tokens * flops_per_token(config, length),
    cases=_flops_cases,
    mistakes=(
        Mistake(
            lambda c, n, T: n * flops_per_token(c, T, backward=False),
            "that is the forward pass alone: the backward pass has two products for each of its own, so three times as much",
        ),
        Mistake(
            lambda c, n, T: _flops(c, n, T, scores=0.0),
            "attention's scores and weighted sums are missing: 12 L C times the length for each token, work that no "
            "weight stands for",
        ),
        Mistake(
            lambda c, n, T: _flops(c, n, T, scores=4.0),
            "attention's scores and sums are products too: each has two more backward, so 12 L C T in place of 4 L C T",
        ),
        Mistake(
            lambda c, n, T: _flops(c, n, T, scores=6.0),
            "you leave out the half of the scores that the mask hides; here every query counts with all keys",
        ),
        Mistake(
            lambda c, n, T: _flops(c, n, T, weights=_matrices(c)),
            "the head is missing: each token is multiplied by its C times V weights",
        ),
        Mistake(
            lambda c, n, T: _flops(c, n, T, weights=_matrices(c) + 2 * c.n_embd * c.vocab_size),
            "you count the token table as an input too: a lookup copies a row and multiplies nothing",
        ),
        Mistake(
            lambda c, n, T: 6 * n * n_params(c),
            "6 N with every parameter counts the table that is only looked up in, and leaves attention's scores out",
        ),
        Mistake(
            lambda c, n, T: _flops(c, n, T, weights=_matrices(c, kv_heads=c.n_head) + c.n_embd * c.vocab_size),
            "keys and values have kv_heads heads, which may be fewer than the queries have",
        ),
        Mistake(
            lambda c, n, T: _flops(c, n, T, scores=12.0 * c.kv_heads / c.n_head),
            "fewer key/value heads save projections and cache, not scores: every query head still meets every key",
        ),
        Mistake(
            lambda c, n, T: _flops(c, n, T, weights=_matrices(c, mlp=2) + c.n_embd * c.vocab_size),
            "SwiGLU has three matrices: gate, up and down",
        ),
        Mistake(
            lambda c, n, T: flops_per_token(c, T),
            "that is one token's share; multiply by the number of tokens",
        ),
        Mistake(
            lambda c, n, T: n * T * flops_per_token(c, T),
            "n_tokens are all tokens of the training, not the number of sequences: the length comes in through attention alone",
        ),
    ),
)

# --- one norm for all shards -----------------------------------------------------------------------------


def _shards() -> list[Args]:
    g = torch.Generator().manual_seed(0)
    return [
        ([torch.randn(n, 3, generator=g) * size for n, size in zip(rows, (1.0, 5.0, 0.2))],)
        for rows in ((4, 4), (2, 3, 2), (5,))
    ]


global_norm = Exercise(
    "global_norm",
    right=lambda shards: torch.cat([shard.flatten() for shard in shards]).norm().item(),
    cases=_shards,
    mistakes=(
        Mistake(
            lambda shards: sum(shard.norm().item() for shard in shards),
            "norms do not add up, their squares do: √(a² + b²), not a + b",
        ),
        Mistake(
            lambda shards: sum(shard.norm().item() for shard in shards) / len(shards),
            "the mean of the norms is no norm: sum the squares of all shares, then take one root",
        ),
        Mistake(
            lambda shards: shards[0].norm().item(),
            "that is the first process's own share; every process would clip by a factor of its own",
        ),
        Mistake(
            lambda shards: max(shard.norm().item() for shard in shards),
            "the largest share's norm is smaller than the norm of all: sum the squares, then take one root",
        ),
        Mistake(
            lambda shards: sum(shard.square().sum().item() for shard in shards),
            "that is the norm squared: the root is missing",
        ),
        Mistake(
            lambda shards: math.sqrt(sum(shard.square().mean().item() for shard in shards)),
            "sum the squares of each share; a mean forgets how large the share is",
        ),
        Mistake(
            lambda shards: sum(shards[1:], shards[0]).norm().item(),
            "the shares are different rows of one gradient, not copies to be added",
        ),
    ),
)

# --- eight bits ------------------------------------------------------------------------------------------


def _weights() -> list[Args]:
    g = torch.Generator().manual_seed(1)
    sizes = torch.tensor([1.0, 0.1, 3.0, 0.01, 1.0])[:, None]
    return [(torch.randn(5, 8, generator=g) * sizes,), (torch.randn(5, 5, generator=g) * sizes,)]


def _int8(weight: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Rounded by the given scales, one a row."""
    return (weight / scales[:, None]).round().clamp(-128, 127).to(torch.int8), scales


def _truncated(weight: Tensor) -> tuple[Tensor, Tensor]:
    scales = weight.abs().amax(1) / 127
    return (weight / scales[:, None]).to(torch.int8), scales


def _wrapped(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled to 128, which int8 does not have."""
    scales = weight.abs().amax(1) / 128
    return (weight / scales[:, None]).round().to(torch.int16).to(torch.int8), scales


def _signed_maximum(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Without the clamp: what is out of range wraps around."""
    scales = weight.amax(1) / 127
    return (weight / scales[:, None]).round().to(torch.int8), scales


def _by_column(weight: Tensor) -> tuple[Tensor, Tensor]:
    scales = weight.abs().amax(0) / 127
    return (weight / scales).round().to(torch.int8), scales


class _SameType(Exercise):
    """Also tells whole numbers of type int8 from floats that happen to be whole."""

    def _same(self, a: Any, b: Any) -> bool:
        return super()._same(a, b) and _first_type(a) == _first_type(b)


def _first_type(outcome: Any) -> Any:
    first = outcome[0] if isinstance(outcome, (tuple, list)) and outcome else outcome
    return first.dtype if isinstance(first, Tensor) else None


to_int8 = _SameType(
    "to_int8",
    right=quantize_rows,
    cases=_weights,
    mistakes=(
        Mistake(
            lambda w: _int8(w, (w.abs().max() / 127).expand(len(w))),
            "one scale for the whole matrix: its largest weight sets the step for all, and small rows become zeros. "
            "Take the maximum along each row (dim=1)",
        ),
        Mistake(
            _by_column,
            "that is a scale for each column (input); take the maximum along dim=1, one for each row (output)",
        ),
        Mistake(_truncated, "converting to int8 cuts the fraction off, so every weight moves toward zero: round first"),
        Mistake(_wrapped, "int8 goes from -128 to 127: a weight at +128 steps wraps around to -128. Divide by 127"),
        Mistake(
            lambda w: _int8(w, w.abs().amax(1) / 128),
            "the largest weight would need +128, which int8 does not have, so it is cut: divide by 127",
        ),
        Mistake(
            lambda w: _int8(w, w.amax(1) / 127),
            "the largest weight is not the largest magnitude: take the absolute value first",
        ),
        Mistake(
            _signed_maximum,
            "the largest weight is not the largest magnitude: take the absolute value first (numbers past 127 wrap around)",
        ),
        Mistake(
            lambda w: (quantize_rows(w)[0].float(), quantize_rows(w)[1]),
            "the numbers are whole, but still floats of four bytes each: convert them with .to(torch.int8)",
        ),
        Mistake(
            lambda w: (quantize_rows(w)[0], 1 / quantize_rows(w)[1]),
            "your scales are upside down: weight ≈ number * scale",
        ),
        Mistake(
            lambda w: (quantize_rows(w)[0], quantize_rows(w)[1][:, None]),
            "the numbers are right; give the scales the shape (out,), without a second dimension",
        ),
        Mistake(
            lambda w: (quantize_rows(w)[0].float() * quantize_rows(w)[1][:, None], quantize_rows(w)[1]),
            "return the whole numbers themselves; you have multiplied them by the scales again",
        ),
    ),
)
