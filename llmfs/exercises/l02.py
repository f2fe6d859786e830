"""Exercises of L02: the gradient of a lookup, the table of sinusoids, a rotary score, and weight tying."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfs.embeddings import apply_rope, rope_tables, sinusoidal_positions
from llmfs.exercises import Args, Exercise, Mistake, Result


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------ the lookup, backward


def _lookup_gradient(ids: Tensor, grad: Tensor, vocab_size: int) -> Tensor:
    """The reference, by autograd through torch's own lookup."""
    table = torch.zeros(vocab_size, grad.shape[-1], requires_grad=True)
    (out,) = torch.autograd.grad(F.embedding(ids, table), table, grad)
    return out


def _lookup_cases() -> list[Args]:
    return [  # in the first, token 2 comes twice
        (torch.tensor([[2, 0, 2]]), torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]]), 4),
        (torch.randint(6, (3, 5), generator=torch.Generator().manual_seed(0)), _normal(1, 3, 5, 4), 9),
    ]


def _last_one_wins(ids: Tensor, grad: Tensor, vocab_size: int) -> Tensor:
    out = torch.zeros(vocab_size, grad.shape[-1])
    for i, g in zip(ids.flatten().tolist(), grad.flatten(0, 1), strict=True):
        out[i] = g
    return out


def _first_one_wins(ids: Tensor, grad: Tensor, vocab_size: int) -> Tensor:
    return _last_one_wins(ids.flip(0, 1), grad.flip(0, 1), vocab_size)


def _mean_of_repeats(ids: Tensor, grad: Tensor, vocab_size: int) -> Tensor:
    counts = torch.bincount(ids.flatten(), minlength=vocab_size).clamp(min=1)
    return _lookup_gradient(ids, grad, vocab_size) / counts[:, None]


def _rows_used(ids: Tensor, grad: Tensor, vocab_size: int) -> Tensor:
    return _lookup_gradient(ids, grad, vocab_size)[torch.unique(ids)]


_OVERWRITTEN = (
    "One gradient of a token that comes more than once has replaced the others. `out[ids] = grad` writes "
    "each row once. The row was used at every place where its token stands, so those gradients add up: "
    "out.index_add_, or the product of the one-hot matrix, transposed, with grad."
)

lookup_gradient = Exercise(
    "gradient of a lookup",
    right=_lookup_gradient,
    cases=_lookup_cases,
    mistakes=(
        Mistake(_last_one_wins, _OVERWRITTEN),
        Mistake(_first_one_wins, _OVERWRITTEN),
        Mistake(
            _mean_of_repeats,
            "You take the mean over the places of a token. The chain rule adds: every place where the row "
            "was used has a share in the loss.",
        ),
        Mistake(
            lambda ids, grad, vocab_size: grad.sum((0, 1)).expand(vocab_size, -1),
            "Every row gets the sum of all gradients. A row gets the gradients of the places where its "
            "own token stands, and a token that is not in the batch gets zero.",
        ),
        Mistake(
            _rows_used,
            "You return the rows that were used. The gradient has the shape of the table, (V, C): zeros "
            "for all other tokens.",
        ),
        Mistake(
            lambda ids, grad, vocab_size: _lookup_gradient(ids, grad, vocab_size).mT,
            "Your result is (C, V). The table has one row a token, (V, C), and so has its gradient: the "
            "one-hot matrix is transposed, onehot.T @ grad.",
        ),
        Mistake(
            lambda ids, grad, vocab_size: grad,
            "That is the gradient of what the lookup gave, (B, T, C). Now carry it back to the rows of "
            "the table, (V, C).",
        ),
    ),
)


# ------------------------------------------------------------------------------ sinusoids


def _sinusoid_cases() -> list[Args]:
    return [(3, 4), (1, 2), (50, 12)]


def _waves(n: int, n_embd: int, *, first: int = 0, exponent: float = 1.0) -> tuple[Tensor, Tensor]:
    """Sines and cosines, (n, C/2) each; pair i turns by 10000^(-exponent 2i/C) a position."""
    pairs = torch.arange(0, n_embd, 2, dtype=torch.float64)
    angles = (torch.arange(n) + first)[:, None] * 10000.0 ** (-exponent * pairs / n_embd)  # (n, C/2)
    return angles.sin(), angles.cos()


