"""Exercises of L10: right answers, written in another way, pass; the usual wrong ones get their hint."""

from __future__ import annotations

import math

import pytest
import torch

from llmfs.exercises import l10

# ------------------------------------------------------------------------------------------- the label shift


def shift_by_index(ids, learn):
    x, y = [], []
    for t in range(len(ids) - 1):
        x.append(ids[t])
        y.append(ids[t + 1] if learn[t + 1] else -100)
    return x, y


def test_label_shift_accepts():
    result = l10.label_shift(shift_by_index)
    assert result, result.message


def without_the_end(ids, learn):
    x, y = shift_by_index(ids, learn)
    return x, [-100 if target == 7 else target for target in y]


@pytest.mark.parametrize(
    "answer, hint",
    [
        (lambda ids, learn: (ids[:-1], [ids[t] if learn[t] else -100 for t in range(len(ids) - 1)]), "not shifted: at each"),
        (lambda ids, learn: (list(ids), [i if keep else -100 for i, keep in zip(ids, learn)]), "not shifted: at each"),
        (
            lambda ids, learn: (
                ids[:-1],
                [ids[t + 2] if t + 2 < len(ids) and learn[t + 2] else -100 for t in range(len(ids) - 1)],
            ),
            "shifted twice",
        ),
        (lambda ids, learn: (ids[:-1], [ids[t + 1] if learn[t] else -100 for t in range(len(ids) - 1)]), "flags are not"),
        (lambda ids, learn: (ids[:-1], [*ids[1:]]), "user's words too"),
        (without_the_end, "leave out `<|end|>`"),
        (lambda ids, learn: (ids[:-1], [i * keep for i, keep in zip(ids[1:], learn[1:])]), "Zero is a token"),
        (lambda ids, learn: (list(ids), [*shift_by_index(ids, learn)[1], -100]), "one token too many"),
        (lambda ids, learn: ..., "returns nothing yet"),
    ],
)
def test_label_shift_hints(answer, hint):
    result = l10.label_shift(answer)
    assert not result and hint in result.message, result.message


# ------------------------------------------------------------------------------------------------ the DPO loss


def softplus_of_rewards(chosen, rejected, ref_chosen, ref_rejected, beta):
    reward_chosen = beta * (chosen - ref_chosen)
    reward_rejected = beta * (rejected - ref_rejected)
    return torch.nn.functional.softplus(reward_rejected - reward_chosen).mean()


def test_dpo_accepts():
    result = l10.dpo(softplus_of_rewards)
    assert result, result.message


def by(margin, reduce=torch.mean):
    return lambda c, r, rc, rr, beta: reduce(torch.nn.functional.softplus(-margin(c, r, rc, rr, beta)))


@pytest.mark.parametrize(
    "answer, hint",
    [
        (lambda c, r, rc, rr, b: (-(1 / (1 + torch.exp(-b * ((c - rc) - (r - rr))))).log()).mean(), "stays finite"),
        (by(lambda c, r, rc, rr, b: b * c - b * r), "reference is missing"),
        (by(lambda c, r, rc, rr, b: b * ((r - rr) - (c - rc))), "turned around"),
        (by(lambda c, r, rc, rr, b: b * ((c + rc) - (r + rr))), "is subtracted"),
        (by(lambda c, r, rc, rr, b: (c - rc) - (r - rr)), "beta is missing"),
        (lambda c, r, rc, rr, b: b * by(lambda c, r, rc, rr, b: (c - rc) - (r - rr))(c, r, rc, rr, b), "outside the sigmoid"),
        (lambda *a: -softplus_of_rewards(*a), "A minus is missing"),
        (by(lambda c, r, rc, rr, b: b * ((c - rc) - (r - rr)), torch.sum), "the sum over the pairs"),
        (by(lambda c, r, rc, rr, b: b * ((c - rc).exp() - (r - rr).exp())), None),
    ],
)
def test_dpo_hints(answer, hint):
    result = l10.dpo(answer)
    assert not result and (hint is None or hint in result.message), result.message


# ------------------------------------------------------------------------------------------------ the PPO clip


def clip_by_cases(logp, old_logp, advantage, clip):
    total = 0.0
    for new, old, A in zip(logp.tolist(), old_logp.tolist(), advantage.tolist()):
        ratio = math.exp(new - old)
        limit = min(ratio, 1 + clip) if A > 0 else max(ratio, 1 - clip)
        total -= limit * A
    return torch.tensor(total / len(logp))


def test_ppo_clip_accepts():
    result = l10.ppo_clip(clip_by_cases)
    assert result, result.message


def gains(new, old, A, clip):
    ratio = torch.exp(new) / torch.exp(old)
    return torch.stack([ratio * A, torch.clip(ratio, 1 - clip, 1 + clip) * A])


@pytest.mark.parametrize(
    "answer, hint",
    [
        (lambda *a: -gains(*a)[1].mean(), "clip always"),
        (lambda *a: -gains(*a)[0].mean(), "Nothing is clipped"),
        (lambda *a: gains(*a).amin(0).mean(), "sign is missing"),
        (lambda *a: -gains(*a).amax(0).mean(), "better of the two"),
        (lambda new, old, A, clip: -((new - old).exp().clamp(max=1 + clip) * A).mean(), None),
        (lambda new, old, A, clip: -(torch.minimum((new - old).exp(), (new - old).exp().clip(1 - clip, 1 + clip)) * A).mean(), "of the ratios"),
        (lambda new, old, A, clip: -torch.minimum((new - old) * A, (new - old).clip(1 - clip, 1 + clip) * A).mean(), "Take exp"),
        (lambda new, old, A, clip: -gains(old, new, A, clip).amin(0).mean(), "upside down"),
        (lambda *a: -gains(*a).amin(0).sum(), "the sum over the tokens"),
    ],
)
def test_ppo_clip_hints(answer, hint):
    result = l10.ppo_clip(answer)
    assert not result and (hint is None or hint in result.message), result.message


# --------------------------------------------------------------------------------------------- merging a LoRA


def outer_products(W, A, B, alpha):
    merged = W.clone()
    for a, b in zip(A, B.T):  # one row of A and one column of B for each of the ranks
        merged += alpha / len(A) * torch.outer(b, a)
    return merged


def test_merge_accepts():
    result = l10.merge(outer_products)
    assert result, result.message


@pytest.mark.parametrize(
    "change, hint",
    [
        (lambda W, A, B, alpha: W + torch.einsum("or,ri->oi", B, A), "alpha / rank is missing"),
        (lambda W, A, B, alpha: W + torch.einsum("or,ri->oi", B, A) * alpha, "alpha alone"),
        (lambda W, A, B, alpha: W + torch.einsum("or,ri->oi", B, A) * alpha / len(A[0]), "number of inputs"),
        (lambda W, A, B, alpha: W + alpha / len(A) * torch.matmul(A, B), "order is turned around"),
        (lambda W, A, B, alpha: 2 * W - outer_products(W, A, B, alpha), "sign is turned around"),
        (lambda W, A, B, alpha: outer_products(W, A, B, alpha) - W, "the change alone"),
        (lambda W, A, B, alpha: W + alpha / len(A) * (A.T @ B.T), "transposed"),
    ],
)
def test_merge_hints(change, hint):
    result = l10.merge(change)
    assert not result and hint in result.message, result.message
