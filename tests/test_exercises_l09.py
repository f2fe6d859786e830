"""L09's checks: right answers, written in another way, pass; the usual wrong ones get their hint."""

from __future__ import annotations

import heapq
import math

import pytest
import torch

from llmfs.attention import KVCache
from llmfs.exercises import l09

# --- top-p ---------------------------------------------------------------------------------------------


def good_top_p(p, share):
    keep, total = [False] * len(p), 0.0
    for i in sorted(range(len(p)), key=lambda i: -p[i].item()):
        keep[i] = True
        total += p[i].item()
        if total > share - 1e-6:
            break
    return torch.tensor(keep)


def no_room(p, share):
    keep, total = [False] * len(p), 0.0
    for i in sorted(range(len(p)), key=lambda i: -p[i].item()):
        keep[i] = True
        total += p[i].item()
        if total >= share:
            break
    return torch.tensor(keep)


def no_room_by_subtraction(p, share):
    ordered, order = p.sort(descending=True)
    keep = torch.zeros_like(p, dtype=torch.bool)
    keep[order[ordered.cumsum(0) - ordered < share]] = True
    keep[order[0]] = True
    return keep


def within(p, share):
    ordered, order = p.sort(descending=True)
    keep = torch.zeros_like(p, dtype=torch.bool)
    keep[order[ordered.cumsum(0) <= share + 1e-6]] = True
    keep[order[0]] = True
    return keep


def within_or_none(p, share):
    ordered, order = p.sort(descending=True)
    keep = torch.zeros_like(p, dtype=torch.bool)
    keep[order[ordered.cumsum(0) <= share + 1e-6]] = True
    return keep


def none_at_zero(p, share):
    return good_top_p(p, share) & torch.tensor(share > 0)


def unsorted(p, share):
    keep = p.cumsum(0) - p < share - 1e-6
    keep[0] = True
    return keep


def in_sorted_order(p, share):
    ordered = p.sort(descending=True).values
    keep = ordered.cumsum(0) - ordered < share - 1e-6
    keep[0] = True
    return keep


@pytest.mark.parametrize(
    "answer, hint",
    [
        (no_room, "0.8999999999999999"),
        (no_room_by_subtraction, "0.8999999999999999"),
        (within, "crosses the share"),
        (within_or_none, "keep none at all"),
        (none_at_zero, "nothing to draw from"),
        (unsorted, "Sort first"),
        (in_sorted_order, "sorted order"),
        (lambda p, share: ~(p < share), "bound on their sum"),
        (lambda p, share: torch.ones(len(p), dtype=torch.bool), "is off"),
    ],
)
def test_top_p_mistakes(answer, hint):
    result = l09.top_p(answer)
    assert not result and hint in result.message


def test_top_p_accepts():
    assert l09.top_p(good_top_p)


# --- the penalty ---------------------------------------------------------------------------------------


def good_penalty(logits, seen, penalty):
    hit = torch.zeros(len(logits), dtype=torch.bool)
    hit[list(seen)] = True
    return torch.where(hit, torch.minimum(logits / penalty, logits * penalty), logits)


def always_divides(logits, seen, penalty):
    out = logits.clone()
    out[seen] = out[seen] / penalty
    return out


def divides_for_each(logits, seen, penalty):
    for id in seen:
        logits[id] /= penalty
    return logits


def signed_for_each(logits, seen, penalty):
    for id in seen:
        logits[id] *= 1 / penalty if logits[id] > 0 else penalty
    return logits


def upside_down(logits, seen, penalty):
    out = logits.clone()
    out[seen] = torch.maximum(logits / penalty, logits * penalty)[seen]
    return out


def subtracts(logits, seen, penalty):
    out = logits.clone()
    out[list(set(seen))] -= penalty
    return out


@pytest.mark.parametrize(
    "answer, hint",
    [
        (always_divides, "raises it"),
        (divides_for_each, "however often"),
        (signed_for_each, "set(seen)"),
        (upside_down, "wrong way round"),
        (subtracts, "presence penalty"),
        (lambda logits, seen, penalty: torch.minimum(logits / penalty, logits * penalty), "only those in `seen`"),
    ],
)
def test_penalty_mistakes(answer, hint):
    result = l09.penalty(answer)
    assert not result and hint in result.message


def test_penalty_accepts():
    assert l09.penalty(good_penalty)


# --- greedy with a cache -------------------------------------------------------------------------------


def good_greedy(model, ids, n):
    cache = KVCache(model.config, ids.shape[0])
    token = model(ids, cache)[:, -1].argmax(-1)
    out = [token]
    while len(out) < n:
        token = model(token[:, None], cache)[:, 0].argmax(-1)
        out.append(token)
    return torch.stack(out, 1)


