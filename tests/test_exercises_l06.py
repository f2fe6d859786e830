"""Exercises of L06: right answers, written in another way, pass; the usual wrong ones get their hint."""

from __future__ import annotations

import math

import pytest
import torch

from llmfs.exercises import l06

# ------------------------------------------------------------------------------------------- a leak detector


def by_jacobian(layer, x):
    """A right answer of another kind: which inputs have a gradient on which outputs?"""
    B, T, _ = x.shape
    for b in range(B):
        for t in range(T):
            probe = x.clone().requires_grad_()
            y = layer(probe)
            for c in range(y.shape[-1]):
                (grad,) = torch.autograd.grad(y[b, t, c], probe, retain_graph=True)
                grad[b, : t + 1] = 0  # these it may see
                if grad.abs().max() > 1e-7:
                    return True
    return False


def one_position_at_a_time(layer, x):
    y = layer(x)
    for b in range(x.shape[0]):
        for s in range(x.shape[1]):
            changed = x.clone()
            changed[b, s] = torch.tensor([3.0, -1.0, 2.0, 0.5])
            moved = (layer(changed) - y).abs().amax(dim=-1) > 1e-6  # (B, T)
            moved[b, s:] = False
            if moved.any():
                return True
    return False


@pytest.mark.parametrize("answer", [by_jacobian, one_position_at_a_time])
def test_leak_detector_accepts(answer):
    result = l06.leak_detector(answer)
    assert result, result.message


def test_planted_leaks_leak_and_clean_layers_do_not():
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(3))
    assert all(by_jacobian(layer, x) for layer in l06.PLANTED)
    assert not any(by_jacobian(layer, x) for layer in l06.CLEAN)


def compares_everything(layer, x):
    changed = x.clone()
    changed[:, -1] = 7.0
    return not torch.equal(layer(changed), layer(x))


def forgets_to_clone(layer, x):
    y = layer(x)
    for s in range(1, x.shape[1]):
        x[:, s] = torch.tensor([3.0, -1.0, 2.0, 0.5])
        if not torch.allclose(layer(x)[:, :s], y[:, :s]):
            return True
    return False


def compares_with_itself(layer, x):
    return not torch.equal(layer(x), layer(x.clone()))


def last_token(layer, x):
    changed = x.clone()
    changed[:, -1] = torch.tensor([9.0, -3.0, 2.0, 0.1])
    return bool(((layer(changed) - layer(x))[:, :-1].abs() > 1e-6).any())


def in_time_only(layer, x):
    for s in range(x.shape[1] - 1):
        changed = x.clone()
        changed[:, s + 1] = torch.tensor([9.0, -3.0, 2.0, 0.1])
        if (layer(changed)[:, : s + 1] - layer(x)[:, : s + 1]).norm() > 1e-5:
            return True
    return False


def adds_a_constant(layer, x):
    y = layer(x)
    for s in range(1, x.shape[1]):
        changed = torch.cat([x[:, :s], x[:, s:] + 10.0], dim=1)
        if not torch.allclose(layer(changed)[:, :s], y[:, :s], atol=1e-5):
            return True
    return False


def rounds_a_lot(layer, x):
    y = layer(x)
    for s in range(1, x.shape[1]):
        changed = x.clone()
        changed[:, s:] = changed[:, s:].flip(-1)
        if (layer(changed)[:, :s] - y[:, :s]).abs().max() > 0.01:
            return True
    return False


@pytest.mark.parametrize("answer, hint", [
    (compares_everything, "calls layers leaky that are not"),
    (forgets_to_clone, "calls layers leaky that are not"),
    (compares_with_itself, "finds no leak in any layer"),
    (last_token, "position 0 sees position 1"),
    (in_time_only, "between the rows of a batch"),
    (adds_a_constant, "LayerNorm"),
    (rounds_a_lot, "faint leak")])
def test_leak_detector_hints(answer, hint):
    result = l06.leak_detector(answer)
    assert not result and hint in result.message


# ------------------------------------------------------------------------------------- between the documents


def documents_with_loops(ids, end):
    B, T = ids.shape
    mask = torch.zeros(B, 1, T, T, dtype=torch.bool)
    for b in range(B):
        for t in range(T):
            for s in range(t, -1, -1):
                mask[b, 0, t, s] = True
                if ids[b, s] == end:  # the document's first token
                    break
    return mask


def test_document_mask_accepts():
    result = l06.document_mask(documents_with_loops)
    assert result, result.message


def numbered(ids, end, exclusive=False):
    numbers = torch.zeros_like(ids)
    for b in range(ids.shape[0]):
        n = 0
        for t in range(ids.shape[1]):
            if exclusive:
                numbers[b, t] = n
            n += int(ids[b, t] == end)
            if not exclusive:
                numbers[b, t] = n
    return numbers


def triangle(T):
    return torch.arange(T)[:, None] >= torch.arange(T)


def equal_pairs(numbers):
    return numbers[:, None, :, None] == numbers[:, None, None, :]


