"""The checks of L09, Inference and sampling."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llmfs.attention import KVCache
from llmfs.config import GPTConfig
from llmfs.exercises import Args, Exercise, Mistake, Result
from llmfs.gpt import GPT
from llmfs.sample import filter_logits

# --- top-p at the boundary -----------------------------------------------------------------------------


def _top_p(p: Tensor, share: float) -> Tensor:
    """The package's filter, on probabilities."""
    return filter_logits(p.log()[None], top_p=share)[0].isfinite()


def _wrong_top_p(
    p: Tensor,
    share: float,
    *,
    room: float = 1e-6,
    crossing: bool = True,
    one: bool = True,
    ordered: bool = True,
    subtract: bool = False,
) -> Tensor:
    """Keep while the sum is below the share; the options plant mistakes."""
    order = p.argsort(descending=True, stable=True) if ordered else torch.arange(len(p))
    total = p[order].double().cumsum(dim=0)
    before = total - p[order] if subtract else torch.cat((torch.zeros(1, dtype=total.dtype), total[:-1]))
    keep = before < share - room if crossing else total <= share + room
    keep[0] |= one
    return torch.zeros(len(p), dtype=torch.bool).scatter(0, order, keep)


def _top_p_cases() -> list[Args]:
    peaked, flat = [0.1, 0.6, 0.3], [0.25, 0.22, 0.2, 0.18, 0.15]
    random = torch.randn(30, generator=torch.Generator().manual_seed(0)).mul(2).softmax(dim=-1)
    hair = [0.29, 0.17, 0.35, 0.19]  # 0.35 + 0.29 + 0.19 ends below 0.83, in whatever way it is summed
    pairs = [
        (hair, 0.83),
        (peaked, 0.9),
        (peaked, 0.7),
        (peaked, 0.6),
        (peaked, 0.0),
        (flat, 0.9),
        ([0.05, 0.9, 0.05], 0.5),
    ]
    cases: list[Args] = [(torch.tensor(p, dtype=torch.float64), share) for p, share in pairs]
    return [*cases, (random, 0.8), (random, 0.95)]


top_p = Exercise(
    "top_p",
    right=_top_p,
    cases=_top_p_cases,
    mistakes=(
        Mistake(
            functools.partial(_wrong_top_p, room=0.0),
            "nearly: 0.6 + 0.3 is 0.8999999999999999 in floats, so where a sum meets the share exactly your filter keeps "
            "one token too many. Compare with a little room, share - 1e-6",
        ),
        Mistake(
            functools.partial(_wrong_top_p, room=0.0, subtract=True),
            "nearly: 0.6 + 0.3 is 0.8999999999999999 in floats, so where a sum meets the share exactly your filter keeps "
            "one token too many. Compare with a little room, share - 1e-6",
        ),
        Mistake(
            functools.partial(_wrong_top_p, crossing=False),
            "the token that crosses the share belongs to the nucleus. You keep tokens while their sum stays within the "
            "share; keep those before which the share is not yet reached",
        ),
        Mistake(
            functools.partial(_wrong_top_p, crossing=False, one=False),
            "the token that crosses the share belongs to the nucleus, and one token must always stay: where the best "
            "token alone exceeds the share, you keep none at all. Keep those before which the share is not yet reached",
        ),
        Mistake(
            functools.partial(_wrong_top_p, one=False),
            "a share of 0 rules out every token, and then there is nothing to draw from: always keep the best",
        ),
        Mistake(
            functools.partial(_wrong_top_p, ordered=False),
            "the sum must run from the likeliest token down. Sort first, and put the result back into the old order",
        ),
        Mistake(
            lambda p, share: _wrong_top_p(p, share)[p.argsort(descending=True, stable=True)],
            "your answer is in sorted order: keep[0] is for the best token, not for token 0. Put it back with scatter, "
            "or with the inverse of the sort",
        ),
        Mistake(
            lambda p, share: p >= share,
            "you compare each probability with the share; it is a bound on their sum, from the likeliest down",
        ),
    ),
)

# --- the repetition penalty ----------------------------------------------------------------------------


def _penalize(
    logits: Tensor,
    seen: Sequence[int],
    penalty: float,
    *,
    negative: Callable[[Tensor, float], Tensor] = lambda x, penalty: x * penalty,
    positive: Callable[[Tensor, float], Tensor] = lambda x, penalty: x / penalty,
    once: bool = True,
) -> Tensor:
    out = logits.clone()
    for id in sorted(set(seen)) if once else seen:
        out[id] = positive(out[id], penalty) if out[id] > 0 else negative(out[id], penalty)
    return out


