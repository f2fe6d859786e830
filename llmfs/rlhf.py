"""Learning from preferences and from rewards: a reward model, DPO, PPO and GRPO.

Letters: P prompts, G answers to each (a group), N tokens per answer, its end token included. What is known of a token
(its log-probability, reward, advantage) has the shape (P, G, N), with a mask where an answer is shorter. Losses are a
sum and a count, as everywhere.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfs.gpt import GPT
from llmfs.sft import STOP, Message, Preference, complete, length_batches, render_chat
from llmfs.tokenizer import Tokenizer
from llmfs.train import History, TrainConfig, train

Tokens = Sequence[int]
Watch = Callable[[nn.Module], dict[str, Any]]  # `evaluate` of `llmfs.train.train`; called with the model that answers


@dataclass(frozen=True)
class Prompt:
    """A question to practice on, and its one right answer, at which nothing but `exact_reward` looks."""

    ids: Tokens  # a chat up to the place where the answer begins
    right: Tokens  # the right answer, its end token included


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, of which someone likes the first better."""

    prompt: Tokens
    chosen: Tokens  # both end with their end token
    rejected: Tokens


def render_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> Prompt:
    """A conversation that ends with the right answer -> the prompt before that answer, and the answer."""
    ids, _ = render_chat(tokenizer, messages)
    start = len(render_chat(tokenizer, messages[:-1], reply=True)[0])
    return Prompt(ids[:start], ids[start:])


def render_pair(tokenizer: Tokenizer, preference: Preference) -> Pair:
    """A preference in words -> the same in ids."""
    chosen, rejected = (
        render_prompt(tokenizer, [*preference["messages"], {"role": "assistant", "content": text}])
        for text in (preference["chosen"], preference["rejected"])
    )
    return Pair(chosen.ids, chosen.right, rejected.right)


# ----------------------------------------------------------------------------------------------------- losses


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> tuple[Tensor, int]:
    """Scores (P,) of the better and of the worse answers -> the sum of -log sigmoid(chosen - rejected), and P.

    The model of Bradley & Terry (1952): a beats b with the probability sigmoid(score a - score b).
    """
    return -F.logsigmoid(chosen - rejected).sum(), len(chosen)


def dpo_loss(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float = 0.1
) -> tuple[Tensor, int]:
    """log p(answer), each (P,), of the model and of the reference -> the sum of the losses, and P.

    `bradley_terry_loss` with the reward beta * log(p / p_ref) that the model itself implies (Rafailov et al. 2023).
    """
    return bradley_terry_loss(beta * (chosen - ref_chosen), beta * (rejected - ref_rejected))


def ppo_loss(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, *, clip: float = 0.2
) -> tuple[Tensor, int]:
    """All of one shape -> the sum over the mask of -min(ratio A, clipped ratio A), and how many tokens count.

    ratio = p(token) now over p(token) when it was sampled. Once it has moved by more than `clip` in the direction that
    the advantage A asks for, the gradient is zero (Schulman et al. 2017, equation 7).
    """
    ratio = (logp - old_logp).exp()
    gain = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return -gain[mask].sum(), int(mask.sum())


def value_loss(values: Tensor, returns: Tensor, mask: Tensor) -> tuple[Tensor, int]:
    """All of one shape -> half the squared errors of the expected returns, summed over the mask, and the count."""
    return 0.5 * (values - returns)[mask].square().sum(), int(mask.sum())


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """How much better than expected was each token? All (..., N) -> advantages and returns (..., N), 0 off the mask.

    values[n] is what was expected before token n, rewards[n] what came with it. delta = r_n + gamma v_{n+1} - v_n is
    the surprise at n; a token gets its own and, times gamma * lam for each step away, the later ones (Schulman et al.
    2016, equation 16). Nothing is expected behind an answer's last token.
    """
    values, advantages = values * mask, torch.zeros_like(values)
    later, next_value = torch.zeros_like(values[..., 0]), torch.zeros_like(values[..., 0])
    for n in reversed(range(values.shape[-1])):
        delta = rewards[..., n] + gamma * next_value - values[..., n]
        advantages[..., n] = later = (delta + gamma * lam * later) * mask[..., n]
        next_value = values[..., n]
    return advantages, (advantages + values) * mask


