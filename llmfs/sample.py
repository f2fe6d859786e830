"""From logits to text: which token comes next, again and again."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llmfs.attention import KVCache, causal_mask
from llmfs.decode import Decoder, is_plain
from llmfs.gpt import GPT

GREEDY = 1e-30  # a temperature below this is 0: the division would overflow
MANY, SMALL = 32, 50e6  # from so many tokens on, and up to so many parameters, a decoder's copy of the weights pays
Settings = dict[str, Any]  # the keyword arguments of `filter_logits`, without the context


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
    _check(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty)
    logits = logits.float()
    if repetition_penalty != 1.0 and context is not None:
        logits = _penalize(logits, context, repetition_penalty)
    if temperature < GREEDY:
        best = logits.argmax(dim=-1, keepdim=True)  # (B, 1)
        return torch.full_like(logits, -math.inf).scatter(-1, best, 0.0)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        lowest_kept = logits.topk(top_k, dim=-1).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < lowest_kept, -math.inf)
    if top_p is not None and top_p < 1:
        logits = _nucleus(logits, top_p)
    if min_p is not None:
        # A hair of room, as in `_nucleus`: 0.4 is 0.8 of 0.5, whatever the floats say.
        floor = logits.amax(dim=-1, keepdim=True) + (math.log(min_p) if min_p > 0 else -math.inf) - 1e-6
        logits = logits.masked_fill(logits < floor, -math.inf)
    return logits


def pad_left(prompts: Sequence[Sequence[int]], pad_id: int = 0) -> tuple[Tensor, Tensor]:
    """Prompts of unequal length as one batch -> ids (B, T) int64 and real (B, T) bool, False: padding.

    The padding stands on the left, so that every row's last column holds its last token. pad_id may be any token:
    it is never attended to. Raises ValueError where there is no prompt, or one is empty.
    """
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise ValueError(f"expected one or more prompts of at least one token, got lengths {[len(p) for p in prompts]}")
    T = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (T - len(prompt)) + list(prompt) for prompt in prompts])
    real = torch.tensor([[False] * (T - len(prompt)) + [True] * len(prompt) for prompt in prompts])
    return ids, real


def generate(
    model: nn.Module,
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
    real: Tensor | None = None,
    group: int = 1,
) -> Iterator[Tensor]:
    """Continue ids (B, T) by up to n tokens, one at a time -> an iterator of (B,) int64.

    A row that has produced a token of `stop` repeats that token; generation ends once all rows have.
    real (B, T) bool says which tokens are no padding, as `pad_left` does; each row is then continued as if alone.
    group: how many continuations each row gets, side by side -> (B*group,); the prompt is read once for all of them.
    Past the block size the oldest half of the window is dropped and the rest is read again, so that a long text
    goes on with at least half a block of memory behind it (the rows of a padded batch do so together). Of a prompt
    longer than a block the end is read. The cache changes the speed and nothing else. The model is used in the mode
    that it is in: call model.eval() first.
    Raises ValueError for an empty prompt, padding that is not on the left, or a setting out of range.
    """
    settings: Settings = dict(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty
    )
    ids = _check_prompt(ids, n, real)
    _check(**settings)
    if group < 1:
        raise ValueError(f"group is {group}; expected at least 1 continuation of each prompt")
    return _generate(model, ids, n, generator, stop, use_cache, real, group, settings)


def _generate(
    model: nn.Module,
    ids: Tensor,
    n: int,
    generator: torch.Generator | None,
    stop: Collection[int],
    use_cache: bool,
    real: Tensor | None,
    group: int,
    settings: Settings,
) -> Iterator[Tensor]:
    """The loop of `generate`."""
    (B, T), block = ids.shape, _config(model).block_size
    start = max(0, T - block)  # the model sees the text from here
    cache, decoder = (_new_cache(model, B, T, n), _decoder(model, n)) if use_cache else (None, None)
    rows = torch.arange(B, device=ids.device).repeat_interleave(group)  # (B*group,)
    ended = torch.zeros_like(rows, dtype=torch.bool)
    for step in range(n):
        shown = None if real is None else real[:, start:]
        logits = _read(model, ids[:, start:], cache, shown, decoder)[:, -1]  # (B, V)
        if step == 0 and group > 1:  # from here on a prompt's continuations go their own ways
            logits, ids, real = logits[rows], ids[rows], None if real is None else real[rows]
            if cache is not None:
                cache.reorder(rows)
        token = _choose(logits, ids, settings, generator)  # (B,)
        if stop:
            token = torch.where(ended, ids[:, -1], token)
        yield token
        if stop:
            ended |= _is_any_of(token, stop)
            if ended.all():
                return
        ids, real = _append(ids, real, token)
        if ids.shape[1] - start > block:
            start = ids.shape[1] - (block - block // 2)
            cache = _new_cache(model, len(ids), T, n) if use_cache else None


@dataclass(frozen=True)
class Hypothesis:
    """One continuation that beam search found."""

    ids: list[int]  # the new tokens; the last may be a stop token
    logp: float  # the sum of their log-probabilities, nats
    score: float  # logp / len(ids) ** length_penalty


def beam_search(
    model: nn.Module,
    ids: Tensor,
    n: int,
    width: int,
    *,
    stop: Collection[int] = (),
    length_penalty: float = 1.0,
    use_cache: bool = True,
    real: Tensor | None = None,
) -> list[list[Hypothesis]]:
    """Search for likely continuations of ids (B, T) by up to n tokens -> up to `width` hypotheses a row, best first.

    At every step each of the `width` beams is continued by every token, and the best `width` of all go on. One that
    ends in a token of `stop` is set aside. A row is done once its best beam scores no better than `width` that are.
    This is the search of transformers' generate(num_beams=width), early_stopping=False. A width of 1 is greedy.
    real: as in `generate`. Raises ValueError where T + n tokens do not fit the block, or a setting is out of range.
    """
    ids = _check_prompt(ids, n, real)
    _check_fits(ids, n, model)
    if width < 1:
        raise ValueError(f"width is {width}; expected at least 1 beam")
    B, T = ids.shape
    cache, decoder = (_new_cache(model, B * width, T, n), _decoder(model, n)) if use_cache else (None, None)
    text = ids.repeat_interleave(width, dim=0)  # (B*W, T); a row's beams stand together
    real = None if real is None else real.repeat_interleave(width, dim=0)
    scores = torch.full((B, width), -math.inf, device=ids.device)
    scores[:, 0] = 0.0  # the beams of a row are still equal: continue one of them
    found: list[list[Hypothesis]] = [[] for _ in range(B)]
    done = [False] * B
    for step in range(1, n + 1):
        logp = _read(model, text, cache, real, decoder)[:, -1].float().log_softmax(dim=-1)  # (B*W, V)
        V = logp.shape[-1]
        totals = (scores[:, :, None] + logp.view(B, width, V)).flatten(1)  # (B, W*V)
        best = totals.topk(min((1 + len(stop)) * width, width * V))  # (B, K), so many that W of them do not stop
        parents = best.indices // V + width * torch.arange(B, device=ids.device)[:, None]  # (B, K), rows of text
        tokens = best.indices % V  # (B, K)
        stops = _is_any_of(tokens, stop) | (step == n)
        for b, k in (stops[:, :width] & best.values[:, :width].isfinite()).nonzero().tolist():
            if not done[b]:
                total = best.values[b, k].item()
                new = [*text[parents[b, k], T:].tolist(), int(tokens[b, k])]
                found[b].append(Hypothesis(new, total, total / step**length_penalty))
        scores, chosen = best.values.masked_fill(stops, -math.inf).topk(width)  # (B, W), of those that go on
        rows = parents.gather(1, chosen).flatten()  # (B*W,)
        text, real = _append(text[rows], real, tokens.gather(1, chosen).flatten())
        if cache is not None:
            cache.reorder(rows)
        for b in range(B):
            found[b] = sorted(found[b], key=lambda hypothesis: -hypothesis.score)[:width]
            if len(found[b]) == width and scores[b, 0].item() / step**length_penalty <= found[b][-1].score:
                done[b] = True
        if all(done):
            break
    return found


@dataclass
class Acceptance:
    """How often a large model agreed with its draft. `speculative` counts in it."""

    proposed: int = 0  # tokens that the draft proposed and the large model judged
    accepted: int = 0  # those that it took
    reads: int = 0  # forward passes of the large model

    @property
    def rate(self) -> float:
        """The share of the proposed tokens that was accepted; nan before the first."""
        return self.accepted / self.proposed if self.proposed else math.nan


def speculative(
    model: nn.Module,
    draft: nn.Module,
    ids: Tensor,
    n: int,
    *,
    lookahead: int = 4,
    generator: torch.Generator | None = None,
    stop: Collection[int] = (),
    real: Tensor | None = None,
    count: Acceptance | None = None,
    **settings: Any,
) -> Iterator[Tensor]:
    """`generate` with the help of a small model: the same distribution of texts, in fewer reads of the large one.

    The draft proposes `lookahead` tokens, the model reads all of them at once. A proposal x is kept with probability
    min(1, p(x) / q(x)), p the model's and q the draft's; the first that is not is replaced by a draw from
    max(0, p - q), normalized (Leviathan et al. 2023; Chen et al. 2023). The settings of `filter_logits` shape p and
    q alike. The rows of a batch go on together, at the pace of the one that accepts least.
    count: filled in as it goes. Raises ValueError where T + n tokens do not fit both blocks, the vocabularies differ,
    or a setting is out of range.
    """
    ids = _check_prompt(ids, n, real)
    _check(**settings)
    _check_fits(ids, n, model, draft)
    if lookahead < 1:
        raise ValueError(f"lookahead is {lookahead}; expected at least 1 token")
    V, draft_V = _config(model).vocab_size, _config(draft).vocab_size
    if draft_V != V:
        raise ValueError(f"the model knows {V} tokens and the draft {draft_V}; both must read the same ids")
    count = Acceptance() if count is None else count
    return _speculative(model, draft, ids, n, lookahead, generator, stop, real, count, settings)


def _speculative(
    model: nn.Module,
    draft: nn.Module,
    ids: Tensor,
    n: int,
    lookahead: int,
    generator: torch.Generator | None,
    stop: Collection[int],
    real: Tensor | None,
    count: Acceptance,
    settings: Settings,
) -> Iterator[Tensor]:
    """The loop of `speculative`."""
    (B, T), end = ids.shape, ids.shape[1] + n
    cache, draft_cache, draft_decoder = _new_cache(model, B, T, n), _new_cache(draft, B, T, n), _decoder(draft, n)
    ended = torch.zeros(B, dtype=torch.bool, device=ids.device)
    while ids.shape[1] < end:
        known = ids.shape[1]
        k = min(lookahead, end - known - 1)  # the model adds one token of its own
        text, text_real, q = ids, real, []
        for _ in range(k):
            logits = _read(draft, text, draft_cache, text_real, draft_decoder)[:, -1]
            q.append(_probabilities(logits, text, settings))
            text, text_real = _append(text, text_real, _draw(q[-1], generator))
        logits = _read(model, text, cache, text_real)[:, -k - 1 :]  # (B, k+1, V)
        count.reads += 1
        for i in range(k + 1):
            p = _probabilities(logits[:, i], ids, settings)
            if i < k:
                token, kept = accept(p, q[i], text[:, known + i], generator=generator)
                count.proposed += int((~ended).sum())
                count.accepted += int((kept & ~ended).sum())
            else:  # every proposal was kept, and the model has read the last one too
                token, kept = _draw(p, generator), torch.zeros_like(ended)
            token = torch.where(ended, ids[:, -1], token)
            yield token
            ids, real = _append(ids, real, token)
            ended = ended | _is_any_of(token, stop)
            if ended.all():
                return
            if not (kept | ended).all():
                break
        for held in (cache, draft_cache):  # forget what was rejected
            held.truncate(min(held.length, ids.shape[1] - 1))


def accept(p: Tensor, q: Tensor, x: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Turn x (B,), drawn from q (B, V), into a draw from p (B, V) -> tokens (B,), and which are x, (B,) bool.

    x is kept with probability min(1, p(x) / q(x)); else a token is drawn from where p is above q.
    """
    u = torch.rand(x.shape, generator=generator, device=x.device, dtype=p.dtype)  # (B,), in [0, 1)
    kept = u * q.gather(1, x[:, None])[:, 0] < p.gather(1, x[:, None])[:, 0]
    leftover = (p - q).clamp(min=0)  # (B, V)
    leftover = torch.where(leftover.sum(dim=-1, keepdim=True) > 0, leftover, p)  # p = q: every x is kept
    return torch.where(kept, x, _draw(leftover, generator)), kept


