"""The GPT: token ids in, one score for every word of the vocabulary out, at every position."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from llmfs.attention import CausalSelfAttention, KVCache, causal_mask, scaled_dot_product_attention
from llmfs.config import GPTConfig
from llmfs.embeddings import rope_tables, sinusoidal_positions
from llmfs.layers import Block, make_norm

Index = Tensor | tuple[Tensor | slice, ...]  # what a tensor can be indexed with: a bool mask, or rows and columns


class GPT(nn.Module):
    """A decoder-only Transformer (Radford et al. 2019; Touvron et al. 2023), as the config shapes it."""

    pos_table: Tensor  # (block_size, C), with sinusoidal positions
    rope_cos: Tensor  # (block_size, hd), with rotary positions
    rope_sin: Tensor

    def __init__(self, config: GPTConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.n_embd)
        self.pos_embed = nn.Embedding(config.block_size, config.n_embd) if config.pos == "learned" else None
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        # A post-norm block has already normalized its sum.
        self.final_norm = make_norm(config) if config.norm_position == "pre" else nn.Identity()
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_weights:
            self.lm_head.weight = self.embed.weight  # one table reads and writes (Press & Wolf 2017)
        self._make_tables()
        self._init_weights(generator)

    def _make_tables(self) -> None:
        """Positions that are computed, not learned, so they are not stored with the weights."""
        config, positions = self.config, torch.arange(self.config.block_size)
        if config.pos == "sinusoidal":
            self.register_buffer("pos_table", sinusoidal_positions(config.block_size, config.n_embd), persistent=False)
        if config.pos == "rope":
            cos, sin = rope_tables(positions, config.head_size, config.rope_theta)
            self.register_buffer("rope_cos", cos, persistent=False)  # (block_size, hd)
            self.register_buffer("rope_sin", sin, persistent=False)

    @torch.no_grad()
    def _init_weights(self, generator: torch.Generator | None) -> None:
        """GPT-2's 0.02 at 768 channels, and the same spread of outputs at other widths.

        What writes into the residual stream starts smaller by √(2L), for 2L writers add up (Radford et al. 2019).
        """
        blocks = [block for block in self.blocks if isinstance(block, Block)]
        residual = {id(m) for block in blocks for m in (block.attn.o_proj, block.mlp.down_proj)}
        for module in self.modules():
            if isinstance(module, nn.Linear):
                std = 0.02 * math.sqrt(768 / module.in_features)
                if id(module) in residual:
                    std /= math.sqrt(2 * self.config.n_layer)
                nn.init.normal_(module.weight, std=std, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # A head starts small, so that the first logits are nearly equal. A table that is no head may start larger, and
        # then learns faster: measured on the tales, 0.3 beats 0.02 and 1.0.
        for table in (self.pos_embed, self.lm_head):  # after the loop: a tied head must not undo the table's init
            if table is not None:
                nn.init.normal_(table.weight, std=0.02, generator=generator)
        if not self.config.tie_weights:
            nn.init.normal_(self.embed.weight, std=0.3, generator=generator)

    def forward(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        *,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        at: Index | None = None,
    ) -> Tensor:
        """ids (B, T) int64 -> logits (B, T, V): at each position, a score for every possible next token.

        cache: holds the earlier tokens' keys and values; this call adds its own. mask: (T, S), or anything that
        broadcasts to (B, H, T, S), True: may attend; None: causal. positions: (T,) or (B, T) int64, where the
        tokens stand; None: behind what the cache holds. at: where logits are wanted, an index of (B, T), so that the
        head computes no others; None: everywhere. Raises ValueError past the block size.
        """
        T, start = ids.shape[1], 0 if cache is None else cache.length
        if positions is None:
            if start + T > self.config.block_size:
                raise ValueError(
                    f"{start + T} tokens, but block_size is {self.config.block_size}: "
                    "give a shorter text, or a model with a larger block"
                )
            positions = torch.arange(start, start + T, device=ids.device)
        x, rope = self.embed_tokens(ids, positions), self.rope_at(positions)
        for block in self.blocks:
            x = block(x, rope, mask, cache)  # (B, T, C)
        if cache is not None:
            cache.advance(T)
        x = x if at is None else x[at]
        return self.lm_head(self.final_norm(x))  # (B, T, V), or the shape of ids[at] and V

    def embed_tokens(self, ids: Tensor, positions: Tensor) -> Tensor:
        """ids (B, T), positions (T,) or (B, T) -> (B, T, C): what enters the first block."""
        x = self.embed(ids)
        if self.pos_embed is not None:
            x = x + self.pos_embed(positions)
        elif self.config.pos == "sinusoidal":
            x = x + self.pos_table[positions].to(x.dtype)
        return self.drop(x)

    def rope_at(self, positions: Tensor) -> tuple[Tensor, Tensor] | None:
        """cos and sin (T, hd), or (B, 1, T, hd) for positions that differ by row; None without rotary positions."""
        if self.config.pos != "rope":
            return None
        cos, sin = self.rope_cos[positions], self.rope_sin[positions]
        return (cos, sin) if positions.dim() == 1 else (cos[:, None], sin[:, None])

    def n_params(self) -> int:
        """How many numbers are learned. A tied table counts once."""
        return sum(p.numel() for p in self.parameters())


@torch.no_grad()
def attention_maps(model: GPT, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """The attention weights that the model really uses on ids (B, T) -> (L, B, H, T, T).

    The fast attention never holds its weights, so each layer's are computed again from the layer's own input.
    """
    maps: list[Tensor] = []
    allowed = causal_mask(ids.shape[1], ids.shape[1], ids.device) if mask is None else mask

    def record(attn: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(attn, CausalSelfAttention)
        q, k, v = attn.project(inputs[0], inputs[1])
        maps.append(scaled_dot_product_attention(q, attn.share_heads(k), attn.share_heads(v), allowed)[1])

    hooks = [m.register_forward_pre_hook(record) for m in model.modules() if isinstance(m, CausalSelfAttention)]
    try:
        model(ids, mask=mask)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(maps)


@torch.no_grad()
def hidden_states(model: GPT, ids: Tensor) -> Tensor:
    """The residual stream before the first block and after each: ids (B, T) -> (L + 1, B, T, C)."""
    states: list[Tensor] = []
    hooks = [model.blocks[0].register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))]
    hooks += [block.register_forward_hook(lambda _, inputs, output: states.append(output)) for block in model.blocks]
    try:
        model(ids)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(states)