def grpo_advantages(rewards: Tensor, eps: float = 1e-4) -> Tensor:
    """rewards (P, G) of G answers to each of P prompts -> (P, G): less the group's mean, over its deviation.

    The group stands in for a value model: an answer is good if it beats the others (Shao et al. 2024). The deviation
    is that of a sample, with G - 1. A group whose answers all earn the same teaches nothing: zeros. Raises ValueError
    for another shape, and for G = 1.
    """
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        raise ValueError(f"expected rewards (P, G) of at least two answers a prompt, got {tuple(rewards.shape)}")
    return (rewards - rewards.mean(dim=1, keepdim=True)) / (rewards.std(dim=1, keepdim=True) + eps)


def kl_estimate(logp: Tensor, ref_logp: Tensor, kind: Literal["k1", "k2", "k3"] = "k3") -> Tensor:
    """KL(model || reference) at tokens that the model has sampled, an estimate from each: any shape -> the same shape.

    With d = logp - ref_logp: k1 = d is right on average, but often negative; k2 = d² / 2 is a little off, and never
    negative; k3 = exp(-d) - 1 + d is right on average and never negative (Schulman 2020). Raises ValueError for another
    kind.
    """
    d = logp - ref_logp
    if kind == "k1":
        return d
    if kind == "k2":
        return d.square() / 2
    if kind == "k3":
        return torch.expm1(-d) + d
    raise ValueError(f"kind is {kind!r}; expected 'k1', 'k2' or 'k3'")


# ------------------------------------------------------------------------------------------ log-probabilities


