"""How good a language model is: loss on held-out text, in units that can be compared."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
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
    loss: Tensor = _CrossEntropySum.apply(logits.flatten(0, -2), targets.flatten())
    return loss, int((targets != IGNORE).sum())


class _CrossEntropySum(torch.autograd.Function):
    """torch's cross_entropy in float32, in half the time and without a float32 copy of all logits.

    The gradient, softmax minus one-hot, needs no more than the forward pass has at hand. So it is made there, a few
    rows at a time while they are in the processor's cache, and kept in the logits' own precision.
    """

    CHUNK = 2**19  # logits; as float32, two megabytes

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        """logits (N, V), targets (N,) -> a scalar."""
        grad = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), device=logits.device)
        n_rows = max(1, _CrossEntropySum.CHUNK // logits.shape[-1])
        for start in range(0, len(logits), n_rows):
            rows = slice(start, start + n_rows)
            log_p = logits[rows].float().log_softmax(dim=-1)  # (rows, V)
            counts = targets[rows, None] != IGNORE  # (rows, 1)
            target = targets[rows, None].masked_fill(~counts, 0)  # (rows, 1)
            total -= log_p.gather(1, target).masked_fill(~counts, 0.0).sum()
            if grad is not None:
                grad[rows] = log_p.exp_().scatter_add_(1, target, -torch.ones_like(log_p[:, :1])) * counts
        if grad is not None:
            ctx.save_for_backward(grad)
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        """A scalar -> (N, V)."""
        (grad,) = ctx.saved_tensors
        return grad * grad_output.to(grad.dtype), None


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch]) -> float:
    """The model's loss in nats per token: the mean over all targets of all batches, with dropout off.

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
    """The loss over a text of n_bytes in UTF-8 that became n_tokens tokens: the one unit for all tokenizers.

    loss: nats per token. Raises ValueError for an empty text.
    """
    if n_tokens < 1 or n_bytes < 1:
        raise ValueError(f"a text of {n_tokens} tokens and {n_bytes} bytes has no bits per byte")
    return nats_per_token * n_tokens / math.log(2) / n_bytes


class Encoder(Protocol):
    """What `measure_recalls` needs of a tokenizer."""

    def encode(self, text: str) -> list[int]: ...

    def token_bytes(self, id: int) -> bytes: ...


class Recall(Protocol):
    """A stretch of a text that the text before it determines; see `llmfs.tales.Recall`."""

    @property
    def kind(self) -> str: ...

    @property
    def start(self) -> int: ...

    @property
    def distance(self) -> int: ...


class Story(Protocol):
    """A text and what must be recalled in it; see `llmfs.tales.Tale`."""

    @property
    def text(self) -> str: ...

    @property
    def recalls(self) -> Sequence[Recall]: ...


@dataclass(frozen=True)
class RecallHit:
    """One recall, put to a model."""

    kind: str
    distance: int  # words since the fact was last stated
    correct: bool  # the most likely token is the right one, at the first token of the stretch
    nats: float  # -log p(right token)


@torch.no_grad()
def measure_recalls(model: nn.Module, tokenizer: Encoder, stories: Sequence[Story], *, end_id: int) -> list[RecallHit]:
    """Can the model say what the story so far determines? Every recall of every story -> a hit or a miss each.

    Each story is read alone, behind one token `end_id`, which stands between stories in training.
    """
    device = next(model.parameters()).device
    hits = []
    with evaluating(model):
        for story in stories:
            ids = [end_id, *tokenizer.encode(story.text)]
            logp = model(torch.tensor([ids[:-1]], device=device))[0].float().log_softmax(-1)  # (T, V)
            ends = list(itertools.accumulate(len(tokenizer.token_bytes(id)) for id in ids[1:]))
            for recall in story.recalls:
                place = len(story.text[: recall.start].encode())  # in bytes, as tokens are
                t = bisect.bisect_right(ends, place)  # the token that holds the first letter
                right = ids[1 + t]
                hits.append(
                    RecallHit(recall.kind, recall.distance, int(logp[t].argmax()) == right, -logp[t, right].item())
                )
    return hits


def accuracy_by(hits: Iterable[RecallHit], key: Callable[[RecallHit], Any]) -> dict[Any, tuple[float, int]]:
    """Group hits by key(hit) -> {group: (share that is correct, how many)}."""
    groups: dict[Any, list[bool]] = {}
    for hit in hits:
        groups.setdefault(key(hit), []).append(hit.correct)
    return {group: (sum(correct) / len(correct), len(correct)) for group, correct in groups.items()}