def in_chunks(model, ids, n):
    """The prompt in two calls is right too, and so is one read too many at the end."""
    cache, out = KVCache(model.config, ids.shape[0]), []
    model(ids[:, :2], cache)
    new = ids[:, 2:]
    for _ in range(n):
        new = model(new, cache)[:, -1:].argmax(-1)
        out.append(new)
    model(new, cache)
    return torch.cat(out, 1)


def no_cache(model, ids, n):
    text = ids
    for _ in range(n):
        text = torch.cat((text, model(text)[:, -1].argmax(-1)[:, None]), 1)
    return text[:, -n:]


def whole_text_again(model, ids, n):
    cache, text = KVCache(model.config, ids.shape[0], size=1000), ids
    for _ in range(n):
        text = torch.cat((text, model(text, cache)[:, -1:].argmax(-1)), 1)
    return text[:, -n:]


def whole_text_again_in_a_large_cache(model, ids, n):
    cache, text = KVCache(model.config, ids.shape[0], size=1000), ids
    for _ in range(n):
        positions = torch.arange(text.shape[1])
        text = torch.cat((text, model(text, cache, positions=positions)[:, -1:].argmax(-1)), 1)
    return text[:, -n:]


def last_prompt_token_twice(model, ids, n):
    cache, out, new = KVCache(model.config, ids.shape[0]), [], ids[:, -1:]
    model(ids, cache)
    for _ in range(n):
        new = model(new, cache)[:, -1:].argmax(-1)
        out.append(new)
    return torch.cat(out, 1)


def prompt_forgotten(model, ids, n):
    cache, out, new = KVCache(model.config, ids.shape[0]), [], ids[:, -1:]
    for _ in range(n):
        new = model(new, cache)[:, -1:].argmax(-1)
        out.append(new)
    return torch.cat(out, 1)


def new_cache_each_time(model, ids, n):
    text = ids
    for _ in range(n):
        text = torch.cat((text, model(text, KVCache(model.config, len(ids)))[:, -1:].argmax(-1)), 1)
    return text[:, -n:]


@pytest.mark.parametrize(
    "answer, hint",
    [
        (no_cache, "without the cache"),
        (whole_text_again, "the new token alone"),
        (whole_text_again_in_a_large_cache, "the new token alone"),
        (last_prompt_token_twice, "read twice"),
        (prompt_forgotten, "reads the whole prompt"),
        (new_cache_each_time, "then each new token once"),
        (lambda model, ids, n: None, "returns nothing yet"),
        (lambda model, ids, n: torch.cat((ids, good_greedy(model, ids, n)), 1), "without the prompt"),
        (lambda model, ids, n: good_greedy(model, ids, n).tolist(), "got list"),
        (lambda model, ids, n: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_cached_greedy_mistakes(answer, hint):
    result = l09.cached_greedy(answer)
    assert not result and hint in result.message


@pytest.mark.parametrize("answer", [good_greedy, in_chunks])
def test_cached_greedy_accepts(answer):
    assert l09.cached_greedy(answer)


# --- one step of beam search ---------------------------------------------------------------------------


def good_beam_step(scores, log_p):
    W, V = log_p.shape
    everything = [(scores[w].item() + log_p[w, v].item(), w, v) for w in range(W) for v in range(V)]
    best = heapq.nlargest(W, everything)
    return tuple(torch.tensor(column) for column in zip(*best))


def greedy_each(scores, log_p):
    tokens = log_p.argmax(1)
    return scores + log_p.gather(1, tokens[:, None])[:, 0], torch.arange(len(scores)), tokens


def sorted_greedy_each(scores, log_p):
    rows = sorted(zip(*(column.tolist() for column in greedy_each(scores, log_p))), key=lambda row: -row[0])
    return tuple(torch.tensor(column) for column in zip(*rows))


def ignores_scores(scores, log_p):
    return good_beam_step(torch.zeros(len(scores)), log_p)


def swapped(scores, log_p):
    s, parents, tokens = good_beam_step(scores, log_p)
    return s, tokens, parents


def divides_by_W(scores, log_p):
    W, V = log_p.shape
    s, parents, tokens = good_beam_step(scores, log_p)
    flat = parents * V + tokens
    return s, torch.div(flat, W, rounding_mode="floor"), flat.remainder(W)


def adds_probabilities(scores, log_p):
    return good_beam_step(scores, log_p.exp())


@pytest.mark.parametrize(
    "answer, hint",
    [
        (greedy_each, "greedy searches side by side"),
        (sorted_greedy_each, "greedy searches side by side"),
        (ignores_scores, "so far counts too"),
        (swapped, "swapped"),
        (divides_by_W, "divide by W"),
        (adds_probabilities, "not its exp"),
    ],
)
def test_beam_step_mistakes(answer, hint):
    result = l09.beam_step(answer)
    assert not result and hint in result.message


def test_beam_step_accepts():
    assert l09.beam_step(good_beam_step)
    assert math.isinf(l09._beam_cases()[2][0][1].item())
