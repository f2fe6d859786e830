"""Causal self-attention with many heads, and the cache that makes generation cheap."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfs.config import GPTConfig
from llmfs.embeddings import apply_rope


def causal_mask(n_query: int, n_key: int, device: torch.device | str | None = None) -> Tensor:
    """Which keys each query may attend to -> (T, S) bool, True: may.

    The queries are the last T of the S positions, so that the last query sees every key. That is what a cache
    needs: T new tokens behind S - T that are already in it. Raises ValueError where T > S.
    """
    if n_query > n_key:
        raise ValueError(f"{n_query} queries but only {n_key} keys: every query's own position must be among the keys")
    return torch.ones(n_query, n_key, dtype=torch.bool, device=device).tril(diagonal=n_key - n_query)


def scaled_dot_product_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ / √hd) v, spelled out (Vaswani et al. 2017, section 3.2.1).

    q (..., T, hd), k and v (..., S, hd), mask (T, S) or anything that broadcasts to (..., T, S), True: may attend.
    -> the output (..., T, hd) and the weights (..., T, S). A query that may attend to nothing gets zeros.
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (..., T, S)
    if mask is None:
        weights = scores.softmax(dim=-1)
    else:
        # A row of nothing but -inf would make the softmax 0/0, so such a row is left open, then emptied.
        blocked = ~mask.any(dim=-1, keepdim=True)  # (..., T, 1)
        scores = scores.masked_fill(~(mask | blocked), -math.inf)
        weights = scores.softmax(dim=-1).masked_fill(blocked, 0.0)
    return weights @ v, weights


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """`scaled_dot_product_attention` without the weights, by torch's fused kernels, which never hold all of them.

    q (B, H, T, hd), k and v (B, H, S, hd); mask as there; None means causal. -> (B, H, T, hd)
    """
    n_query, n_key = q.shape[-2], k.shape[-2]
    if mask is None and n_query in (1, n_key):  # the last query sees every key: a single one needs no mask
        return F.scaled_dot_product_attention(q, k, v, is_causal=n_query > 1)
    mask = causal_mask(n_query, n_key, q.device) if mask is None else mask
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class KVCache:
    """The keys and values of every token so far, so that a new token computes its own and no more.

    Memory is taken once: k and v are (L, B, Hkv, S, hd) with S = `size`, filled from the left.
    """

    def __init__(
        self,
        config: GPTConfig,
        batch_size: int,
        size: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.size = config.block_size if size is None else size  # S, tokens
        self.length = 0  # tokens that every layer holds
        shape = (config.n_layer, batch_size, config.kv_heads, self.size, config.head_size)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store this layer's new k and v (B, Hkv, T, hd) -> all of them so far, (B, Hkv, length + T, hd).

        `advance` moves on once every layer has stored its own. Raises ValueError where the cache is full.
        """
        end = self.length + k.shape[2]
        if end > self.size:
            raise ValueError(
                f"the cache holds {self.size} tokens and {self.length} are in it; {k.shape[2]} more "
                "do not fit: make it larger, or drop old tokens"
            )
        self.k[layer, :, :, self.length : end] = k
        self.v[layer, :, :, self.length : end] = v
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]

    def advance(self, n: int) -> None:
        """Count n tokens more, which every layer has stored."""
        self.length += n

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens. Raises ValueError where there are not so many."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot cut a cache of {self.length} tokens to {length}")
        self.length = length

    def reorder(self, rows: Tensor) -> None:
        """Row b becomes what row rows[b] was; rows (B',) int64. Beam search needs this at every step."""
        self.k, self.v = self.k.index_select(1, rows), self.v.index_select(1, rows)

    @property
    def nbytes(self) -> int:
        """Memory taken, in bytes."""
        return self.k.nbytes + self.v.nbytes


class CausalSelfAttention(nn.Module):
    """Every token gathers from itself and the tokens before it: project, split heads, attend, merge.

    Multi-head attention (Vaswani et al. 2017); with fewer key/value heads than query heads, grouped-query
    attention (Ainslie et al. 2023). `layer` is the index at which the cache keeps its keys and values.
    """

    def __init__(self, config: GPTConfig, layer: int = 0) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        C, kv = config.n_embd, config.kv_heads * config.head_size
        self.q_proj = nn.Linear(C, C, bias=config.bias)
        self.k_proj = nn.Linear(C, kv, bias=config.bias)
        self.v_proj = nn.Linear(C, kv, bias=config.bias)
        self.o_proj = nn.Linear(C, C, bias=config.bias)
        # QK-norm: one gain a channel, shared by the heads (Henry et al. 2020; this form as in Qwen 3).
        self.q_gain = nn.Parameter(torch.ones(config.head_size)) if config.qk_norm else None
        self.k_gain = nn.Parameter(torch.ones(config.head_size)) if config.qk_norm else None

    def project(self, x: Tensor, rope: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, C) -> q (B, H, T, hd), k and v (B, Hkv, T, hd), normalized and turned as the config says."""
        B, T, _ = x.shape
        hd = self.config.head_size
        q = self.q_proj(x).view(B, T, -1, hd).transpose(1, 2)  # (B, H, T, hd)
        k = self.k_proj(x).view(B, T, -1, hd).transpose(1, 2)  # (B, Hkv, T, hd)
        v = self.v_proj(x).view(B, T, -1, hd).transpose(1, 2)  # (B, Hkv, T, hd)
        if self.q_gain is not None and self.k_gain is not None:
            q = F.rms_norm(q, (hd,), self.q_gain.to(q.dtype), self.config.norm_eps)
            k = F.rms_norm(k, (hd,), self.k_gain.to(k.dtype), self.config.norm_eps)
        if rope is not None:
            q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        return q, k, v

    def share_heads(self, k: Tensor) -> Tensor:
        """(B, Hkv, S, hd) -> (B, H, S, hd): query heads 0, 1, … of a group stand beside copies of one kv head."""
        return (
            k.repeat_interleave(self.config.n_head // self.config.kv_heads, dim=1)
            if self.config.kv_heads < self.config.n_head
            else k
        )

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """x (B, T, C) -> (B, T, C).

        rope: cos and sin (T, hd), or None. mask: True where attending is allowed, broadcast to (B, H, T, S);
        None means causal. cache: where the keys and values of earlier tokens are, and this call's go.
        """
        B, T, C = x.shape
        q, k, v = self.project(x, rope)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, Hkv, S, hd)
        out = attend(q, self.share_heads(k), self.share_heads(v), mask)  # (B, H, T, hd)
        return self.o_proj(out.transpose(1, 2).reshape(B, T, C))  # heads side by side, then mixed
