"""L07's checks: right answers pass, and people's wrong ones are told what they look like."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from llmfs.exercises import l07


def right_count(V, L, C, kv, F):
    q_and_o, k_and_v, mlp, gains = 2 * C**2, 2 * C * kv, 3 * C * F, 2 * C
    return V * C + L * (q_and_o + k_and_v + mlp + gains) + C + C * V


@pytest.mark.parametrize(
    "answer, hint",
    [
        (lambda V, L, C, kv, F: right_count(V, L, C, kv, F) - V * C, "one table"),
        (lambda V, L, C, kv, F: right_count(V, L, C, C, F), "C x kv"),
        (lambda V, L, C, kv, F: right_count(V, L, C, kv, F) - L * C * F, "three matrices"),
        (lambda V, L, C, kv, F: right_count(V, L, C, kv, F) - C * (2 * L + 1), "norms are missing"),
        (lambda V, L, C, kv, F: V * C + L * (4 * C * C + 2 * C * F), "several things"),
        (lambda *a: 1, "should give 6738415616"),
    ],
)
def test_count_parameters(answer, hint):
    assert l07.count_parameters(right_count)
    result = l07.count_parameters(answer)
    assert not result and hint in result.message


@pytest.mark.parametrize(
    "answer, hint",
    [
        (lambda w: torch.split(w, w.shape[0], dim=1), "transpose is missing"),
        (lambda w: torch.unbind(w.T.unflatten(0, (-1, 3)), dim=1), "take turns"),
        (lambda w: [w.view(3, -1)[i].view(w.shape[0], -1).T for i in range(3)], "reshape cuts rows"),
    ],
)
def test_split_qkv(answer, hint):
    assert l07.split_qkv(lambda w: w.T.split(w.shape[0]))
    result = l07.split_qkv(answer)
    assert not result and hint in result.message, result


@pytest.mark.parametrize(
    "answer, hint",
    [
        (
            lambda x, g, u, d: nn.functional.linear(
                nn.functional.linear(x, g) * nn.SiLU()(nn.functional.linear(x, u)), d
            ),
            "belongs to the gate",
        ),
        (
            lambda x, g, u, d: nn.functional.linear(
                nn.SiLU()(nn.functional.linear(x, g) * nn.functional.linear(x, u)), d
            ),
            "before the product",
        ),
        (lambda x, g, u, d: nn.functional.linear((x @ g.T).sigmoid() * (x @ u.T), d), "plain GLU"),
        (lambda x, g, u, d: nn.functional.linear(nn.GELU()(x @ g.T) * (x @ u.T), d), "GEGLU"),
        (lambda x, g, u, d: nn.functional.linear(nn.SiLU()(x @ g.T) + x @ u.T, d), "multiplied, not added"),
    ],
)
def test_swiglu(answer, hint):
    assert l07.swiglu(lambda x, g, u, d: nn.functional.linear((x @ g.T) * (x @ g.T).sigmoid() * (x @ u.T), d))
    result = l07.swiglu(answer)
    assert not result and hint in result.message


def forward(w, ids, n_head, *, residual_from_norm=False, scale_by_c=False, no_transpose=False, no_final=False):
    """Written again, through einsum, so that the check is not tested with its own code."""
    T, C = len(ids), w["embed.weight"].shape[1]

    def norm(x, g, b):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt() * g + b

    x = w["embed.weight"][ids] + w["pos_embed.weight"][:T]
    for i in range(sum(name.endswith("attn_norm.weight") for name in w)):
        p = {name.removeprefix(f"blocks.{i}."): value for name, value in w.items() if name.startswith(f"blocks.{i}.")}
        h = norm(x, p["attn_norm.weight"], p["attn_norm.bias"])
        q, k, v = (
            (h @ p[f"attn.{n}_proj.weight"].T + p[f"attn.{n}_proj.bias"]).view(T, n_head, C // n_head) for n in "qkv"
        )
        scores = torch.einsum("thd,shd->hts", q, k) / math.sqrt(C if scale_by_c else C // n_head)
        a = (scores + torch.full((T, T), -math.inf).triu(1)).softmax(-1)
        out = torch.einsum("hts,shd->htd" if no_transpose else "hts,shd->thd", a, v).reshape(T, C)
        x = (h if residual_from_norm else x) + out @ p["attn.o_proj.weight"].T + p["attn.o_proj.bias"]
        h = norm(x, p["mlp_norm.weight"], p["mlp_norm.bias"]) @ p["mlp.up_proj.weight"].T + p["mlp.up_proj.bias"]
        h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + h @ p["mlp.down_proj.weight"].T + p["mlp.down_proj.bias"]
    return (x if no_final else norm(x, w["final_norm.weight"], w["final_norm.bias"])) @ w["embed.weight"].T


@pytest.mark.parametrize(
    "bugs, hint",
    [
        (dict(residual_from_norm=True), "one bug is left: the residual starts"),
        (dict(scale_by_c=True), "one bug is left: the scores"),
        (dict(no_transpose=True), "one bug is left: the heads"),
        (dict(no_final=True), "one bug is left: the final norm"),
        (dict(no_final=True, scale_by_c=True), "2 bugs are left"),
        (dict(no_final=True, scale_by_c=True, no_transpose=True, residual_from_norm=True), "4 bugs are left"),
    ],
)
def test_repair_gpt(bugs, hint):
    assert l07.repair_gpt(forward)
    result = l07.repair_gpt(lambda w, ids, n_head: forward(w, ids, n_head, **bugs))
    assert not result and hint in result.message, result
