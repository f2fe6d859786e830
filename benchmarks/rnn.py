"""Recurrent cells: the plain loops of `llmfs.rnn` against torch's fused nn.RNN, nn.LSTM and nn.GRU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.measure import Comparison, Section, Settings, expect_near, take_turns
from llmfs.rnn import FUSED, Cell, written_out

CASES = ((128, 16, 64), (256, 16, 128), (512, 16, 128))  # channels, rows, tokens
CELLS: tuple[Cell, ...] = ("rnn", "lstm", "gru")


def run(settings: Settings) -> Section:
    """Every cell at every size: outputs and gradients."""
    section = Section("rnn", "Recurrent cells")
    for C, B, T in settings.pick(((8, 2, 4),), CASES):
        for cell in CELLS:
            what = f"{cell.upper()}, {C} channels, {B} × {T} tokens"
            section.comparisons.append(compare(cell, C, B, T, what, settings))
    section.notes.append(
        "Forward and backward through one layer with the same weights, float32; outputs and gradients agree to 1e-4. "
        "`RNNLM` computes with torch's layers: the plain loop is there to be read, and this is what reading costs."
    )
    return section


def compare(cell: Cell, C: int, B: int, T: int, what: str, settings: Settings) -> Comparison:
    """Our loop and torch's, over the same layer."""
    torch.manual_seed(0)
    module: nn.RNNBase = FUSED[cell](C, C, batch_first=True)
    x = torch.randn(B, T, C)

    def ours() -> list[float]:
        return step(written_out(module, x)[0], module)

    def theirs() -> list[float]:
        return step(module(x)[0], module)

    expect_near(f"outputs of {what}", flat(written_out(module, x)[0]), flat(module(x)[0]), 1e-4)
    expect_near(f"gradients of {what}", ours(), theirs(), 1e-4)
    seconds = take_turns({"ours": ours, "theirs": theirs}, settings.n_rounds(1, 5), settings, f"rnn, {what}")
    return Comparison(what, "torch", seconds["ours"], seconds["theirs"], B * T / 1e3, "k tokens/s")


def step(output: Tensor, module: nn.Module) -> list[float]:
    """Go backward from the output -> each parameter's gradient, summed over its rows."""
    module.zero_grad()
    output.square().mean().backward()
    return [value for p in module.parameters() if p.grad is not None for value in flat(p.grad.float().sum(0, True))]


def flat(values: Tensor) -> list[float]:
    return values.detach().flatten().tolist()
