"""Exercises of L06: a leak detector, a mask between documents, a masked softmax, a prefill in chunks."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from llmfs.attention import causal_mask
from llmfs.exercises import Args, Exercise, Mistake, Result

# ------------------------------------------------------------------------------------------- a leak detector

Layer = Callable[[Tensor], Tensor]  # x (B, T, C) -> y (B, T, any)


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _attend(x: Tensor, mask: Tensor) -> Tensor:
    """Attention with one head and no projections, x (B, T, C) -> (B, T, C); normalized as in a block."""
    x = F.layer_norm(x, x.shape[-1:])
    return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)


def causal_layer(x: Tensor) -> Tensor:
    """No leak."""
    return _attend(x, causal_mask(x.shape[1], x.shape[1]))


def running_mean(x: Tensor) -> Tensor:
    """No leak: the mean over the positions so far."""
    return x.cumsum(dim=1) / torch.arange(1, x.shape[1] + 1)[:, None]


def one_too_many(x: Tensor) -> Tensor:
    """The diagonal is off by one: position t sees t + 1."""
    return _attend(x, torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril(diagonal=1))


def first_sees_second(x: Tensor) -> Tensor:
    """A single wrong entry in the mask: position 0 sees position 1."""
    mask = causal_mask(x.shape[1], x.shape[1])
    mask[0, 1] = True
    return _attend(x, mask)


def masked_after_softmax(x: Tensor) -> Tensor:
    """The future's weights are set to zero, but the sum that all weights were divided by holds it."""
    x = F.layer_norm(x, x.shape[-1:])
    weights = (x @ x.mT / math.sqrt(x.shape[-1])).softmax(dim=-1)  # (B, T, T)
    return (weights * causal_mask(x.shape[1], x.shape[1])) @ x


def normalized_over_time(x: Tensor) -> Tensor:
    """Mean and deviation over the positions, the later ones too."""
    return causal_layer((x - x.mean(dim=1, keepdim=True)) / x.std(dim=1, keepdim=True))


def batch_statistic(x: Tensor) -> Tensor:
    """Each position is normalized over the rows of the batch: no look ahead, but a look at other texts."""
    return causal_layer((x - x.mean(dim=0, keepdim=True)) / x.std(dim=0, keepdim=True))


def faint_leak(x: Tensor) -> Tensor:
    """A thousandth of the mean of everything."""
    return causal_layer(x) + 1e-3 * x.mean(dim=1, keepdim=True)


PLANTED: tuple[Layer, ...] = (
    one_too_many,
    first_sees_second,
    masked_after_softmax,
    normalized_over_time,
    batch_statistic,
    faint_leak,
)
CLEAN: tuple[Layer, ...] = (causal_layer, running_mean)


def _leaks(
    layer: Layer,
    x: Tensor,
    *,
    starts: Callable[[int], range] = lambda T: range(1, T),
    change: Callable[[Tensor], Tensor] = lambda x: _normal(1, *x.shape),
    tolerance: float = 1e-6,
    rows: bool = True,
) -> bool:
    """Change what an output must not see: does it move? The options make the known mistakes."""
    B, T, _ = x.shape
    y = layer(x)
    for s in starts(T):
        changed = x.clone()
        changed[:, s:] = change(x[:, s:])
        if not torch.allclose(layer(changed)[:, :s], y[:, :s], rtol=0, atol=tolerance):
            return True
    for b in range(B if rows else 0):
        changed = x.clone()
        changed[b] = change(x[b])
        others = torch.arange(B) != b
        if not torch.allclose(layer(changed)[others], y[others], rtol=0, atol=tolerance):
            return True
    return False


def _last_only(rows: bool) -> Callable[[Layer, Tensor], bool]:
    return lambda layer, x: _leaks(layer, x, starts=lambda T: range(T - 1, T), rows=rows)


def _shifted(rows: bool) -> Callable[[Layer, Tensor], bool]:
    return lambda layer, x: _leaks(layer, x, change=lambda x: x + 1, rows=rows)


def _loose(rows: bool) -> Callable[[Layer, Tensor], bool]:
    return lambda layer, x: _leaks(layer, x, tolerance=1e-2, rows=rows)


def _constant(value: bool) -> Callable[[Layer, Tensor], bool]:
    return lambda layer, x: value


