"""The next token's logits for each row, in as few calls as torch allows.

A small model spends nearly all the time of a step on the calling of operations, not on their arithmetic. The
plain forward of `llmfs.gpt` needs some fifty calls a block; this one gives the same logits with half as many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfs.attention import CausalSelfAttention, KVCache
from llmfs.gpt import GPT
from llmfs.layers import MLP, Block, LayerNorm, RMSNorm

PLAIN = {GPT, Block, CausalSelfAttention, MLP, LayerNorm, RMSNorm}
PLAIN |= {nn.Linear, nn.Embedding, nn.Dropout, nn.Identity, nn.ModuleList}

Function = Callable[[Tensor], Tensor]
Pair = tuple[Tensor, Tensor]  # keys and values
Weights = tuple[Tensor, Tensor | None]  # (in, out), and the bias (out,)


def is_plain(model: nn.Module) -> bool:
    """Is this a GPT as the package makes it, in eval mode: no layer replaced, nothing hooked in, one dtype?"""
    return (
        all(type(m) in PLAIN and not (m.training or _has_hooks(m)) for m in model.modules())
        and len({p.dtype for p in model.parameters()}) == 1
        and not torch.is_autocast_enabled(next(model.parameters()).device.type)
    )


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


@dataclass(frozen=True)
class Layer:
    """What a step needs of one block, as functions of (B, ...) tensors and as weights."""

    attn_norm: Function
    qkv: Function  # (B, C) -> (B, (H + 2 Hkv) hd)
    gains: Tensor | None  # (H + Hkv, hd), of QK-norm
    attn_out: Weights
    mlp_norm: Function
    up: Function  # (B, C) -> (B, hidden), or with a gate (B, 2 hidden), the gate first
    mlp_out: Weights


class Decoder:
    """The forward pass of a model that `is_plain`, for one new token a row and with a cache.

    The cache is the plain model's, so either may go on where the other has stopped. copy: the matrices are copied,
    those with the same input into one and all of them transposed, which makes every token cheaper and pays from some
    20 tokens on. Either way, make a new decoder when the weights have changed.
    """

    @torch.inference_mode()
    def __init__(self, model: GPT, copy: bool = True) -> None:
        self.model, self.config = model, model.config
        self.final_norm, gain = _norm(model.final_norm, fold=copy)
        self.layers = [self._layer(block, copy) for block in model.blocks if isinstance(block, Block)]
        self.head = _product([model.lm_head], copy, gain)
        hd, like = self.config.head_size, model.embed.weight
        # x @ eye is x, and x @ quarter is (-b, a) for x = (a, b), halves of a head.
        self.eye = torch.eye(hd, dtype=like.dtype, device=like.device)  # (hd, hd)
        self.quarter = self.eye.roll(hd // 2, dims=1)
        self.quarter[hd // 2 :] *= -1

    @torch.inference_mode()
    def __call__(
        self, ids: Tensor, cache: KVCache, positions: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """ids (B,) int64 -> logits (B, V); the cache takes up their keys and values.

        positions: (B,) int64, where the rows' tokens stand; None: behind what the cache holds. mask: (B, S) bool,
        True: may be attended to; None: all. Raises ValueError where the cache or the block is full.
        """
        t = cache.length
        if t >= min(cache.size, self.config.block_size):
            raise ValueError(f"{t} tokens are all that fit; start anew with fewer of them")
        at = t if positions is None else positions
        x, turn = self._embed(ids, at), self._turn(at)
        mask = None if mask is None else mask[:, None, None, :]  # (B, 1, 1, S)
        new = zip(cache.k[:, :, :, t].unbind(), cache.v[:, :, :, t].unbind())  # L times (B, Hkv, hd)
        kept = zip(cache.k[:, :, :, : t + 1].unbind(), cache.v[:, :, :, : t + 1].unbind())  # L times (B, Hkv, S, hd)
        for layer, new_kv, kv in zip(self.layers, new, kept):
            if self.config.norm_position == "pre":
                x = _add(x, layer.attn_out, self._attend(layer, layer.attn_norm(x), turn, new_kv, kv, mask))
                x = _add(x, layer.mlp_out, self._hidden(layer, layer.mlp_norm(x)))
            else:
                x = layer.attn_norm(_add(x, layer.attn_out, self._attend(layer, x, turn, new_kv, kv, mask)))
                x = layer.mlp_norm(_add(x, layer.mlp_out, self._hidden(layer, x)))
        cache.advance(1)
        return self.head(self.final_norm(x))  # (B, V)

    @torch.inference_mode()
    def prefill(
        self, ids: Tensor, cache: KVCache, *, mask: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """The model's own forward pass, but for the last token's logits only: ids (B, T) -> (B, 1, V)."""
        last = (slice(None), slice(-1, None))
        return self.model(ids, cache, mask=mask, positions=positions, at=last)

    def _embed(self, ids: Tensor, at: int | Tensor) -> Tensor:
        """ids (B,), their position or (B,) positions -> (B, C)."""
        x = F.embedding(ids, self.model.embed.weight)
        if self.model.pos_embed is not None:
            return x + self.model.pos_embed.weight[at]
        if self.config.pos == "sinusoidal":
            return x + self.model.pos_table[at].to(x.dtype)
        return x

    def _turn(self, at: int | Tensor) -> Tensor | None:
        """The matrix by which all heads' queries and keys turn: (hd, hd), or (B, hd, hd) for a position a row."""
        if self.config.pos != "rope":
            return None
        cos, sin = (table[at].to(self.eye.dtype)[..., None, :] for table in (self.model.rope_cos, self.model.rope_sin))
        return self.eye * cos + self.quarter * sin

    def _attend(
        self, layer: Layer, x: Tensor, turn: Tensor | None, new: Pair, kept: Pair, mask: Tensor | None
    ) -> Tensor:
        """x (B, C) -> the heads' outputs side by side, (B, C). Keys and values go into `new`, part of `kept`."""
        config, B = self.config, len(x)
        H, Hkv, hd = config.n_head, config.kv_heads, config.head_size
        qk, v = layer.qkv(x).view(B, -1, hd).split_with_sizes((H + Hkv, Hkv), dim=1)  # (B, H+Hkv, hd), (B, Hkv, hd)
        if layer.gains is not None:
            qk = F.rms_norm(qk, (hd,), None, config.norm_eps) * layer.gains
        if turn is not None:
            qk = qk @ turn
        q, k = qk.split_with_sizes((H, Hkv), dim=1)
        new[0].copy_(k)
        new[1].copy_(v)
        # The heads that share a key stand where a text's queries would, and a single new token needs no causal mask.
        q = q.reshape(B, Hkv, H // Hkv, hd)
        return F.scaled_dot_product_attention(q, *kept, attn_mask=mask).reshape(B, -1)  # (B, C)

    def _hidden(self, layer: Layer, x: Tensor) -> Tensor:
        """x (B, C) -> (B, hidden): the MLP up to its last matrix."""
        if self.config.mlp == "gelu":
            return F.gelu(layer.up(x), approximate="tanh")
        gate, up = layer.up(x).chunk(2, dim=-1)
        return F.silu(gate) * up

    def _layer(self, block: Block, copy: bool) -> Layer:
        attn, mlp = block.attn, block.mlp
        gains = None
        if attn.q_gain is not None and attn.k_gain is not None:
            H, Hkv = self.config.n_head, self.config.kv_heads
            gains = torch.cat((attn.q_gain.expand(H, -1), attn.k_gain.expand(Hkv, -1)))
        fold = copy and self.config.norm_position == "pre"  # else the residual stream takes what a norm gives, too
        attn_norm, attn_gain = _norm(block.attn_norm, fold)
        mlp_norm, mlp_gain = _norm(block.mlp_norm, fold)
        return Layer(
            attn_norm,
            _product([attn.q_proj, attn.k_proj, attn.v_proj], copy, attn_gain),
            gains,
            _weights([attn.o_proj], copy),
            mlp_norm,
            _product([layer for layer in (mlp.gate_proj, mlp.up_proj) if layer is not None], copy, mlp_gain),
            _weights([mlp.down_proj], copy),
        )


def _norm(module: nn.Module, fold: bool) -> tuple[Function, Tensor | None]:
    """The function that a norm's module computes, in fewer calls; fold: without its gain (C,), which is the second."""
    if isinstance(module, LayerNorm):
        w, b = module.weight, module.bias
        return partial(F.layer_norm, normalized_shape=w.shape, weight=w, bias=b, eps=module.eps), None
    if isinstance(module, RMSNorm) and module.weight.dtype in (torch.float32, torch.float64):
        w, C = module.weight, len(module.weight)
        gain, root = math.sqrt(C) * w, w.new_tensor(math.sqrt(C * module.eps))
        if fold:
            return partial(_direction, root=root), gain
        return lambda x: _direction(x, root) * gain, None
    return module, None


def _direction(x: Tensor, root: Tensor) -> Tensor:
    """x (B, C) -> x / √(|x|² + C eps), for root √(C eps).

    Times √C and the gain it is what F.rms_norm gives, in half its time on a CPU.
    """
    return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), root)


