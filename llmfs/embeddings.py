"""Positions: the sinusoidal table, and rotary position embedding (RoPE).

The token table itself is a plain `torch.nn.Embedding` in `llmfs.gpt`: a lookup is all that it does.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sinusoidal_positions(n: int, n_embd: int) -> Tensor:
    """The fixed table of sines and cosines of Vaswani et al. 2017, section 3.5 -> (n, n_embd) float32.

    Channel 2i holds sin(t / 10000^(2i/C)) at position t, channel 2i+1 the cosine of the same angle.
    Raises ValueError for an odd number of channels.
    """
    if n_embd % 2:
        raise ValueError(f"sinusoidal positions come in pairs of sine and cosine: n_embd must be even, not {n_embd}")
    angles = _angles(torch.arange(n), n_embd, 10000.0)  # (n, C/2)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)  # (n, C), sine and cosine side by side


def rope_tables(positions: Tensor, head_size: int, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """cos and sin of each position's angles: positions (..., T) -> two tensors (..., T, hd), float32.

    Pair i of a head's channels turns by theta^(-2i/hd) radians a position (Su et al. 2021). The pairs are
    channels i and i + hd/2, as in transformers' Llama (Meta's own files pair neighbors), so both tables hold their
    hd/2 angles twice. Raises ValueError for an odd head size.
    """
    if head_size % 2:
        raise ValueError(f"rotary positions turn pairs of channels: head_size must be even, not {head_size}")
    angles = _angles(positions, head_size, theta)  # (..., T, hd/2)
    angles = torch.cat((angles, angles), dim=-1)  # (..., T, hd)
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of channels by its position's angle: x (B, H, T, hd), cos and sin (T, hd) -> (B, H, T, hd).

    cos and sin may also be (B, 1, T, hd), where the rows of a batch stand at different positions.
    """
    first, second = x.chunk(2, dim=-1)  # each (B, H, T, hd/2)
    quarter_turn = torch.cat((-second, first), dim=-1)  # every pair (a, b) becomes (-b, a)
    return x * cos.to(x.dtype) + quarter_turn * sin.to(x.dtype)


def _angles(positions: Tensor, n_channels: int, theta: float) -> Tensor:
    """positions (..., T) -> (..., T, n_channels / 2): position times one frequency a pair of channels."""
    pairs = torch.arange(0, n_channels, 2, device=positions.device, dtype=torch.float32)
    return positions[..., None].float() * theta ** (-pairs / n_channels)