_ALL_LEAK = (
    "Your detector calls layers leaky that are not. Position t may depend on itself and on what came "
    "before, so where you change x from position s on, compare y[:, :s] alone. And change a copy, "
    "x.clone(): a change that stays in x is still there in the next round."
)
_NO_LEAK = (
    "Your detector finds no leak in any layer, and six of these have one. Compare layer(x) with "
    "layer(changed), where changed differs from x at positions that the compared outputs must not see."
)
_LAST = (
    "Your detector misses a layer in which position 0 sees position 1 and nothing else is wrong. Changing "
    "the last position finds leaks from the last position. Try every position s from 1 on."
)
_ROWS = (
    "Your detector looks ahead in time only, and misses a leak between the rows of a batch: a layer that "
    "normalizes over the batch shows each text the others. Change one row, and compare the other rows."
)
_SHIFT = (
    "Your detector misses leaks behind a normalization. Adding the same number to every channel changes "
    "nothing that a LayerNorm lets through, and multiplying by one nothing behind an RMSNorm. Put new "
    "random numbers in."
)
_LOOSE = (
    "Your detector misses a faint leak. A model that trains for long enough will find it. Where nothing "
    "leaks the outputs are equal up to rounding, so compare with a tolerance of about 1e-6 in float32."
)


leak_detector = Exercise(
    "leak detector",
    right=_leaks,
    cases=lambda: [(layer, _normal(0, 3, 6, 4)) for layer in (*CLEAN, *PLANTED)],
    mistakes=(
        Mistake(_constant(True), _ALL_LEAK),
        Mistake(_constant(False), _NO_LEAK),
        Mistake(_last_only(rows=False), _LAST),
        Mistake(_last_only(rows=True), _LAST),
        Mistake(lambda layer, x: _leaks(layer, x, rows=False), _ROWS),
        *(Mistake(_shifted(rows), _SHIFT) for rows in (True, False)),
        *(Mistake(_loose(rows), _LOOSE) for rows in (True, False)),
    ),
)


# ------------------------------------------------------------------------------------- between the documents


def _document_mask(ids: Tensor, end: int) -> Tensor:
    """ids (B, T), each document behind an `end` token of its own -> (B, 1, T, T) bool, True: may attend."""
    document = (ids == end).cumsum(dim=1)  # (B, T): how many have begun
    same = document[:, :, None] == document[:, None, :]  # (B, T, T)
    return (same & causal_mask(ids.shape[1], ids.shape[1]))[:, None]


def _document_cases() -> list[Args]:
    return [
        (torch.tensor([[9, 1, 2, 9, 3, 4]]), 9),
        (torch.tensor([[9, 1, 9, 2, 2, 9, 3], [9, 1, 1, 1, 1, 1, 1]]), 9),
        (torch.tensor([[5, 5, 0, 1], [1, 2, 0, 3]]), 0),  # rows that begin inside a document
        (torch.tensor([[7, 7, 1]]), 7),  # an empty document
    ]


def _same_document(document: Tensor) -> Tensor:
    return (document[:, :, None] == document[:, None, :])[:, None]


def _not_causal(ids: Tensor, end: int) -> Tensor:
    return _same_document((ids == end).cumsum(dim=1))


def _no_documents(ids: Tensor, end: int) -> Tensor:
    B, T = ids.shape
    return causal_mask(T, T).expand(B, 1, T, T)


def _end_with_the_old(ids: Tensor, end: int) -> Tensor:
    is_end = ids == end
    document = is_end.cumsum(dim=1) - is_end.long()
    return _same_document(document) & causal_mask(ids.shape[1], ids.shape[1])


def _counted_down_the_batch(ids: Tensor, end: int) -> Tensor:
    return _same_document((ids == end).cumsum(dim=0)) & causal_mask(ids.shape[1], ids.shape[1])


_END_BEGINS = (
    "Your mask puts the end token into the document before it. Here it is the first token of what follows: "
    "the output at that position is the model's guess of the next document's first word. It must not see "
    "the old document, and the new one must see it. Count the end tokens up to and including each "
    "position."
)

