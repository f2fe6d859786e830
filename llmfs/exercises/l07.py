"""The checks of L07, Assembling the GPT."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmfs.config import GPTConfig
from llmfs.exercises import Args, Exercise, Mistake
from llmfs.gpt import GPT

# --- counting ------------------------------------------------------------------------------------------


def _count(
    V: int, L: int, C: int, kv: int, F: int, *, tied: bool = False, grouped: bool = True, matrices: int = 3, norms: bool = True
) -> int:
    """Parameters of a Llama with these sizes; the options plant mistakes."""
    block = 2 * C * C + 2 * C * (kv if grouped else C) + matrices * C * F + (2 * C if norms else 0)
    return (1 if tied else 2) * V * C + L * block + (C if norms else 0)


def _count_of_model(V: int, L: int, C: int, kv: int, F: int) -> int:
    config = GPTConfig.llama(vocab_size=V, block_size=8, n_layer=L, n_embd=C, n_head=C // 4, n_kv_head=kv // 4, d_ff=F)
    with torch.device("meta"):
        return GPT(config).n_params()


count_parameters = Exercise(
    "count_parameters",
    right=_count_of_model,
    cases=lambda: [(32000, 32, 4096, 4096, 11008), (100, 1, 8, 4, 24), (1000, 3, 32, 16, 96)],
    mistakes=(
        Mistake(
            lambda *a: _count(*a, tied=True),
            "you count one table; Llama's output head is a table of its own, beside that of the tokens",
        ),
        Mistake(
            lambda *a: _count(*a, grouped=False),
            "k_proj and v_proj are C x kv, not C x C: with grouped queries there are fewer key and value heads",
        ),
        Mistake(lambda *a: _count(*a, matrices=2), "SwiGLU has three matrices, gate, up and down, each C x F"),
        Mistake(lambda *a: _count(*a, norms=False), "the norms are missing: a gain of C twice a block, and one at the end"),
        Mistake(
            lambda *a: _count(*a, tied=True, norms=False),
            "two things are missing: the head, a table of its own, and the norms' gains",
        ),
        Mistake(
            lambda V, L, C, kv, F: V * C + L * (4 * C * C + 2 * C * F),
            "several things are missing: the head's own table, the third matrix of SwiGLU, the norms' gains; and k and v "
            "have kv columns",
        ),
    ),
)

# --- GPT-2's fused projection ---------------------------------------------------------------------------


def _split_qkv(weight: Tensor) -> list[Tensor]:
    """GPT-2 keeps (in, 3 out): columns for q, then k, then v."""
    return [part.T for part in weight.chunk(3, dim=1)]


split_qkv = Exercise(
    "split_qkv",
    right=_split_qkv,
    cases=lambda: [(torch.randn(C, 3 * C, generator=torch.Generator().manual_seed(C)),) for C in (4, 6)],
    mistakes=(
        Mistake(
            lambda w: list(w.chunk(3, dim=1)),
            "the transpose is missing: GPT-2's Conv1D computes x @ W with W (in, out), nn.Linear x @ W.T with W (out, "
            "in). The blocks are square, so nothing but the numbers will complain",
        ),
        Mistake(
            lambda w: [w[:, i::3].T for i in range(3)],
            "q, k and v do not take turns column by column: the first third of the columns is q, then k, then v",
        ),
        Mistake(
            lambda w: list(w.reshape(3, w.shape[0], w.shape[0]).transpose(1, 2)),
            "reshape cuts rows, but q, k and v stand side by side in the columns: chunk along dimension 1",
        ),
    ),
)

# --- SwiGLU --------------------------------------------------------------------------------------------


def _swiglu_cases() -> list[Args]:
    g = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(3, 4, generator=g),
            torch.randn(6, 4, generator=g),
            torch.randn(6, 4, generator=g),
            torch.randn(4, 6, generator=g),
        )
        for _ in range(2)
    ]


swiglu = Exercise(
    "swiglu",
    right=lambda x, gate, up, down: (F.silu(x @ gate.T) * (x @ up.T)) @ down.T,
    cases=_swiglu_cases,
    mistakes=(
        Mistake(
            lambda x, gate, up, down: (x @ gate.T * F.silu(x @ up.T)) @ down.T,
            "the activation belongs to the gate, not to up: silu(gate) * up",
        ),
        Mistake(
            lambda x, gate, up, down: F.silu((x @ gate.T) * (x @ up.T)) @ down.T,
            "silu acts on the gate before the product, not on the product",
        ),
        Mistake(
            lambda x, gate, up, down: (torch.sigmoid(x @ gate.T) * (x @ up.T)) @ down.T,
            "that is a plain GLU, with a sigmoid; silu(z) is z * sigmoid(z)",
        ),
        Mistake(lambda x, gate, up, down: (F.gelu(x @ gate.T) * (x @ up.T)) @ down.T, "that is GEGLU; Llama uses silu"),
        Mistake(
            lambda x, gate, up, down: (F.silu(x @ gate.T) + (x @ up.T)) @ down.T,
            "gate and up are multiplied, not added: the gate lets through or holds back",
        ),
    ),
)

# --- the broken GPT ------------------------------------------------------------------------------------

BUGS = {
    "residual": "the residual starts from the normalized x: attention and MLP add to x itself, not to norm(x)",
    "scale": "the scores are divided by the root of C; each head has C / n_head channels, and their number counts",
    "merge": "the heads are merged without moving them next to each other first: transpose back to (T, n_head, hd), then "
    "reshape",
    "final": "the final norm is missing before the output head",
}


def gpt2_forward(w: dict[str, Tensor], ids: Tensor, n_head: int, bugs: tuple[str, ...] = ()) -> Tensor:
    """A small GPT-2 from its weights, ids (T,) -> logits (T, V); `bugs` plants mistakes by name."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    T = len(ids)
    x = w["embed.weight"][ids] + w["pos_embed.weight"][:T]  # (T, C)
    hd = x.shape[-1] if "scale" in bugs else x.shape[-1] // n_head
    for layer in itertools.takewhile(lambda i: f"blocks.{i}.attn_norm.weight" in w, itertools.count()):
        block = f"blocks.{layer}"
        h = norm(x, f"{block}.attn_norm")
        q, k, v = (linear(h, f"{block}.attn.{name}_proj").view(T, n_head, -1).transpose(0, 1) for name in "qkv")
        scores = (q @ k.transpose(1, 2) / math.sqrt(hd)).masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
        heads = scores.softmax(-1) @ v  # (n_head, T, hd)
        merged = heads.reshape(T, -1) if "merge" in bugs else heads.transpose(0, 1).reshape(T, -1)
        x = (h if "residual" in bugs else x) + linear(merged, f"{block}.attn.o_proj")
        h = norm(x, f"{block}.mlp_norm")
        x = x + linear(F.gelu(linear(h, f"{block}.mlp.up_proj"), approximate="tanh"), f"{block}.mlp.down_proj")
    return (x if "final" in bugs else norm(x, "final_norm")) @ w["embed.weight"].T


def _gpt_cases() -> list[Args]:
    g = torch.Generator().manual_seed(0)
    cases: list[Args] = []
    for n_head, L in ((2, 1), (4, 2)):
        config = GPTConfig.gpt2(vocab_size=20, block_size=8, n_layer=L, n_head=n_head, n_embd=16, d_ff=64)
        weights: dict[str, Any] = {
            name: torch.randn(p.shape, generator=g) * 0.5 for name, p in GPT(config).state_dict().items()
        }
        cases.append((weights, torch.randint(0, 20, (7,), generator=g), n_head))
    return cases


def _bug_mistakes() -> tuple[Mistake, ...]:
    """Every combination of the four bugs, the largest last."""
    found = []
    for n in range(1, len(BUGS) + 1):
        for names in itertools.combinations(BUGS, n):
            left = "one bug is left" if n == 1 else f"{n} bugs are left; one of them"
            found.append(
                Mistake(
                    lambda w, ids, n_head, names=names: gpt2_forward(w, ids, n_head, names), f"{left}: {BUGS[names[0]]}"
                )
            )
    return tuple(found)


repair_gpt = Exercise("repair_gpt", right=gpt2_forward, cases=_gpt_cases, mistakes=_bug_mistakes(), tolerance=1e-4)