penalty = Exercise(
    "penalty",
    right=lambda logits, seen, penalty: filter_logits(
        logits[None], repetition_penalty=penalty, context=torch.tensor([seen])
    )[0],
    cases=lambda: [
        (torch.tensor([2.0, -2.0, 1.0, 0.5]), [0, 1], 1.5),
        (torch.tensor([2.0, -2.0, 1.0, 0.5]), [0, 0, 0, 1, 1, 3], 2.0),
        (torch.tensor([-1.0, -3.0, 0.0, 4.0]), [3, 1, 3, 2], 1.2),
    ],
    mistakes=(
        Mistake(
            functools.partial(_penalize, negative=lambda x, penalty: x / penalty),
            "dividing a negative logit raises it: -2 / 1.5 is -1.33. Divide what is positive, multiply what is negative",
        ),
        Mistake(
            functools.partial(_penalize, negative=lambda x, penalty: x / penalty, once=False),
            "dividing a negative logit raises it: -2 / 1.5 is -1.33. Divide what is positive, multiply what is "
            "negative; and do so once for each token, however often it occurred",
        ),
        Mistake(
            functools.partial(_penalize, once=False),
            "a token that occurred three times is penalized three times; once is meant. Go over set(seen)",
        ),
        Mistake(
            functools.partial(
                _penalize, positive=lambda x, penalty: x * penalty, negative=lambda x, penalty: x / penalty
            ),
            "the wrong way round: this makes tokens that occurred likelier. Divide what is positive, multiply what is "
            "negative",
        ),
        Mistake(
            functools.partial(
                _penalize, positive=lambda x, penalty: x - penalty, negative=lambda x, penalty: x - penalty
            ),
            "subtracting is another penalty (a presence penalty); here the logits are divided or multiplied",
        ),
        Mistake(
            lambda logits, seen, penalty: torch.where(logits > 0, logits / penalty, logits * penalty),
            "you penalize every token; only those in `seen` have occurred",
        ),
    ),
)

# --- greedy decoding with a cache ----------------------------------------------------------------------


class _Counting(nn.Module):
    """A model that counts the tokens that it reads, and those that it reads without a cache."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        self.read = self.uncached = 0

    def forward(self, ids: Tensor, cache: KVCache | None = None, **more: Any) -> Tensor:
        """The model's logits."""
        self.read += ids.shape[1]
        self.uncached += ids.shape[1] if cache is None else 0
        logits: Tensor = self.model(ids, cache, **more)
        return logits


def _small_model() -> GPT:
    """Random, and sure enough of itself that a wrong cache shows in the tokens."""
    model = GPT(
        GPTConfig(vocab_size=40, block_size=64, n_layer=2, n_head=2, n_embd=16),
        generator=torch.Generator().manual_seed(0),
    ).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3.0)
    return model


@torch.no_grad()
def _uncached_greedy(model: nn.Module, ids: Tensor, n: int) -> Tensor:
    text = ids
    for _ in range(n):
        text = torch.cat((text, model(text)[:, -1:].argmax(dim=-1)), dim=1)
    return text[:, ids.shape[1] :]


def cached_greedy(answer: Callable[[Any, Tensor, int], Any]) -> Result:
    """answer(model, ids (B, T), n) must give the greedy tokens (B, n), and read no token twice."""
    name, n = "cached_greedy", 8
    model = _small_model()
    for B, T in ((1, 5), (3, 7)):
        ids = torch.randint(0, 40, (B, T), generator=torch.Generator().manual_seed(B))
        expected, counting = _uncached_greedy(model, ids, n), _Counting(model)
        try:
            with torch.no_grad():
                out = answer(counting, ids.clone(), n)
        except Exception as error:
            if "cache holds" in str(error) or "block_size" in str(error):
                return Result(
                    name,
                    False,
                    f"the cache ran over ({error}): you hand the whole text to the model at every step, and it is "
                    "stored again each time. After the prompt, give it the new token alone",
                )
            return Result(name, False, f"your function raised {type(error).__name__}: {error}")
        if out is None:
            return Result(name, False, "your function returns nothing yet; write its body and run the cell again")
        if not isinstance(out, Tensor) or out.shape != (B, n):
            shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            more = " (the new tokens alone, without the prompt)" if shape == (B, T + n) else ""
            return Result(name, False, f"expected a tensor of shape {(B, n)}{more}, got {shape}")
        if counting.uncached and torch.equal(out, expected):
            return Result(
                name,
                False,
                f"the tokens are right, but the model read {counting.read} tokens for a prompt of {T} and {n} new ones, "
                "without the cache. Hand the cache to the model, and after the prompt only the newest token",
            )
        if not torch.equal(out, expected):
            return Result(name, False, _why_wrong(counting.read, T, n))
        if counting.read > T + n:
            return Result(
                name,
                False,
                f"the tokens are right, but the model read {counting.read} tokens where {T + n - 1} do: the prompt once, "
                "then each new token once",
            )
    return Result(name, True, "the same tokens, each read once, for one row and for three")