# --- shared steps ----------------------------------------------------------------------------------------


def _read(model: nn.Module, text: Tensor, cache: Any, real: Tensor | None, decoder: Decoder | None = None) -> Tensor:
    """The logits (B, T, V) of the last tokens of text (B, S): those that the cache does not hold, or all.

    With a decoder only the very last one's, (B, 1, V), and faster.
    """
    start, S = 0 if cache is None else cache.length, text.shape[1]
    if decoder is not None and start == S - 1:
        positions = None if real is None else real.sum(dim=1) - 1  # (B,)
        return decoder(text[:, -1], cache, positions, real)[:, None]  # (B, 1, V)
    forward = model if decoder is None else decoder.prefill
    with torch.inference_mode():  # no_grad, and nothing is kept that only a gradient would need
        if real is None:
            logits: Tensor = forward(text[:, start:], cache)
            return logits
        if hasattr(model, "new_state"):
            raise ValueError("a recurrent model cannot skip padding; give it prompts of one length, without real")
        # A row's first real token stands at position 0, and no one looks at the padding before it.
        positions = (real.cumsum(dim=1) - 1).clamp(min=0)[:, start:]  # (B, T)
        # Padding may see padding: a query that sees nothing at all is no number in some fused kernels.
        seen = real[:, None, None, :] | ~real[:, None, start:, None]  # (B, 1, T, S)
        mask = causal_mask(S - start, S, text.device) & seen
        logits = forward(text[:, start:], cache, mask=mask, positions=positions)
        return logits