def sequence_logprobs(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """ids (B, T), mask (B, T) bool, True at the answer -> (B,): log p(answer | prompt), the sum over its tokens."""
    logits = model(ids[:, :-1]).float()  # (B, T - 1, V); position t - 1 predicts token t
    logp = -F.cross_entropy(logits.mT, ids[:, 1:], reduction="none")  # (B, T - 1)
    return (logp * mask[:, 1:]).sum(dim=-1)


class Packed(NamedTuple):
    """P rows that each hold a prompt once and its G answers behind it, so that the prompt is read once for all.

    An answer attends to the prompt and to itself; its positions go on from the prompt's.
    """

    ids: Tensor  # (P, T) int64
    attend: Tensor  # (P, 1, T, T) bool
    positions: Tensor  # (P, T) int64
    tokens: Tensor  # (P, G, N) int64, the answers
    mask: Tensor  # (P, G, N) bool, False behind an answer's end
    before: Tensor  # (P, G, N) int64: where in the row the model stands when it predicts this token
    last: Tensor  # (P, G) int64: where in the row the answer's last token stands


def pack_answers(prompts: Sequence[Tokens], answers: Sequence[Sequence[Tokens]]) -> Packed:
    """P prompts, and for each the G answers to it -> rows (P, T). Raises ValueError where they do not fit together."""
    P, G = len(prompts), len(answers[0]) if answers else 0
    if not P or len(answers) != P or any(len(group) != G or not all(map(len, group)) for group in answers):
        raise ValueError(f"expected {P} groups of equally many answers, none empty, got {[len(g) for g in answers]}")
    T = max(len(prompt) + sum(map(len, group)) for prompt, group in zip(prompts, answers))
    N = max(len(answer) for group in answers for answer in group)
    ids, positions, owner = (torch.zeros(P, T, dtype=torch.long) for _ in range(3))
    tokens, before = torch.zeros(P, G, N, dtype=torch.long), torch.zeros(P, G, N, dtype=torch.long)
    mask, last = torch.zeros(P, G, N, dtype=torch.bool), torch.zeros(P, G, dtype=torch.long)
    for p, (prompt, group) in enumerate(zip(prompts, answers)):
        n = end = len(prompt)
        ids[p, :n], positions[p, :n] = torch.tensor(prompt), torch.arange(n)
        owner[p, n:] = G + 1  # filling; it sees the prompt, and nothing sees it
        for g, answer in enumerate(group):
            start, end = end, end + len(answer)
            ids[p, start:end] = tokens[p, g, : len(answer)] = torch.tensor(answer)
            positions[p, start:end] = torch.arange(n, n + len(answer))
            owner[p, start:end] = g + 1
            mask[p, g, : len(answer)] = True
            before[p, g, : len(answer)] = torch.arange(start - 1, end - 1)
            before[p, g, 0] = n - 1  # an answer's first token is predicted from the prompt's last
            last[p, g] = end - 1
    attend = ((owner[:, None, :] == owner[:, :, None]) | (owner[:, None, :] == 0)).tril()  # (P, T, T)
    return Packed(ids, attend[:, None], positions, tokens, mask, before, last)


def answer_logprobs(model: nn.Module, batch: Packed) -> Tensor:
    """-> (P, G, N): log p of each answer's tokens, 0 off the mask. Summed, it is `sequence_logprobs`."""
    rows = torch.arange(len(batch.ids), device=batch.ids.device)[:, None, None]
    logits = model(batch.ids, mask=batch.attend, positions=batch.positions, at=(rows, batch.before))  # (P, G, N, V)
    logp = logits.float().log_softmax(dim=-1)
    return logp.gather(-1, batch.tokens[..., None])[..., 0] * batch.mask


def frozen_copy(model: GPT) -> GPT:
    """A reference that stays what `model` is now: weights of its own, without gradients."""
    return copy.deepcopy(model).eval().requires_grad_(False)


# ------------------------------------------------------------------------------------------------ reward model


class RewardModel(nn.Module):
    """A copy of a GPT whose head gives one number in place of V.

    Trained on preferences it scores answers; trained to expect returns it is PPO's value model.
    """

    def __init__(self, model: GPT) -> None:
        super().__init__()
        weight = model.lm_head.weight
        self.gpt = copy.deepcopy(model).requires_grad_(True)
        self.gpt.lm_head = nn.Linear(weight.shape[1], 1, device=weight.device, dtype=weight.dtype)
        nn.init.zeros_(self.gpt.lm_head.weight)  # at first every text scores 0
        nn.init.zeros_(self.gpt.lm_head.bias)

    def forward(self, batch: Packed) -> Tensor:
        """-> (P, T): a number at every token of the rows."""
        return self.gpt(batch.ids, mask=batch.attend, positions=batch.positions)[..., 0]

    def score(self, batch: Packed) -> Tensor:
        """-> (P, G): the number at each answer's last token, when all of it has been read."""
        return self(batch).gather(1, batch.last)

    def expected(self, batch: Packed) -> Tensor:
        """-> (P, G, N): the number just before each token of the answers."""
        return self(batch).gather(1, batch.before.flatten(1)).view_as(batch.before) * batch.mask


def pair_batches(pairs: Sequence[Pair], rows: int, seed: int = 0) -> Callable[[int, int], Packed]:
    """-> batches(step, micro) for `train`: `rows` pairs drawn from (seed, step, micro); G = 2, chosen first.

    Raises ValueError where there is none.
    """
    if not pairs:
        raise ValueError("there is no pair of answers to learn from")

    def batches(step: int, micro: int) -> Packed:
        rng = random.Random(f"{seed}-{step}-{micro}")
        drawn = rng.sample(pairs, min(rows, len(pairs)))
        return pack_answers([pair.prompt for pair in drawn], [(pair.chosen, pair.rejected) for pair in drawn])

    return batches


def train_reward_model(
    model: GPT, pairs: Sequence[Pair], config: TrainConfig, *, rows: int = 16, progress: bool = True
) -> tuple[RewardModel, History]:
    """-> a reward model, which begins as a copy of `model` and learns which answers are liked better."""

    def loss_fn(reward_model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, int]:
        assert isinstance(reward_model, RewardModel)
        return bradley_terry_loss(*reward_model.score(Packed(*batch)).unbind(dim=1))

    reward_model = RewardModel(model)
    batches = pair_batches(pairs, rows, config.seed)
    return reward_model, train(reward_model, batches, config, loss_fn=loss_fn, progress=progress)


# -------------------------------------------------------------------------------------------------------- DPO


def train_dpo(
    model: GPT,
    pairs: Sequence[Pair],
    config: TrainConfig,
    *,
    beta: float = 0.1,
    nll: float = 0.0,
    rows: int = 16,
    progress: bool = True,
    evaluate: Watch | None = None,
) -> History:
    """Train `model` in place on pairs of answers. The reference is what it was before.

    nll: weight of -log p(chosen), added to each pair's loss. DPO alone looks at the difference of the two answers, and
    may make both less likely; this term holds the chosen one up (Llama 3 does so too: Grattafiori et al. 2024).
    """
    reference = frozen_copy(model)

    def loss_fn(model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, int]:
        packed = Packed(*batch)
        with torch.no_grad():
            ref_chosen, ref_rejected = answer_logprobs(reference, packed).sum(dim=-1).unbind(dim=1)  # each (P,)
        chosen, rejected = answer_logprobs(model, packed).sum(dim=-1).unbind(dim=1)
        loss, count = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=beta)
        return loss - nll * chosen.sum(), count

    batches = pair_batches(pairs, rows, config.seed)
    return train(model, batches, config, loss_fn=loss_fn, progress=progress, evaluate=evaluate)


