"""From logits to text: which token comes next, again and again."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from llmfs.attention import KVCache


def filter_logits(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    context: Tensor | None = None,
) -> Tensor:
    """logits (B, V) -> logits (B, V) float32, with -inf for tokens that are ruled out.

    In this order: repetition_penalty lowers every token of `context` (B, T); temperature divides all; top_k keeps
    the k highest (Fan et al. 2018); top_p keeps the fewest that hold the probability p, the one that crosses it
    included (Holtzman et al. 2020); min_p keeps those with at least min_p of the best one's probability
    (Nguyen et al. 2024). At least one token always stays. temperature 0 keeps the best alone.

    Raises ValueError for a setting out of range.
    """
    _check(temperature, top_k, top_p, min_p, repetition_penalty)
    logits = logits.float()
    if repetition_penalty != 1.0 and context is not None:
        logits = _penalize(logits, context, repetition_penalty)
    if temperature == 0:
        best = logits.argmax(dim=-1, keepdim=True)  # (B, 1)
        return torch.full_like(logits, -math.inf).scatter(-1, best, 0.0)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        lowest_kept = logits.topk(top_k, dim=-1).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < lowest_kept, -math.inf)
    if top_p is not None and top_p < 1:
        logits = _nucleus(logits, top_p)
    if min_p is not None:
        floor = logits.amax(dim=-1, keepdim=True) + math.log(min_p) if min_p > 0 else -math.inf
        logits = logits.masked_fill(logits < floor, -math.inf)
    return logits


def generate(
    model: torch.nn.Module,
    ids: Tensor,
    n: int,
    *,
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: Collection[int] = (),
    use_cache: bool = True,
) -> Iterator[Tensor]:
    """Continue ids (B, T) by up to n tokens, one at a time -> an iterator of (B,) int64.

    A row that has produced a token of `stop` repeats that token; generation ends once all rows have.
    Past the block size the oldest half of the window is dropped and the rest is read again, so that a long text
    goes on with at least half a block of memory behind it. The cache changes the speed and nothing else.
    Raises ValueError for an empty prompt or a setting out of range.
    """
    if ids.dim() != 2 or not ids.numel():
        raise ValueError(f"expected a prompt of shape (B, T) with at least one token, got {tuple(ids.shape)}")
    _check(temperature, top_k, top_p, min_p, repetition_penalty)
    return _generate(
        model,
        ids,
        n,
        generator,
        stop,
        use_cache,
        dict(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty),
    )


def _generate(
    model: torch.nn.Module,
    ids: Tensor,
    n: int,
    generator: torch.Generator | None,
    stop: Collection[int],
    use_cache: bool,
    settings: dict[str, float | int | None],
) -> Iterator[Tensor]:
    """The loop of `generate`."""
    block: int = model.config.block_size  # type: ignore[union-attr, assignment]
    window = ids[:, -block:]  # what the model sees
    cache = _new_cache(model, ids.shape[0]) if use_cache else None
    new = window  # what the cache has not seen
    ended = torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)
    last = ids[:, -1]
    for _ in range(n):
        with torch.no_grad():
            logits = model(new, cache) if use_cache else model(window)
        scores = filter_logits(logits[:, -1], context=ids, **settings)  # type: ignore[arg-type]
        token = torch.multinomial(scores.softmax(dim=-1), 1, generator=generator)[:, 0]  # (B,)
        last = torch.where(ended, last, token)
        yield last
        ended |= torch.isin(last, torch.tensor(list(stop), dtype=last.dtype, device=last.device))
        if ended.all():
            return
        ids, new = torch.cat((ids, last[:, None]), dim=1), last[:, None]
        window = torch.cat((window, new), dim=1)
        if window.shape[1] > block:
            window = new = window[:, -(block - block // 2) :]
            cache = _new_cache(model, ids.shape[0]) if use_cache else None


def _new_cache(model: torch.nn.Module, batch_size: int) -> KVCache:
    weight = next(model.parameters())
    return KVCache(model.config, batch_size, device=weight.device, dtype=weight.dtype)  # type: ignore[arg-type]


def _penalize(logits: Tensor, context: Tensor, penalty: float) -> Tensor:
    """Lower each token that stands in context (B, T): divide what is positive, multiply what is negative.

    Keskar et al. 2019, with the sign put right: dividing a negative logit would raise it.
    """
    seen = logits.gather(-1, context)  # (B, T)
    return logits.scatter(-1, context, torch.where(seen > 0, seen / penalty, seen * penalty))


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Rule out every token before which, from the best down, the probability p is already reached."""
    ordered, order = logits.double().sort(dim=-1, descending=True, stable=True)  # (B, V)
    p = ordered.softmax(dim=-1)
    before = p.cumsum(dim=-1) - p
    # Sums of floats end a hair below the number they mean: 0.5 + 0.4 must count as 0.9.
    out = before >= top_p - 1e-6
    out[:, 0] = False
    return logits.masked_fill(torch.zeros_like(out).scatter(-1, order, out), -math.inf)


def _check(
    temperature: float, top_k: int | None, top_p: float | None, min_p: float | None, repetition_penalty: float
) -> None:
    """Refuse settings that mean nothing."""
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; expected 0 (always the best token) or more")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; expected at least 1, or None for all")
    if top_p is not None and not 0 <= top_p <= 1:
        raise ValueError(f"top_p is {top_p}; expected a probability in [0, 1]")
    if min_p is not None and not 0 <= min_p <= 1:
        raise ValueError(f"min_p is {min_p}; expected a share in [0, 1]")
    if not 0 < repetition_penalty < math.inf:
        raise ValueError(f"repetition_penalty is {repetition_penalty}; expected a positive number, 1 for none")