def _probabilities(logits: Tensor, context: Tensor, settings: Settings) -> Tensor:
    return filter_logits(logits, context=context, **settings).softmax(dim=-1)


def _choose(logits: Tensor, context: Tensor, settings: Settings, generator: torch.Generator | None) -> Tensor:
    """logits (B, V) -> one token a row, (B,). Where only the best is left, nothing is drawn."""
    if settings["temperature"] < GREEDY:
        if settings["repetition_penalty"] != 1.0:
            logits = _penalize(logits, context, settings["repetition_penalty"])
        return logits.argmax(dim=-1)
    return _draw(_probabilities(logits, context, settings), generator)


def _draw(p: Tensor, generator: torch.Generator | None) -> Tensor:
    """p (B, V), which need not sum to 1 -> one token a row, (B,)."""
    return torch.multinomial(p, 1, generator=generator)[:, 0]


def _append(ids: Tensor, real: Tensor | None, token: Tensor) -> tuple[Tensor, Tensor | None]:
    """One more token (B,) for each row, no padding."""
    if real is not None:
        real = torch.cat((real, torch.ones_like(real[:, :1])), dim=1)
    return torch.cat((ids, token[:, None]), dim=1), real


def _is_any_of(tokens: Tensor, stop: Collection[int]) -> Tensor:
    return torch.isin(tokens, torch.tensor(list(stop), dtype=tokens.dtype, device=tokens.device))