# --------------------------------------------------------------------------------------- rewards and rollouts

Groups = Sequence[Sequence[Tokens]]
Reward = Callable[[Sequence[Prompt], Groups], Tensor]  # P prompts, the G answers to each -> (P, G)


def exact_reward(prompts: Sequence[Prompt], answers: Groups) -> Tensor:
    """The verifiable reward (P, G): 1 where the answer is the right one, token for token, else 0."""
    pairs = zip(prompts, answers, strict=True)
    return torch.tensor([[float(list(answer) == list(prompt.right)) for answer in group] for prompt, group in pairs])


def learned_reward(reward_model: RewardModel) -> Reward:
    """What a reward model thinks of an answer. It needs no right answer."""

    @torch.no_grad()
    def reward(prompts: Sequence[Prompt], answers: Groups) -> Tensor:
        return reward_model.score(pack_answers([prompt.ids for prompt in prompts], answers))

    return reward


def sample_groups(
    model: GPT, prompts: Sequence[Prompt], group: int, max_tokens: int, *, stop: int, generator: torch.Generator
) -> list[list[list[int]]]:
    """`group` answers to each prompt, at temperature 1: from the very distribution that the losses are about."""
    ids = [prompt.ids for prompt in prompts]
    answers = complete(model, ids, max_tokens, stop=stop, group=group, generator=generator)
    return [answers[first : first + group] for first in range(0, len(answers), group)]


def collect_pairs(
    model: GPT, prompts: Sequence[Prompt], *, stop: int, group: int = 8, max_tokens: int = 12, seed: int = 0
) -> list[Pair]:
    """Two of the model's own answers to a prompt, a right and a wrong one, wherever it gives both.

    Stands in for people who say which of two answers they like better. Raises ValueError where nothing is found.
    """
    generator, pairs = torch.Generator(next(model.parameters()).device).manual_seed(seed), []
    for chosen in length_batches([prompt.ids for prompt in prompts], 32):
        some = [prompts[k] for k in chosen]
        answers = sample_groups(model, some, group, max_tokens, stop=stop, generator=generator)
        for prompt, tries, rewards in zip(some, answers, exact_reward(some, answers).tolist()):
            if 0 < sum(rewards) < group:
                pairs.append(Pair(prompt.ids, tries[rewards.index(1)], tries[rewards.index(0)]))
    if not pairs:
        raise ValueError(
            f"to none of {len(prompts)} prompts did the model give both a right and a wrong answer in {group}: "
            "fine-tune it on conversations first, or give more prompts"
        )
    return pairs


