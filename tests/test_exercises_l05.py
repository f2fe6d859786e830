"""L05's checks: right answers written another way pass, and each wrong one gets the hint meant for it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from llmfs.exercises import l05


def by_rows(x, gain, bias, eps):
    rows = [
        (row - row.mean()) / torch.sqrt(((row - row.mean()) ** 2).sum() / len(row) + eps)
        for row in x.reshape(-1, x.shape[-1])
    ]
    return torch.stack(rows).reshape(x.shape) * gain + bias


def module(x, gain, bias, eps):
    norm = nn.LayerNorm(x.shape[-1], eps=eps)
    norm.load_state_dict({"weight": gain, "bias": bias})
    return norm(x)


@pytest.mark.parametrize("answer", [by_rows, module])
def test_layer_norm_right(answer):
    assert l05.layer_norm(answer).passed


@pytest.mark.parametrize(
    "answer, hint",
    [
        (lambda x, g, b, e: (x - x.mean(-1, True)) / (x.var(-1, keepdim=True) + e).sqrt() * g + b, "C - 1"),
        (
            lambda x, g, b, e: (x - x.mean(-1, True)) / (x.std(-1, correction=0, keepdim=True) + e) * g + b,
            "inside the root",
        ),
        (lambda x, g, b, e: (x - x.mean(-1, True)) / (x.std(-1, keepdim=True) + e) * g + b, "two slips"),
        (
            lambda x, g, b, e: (x - x.mean(0)) / torch.sqrt(((x - x.mean(0)) ** 2).mean(0) + e) * g + b,
            "first dimension",
        ),
        (lambda x, g, b, e: (x - x.mean()) / torch.sqrt(x.var(correction=0) + e) * g + b, "whole tensor"),
        (lambda x, g, b, e: by_rows(x, torch.ones_like(g), torch.zeros_like(b), e), "are not used"),
        (
            lambda x, g, b, e: (x - x.mean(-1, True)) / (((x - x.mean(-1, True)) ** 2).mean(-1, True) + e) * g + b,
            "divide by the variance",
        ),
        (lambda x, g, b, e: x / torch.sqrt((x**2).mean(-1, True) + e) * g + b, "mean is not taken off"),
        (lambda x, g, b, e: ..., "returns nothing yet"),
        (lambda x, g, b, e: by_rows(x, g, b, e) + 1, "off by up to 1"),
    ],
)
def test_layer_norm_wrong(answer, hint):
    result = l05.layer_norm(answer)
    assert not result and hint in result.message


def test_rms_norm_right():
    assert l05.rms_norm(lambda x, g, e: g * x * torch.rsqrt(torch.mean(x * x, -1, keepdim=True) + e)).passed


@pytest.mark.parametrize(
    "answer, hint",
    [
        (lambda x, g, e: by_rows(x, g, torch.zeros_like(g), e), "take the mean off"),
        (lambda x, g, e: x / torch.sqrt((x * x).sum(-1, True) + e) * g, "length of the vector"),
        (lambda x, g, e: x / (torch.sqrt((x * x).mean(-1, True)) + e) * g, "outside the root"),
        (lambda x, g, e: x / ((x * x).mean(-1, True) + e) * g, "root is missing"),
        (lambda x, g, e: x / torch.sqrt((x * x).mean() + e) * g, "whole tensor"),
        (lambda x, g, e: x / torch.sqrt((x * x).mean(-1, True) + e), "gain is not used"),
    ],
)
def test_rms_norm_wrong(answer, hint):
    result = l05.rms_norm(answer)
    assert not result and hint in result.message


def stream(x, parts, norms, final_norm):
    for i in range(len(parts)):
        read = norms[i](x)
        x = parts[i](read) + x
    return final_norm(x)


def no_final(x, parts, norms, final_norm):
    return stream(x, parts, norms, lambda y: y)


def overwritten(x, parts, norms, final_norm):
    for i in range(len(parts)):
        x = norms[i](x)
        x = x + parts[i](x)
    return final_norm(x)


def post(x, parts, norms, final_norm):
    for i in range(len(parts)):
        x = norms[i](x + parts[i](x))
    return final_norm(x)


def bare(x, parts, norms, final_norm):
    for i in range(len(parts)):
        x = parts[i](norms[i](x))
    return final_norm(x)


def norm_of_output(x, parts, norms, final_norm):
    for i in range(len(parts)):
        x = x + norms[i](parts[i](x))
    return final_norm(x)


def parallel(x, parts, norms, final_norm):
    out = x
    for i in range(len(parts)):
        out = out + parts[i](norms[i](x))
    return final_norm(out)


def test_residual_stream_right():
    assert l05.residual_stream(stream).passed


@pytest.mark.parametrize(
    "answer, hint",
    [
        (no_final, "final norm is missing"),
        (overwritten, "overwrite the stream"),
        (post, "post-norm"),
        (bare, "no residual"),
        (norm_of_output, "what the part writes"),
        (parallel, "same x"),
    ],
)
def test_residual_stream_wrong(answer, hint):
    result = l05.residual_stream(answer)
    assert not result and hint in result.message


def scaling(factor, *names):
    """An answer that visits the blocks, as a reader would: names are paths inside a block."""

    def answer(model):
        with torch.no_grad():
            for block in model.blocks:
                for name in names:
                    weight = block.get_parameter(f"{name}.weight")
                    weight.copy_(weight * factor(len(model.blocks)))

    return answer


def root(n):
    return (2 * n) ** -0.5


def test_scaled_init_right():
    assert l05.scaled_init(scaling(root, "attn.o_proj", "mlp.down_proj")).passed
    assert l05.scaled_init(lambda model: scaling(root, "mlp.down_proj", "attn.o_proj")(model) or model).passed


@pytest.mark.parametrize(
    "answer, hint",
    [
        (lambda model: ..., "no weight has changed"),
        (scaling(root, "attn.o_proj", "mlp.up_proj"), "reads the stream"),
        (scaling(root, "attn.o_proj"), "the MLP's is not"),
        (scaling(root, "mlp.down_proj"), "attention's is not"),
        (scaling(lambda n: n**-0.5, "attn.o_proj", "mlp.down_proj"), "writes twice"),
        (scaling(lambda n: 0.5 / n, "attn.o_proj", "mlp.down_proj"), "root is missing"),
        (scaling(lambda n: math.sqrt(2 * n), "attn.o_proj", "mlp.down_proj"), "divide"),
        (
            lambda model: [
                p.data.mul_(root(len(model.blocks)))
                for name, p in model.named_parameters()
                if name.startswith("blocks") and p.dim() == 2
            ],
            "every matrix",
        ),
        (3, "not a int"),
        (lambda model: model.block, "AttributeError"),
    ],
)
def test_scaled_init_wrong(answer, hint):
    result = l05.scaled_init(answer)
    assert not result and hint in result.message