def _config(model: nn.Module) -> Any:
    return model.config


def _decoder(model: nn.Module, n: int) -> Decoder | None:
    """The fast way to read one token, n times, for models that have one."""
    if not isinstance(model, GPT) or not is_plain(model):
        return None
    return Decoder(model, copy=n >= MANY and model.n_params() <= SMALL)


def _new_cache(model: nn.Module, batch_size: int, T: int, n: int) -> Any:
    """What the model needs to keep: its own kind of state, or keys and values.

    A KVCache has room for a prompt of T tokens and n more, as far as the model can look back.
    """
    if hasattr(model, "new_state"):  # a recurrent model
        return model.new_state()  # type: ignore[operator]
    weight, config = next(model.parameters()), _config(model)
    return KVCache(config, batch_size, min(config.block_size, T + n), device=weight.device, dtype=weight.dtype)


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
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
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


def _check_prompt(ids: Tensor, n: int, real: Tensor | None) -> Tensor:
    """Refuse a prompt that cannot be continued -> ids, the padding replaced by a token that the row has anyway."""
    if ids.dim() != 2 or not ids.numel():
        raise ValueError(f"expected a prompt of shape (B, T) with at least one token, got {tuple(ids.shape)}")
    if n < 0:
        raise ValueError(f"n is {n}; expected the number of new tokens, 0 or more")
    if real is None:
        return ids
    if real.shape != ids.shape or real.dtype != torch.bool:
        raise ValueError(f"real is {real.dtype} {tuple(real.shape)}; expected bool {tuple(ids.shape)}, as the prompt")
    if not real[:, -1].all() or (real[:, :-1] & ~real[:, 1:]).any():
        raise ValueError("padding must stand on the left of every row, and tokens on the right; see pad_left")
    return torch.where(real, ids, ids[:, -1:])


def _check_fits(ids: Tensor, n: int, *models: nn.Module) -> None:
    """Refuse a text that would outgrow what the models can look back on."""
    block = min(_config(model).block_size for model in models)
    if ids.shape[1] + n > block:
        raise ValueError(
            f"{ids.shape[1]} tokens and {n} new ones do not fit a block of {block}; "
            "give a shorter prompt or ask for fewer"
        )