@dataclass(frozen=True)
class RolloutConfig:
    """How PPO and GRPO sample answers, and how they learn from them. Raises ValueError for what cannot work."""

    prompts: int = 16  # P: prompts a rollout
    group: int = 8  # G: answers a prompt
    updates: int = 1  # optimizer steps on one rollout
    max_tokens: int = 12  # N, at most
    clip: float = 0.2  # how far from 1 a token's probability ratio may be pushed
    kl: float = 0.05  # what a nat of distance from the reference costs, in units of reward; 0: nothing
    lam: float = 0.95  # PPO: of the advantage estimation
    value_weight: float = 0.5  # PPO: of the value loss

    def __post_init__(self) -> None:
        """Refuse what could not work."""
        for name in ("prompts", "group", "updates", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.clip <= 0 or self.kl < 0:
            raise ValueError(f"clip is {self.clip} and kl {self.kl}; expected clip above 0 and kl not below")


class Rollout(NamedTuple):
    """Answers that the model gave, and what it earned."""

    packed: Packed
    rewards: Tensor  # (P, G)
    logp: Tensor  # (P, G, N), of the model that gave the answers
    ref_logp: Tensor  # (P, G, N), of the reference


@dataclass
class Rollouts:
    """Makes rollouts for one run, and keeps a log of them. The reference is the model as it is at the start.

    Raises ValueError where there is no prompt.
    """

    model: GPT
    prompts: Sequence[Prompt]
    reward: Reward
    config: RolloutConfig
    stop: int  # the token that ends an answer
    seed: int
    log: list[dict[str, float]] = field(default_factory=list)  # a rollout's mean reward, kl (nats) and length

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("there is no prompt to practice on")
        self.reference = frozen_copy(self.model)

    @torch.no_grad()
    def make(self, step: int) -> Rollout:
        """Answer prompts drawn from (seed, step), and reward the answers."""
        rng = random.Random(f"{self.seed}-{step}")
        prompts = rng.sample(self.prompts, min(self.config.prompts, len(self.prompts)))
        generator = torch.Generator(next(self.model.parameters()).device).manual_seed(rng.getrandbits(63))
        answers = sample_groups(
            self.model, prompts, self.config.group, self.config.max_tokens, stop=self.stop, generator=generator
        )
        batch, rewards = pack_answers([prompt.ids for prompt in prompts], answers), self.reward(prompts, answers)
        logp, ref_logp = answer_logprobs(self.model, batch), answer_logprobs(self.reference, batch)
        kl = kl_estimate(logp, ref_logp).sum(dim=-1).mean().item()
        length = batch.mask.sum(dim=-1).float().mean().item()
        self.log.append({"step": step, "reward": rewards.mean().item(), "kl": kl, "length": length})
        return Rollout(batch, rewards, logp, ref_logp)


def made_every(updates: int, make: Callable[[int], tuple[Any, ...]]) -> Callable[[int, int], tuple[Any, ...]]:
    """-> batches(step, micro) for `train`: what make(step) gives, made anew at every `updates`-th step."""
    current: list[tuple[Any, ...]] = []

    def batches(step: int, micro: int) -> tuple[Any, ...]:
        if step % updates == 0:
            current[:] = [make(step)]
        return current[0]

    return batches


# ----------------------------------------------------------------------------------------------- GRPO and PPO


def train_grpo(
    model: GPT,
    prompts: Sequence[Prompt],
    reward: Reward,
    config: TrainConfig,
    rollout: RolloutConfig,
    *,
    stop: int,
    progress: bool = True,
    evaluate: Watch | None = None,
) -> tuple[History, list[dict[str, float]]]:
    """Train `model` in place (Shao et al. 2024) -> the history, and the log of the rollouts.

    Every token counts the same (Yu et al. 2025); a mean over answers of their means would count a long answer's less.
    """
    rollouts = Rollouts(model, prompts, reward, rollout, stop, config.seed)
    batches = made_every(rollout.updates, rollouts.make)

    def loss_fn(model: nn.Module, batch: tuple[Any, ...]) -> tuple[Tensor, int]:
        fields, rewards, old_logp, ref_logp = batch
        packed = Packed(*fields)
        logp = answer_logprobs(model, packed)  # (P, G, N)
        advantages = grpo_advantages(rewards)[..., None].expand_as(logp)  # an answer's stands at each of its tokens
        loss, count = ppo_loss(logp, old_logp, advantages, packed.mask, clip=rollout.clip)
        return loss + rollout.kl * kl_estimate(logp, ref_logp)[packed.mask].sum(), count

    return train(model, batches, config, loss_fn=loss_fn, progress=progress, evaluate=evaluate), rollouts.log


class ActorCritic(nn.Module):
    """The two models that PPO trains together: one answers, the other says what to expect."""

    def __init__(self, actor: GPT, critic: RewardModel) -> None:
        super().__init__()
        self.actor, self.critic = actor, critic


def train_ppo(
    model: GPT,
    critic: RewardModel,
    prompts: Sequence[Prompt],
    reward: Reward,
    config: TrainConfig,
    rollout: RolloutConfig,
    *,
    stop: int,
    progress: bool = True,
    evaluate: Watch | None = None,
) -> tuple[History, list[dict[str, float]]]:
    """Train `model` and `critic` in place (Schulman et al. 2017; Ouyang et al. 2022) -> history and the rollouts' log.

    Each token pays kl * (logp - ref_logp); what the answer earns comes with its last token.
    """
    rollouts = Rollouts(model, prompts, reward, rollout, stop, config.seed)

    def make(step: int) -> tuple[Any, ...]:
        made = rollouts.make(step)
        return made.packed, made.logp, *judge(critic, made, rollout)

    def loss_fn(both: nn.Module, batch: tuple[Any, ...]) -> tuple[Tensor, int]:
        assert isinstance(both, ActorCritic)
        fields, old_logp, advantages, returns = batch
        packed = Packed(*fields)
        logp = answer_logprobs(both.actor, packed)  # (P, G, N)
        loss, count = ppo_loss(logp, old_logp, advantages, packed.mask, clip=rollout.clip)
        error, _ = value_loss(both.critic.expected(packed), returns, packed.mask)
        return loss + rollout.value_weight * error, count

    watch = None if evaluate is None else lambda both: evaluate(both.actor)
    batches = made_every(rollout.updates, make)
    history = train(ActorCritic(model, critic), batches, config, loss_fn=loss_fn, progress=progress, evaluate=watch)
    return history, rollouts.log


@torch.no_grad()
def judge(critic: RewardModel, rollout: Rollout, config: RolloutConfig) -> tuple[Tensor, Tensor]:
    """-> advantages (P, G, N), brought to mean 0 and deviation 1 over all tokens of the answers, and returns."""
    packed, mask = rollout.packed, rollout.packed.mask
    rewards = -config.kl * (rollout.logp - rollout.ref_logp)  # (P, G, N)
    end = mask.sum(dim=-1, keepdim=True) - 1  # (P, G, 1)
    rewards = rewards.scatter_add(-1, end, rollout.rewards[..., None])
    advantages, returns = gae(rewards, critic.expected(packed), mask, lam=config.lam)
    spread = advantages[mask]
    return (advantages - spread.mean()) / (spread.std() + 1e-8) * mask, returns


# ---------------------------------------------------------------------------------------------- for the command line

METHODS = ("dpo", "ppo", "grpo")
ALIGN = TrainConfig(steps=60, optimizer="adamw", lr=1e-4)


def align(
    model: GPT,
    tokenizer: Tokenizer,
    method: str,
    conversations: Sequence[Sequence[Message]],
    *,
    preferences: Sequence[Preference] | None = None,
    config: TrainConfig | None = None,
    rollout: RolloutConfig | None = None,
    progress: bool = True,
) -> History:
    """Train a chat model in place by "dpo", "ppo" or "grpo" on conversations, each of which ends with a right answer.

    Without preferences, DPO and PPO's reward model get pairs of the model's own answers (`collect_pairs`). GRPO's
    reward is whether the answer is right. config: None for `ALIGN`. Raises ValueError for an unknown method,
    a tokenizer without the chat tokens, and where there is nothing to learn from.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; expected one of {', '.join(METHODS)}")
    prompts = [render_prompt(tokenizer, messages) for messages in conversations]
    config, stop = config or ALIGN, tokenizer.special_tokens[STOP]
    rollout = rollout or RolloutConfig()
    if method == "grpo":
        return train_grpo(model, prompts, exact_reward, config, rollout, stop=stop, progress=progress)[0]
    if preferences is None:
        pairs = collect_pairs(model, prompts, stop=stop, max_tokens=rollout.max_tokens, seed=config.seed)
    else:
        pairs = [render_pair(tokenizer, preference) for preference in preferences]
    if method == "dpo":
        return train_dpo(model, pairs, config, progress=progress)
    reward_model, _ = train_reward_model(model, pairs, config, progress=progress)
    critic, reward = copy.deepcopy(reward_model), learned_reward(reward_model)
    return train_ppo(model, critic, prompts, reward, config, rollout, stop=stop, progress=progress)[0]