@pytest.mark.parametrize("answer, hint", [
    (lambda ids, end: equal_pairs(numbered(ids, end)), "inside a document every token sees the later ones"),
    (lambda ids, end: triangle(ids.shape[1]).repeat(len(ids), 1, 1, 1), "the causal mask alone"),
    (lambda ids, end: equal_pairs(numbered(ids, end, exclusive=True)) & triangle(ids.shape[1]),
     "the document before it"),
    (lambda ids, end: documents_with_loops(ids, end).logical_not(), "True where attending is forbidden"),
    (lambda ids, end: documents_with_loops(ids, end).squeeze(1), "axis of size 1")])
def test_document_mask_hints(answer, hint):
    result = l06.document_mask(answer)
    assert not result and hint in result.message


def test_document_mask_rows_are_texts_of_their_own():
    def down(ids, end):
        return equal_pairs(numbered(ids.T, end).T) & triangle(ids.shape[1])

    assert "from row to row" in l06.document_mask(down).message


# -------------------------------------------------------------------------------------------- masked softmax


def by_exponentials(scores, mask):
    """Right, without a softmax: exponentials of the allowed scores, in float32, over their sum."""
    mask = mask.expand(scores.shape)
    wide = scores.float()
    top = wide.masked_fill(~mask, -math.inf).amax(dim=-1, keepdim=True)
    top = torch.where(top.isfinite(), top, torch.zeros(()))
    e = torch.where(mask, (torch.where(mask, wide, top) - top).exp(), torch.zeros(()))
    return (e / e.sum(dim=-1, keepdim=True).clamp(min=1e-9)).to(scores.dtype)


def minimum_then_zero(scores, mask):
    filled = torch.where(mask, scores, torch.tensor(torch.finfo(scores.dtype).min, dtype=scores.dtype))
    return filled.softmax(-1) * mask


@pytest.mark.parametrize("answer", [by_exponentials, minimum_then_zero])
def test_masked_softmax_accepts(answer):
    result = l06.masked_softmax(answer)
    assert result, result.message


def where(value):
    return lambda scores, mask: torch.softmax(torch.where(mask, scores, torch.full_like(scores, value)), -1)


@pytest.mark.parametrize("answer, hint", [
    (where(-math.inf), "its softmax is 0/0"),
    (lambda scores, mask: (scores - (1.0 - mask.float()) * 1e9).softmax(-1).to(scores.dtype), None),
    (lambda scores, mask: scores.masked_fill(mask.logical_not(), -1e9).softmax(-1), "-1e9 is not a number"),
    (lambda scores, mask: where(torch.finfo(scores.dtype).min)(scores, mask), "finite minimum"),
    (where(-1e4), "-1e4 is only a large number"),
    (lambda scores, mask: (scores + torch.where(mask, 0.0, -math.inf).to(scores)).softmax(-1).nan_to_num(),
     "not their gradients"),
    (lambda scores, mask: torch.where(mask, scores.softmax(-1), torch.zeros((), dtype=scores.dtype)),
     "mask after the softmax. The rows"),
    (lambda scores, mask: (w := scores.softmax(-1) * mask) / w.sum(-1, keepdim=True), "normalize again"),
    (lambda scores, mask: by_exponentials(scores, ~mask), "upside down"),
    (lambda scores, mask: ..., "returns nothing yet")])
def test_masked_softmax_hints(answer, hint):
    result = l06.masked_softmax(answer)
    assert not result and (hint is None or hint in result.message), result.message


# ------------------------------------------------------------------------------------------- chunked prefill


def rows_by_position(n, chunk):
    masks = []
    for start in range(0, n, chunk):
        positions = torch.arange(start, min(start + chunk, n))
        masks.append(torch.arange(int(positions[-1]) + 1)[None, :] <= positions[:, None])
    return masks


def test_chunked_prefill_accepts():
    result = l06.chunked_prefill(rows_by_position)
    assert result, result.message


@pytest.mark.parametrize("change, hint", [
    (lambda m, n, chunk: torch.tril(torch.ones_like(m)), "top left corner"),
    (lambda m, n, chunk: triangle(len(m)), "masks are square"),
    (lambda m, n, chunk: torch.ones_like(m), "masks are open"),
    (lambda m, n, chunk: torch.nn.functional.pad(m, (0, n - m.shape[1])), "not in the cache yet"),
    (lambda m, n, chunk: ~m, "True where attending is forbidden")])
def test_chunked_prefill_hints(change, hint):
    result = l06.chunked_prefill(lambda n, chunk: [change(m, n, chunk) for m in rows_by_position(n, chunk)])
    assert not result and hint in result.message


def test_chunked_prefill_last_chunk():
    def all_alike(n, chunk):
        starts = range(0, n, chunk)
        return [torch.arange(s + chunk) <= torch.arange(s, s + chunk)[:, None] for s in starts]

    assert "last chunk is too long" in l06.chunked_prefill(all_alike).message