def _why_wrong(read: int, T: int, n: int) -> str:
    """The tokens are wrong: how many were read says why."""
    if read < T + n - 1:
        return (
            f"the model read {read} tokens, but the prompt alone has {T}, and each new token must be read too: what "
            "the cache has never been given, the model does not know. The first call reads the whole prompt"
        )
    if read > 2 * (T + n):
        return (
            f"the model read {read} tokens for a text of {T + n}: the whole text goes into the cache again at every "
            "step, behind what is there already. After the prompt, give it the new token alone"
        )
    return (
        f"the tokens are wrong. The model read {read} tokens where {T + n - 1} do; perhaps one is read twice (the last "
        "of the prompt?), so that it stands twice in the cache. Or the scores are not those of the last position"
    )


# --- one step of beam search ---------------------------------------------------------------------------

Step = tuple[Tensor, Tensor, Tensor]  # scores, parents, tokens


def _best_of(totals: Tensor) -> Step:
    W, V = totals.shape
    best = totals.flatten().topk(W)
    return best.values, best.indices // V, best.indices % V


def _each_alone(scores: Tensor, log_p: Tensor) -> Step:
    best = log_p.max(dim=-1)
    return scores + best.values, torch.arange(len(scores)), best.indices


def _each_alone_sorted(scores: Tensor, log_p: Tensor) -> Step:
    totals, parents, tokens = _each_alone(scores, log_p)
    order = totals.argsort(descending=True)
    return totals[order], parents[order], tokens[order]


def _swapped(scores: Tensor, log_p: Tensor) -> Step:
    best, parents, tokens = _best_of(scores[:, None] + log_p)
    return best, tokens, parents


def _divided_by_w(scores: Tensor, log_p: Tensor) -> Step:
    W = len(scores)
    best = (scores[:, None] + log_p).flatten().topk(W)
    return best.values, best.indices // W, best.indices % W


def _beam_cases() -> list[Args]:
    g = torch.Generator().manual_seed(0)
    draw = lambda W, V: torch.randn(W, V, generator=g).mul(2).log_softmax(dim=-1)  # noqa: E731
    first = torch.tensor([0.0, -torch.inf, -torch.inf])  # the first step: one beam, so to speak
    return [
        (torch.tensor([-1.0, -6.0]), draw(2, 5)),
        (-3 * torch.rand(4, generator=g), draw(4, 9)),
        (first, draw(3, 6)),
    ]


beam_step = Exercise(
    "beam_step",
    right=lambda scores, log_p: _best_of(scores[:, None] + log_p),
    cases=_beam_cases,
    mistakes=(
        Mistake(
            _each_alone,
            "each beam is continued by its own best token: these are W greedy searches side by side. The beams "
            "compete: take the best W of all W * V continuations",
        ),
        Mistake(
            _each_alone_sorted,
            "each beam is continued by its own best token: these are W greedy searches side by side. The beams "
            "compete: take the best W of all W * V continuations",
        ),
        Mistake(
            lambda scores, log_p: _best_of(log_p),
            "you rank by the new token alone; what a beam has cost so far counts too. Add scores[:, None] first",
        ),
        Mistake(
            _swapped,
            "parents and tokens are swapped: in a flattened (W, V) table the row is index // V and the column index % V",
        ),
        Mistake(
            _divided_by_w,
            "you divide by W; a flattened (W, V) table has V entries a row: index // V and index % V",
        ),
        Mistake(
            lambda scores, log_p: _best_of(scores[:, None] * log_p),
            "probabilities are multiplied, so log-probabilities are added",
        ),
        Mistake(
            lambda scores, log_p: _best_of(scores[:, None] + log_p.exp()),
            "scores are sums of log-probabilities: add log_p itself, not its exp",
        ),
    ),
)