def _woven(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack((a, b), dim=-1).flatten(1)


def _one_frequency_a_channel(n: int, n_embd: int) -> Tensor:
    channels = torch.arange(n_embd, dtype=torch.float64)
    angles = torch.arange(n)[:, None] * 10000.0 ** (-channels / n_embd)  # (n, C)
    return torch.where(channels % 2 == 0, angles.sin(), angles.cos())


def _twice_the_exponent(n: int, n_embd: int) -> Tensor:
    return _woven(*_waves(n, n_embd, exponent=2.0))


sinusoids = Exercise(
    "sinusoids",
    right=sinusoidal_positions,
    cases=_sinusoid_cases,
    mistakes=(
        Mistake(
            lambda n, C: torch.cat(_waves(n, C), dim=-1),
            "All the sines stand before all the cosines. Some libraries do that; the paper puts each "
            "cosine beside its sine: channel 2i and channel 2i + 1.",
        ),
        Mistake(
            lambda n, C: _woven(*reversed(_waves(n, C))),
            "Sine and cosine have changed places: channel 2i, the even one, is the sine.",
        ),
        Mistake(
            _one_frequency_a_channel,
            "Every channel has a frequency of its own. The two channels of a pair share one: channel 2i + "
            "1 has the exponent 2i/C, as channel 2i has. Only then is a shift by k positions a rotation.",
        ),
        Mistake(
            lambda n, C: _woven(*_waves(n, C, exponent=0.5)),
            "Your exponent is half of what it should be. Pair i has 2i/C; where i counts pairs, the 2 is needed.",
        ),
        Mistake(
            _twice_the_exponent,
            "Your exponent is twice what it should be. Where i already runs over 0, 2, 4, …, it is the 2i "
            "of the formula: do not double it again.",
        ),
        Mistake(
            lambda n, C: _woven(*_waves(n, C, exponent=-1.0)),
            "You multiply by 10000^(2i/C); divide by it. Pair 0 is the fastest, with one radian a "
            "position, and every further pair is slower.",
        ),
        Mistake(
            lambda n, C: _woven(*_waves(n, C, first=1)),
            "Your positions begin at 1. The first token stands at position 0, so its row is 0, 1, 0, 1, …",
        ),
        Mistake(
            lambda n, C: _woven(*_waves(n, C)).T,
            "Your table is (C, n). One row is one position: (n, C).",
        ),
    ),
)


# ------------------------------------------------------------------------------ a rotary score


def _turned(x: Tensor, t: int, theta: float = 10000.0) -> Tensor:
    """One head's vector x (hd,) as it is at position t."""
    return apply_rope(x[None, None, None], *rope_tables(torch.tensor([t]), x.shape[-1], theta))[0, 0, 0]


def _rope_score(q: Tensor, k: Tensor, m: int, n: int) -> Tensor:
    return _turned(q, m) @ _turned(k, n)


def _rope_cases() -> list[Args]:
    q, k = _normal(2, 8), _normal(3, 8)
    places = ((0, 0), (3, 1), (13, 11), (1, 3), (40, 7))  # the second and the third have one distance
    return [(q, k, m, n) for m, n in places] + [(_normal(4, 2), _normal(5, 2), 5, 2)]


def _neighbors_turned(x: Tensor, t: int) -> Tensor:
    """Pairs of channels 2i and 2i + 1, as in the paper."""
    halves = torch.cat((x[0::2], x[1::2]))
    return _turned(halves, t)


def _slower_turned(x: Tensor, t: int) -> Tensor:
    """The exponent i/hd in place of 2i/hd."""
    return _turned(x, t, theta=100.0)


def _with_sinusoid(x: Tensor, t: int) -> Tensor:
    return x + sinusoidal_positions(t + 1, x.shape[-1])[t]


rope_score = Exercise(
    "rotary score",
    right=_rope_score,
    cases=_rope_cases,
    mistakes=(
        Mistake(
            lambda q, k, m, n: q @ k,
            "Nothing is turned: your score is the same at every two positions.",
        ),
        Mistake(
            lambda q, k, m, n: _turned(q, m) @ k,
            "Only the query is turned, so the score depends on m, wherever the key stands. Turn the key "
            "by its own position n too: the two angles subtract in the dot product.",
        ),
        Mistake(
            lambda q, k, m, n: q @ _turned(k, n),
            "Only the key is turned, so the score depends on n, wherever the query stands. Turn the query "
            "by its own position m too: the two angles subtract in the dot product.",
        ),
        Mistake(
            lambda q, k, m, n: _turned(q, m) @ _turned(k, -n),
            "You turn the key backwards, so the score depends on the sum m + n. Turn both forward: the "
            "dot product itself takes the difference.",
        ),
        Mistake(
            lambda q, k, m, n: _turned(q, -m) @ _turned(k, -n),
            "You turn the wrong way: a pair (a, b) becomes (a cos - b sin, a sin + b cos). The score "
            "still depends on the distance alone, but of key to query where it should be of query to key.",
        ),
        Mistake(
            lambda q, k, m, n: _neighbors_turned(q, m) @ _neighbors_turned(k, n),
            "You pair channels 2i and 2i + 1, as the paper does. That depends on the distance alone as "
            "well. But llmfs, like Llama's weights in transformers, pairs channel i with channel i + "
            "hd/2, and weights trained with one pairing are wrong under the other.",
        ),
        Mistake(
            lambda q, k, m, n: _slower_turned(q, m) @ _slower_turned(k, n),
            "Your pairs turn too fast: the exponent is half of what it should be. Pair i turns by "
            "theta^(-2i/hd) a position, and hd counts channels, not pairs.",
        ),
        Mistake(
            lambda q, k, m, n: _turned(q, m) @ _turned(k, n) / math.sqrt(q.shape[-1]),
            "The rotation is right. Leave out the division by √hd: that belongs to attention, and this is "
            "the plain dot product.",
        ),
        Mistake(
            lambda q, k, m, n: _with_sinusoid(q, m) @ _with_sinusoid(k, n),
            "You add a position to each vector. Then the dot product has terms of a word with a position, "
            "which depend on where the two stand, not on their distance alone. Rotary positions turn, "
            "and add nothing.",
        ),
    ),
    tolerance=1e-4,
)


# ------------------------------------------------------------------------------ tying


def tying(tie: Callable[[nn.Embedding, nn.Linear], object]) -> Result:
    """Check tie(embed, head), which must make the table of `embed` and the weight of `head` one parameter."""
    embed, head = nn.Embedding(7, 3), nn.Linear(3, 7, bias=False)
    embed.weight.data, head.weight.data = _normal(6, 7, 3), _normal(7, 7, 3)
    before = embed.weight.detach().clone(), head.weight.detach().clone()
    try:
        tie(embed, head)
    except Exception as error:
        hint = " Both weights are (V, C): neither is transposed." if "size" in str(error) else ""
        return _not_tied(f"your function raised {type(error).__name__}: {error}.{hint}")
    if embed.weight.shape != head.weight.shape:
        return _not_tied(
            f"the table is {tuple(embed.weight.shape)} and the head's weight {tuple(head.weight.shape)}. "
            "nn.Linear keeps its weight as (outputs, inputs), which is (V, C) as in the table: do not "
            "transpose."
        )
    if embed.weight is head.weight:
        return _can_learn(head.weight, before)
    if embed.weight.data_ptr() == head.weight.data_ptr():
        return _not_tied(
            "the two share memory, but they are two Parameters. Each gets its own part of the gradient, "
            "an optimizer keeps two states, and parameters() counts the table twice. Assign the Parameter "
            "itself: head.weight = embed.weight."
        )
    if torch.equal(embed.weight, head.weight):
        return _not_tied(
            "you have copied the values. They are equal now, and differ after the first step, because "
            "each has its own gradient. Assign the Parameter itself: head.weight = embed.weight."
        )
    if torch.equal(embed.weight, before[0]) and torch.equal(head.weight, before[1]):
        return _not_tied(
            "nothing is tied yet: the two weights are what they were. Change the modules themselves; "
            "assigning to the names `embed` or `head` changes only your function's own variables."
        )
    return _not_tied("the two weights are neither one parameter nor equal.")


def _can_learn(shared: Tensor, before: tuple[Tensor, Tensor]) -> Result:
    """It is one parameter; does it take a gradient, and has it the values that one of the two had?"""
    if not shared.requires_grad:
        return _not_tied(
            "the weight is shared, but it takes no gradient. Assign the Parameter as it is, without .data or .detach()."
        )
    if not any(torch.equal(shared, weight) for weight in before):
        return _not_tied(
            "the weight is shared, but its values are neither the table's nor the head's. Make no new "
            "one: assign the Parameter that is there."
        )
    return Result("weight tying", True, "one parameter, which both modules use")


def _not_tied(message: str) -> Result:
    return Result("weight tying", False, message)
