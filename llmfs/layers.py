"""Normalization, the feed-forward network, and the block that stacks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfs.attention import CausalSelfAttention, KVCache
from llmfs.config import GPTConfig


class LayerNorm(nn.Module):
    """Each vector to mean 0 and variance 1, then a learned gain and, if asked, a bias (Ba et al. 2016).

    The variance is the biased one, and eps stands inside the root. (..., C) -> (..., C)
    """

    def __init__(self, n_embd: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(n_embd))
        self.bias = nn.Parameter(torch.zeros(n_embd)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)"""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """Each vector divided by its root mean square, then a learned gain (Zhang & Sennrich 2019).

    No mean is taken off and no bias added. (..., C) -> (..., C)
    """

    def __init__(self, n_embd: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(n_embd))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)"""
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class MLP(nn.Module):
    """The feed-forward network: the same two- or three-matrix network at every position.

    gelu: down(gelu(up(x))), with GPT-2's tanh form of GELU (Hendrycks & Gimpel 2016).
    swiglu: down(silu(gate(x)) * up(x)) (Shazeer 2020). (B, T, C) -> (B, T, C)
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        C, hidden = config.n_embd, config.ff_size
        self.gate_proj = nn.Linear(C, hidden, bias=config.bias) if config.mlp == "swiglu" else None
        self.up_proj = nn.Linear(C, hidden, bias=config.bias)
        self.down_proj = nn.Linear(hidden, C, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        if self.gate_proj is None:
            return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention, then the MLP, each added to what it read (He et al. 2016). (B, T, C) -> (B, T, C)

    pre-norm normalizes what each part reads and leaves the sum alone (GPT-2, Llama);
    post-norm normalizes the sum (Vaswani et al. 2017).
    """

    def __init__(self, config: GPTConfig, layer: int = 0) -> None:
        super().__init__()
        self.pre = config.norm_position == "pre"
        self.attn_norm = make_norm(config)
        self.attn = CausalSelfAttention(config, layer)
        self.mlp_norm = make_norm(config)
        self.mlp = MLP(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """x (B, T, C) -> (B, T, C); the other arguments are those of `CausalSelfAttention`."""
        if self.pre:
            x = x + self.drop(self.attn(self.attn_norm(x), rope, mask, cache))
            return x + self.drop(self.mlp(self.mlp_norm(x)))
        x = self.attn_norm(x + self.drop(self.attn(x, rope, mask, cache)))
        return self.mlp_norm(x + self.drop(self.mlp(x)))


def make_norm(config: GPTConfig) -> LayerNorm | RMSNorm:
    """The norm that the config asks for."""
    if config.norm == "layernorm":
        return LayerNorm(config.n_embd, config.norm_eps, config.bias)
    return RMSNorm(config.n_embd, config.norm_eps)
