"""Weights in eight bits: whole numbers from -127 to 127, and one scale for each row of a matrix."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from llmfs.gpt import GPT

LEVELS = 127  # on each side of zero; -128 stays unused, so that the grid is symmetric


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight (out, in) -> whole numbers (out, in) int8, and scales (out,) float32: weight ≈ number * scale.

    Each row's largest magnitude becomes 127, and every other weight the nearest step, so that no weight moves by more
    than half its row's scale (absmax quantization, one scale a row; Dettmers et al. 2022, section 2). A row of zeros
    gets the scale 0. Raises ValueError for what is no matrix, and where a weight is infinite or not a number.
    """
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(f"expected a matrix of floats, got {weight.dtype} of shape {tuple(weight.shape)}")
    if not weight.isfinite().all():
        raise ValueError("the matrix holds inf or nan, which no scale can reach; look for where training went wrong")
    rows = weight.detach().float()  # (out, in)
    scales = rows.abs().amax(dim=1) / LEVELS  # (out,)
    divisors = torch.where(scales > 0, scales, torch.ones_like(scales))
    numbers = (rows / divisors[:, None]).round().clamp(-LEVELS, LEVELS)  # (out, in)
    return numbers.to(torch.int8), scales


def dequantize_rows(numbers: Tensor, scales: Tensor) -> Tensor:
    """numbers (out, in) int8, scales (out,) float32 -> the weights that they stand for, (out, in) float32."""
    return numbers.float() * scales[:, None]


@torch.no_grad()
def quantized(model: GPT) -> GPT:
    """A copy of the model, every matrix rounded to what `quantize_rows` can hold; the old one stays as it is.

    The tables of tokens and positions count as matrices; gains and biases are few and keep their precision. The copy
    computes in floating point, so it shows what the rounding costs in accuracy, not what it saves in time.
    """
    rounded = copy.deepcopy(model)
    for parameter in rounded.parameters():  # a tied table comes once
        if parameter.dim() == 2:
            parameter.copy_(dequantize_rows(*quantize_rows(parameter)))
    return rounded