document_mask = Exercise(
    "document mask",
    right=_document_mask,
    cases=_document_cases,
    mistakes=(
        Mistake(_not_causal, "Your mask keeps the documents apart, but inside a document every token sees "
                             "the later ones. Both must hold: the same document, and not later. Combine "
                             "the two with &."),
        Mistake(_no_documents, "That is the causal mask alone: the second document still sees the first. "
                               "Give every position the number of its document, and allow only pairs with "
                               "equal numbers."),
        Mistake(_end_with_the_old, _END_BEGINS),
        Mistake(_counted_down_the_batch, "You count the end tokens from row to row. Each row is a text of "
                                         "its own: count along it, with cumsum(dim=1)."),
        Mistake(lambda ids, end: ~_document_mask(ids, end),
                "Your mask is True where attending is forbidden. Here, as in scaled_dot_product_attention, "
                "True means: may attend."),
        Mistake(lambda ids, end: _document_mask(ids, end)[:, 0],
                "The mask is right, but its shape is (B, T, T). Against scores of (B, H, T, T) PyTorch "
                "would line up your B with the heads. Give it an axis of size 1 for them: mask[:, None]."),
    ),
)


# -------------------------------------------------------------------------------------------- masked softmax

Softmax = Callable[[Tensor, Tensor], Tensor]  # scores (..., T, S), mask (T, S) -> weights (..., T, S)


def _masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """scores (..., T, S), mask (T, S) -> weights (..., T, S); zeros for a query that sees nothing."""
    blocked = ~mask.any(dim=-1, keepdim=True)  # (..., T, 1)
    return scores.masked_fill(~(mask | blocked), -math.inf).softmax(dim=-1).masked_fill(blocked, 0.0)


def _softmax_cases() -> list[Args]:
    scores = _normal(2, 2, 3, 4)
    blocked = torch.tensor([[False] * 4, [True, True, False, False], [True] * 4])  # query 0 sees nothing
    high = torch.tensor([[1.0, 2.0, 200.0]])  # what is masked scores far above the rest
    low = torch.tensor([[-20000.0, -20000.0, 5.0]])  # what is allowed scores far below zero
    first_two = torch.tensor([[True, True, False]])
    return [
        (scores, causal_mask(3, 4)),
        (scores.half(), causal_mask(3, 4)),
        (scores, blocked),
        (scores.half(), blocked),
        (high, first_two),
        (low.half(), first_two),
    ]


def _filled(value: float) -> Softmax:
    return lambda scores, mask: scores.masked_fill(~mask, value).softmax(dim=-1)


def _added(value: float) -> Softmax:
    def weights(scores: Tensor, mask: Tensor) -> Tensor:
        bias = torch.zeros(mask.shape).masked_fill(~mask, value).to(scores.dtype)
        return (scores + bias).softmax(dim=-1)

    return weights


def _finite_minimum(scores: Tensor, mask: Tensor) -> Tensor:
    return _filled(torch.finfo(scores.dtype).min)(scores, mask)


def _added_minimum(scores: Tensor, mask: Tensor) -> Tensor:
    return _added(torch.finfo(scores.dtype).min)(scores, mask)


def _nan_to_num(scores: Tensor, mask: Tensor) -> Tensor:
    return _added(-math.inf)(scores, mask).nan_to_num()


