"""Exercises of L10: targets shifted once, the DPO loss, PPO's clip, merging a LoRA."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from llmfs.evaluate import IGNORE
from llmfs.exercises import Args, Exercise, Mistake
from llmfs.rlhf import dpo_loss, ppo_loss

# ------------------------------------------------------------------------------------------- the label shift

IdsAndTargets = tuple[list[int], list[int]]


def _ids_and_targets(ids: list[int], learn: list[bool]) -> IdsAndTargets:
    return ids[:-1], [token if flag else IGNORE for token, flag in zip(ids[1:], learn[1:])]


def _flags_not_shifted(ids: list[int], learn: list[bool]) -> IdsAndTargets:
    return ids[:-1], [token if flag else IGNORE for token, flag in zip(ids[1:], learn)]


def _without_stop(ids: list[int], learn: list[bool]) -> IdsAndTargets:
    ends = [flag and not after for flag, after in zip(learn, [*learn[1:], False])]
    return _ids_and_targets(ids, [flag and not end for flag, end in zip(learn, ends)])


label_shift = Exercise(
    "label_shift",
    right=_ids_and_targets,
    cases=lambda: [
        ([0, 5, 8, 9, 7, 6, 3, 7], [False] * 6 + [True] * 2),
        ([0, 5, 9, 7, 6, 3, 4, 7, 5, 8, 7, 6, 2, 7], [False] * 5 + [True] * 3 + [False] * 4 + [True] * 2),
        ([6, 3, 7], [False, True, True]),
    ],
    mistakes=(
        Mistake(
            lambda ids, learn: (ids[:-1], [token if flag else IGNORE for token, flag in zip(ids[:-1], learn)]),
            "Your targets are not shifted: at each position the model is asked for the token that it has just read. The loss "
            "falls to zero, and nothing is learned. The target of position t is token t + 1.",
        ),
        Mistake(
            lambda ids, learn: (ids, [token if flag else IGNORE for token, flag in zip(ids, learn)]),
            "Your targets are not shifted: at each position the model is asked for the token that it has just read. The loss "
            "falls to zero, and nothing is learned. The target of position t is token t + 1.",
        ),
        Mistake(
            lambda ids, learn: (
                ids[:-1],
                [token if flag else IGNORE for token, flag in zip([*ids[2:], IGNORE], [*learn[2:], False])],
            ),
            "Your targets are shifted twice: at each position the model is asked for the token after the next. Shift in one "
            "place, here or in the loss.",
        ),
        Mistake(
            _flags_not_shifted,
            "The targets are shifted, the flags are not. `learn` says of a token whether it is to be learned, so the flag of "
            "a target is the target's own: the answer's first token was lost, and what follows `<|end|>` is learned.",
        ),
        Mistake(
            lambda ids, learn: (ids[:-1], ids[1:]),
            "You train on everything, the user's words too. Where `learn` is False the target is -100.",
        ),
        Mistake(
            _without_stop,
            "You leave out `<|end|>`. It is part of the answer: a model that never learns it does not stop.",
        ),
        Mistake(
            lambda ids, learn: (ids[:-1], [token if flag else 0 for token, flag in zip(ids[1:], learn[1:])]),
            "Zero is a token like any other, so your model learns to say it. What does not count is marked with -100, which "
            "the loss leaves out.",
        ),
        Mistake(
            lambda ids, learn: (ids, [*_ids_and_targets(ids, learn)[1], IGNORE]),
            "That trains the right thing, but reads one token too many: nothing comes after the last. Leave it out of the "
            "inputs, so that inputs and targets are as long as each other.",
        ),
    ),
)

# ------------------------------------------------------------------------------------------------ the DPO loss


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _dpo(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    loss, count = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=beta)
    return loss / count


def _dpo_cases() -> list[Args]:
    return [
        (*(5 * _normal(seed, 4) - 9 for seed in range(4)), 0.1),
        (*(2 * _normal(seed, 1) - 5 for seed in range(4, 8)), 0.5),
        (torch.tensor([-900.0]), torch.tensor([-2.0]), torch.tensor([-1.0]), torch.tensor([-1.0]), 1.0),
    ]


DPO = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]


def _of_margin(margin: DPO) -> DPO:
    return lambda c, r, rc, rr, beta: -F.logsigmoid(margin(c, r, rc, rr, beta)).mean()


dpo = Exercise(
    "dpo",
    right=_dpo,
    cases=_dpo_cases,
    mistakes=(
        Mistake(
            lambda c, r, rc, rr, beta: -torch.sigmoid(beta * (c - r - rc + rr)).log().mean(),
            "Right on paper. But where the margin is far below zero the sigmoid rounds to 0 and its logarithm is infinite. "
            "F.logsigmoid computes both in one and stays finite.",
        ),
        Mistake(
            _of_margin(lambda c, r, rc, rr, beta: beta * (c - r)),
            "The reference is missing. Without it the loss rewards answers that were likely anyway, and nothing holds the "
            "model near where it started: subtract ref_chosen - ref_rejected.",
        ),
        Mistake(
            _of_margin(lambda c, r, rc, rr, beta: beta * (r - c - rr + rc)),
            "The sign is turned around: your loss falls as the rejected answer becomes more likely.",
        ),
        Mistake(
            _of_margin(lambda c, r, rc, rr, beta: beta * (c - r + rc - rr)),
            "You add the reference's margin. The implied reward is beta * (logp - ref_logp), so the reference is subtracted.",
        ),
        Mistake(
            _of_margin(lambda c, r, rc, rr, beta: c - r - rc + rr),
            "beta is missing: it says how much a change of the log-probability is worth.",
        ),
        Mistake(
            lambda c, r, rc, rr, beta: -beta * F.logsigmoid(c - r - rc + rr).mean(),
            "beta stands outside the sigmoid, where it is no more than a learning rate. It belongs to the margin.",
        ),
        Mistake(
            lambda c, r, rc, rr, beta: F.logsigmoid(beta * (c - r - rc + rr)).mean(),
            "A minus is missing: this is a log-likelihood, which training would make smaller.",
        ),
        Mistake(
            lambda c, r, rc, rr, beta: -F.logsigmoid(beta * (c - r - rc + rr)).sum(),
            "That is the sum over the pairs; the exercise asks for their mean.",
        ),
        Mistake(
            lambda c, r, rc, rr, beta: -F.logsigmoid(beta * (c.exp() / rc.exp() - r.exp() / rr.exp())).mean(),
            "You compare ratios of probabilities. The implied reward is the logarithm of the ratio: logp - ref_logp.",
        ),
    ),
)

# ------------------------------------------------------------------------------------------------ the PPO clip


def _ppo(logp: Tensor, old_logp: Tensor, advantage: Tensor, clip: float) -> Tensor:
    return ppo_loss(logp, old_logp, advantage, torch.ones_like(logp, dtype=torch.bool), clip=clip)[0] / logp.numel()


def _ppo_cases() -> list[Args]:
    ratio = torch.tensor([0.5, 0.9, 1.0, 1.1, 1.5])
    return [
        ((ratio.log() - 2.0).repeat(2), torch.full((10,), -2.0), torch.tensor([1.0] * 5 + [-1.0] * 5), 0.2),
        (_normal(0, 8) - 3, _normal(1, 8) - 3, 2 * _normal(2, 8), 0.1),
    ]


def _ratio(logp: Tensor, old_logp: Tensor) -> Tensor:
    return (logp - old_logp).exp()


ppo_clip = Exercise(
    "ppo_clip",
    right=_ppo,
    cases=_ppo_cases,
    mistakes=(
        Mistake(
            lambda new, old, A, clip: -(_ratio(new, old).clamp(1 - clip, 1 + clip) * A).mean(),
            "You clip always. Where the ratio has gone the wrong way, the gradient is then zero as well, and the mistake "
            "stays. The minimum of the clipped and the unclipped gain keeps the way back open.",
        ),
        Mistake(
            lambda new, old, A, clip: -(_ratio(new, old) * A).mean(),
            "Nothing is clipped: one rollout can push a token as far as it likes.",
        ),
        Mistake(
            lambda new, old, A, clip: torch.minimum(
                _ratio(new, old) * A, _ratio(new, old).clamp(1 - clip, 1 + clip) * A
            ).mean(),
            "The sign is missing. An optimizer makes the loss smaller; this would make the good tokens rarer.",
        ),
        Mistake(
            lambda new, old, A, clip: -torch.maximum(
                _ratio(new, old) * A, _ratio(new, old).clamp(1 - clip, 1 + clip) * A
            ).mean(),
            "You take the better of the two gains. PPO takes the worse one: it never promises itself more than the clipped "
            "ratio earns.",
        ),
        Mistake(
            lambda new, old, A, clip: -(torch.minimum(_ratio(new, old), _ratio(new, old).clamp(1 - clip, 1 + clip)) * A).mean(),
            "The minimum is taken of the ratios, and multiplied by the advantage afterwards. With a negative advantage the "
            "smaller ratio is the better gain. Multiply first, then take the minimum.",
        ),
        Mistake(
            lambda new, old, A, clip: -torch.minimum((new - old) * A, (new - old).clamp(1 - clip, 1 + clip) * A).mean(),
            "new - old is the logarithm of the ratio. Take exp of it.",
        ),
        Mistake(
            lambda new, old, A, clip: -torch.minimum(
                _ratio(old, new) * A, _ratio(old, new).clamp(1 - clip, 1 + clip) * A
            ).mean(),
            "The ratio is upside down: it is the probability now over the one when the token was sampled.",
        ),
        Mistake(
            lambda new, old, A, clip: -torch.minimum(
                _ratio(new, old) * A, _ratio(new, old).clamp(1 - clip, 1 + clip) * A
            ).sum(),
            "That is the sum over the tokens; the exercise asks for their mean.",
        ),
    ),
)

# --------------------------------------------------------------------------------------------- merging a LoRA


def _merge(W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    return W + alpha / A.shape[0] * (B @ A)


merge = Exercise(
    "merge",
    right=_merge,
    cases=lambda: [
        (_normal(0, 6, 4), _normal(1, 2, 4), _normal(2, 6, 2), 8.0),
        (_normal(3, 5, 5), _normal(4, 1, 5), _normal(5, 5, 1), 4.0),
        (_normal(6, 4, 4), _normal(7, 4, 4), _normal(8, 4, 4), 2.0),
    ],
    mistakes=(
        Mistake(
            lambda W, A, B, alpha: W + B @ A,
            "The scale alpha / rank is missing. The adapter was trained with it in place.",
        ),
        Mistake(
            lambda W, A, B, alpha: W + alpha * (B @ A),
            "You multiply by alpha alone. The scale is alpha / rank, and the rank is A.shape[0].",
        ),
        Mistake(
            lambda W, A, B, alpha: W + alpha / A.shape[1] * (B @ A),
            "You divide by the number of inputs. The rank is the short side of A (rank, in): A.shape[0].",
        ),
        Mistake(
            lambda W, A, B, alpha: W + alpha / A.shape[0] * (A @ B),
            "The order is turned around: x first meets A, then B, so the change is B @ A.",
        ),
        Mistake(
            lambda W, A, B, alpha: W - alpha / A.shape[0] * (B @ A),
            "The sign is turned around: the adapter's output is added.",
        ),
        Mistake(
            lambda W, A, B, alpha: alpha / A.shape[0] * (B @ A),
            "That is the change alone. The merged layer is W plus the change.",
        ),
        Mistake(
            lambda W, A, B, alpha: W + alpha / A.shape[0] * (B @ A).T,
            "The change is transposed. A linear layer computes x W^T with W (out, in), and B @ A is (out, in) too.",
        ),
    ),
)
