"""How good a language model is: loss on held-out text, in units that can be compared."""
from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORE = -100  # a target that does not count: padding, or a prompt

Batch = tuple[Tensor, Tensor]  # ids (B, T) and targets (B, T), both int64


def next_token_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """-> the sum of the cross-entropies over the batch's targets, in nats (a scalar), and how many targets count.

    A sum and a count, not a mean: only these add up over batches of unequal size.
    """
    ids, targets = batch
    return cross_entropy_sum(model(ids), targets)


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> tuple[Tensor, int]:
    """logits (B, T, V), targets (B, T) -> the sum of -log p(target), in nats, and the count; `IGNORE` is left out."""
    loss = F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), ignore_index=IGNORE, reduction="sum")
    return loss, int((targets != IGNORE).sum())


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch]) -> float:
    """The model's loss in nats a token: the mean over all targets of all batches, with dropout off.

    Raises ValueError where there is no target to predict.
    """
    device = next(model.parameters()).device
    total, count = 0.0, 0
    with evaluating(model):
        for ids, targets in batches:
            loss, n = next_token_loss(model, (ids.to(device), targets.to(device)))
            total, count = total + loss.item(), count + n
    if not count:
        raise ValueError("nothing to evaluate on: the batches hold no target")
    return total / count


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off inside; afterwards the model is in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def perplexity(nats_per_token: float) -> float:
    """exp(loss): among how many equally likely tokens the model is left to guess."""
    return math.exp(nats_per_token)


def bits_per_byte(nats_per_token: float, n_tokens: int, n_bytes: int) -> float:
    """The loss over a text of n_bytes in UTF-8 that became n_tokens tokens: the one unit for all tokenizers."""
    if n_tokens < 1 or n_bytes < 1:
        raise ValueError(f"a text of {n_tokens} tokens and {n_bytes} bytes has no bits per byte")
    return nats_per_token * n_tokens / math.log(2) / n_bytes