def _after(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.softmax(dim=-1) * mask


def _after_and_again(scores: Tensor, mask: Tensor) -> Tensor:
    weights = scores.softmax(dim=-1) * mask
    return weights / weights.sum(dim=-1, keepdim=True)


def _with_gradients(softmax: Softmax) -> Callable[[Tensor, Tensor], object]:
    """The weights, and the gradient of a sum over them with respect to the scores."""

    def both(scores: Tensor, mask: Tensor) -> object:
        scores = scores.detach().requires_grad_()
        weights: object = softmax(scores, mask)
        if not isinstance(weights, Tensor) or weights.shape != scores.shape:
            return weights
        size = torch.linspace(-1, 1, weights.numel()).view_as(weights)
        (gradient,) = torch.autograd.grad((weights.float() * size).sum(), scores)
        return weights.detach(), gradient

    return both


_BLOCKED_NAN = (
    "A query that may attend to nothing gets nan: its softmax is 0/0. Find these rows first, with "
    "mask.any(dim=-1, keepdim=True), leave them open, and set their weights to zero afterwards."
)
_TOO_LARGE = (
    "-1e9 is not a number in float16, whose lowest finite number is -65504: masked_fill refuses it, and a sum "
    "becomes -inf after all. In float32 it works until a query may attend to nothing: then all keys are "
    "alike, and it gets equal weights on what it must not see. Use -inf, and treat such queries apart."
)
_MINIMUM = (
    "With the finite minimum there is no nan, but a query that may attend to nothing now has equal scores "
    "everywhere, and its weights, adding up to 1, are on keys that it must not see. Set the weights of "
    "such a query to zero after the softmax."
)

_WEIGHTS_AND_GRADIENTS = Exercise(
    "masked softmax",
    right=_with_gradients(_masked_softmax),
    cases=_softmax_cases,
    tolerance=2e-3,  # float16 has eleven bits
    mistakes=tuple(
        Mistake(_with_gradients(wrong), hint)
        for wrong, hint in (
            (_filled(-math.inf), _BLOCKED_NAN),
            (_added(-math.inf), _BLOCKED_NAN),
            (_filled(-1e9), _TOO_LARGE),
            (_added(-1e9), _TOO_LARGE),
            (_finite_minimum, _MINIMUM),
            (_added_minimum, _MINIMUM),
            (_filled(-1e4), "-1e4 is only a large number. In the last case the allowed scores are lower "
                            "still, and all the weight goes to the one key that is masked. -inf is below "
                            "every score."),
            (_nan_to_num, "The weights are right, but not their gradients. nan_to_num puts zeros over the "
                          "nan going forward; going backward the softmax still multiplies by its nan, and "
                          "a step of the optimizer spreads it over the model. Keep the nan from arising: "
                          "leave such rows open, and empty them after the softmax."),
            (_after, "You mask after the softmax. The rows no longer add up to 1, and the sum that they "
                     "were divided by holds the keys that are masked: they still have a say. Set the "
                     "scores to -inf, before."),
            (_after_and_again, "You mask after the softmax and normalize again. On paper that is the same. "
                               "But where a masked score is far above the rest, the others have already "
                               "been rounded to zero, and 0/0 is left. Set the scores to -inf, before."),
            (lambda scores, mask: _masked_softmax(scores, ~mask),
             "Your mask is upside down: True means that the query may attend."),
        )
    ),
)


def masked_softmax(answer: Softmax) -> Result:
    """Check weights and gradients of answer(scores, mask), in float32 and float16."""
    return _WEIGHTS_AND_GRADIENTS(_with_gradients(answer) if callable(answer) else answer)


# ------------------------------------------------------------------------------------------- chunked prefill


def _chunk_masks(n: int, chunk: int) -> list[Tensor]:
    """A prompt of n tokens, read `chunk` at a time through a cache -> the mask (T, S) of each call."""
    ends = [min(start + chunk, n) for start in range(0, n, chunk)]
    return [causal_mask(end - start, end) for start, end in zip(range(0, n, chunk), ends, strict=True)]


def _each(make: Callable[[int, int], Tensor]) -> Callable[[int, int], list[Tensor]]:
    """A list of masks from what makes one: (T, S) -> mask."""
    return lambda n, chunk: [make(*mask.shape) for mask in _chunk_masks(n, chunk)]


def _bool(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=torch.bool)


def _all_keys(n: int, chunk: int) -> list[Tensor]:
    return [causal_mask(n, n)[start : start + chunk] for start in range(0, n, chunk)]


def _full_last_chunk(n: int, chunk: int) -> list[Tensor]:
    return [causal_mask(chunk, start + chunk) for start in range(0, n, chunk)]


chunked_prefill = Exercise(
    "masks of a chunked prefill",
    right=_chunk_masks,
    cases=lambda: [(6, 3), (7, 3), (5, 8), (3, 1), (8, 4)],
    mistakes=(
        Mistake(_each(lambda T, S: _bool(T, S).tril()),
                "Your triangle starts in the top left corner, so the first token of a later chunk sees key "
                "0 alone. The queries are the last T of the S positions: shift the diagonal by S - T."),
        Mistake(_each(lambda T, S: causal_mask(T, T)),
                "Your masks are square: they hold the chunk's own keys and forget those in the cache. A "
                "chunk that ends at position S has S keys."),
        Mistake(_each(_bool), "Your masks are open: inside a chunk the first token sees the last. That "
                              "holds for chunks of one token alone."),
        Mistake(_all_keys, "Each row is right, but it goes on to keys that are not in the cache yet. A "
                           "chunk that ends at position S has S columns, not n."),
        Mistake(_full_last_chunk, "Your last chunk is too long where the chunks do not divide n. It ends at "
                                  "min(start + chunk, n)."),
        Mistake(lambda n, chunk: [~mask for mask in _chunk_masks(n, chunk)],
                "Your masks are True where attending is forbidden; here True means: may attend."),
    ),
)