def _product(layers: Sequence[nn.Linear], copy: bool, gain: Tensor | None = None) -> Function:
    """Layers that read the same x (B, C), as one function: gain x -> their outputs side by side."""
    groups = [layers] if copy else [[layer] for layer in layers]
    parts: list[Function] = []
    for group in groups:
        weight, bias = _weights(group, copy, gain)
        parts.append(partial(torch.mm, mat2=weight) if bias is None else partial(torch.addmm, bias, mat2=weight))
    return parts[0] if len(parts) == 1 else lambda x: torch.cat([part(x) for part in parts], dim=-1)


def _weights(layers: Sequence[nn.Linear], copy: bool, gain: Tensor | None = None) -> Weights:
    """The weight (in, sum of out) and the bias (sum of out,) of layers side by side, or a view of a single one's.

    One row times a matrix is fastest where the matrix lies in memory as it is read: a row for each input. gain (in,),
    with a copy alone: what each input was still to be multiplied by.
    """
    if not copy:
        (layer,) = layers
        return layer.weight.t(), layer.bias
    bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
    weight = layers[0].weight if len(layers) == 1 else torch.cat([layer.weight for layer in layers])
    weight = weight.t() if gain is None else weight.t() * gain[:, None]
    return weight.contiguous(), bias


def _add(x: Tensor, layer: Weights, y: Tensor) -> Tensor:
    """x + layer(y), for x (B, C) and y (B, in) -> (B, C)."""
    weight, bias = layer
    return torch.addmm(x if bias is None else x + bias, y, weight)
