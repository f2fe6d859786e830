"""Each loss against a case worked out by hand and a float64 reference; packed rows against plain ones; small runs."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from llmfs import sft
from llmfs.config import GPTConfig
from llmfs.gpt import GPT
from llmfs.rlhf import (
    Packed,
    Pair,
    Prompt,
    RewardModel,
    RolloutConfig,
    align,
    answer_logprobs,
    bradley_terry_loss,
    collect_pairs,
    dpo_loss,
    exact_reward,
    frozen_copy,
    gae,
    grpo_advantages,
    kl_estimate,
    learned_reward,
    pack_answers,
    pair_batches,
    ppo_loss,
    render_pair,
    render_prompt,
    sample_groups,
    sequence_logprobs,
    train_dpo,
    train_grpo,
    train_ppo,
    train_reward_model,
    value_loss,
)
from llmfs.tokenizer import BPETokenizer
from llmfs.train import TrainConfig

STOP = 7


def make_model(seed=0, **changes):
    settings = dict(vocab_size=8, block_size=24, n_layer=2, n_head=2, n_embd=16, qk_norm=True)
    return GPT(GPTConfig(**{**settings, **changes}), generator=torch.Generator().manual_seed(seed)).eval()


def normal(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ----------------------------------------------------------------------------------------------------- losses


def test_bradley_terry_by_hand():
    # odds of 3 to 1, even odds, and 1 to 3
    loss, count = bradley_terry_loss(torch.tensor([math.log(3), 1.0, 0.0]), torch.tensor([0.0, 1.0, math.log(3)]))
    assert count == 3
    assert loss.item() == pytest.approx(-math.log(3 / 4) - math.log(1 / 2) - math.log(1 / 4))


def test_bradley_terry_knows_differences_alone():
    a, b = normal(0, 5), normal(1, 5)
    torch.testing.assert_close(bradley_terry_loss(a, b), bradley_terry_loss(a + 100, b + 100))
    assert bradley_terry_loss(torch.tensor([-2000.0]), torch.tensor([0.0]))[0] == 2000  # no overflow


def test_dpo_by_hand():
    # The chosen answer has become twice as likely, the rejected one half: beta (ln 2 + ln 2) with beta = 0.5 is ln 2.
    logp = [torch.tensor([math.log(p)]) for p in (0.2, 0.1, 0.1, 0.2)]
    loss, count = dpo_loss(*logp, beta=0.5)
    assert count == 1 and loss.item() == pytest.approx(-math.log(2 / 3))


def test_dpo_against_float64():
    chosen, rejected, ref_chosen, ref_rejected = (normal(seed, 6) * 5 for seed in range(4))
    for beta in (0.05, 1.0):
        expected = 0.0
        for i in range(6):
            margin = (chosen[i] - rejected[i]).item() - (ref_chosen[i] - ref_rejected[i]).item()
            expected += math.log1p(math.exp(-beta * margin))
        inputs = (chosen, rejected, ref_chosen, ref_rejected)
        assert dpo_loss(*inputs, beta=beta)[0].item() == pytest.approx(expected, rel=1e-12)
        assert dpo_loss(*(x.float() for x in inputs), beta=beta)[0].item() == pytest.approx(expected, rel=1e-5)


def test_dpo_starts_at_ln_2_and_pushes_the_two_apart():
    chosen, rejected = (torch.tensor([x], requires_grad=True) for x in (-3.0, -1.0))
    loss, _ = dpo_loss(chosen, rejected, torch.tensor([-3.0]), torch.tensor([-1.0]), beta=0.1)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert chosen.grad.item() == pytest.approx(-0.05) and rejected.grad.item() == pytest.approx(0.05)


@pytest.mark.parametrize(
    "ratio, advantage, gain, moves",
    [
        (1.0, 2.0, 2.0, True),
        (1.1, 2.0, 2.2, True),
        (1.5, 2.0, 2.4, False),  # already up far enough
        (0.5, 2.0, 1.0, True),  # went down although it was good: may come back
        (1.5, -2.0, -3.0, True),  # went up although it was bad: may come back
        (0.5, -2.0, -1.6, False),  # already down far enough
    ],
)
def test_ppo_by_hand(ratio, advantage, gain, moves):
    old = torch.tensor([[-1.0, -9.0]])
    logp = (old + torch.tensor([[math.log(ratio), 3.0]])).requires_grad_()
    mask = torch.tensor([[True, False]])
    loss, count = ppo_loss(logp, old, torch.tensor([[advantage, 5.0]]), mask, clip=0.2)
    loss.backward()
    assert count == 1 and loss.item() == pytest.approx(-gain, rel=1e-5)
    assert logp.grad[0, 0].item() == pytest.approx(-ratio * advantage if moves else 0, rel=1e-5)
    assert logp.grad[0, 1] == 0


def test_ppo_against_float64():
    logp, old, advantages = normal(0, 3, 2, 4), normal(1, 3, 2, 4), normal(2, 3, 2, 4)
    mask = normal(3, 3, 2, 4) > -0.5
    expected = 0.0
    for index in mask.nonzero().tolist():
        i = tuple(index)
        ratio, A = math.exp(logp[i].item() - old[i].item()), advantages[i].item()
        expected -= min(ratio * A, max(0.9, min(1.1, ratio)) * A)
    loss, count = ppo_loss(logp, old, advantages, mask, clip=0.1)
    assert count == mask.sum() and loss.item() == pytest.approx(expected, rel=1e-12)
    loss32, _ = ppo_loss(logp.float(), old.float(), advantages.float(), mask, clip=0.1)
    assert loss32.item() == pytest.approx(expected, rel=1e-5)


def test_ppo_starts_as_the_policy_gradient():
    logp = normal(0, 2, 3).requires_grad_()
    advantages, mask = normal(1, 2, 3), torch.ones(2, 3, dtype=torch.bool)
    loss, _ = ppo_loss(logp, logp.detach(), advantages, mask)
    loss.backward()
    torch.testing.assert_close(logp.grad, -advantages)


def test_advantages_by_hand():
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.25, 0.75]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    # lam = 1: what really came, less what was expected. lam = 0: the next expectation less this one.
    assert gae(rewards, values, mask, lam=1.0)[0].tolist() == [[0.5, 0.75, 0.25]]
    assert gae(rewards, values, mask, lam=0.0)[0].tolist() == [[-0.25, 0.5, 0.25]]
    advantages, returns = gae(rewards, values, mask, lam=0.5)  # delta + half of what follows
    assert advantages.tolist() == [[-0.25 + 0.5 * 0.625, 0.5 + 0.5 * 0.25, 0.25]]
    torch.testing.assert_close(returns, advantages + values)


def test_advantages_against_float64_and_without_what_lies_behind_the_answer():
    rewards, values = normal(0, 2, 3, 5), normal(1, 2, 3, 5)
    lengths = torch.tensor([[5, 1, 3], [2, 4, 5]])
    mask = torch.arange(5) < lengths[..., None]
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=0.8)
    for p in range(2):
        for g in range(3):
            N = int(lengths[p, g])
            v = [*values[p, g, :N].tolist(), 0.0]
            delta = [rewards[p, g, n].item() + 0.9 * v[n + 1] - v[n] for n in range(N)]
            for n in range(5):
                expected = sum((0.9 * 0.8) ** (k - n) * delta[k] for k in range(n, N))
                assert advantages[p, g, n].item() == pytest.approx(expected, abs=1e-12)
                assert returns[p, g, n].item() == pytest.approx(expected + v[n] if n < N else 0.0, abs=1e-12)


def test_value_loss_by_hand():
    loss, count = value_loss(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([0.0, 4.0, 0.0]), torch.tensor([True, True, False]))
    assert loss == 2.5 and count == 2


def test_grpo_advantages_by_hand():
    advantages = grpo_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]))
    expected = torch.tensor([[1.5, -0.5, -0.5, -0.5], [0.0, 0.0, 0.0, 0.0]])  # mean 1/4, deviation 1/2
    torch.testing.assert_close(advantages, expected, rtol=1e-3, atol=1e-3)
    rewards = normal(0, 4, 8)
    mean, deviation = rewards.numpy().mean(1, keepdims=True), rewards.numpy().std(1, ddof=1, keepdims=True)
    torch.testing.assert_close(grpo_advantages(rewards, eps=0.0), torch.tensor((rewards.numpy() - mean) / deviation))
    for bad in (torch.zeros(4), torch.zeros(4, 1)):
        with pytest.raises(ValueError, match="at least two answers"):
            grpo_advantages(bad)


def test_kl_estimates_are_right_on_average():
    p, q = normal(0, 6).softmax(0), normal(1, 6).softmax(0)
    exact = (p * (p / q).log()).sum()
    means = {kind: (p * kl_estimate(p.log(), q.log(), kind)).sum() for kind in ("k1", "k2", "k3")}
    torch.testing.assert_close(means["k1"], exact)
    torch.testing.assert_close(means["k3"], exact)
    assert abs(means["k2"] - exact) > 1e-3
    assert (kl_estimate(p.log(), q.log(), "k1") < 0).any() and (kl_estimate(p.log(), q.log()) >= 0).all()
    with pytest.raises(ValueError, match="k1"):
        kl_estimate(p, q, "k4")


# ------------------------------------------------------------------------------------------ log-probabilities

PROMPTS = [[1, 2, 3], [4], [5, 6, 1, 2, 3, 4]]
ANSWERS = [[[1, STOP], [2, 2, 2, STOP], [STOP]], [[3, STOP], [3, 4], [5, 5, STOP]], [[6], [6, 6], [1, STOP]]]


@pytest.mark.parametrize("changes", [{}, {"pos": "learned"}, {"pos": "sinusoidal"}, {"pos": "none", "n_kv_head": 1}])
def test_packed_answers_are_as_likely_as_alone(changes):
    model, packed = make_model(**changes), pack_answers(PROMPTS, ANSWERS)
    got = answer_logprobs(model, packed)
    assert got.shape == (3, 3, 4)
    for p, prompt in enumerate(PROMPTS):
        for g, answer in enumerate(ANSWERS[p]):
            ids = torch.tensor([[*prompt, *answer]])
            logp = model(ids)[0].log_softmax(-1)
            each = [logp[len(prompt) - 1 + n, token].item() for n, token in enumerate(answer)]
            assert got[p, g].tolist() == pytest.approx(each + [0.0] * (4 - len(each)), abs=1e-5)
            mask = torch.arange(ids.shape[1])[None] >= len(prompt)
            assert sequence_logprobs(model, ids, mask).item() == pytest.approx(sum(each), abs=1e-5)


def test_sequence_logprobs_do_not_see_the_filling():
    model = make_model()
    ids = torch.tensor([[1, 2, 3, STOP, 0, 0], [4, 3, 3, 3, 3, STOP], [1, 2, 3, STOP, 6, 5]])
    mask = torch.tensor([[0, 0, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0]], dtype=torch.bool)
    logp = sequence_logprobs(model, ids, mask)
    torch.testing.assert_close(logp[0], logp[2])
    torch.testing.assert_close(logp[:1], sequence_logprobs(model, ids[:1, :4], mask[:1, :4]))


def test_answers_that_do_not_fit_their_prompts_are_refused():
    for prompts, answers in (([], []), ([[1]], [[[2]], [[2]]]), ([[1], [2]], [[[1]], [[1], [2]]]), ([[1]], [[[]]])):
        with pytest.raises(ValueError, match="groups of equally many answers"):
            pack_answers(prompts, answers)


def test_a_frozen_copy_shares_nothing():
    model = make_model()
    reference = frozen_copy(model)
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)
    assert not torch.equal(model.lm_head.weight, reference.lm_head.weight)
    assert not any(p.requires_grad for p in reference.parameters())


# ------------------------------------------------------------------------------------------------ reward model


def trained_looking_reward_model(model):
    reward_model = RewardModel(model)
    with torch.no_grad():
        reward_model.gpt.lm_head.weight.copy_(normal(5, 1, 16, dtype=torch.float32))
    return reward_model


@pytest.mark.parametrize("tie_weights", [False, True])
def test_reward_model_reads_at_the_last_token(tie_weights):
    model = make_model(tie_weights=tie_weights)
    assert RewardModel(model).score(pack_answers(PROMPTS, ANSWERS)).abs().max() == 0
    reward_model = trained_looking_reward_model(model)
    scores = reward_model.score(pack_answers(PROMPTS, ANSWERS))
    for p, prompt in enumerate(PROMPTS):
        for g, answer in enumerate(ANSWERS[p]):
            assert scores[p, g].item() == pytest.approx(
                reward_model.gpt(torch.tensor([[*prompt, *answer]]))[0, -1, 0].item(), abs=1e-5
            )
    assert model.lm_head.weight.shape == (8, 16)  # the GPT is as it was


def test_expectations_stand_before_the_token():
    reward_model = trained_looking_reward_model(make_model())
    expected = reward_model.expected(pack_answers(PROMPTS, ANSWERS))
    alone = reward_model.gpt(torch.tensor([[*PROMPTS[0], *ANSWERS[0][1]]]))[0, :, 0]
    torch.testing.assert_close(expected[0, 1], alone[2:6])
    assert expected[0, 0, 2:].abs().max() == 0


def test_reward_model_learns_preferences():
    prompts = [[a, b] for a in range(1, 7) for b in range(1, 7)]
    pairs = [Pair(prompt, [prompt[0], STOP], [prompt[0] % 6 + 1, STOP]) for prompt in prompts]
    reward_model, history = train_reward_model(
        make_model(), pairs, TrainConfig(steps=60, optimizer="adamw", lr=1e-2), rows=12, progress=False
    )
    scores = reward_model.score(pack_answers(prompts, [(pair.chosen, pair.rejected) for pair in pairs]))
    assert history.loss[0] == pytest.approx(math.log(2)) and (scores[:, 0] > scores[:, 1]).float().mean() > 0.9
    reward = learned_reward(reward_model)([Prompt(prompts[0], [])], [[[1, STOP], [2, STOP]]])
    torch.testing.assert_close(reward, scores[:1].detach())


def test_pairs_are_a_pure_function_of_the_step():
    pairs = [Pair([n], [n, STOP], [STOP]) for n in range(1, 7)]
    batches = pair_batches(pairs, 4, seed=3)
    assert torch.equal(batches(5, 0).ids, batches(5, 0).ids)
    assert not torch.equal(batches(5, 0).ids, batches(6, 0).ids)
    assert isinstance(batches(0, 0), Packed) and batches(0, 0).mask.shape == (4, 2, 2)
    assert len(pair_batches(pairs, 100)(0, 0).ids) == 6
    with pytest.raises(ValueError, match="no pair"):
        pair_batches([], 4)


# -------------------------------------------------------------------------------------------------- small runs

# Say the letter again. Without a first token, attention could not tell one letter from two of the same.
QUESTIONS = [Prompt([0, a], [a, STOP]) for a in range(1, 7)]
FAST = TrainConfig(steps=60, optimizer="adamw", lr=3e-3)
ROLLOUT = RolloutConfig(prompts=6, group=16, max_tokens=3, updates=2, kl=0.0)


@pytest.fixture(scope="module")
def half_trained():
    """A model that answers correctly about one time in three."""
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    ids = torch.tensor([[*q.ids, *q.right] for q in QUESTIONS])
    while accuracy(model) < 0.3:
        loss = -sequence_logprobs(model, ids, torch.tensor([[False, False, True, True]] * 6)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def accuracy(model):
    """The mean probability of the right answer."""
    packed = pack_answers([q.ids for q in QUESTIONS], [[q.right] for q in QUESTIONS])
    return answer_logprobs(model, packed).sum(-1).exp().mean().item()


def test_sampled_groups_stand_beside_their_prompts(half_trained):
    groups = sample_groups(half_trained, QUESTIONS, 5, 3, stop=STOP, generator=torch.Generator().manual_seed(0))
    assert len(groups) == 6 and all(len(group) == 5 for group in groups)
    assert all(answer[-1] == STOP or len(answer) == 3 for group in groups for answer in group)
    rewards = exact_reward(QUESTIONS, [[q.right, [*q.right, STOP]] for q in QUESTIONS])
    assert rewards.tolist() == [[1.0, 0.0]] * 6


def test_collected_pairs_are_right_against_wrong(half_trained):
    pairs = collect_pairs(half_trained, QUESTIONS * 3, stop=STOP, max_tokens=3, group=16)
    assert all(list(pair.chosen) == [pair.prompt[1], STOP] != list(pair.rejected) for pair in pairs)
    with pytest.raises(ValueError, match="both a right and a wrong answer"):
        collect_pairs(half_trained, [Prompt([1], [0, 0, 0, 0, STOP])], stop=STOP, max_tokens=3)


def test_dpo_raises_what_is_preferred(half_trained):
    model = copy.deepcopy(half_trained)
    pairs = collect_pairs(model, QUESTIONS * 4, stop=STOP, max_tokens=3, group=16)
    history = train_dpo(model, pairs, FAST, progress=False)
    assert history.loss[0] == pytest.approx(math.log(2), abs=1e-5)
    assert history.loss[-1] < 0.4 and accuracy(model) > accuracy(half_trained) + 0.2


def test_grpo_raises_the_reward(half_trained):
    model = copy.deepcopy(half_trained)
    seen = []
    history, log = train_grpo(
        model, QUESTIONS, exact_reward, TrainConfig(steps=60, optimizer="adamw", lr=3e-3, eval_every=30), ROLLOUT,
        stop=STOP, progress=False, evaluate=lambda model: seen.append(model) or {},
    )
    assert len(log) == 30 and log[0]["kl"] == pytest.approx(0, abs=1e-6) and log[-1]["kl"] > 0.05
    assert log[-1]["reward"] > log[0]["reward"] + 0.3 and accuracy(model) > 0.8
    assert seen == [model, model] and len(history.loss) == 60


def test_ppo_raises_the_reward_and_learns_what_to_expect(half_trained):
    model, critic = copy.deepcopy(half_trained), RewardModel(half_trained)
    _, log = train_ppo(
        model, critic, QUESTIONS, exact_reward, TrainConfig(steps=80, optimizer="adamw", lr=3e-3), ROLLOUT,
        stop=STOP, progress=False,
    )
    assert log[-1]["reward"] > log[0]["reward"] + 0.3 and accuracy(model) > 0.8
    packed = pack_answers([q.ids for q in QUESTIONS], [[q.right] for q in QUESTIONS])
    assert critic.expected(packed)[packed.mask].mean() > 0.5


def test_a_learned_reward_rises_and_the_reward_model_stays(half_trained):
    model = copy.deepcopy(half_trained)
    pairs = collect_pairs(model, QUESTIONS * 4, stop=STOP, max_tokens=3, group=16)
    reward_model, _ = train_reward_model(model, pairs, FAST, progress=False)
    before = copy.deepcopy(reward_model.state_dict())
    critic, reward = copy.deepcopy(reward_model), learned_reward(reward_model)
    _, log = train_ppo(model, critic, QUESTIONS, reward, FAST, ROLLOUT, stop=STOP, progress=False)
    assert log[-1]["reward"] > log[0]["reward"] + 0.3
    assert all(torch.equal(before[name], value) for name, value in reward_model.state_dict().items())


def test_kl_holds_the_model_back(half_trained):
    def run(kl):
        model = copy.deepcopy(half_trained)
        rollout = RolloutConfig(prompts=6, group=16, max_tokens=3, kl=kl)
        return train_grpo(model, QUESTIONS, exact_reward, FAST, rollout, stop=STOP, progress=False)[1][-1]["kl"]

    assert run(2.0) < run(0.0) / 2


def test_runs_repeat(half_trained):
    def run():
        model = copy.deepcopy(half_trained)
        return train_grpo(
            model, QUESTIONS, exact_reward, TrainConfig(steps=4, optimizer="adamw", lr=1e-3), ROLLOUT,
            stop=STOP, progress=False,
        )

    assert run()[1] == run()[1]


def test_settings_that_cannot_work_are_refused():
    for bad in ({"group": 0}, {"updates": 0}, {"clip": 0.0}, {"kl": -1.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            RolloutConfig(**bad)
    with pytest.raises(ValueError, match="no prompt"):
        train_grpo(make_model(), [], exact_reward, FAST, ROLLOUT, stop=STOP)


# ------------------------------------------------------------------------------------------ with chat templates


@pytest.fixture(scope="module")
def chat_tokenizer():
    return BPETokenizer.train(["Mira is a mouse. Tom is a cat."], 270, special_tokens=["<|endoftext|>", *sft.CHAT_TOKENS])


def chat(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_prompts_and_pairs_from_conversations(chat_tokenizer):
    messages = chat("What is Mira?", "mouse")
    prompt = render_prompt(chat_tokenizer, messages)
    assert [*prompt.ids, *prompt.right] == sft.render_chat(chat_tokenizer, messages)[0]
    assert chat_tokenizer.decode(prompt.right) == " mouse<|end|>"
    preference = sft.Preference(messages=messages[:1], chosen="mouse", rejected="cat")
    pair = render_pair(chat_tokenizer, preference)
    assert pair.prompt == prompt.ids and pair.chosen == prompt.right
    assert chat_tokenizer.decode(pair.rejected) == " cat<|end|>"


def test_align_runs_each_method_and_refuses_others(chat_tokenizer):
    talks = [chat("What is Mira?", "mouse"), chat("What is Tom?", "cat")]
    preferences = [sft.Preference(messages=talk[:1], chosen=talk[1]["content"], rejected="dog") for talk in talks]
    quick = TrainConfig(steps=2, optimizer="adamw", lr=1e-3)
    for method in ("dpo", "ppo", "grpo"):
        model = make_model(vocab_size=chat_tokenizer.vocab_size, block_size=64)
        before = copy.deepcopy(model.state_dict())
        history = align(
            model, chat_tokenizer, method, talks, preferences=preferences, config=quick,
            rollout=RolloutConfig(max_tokens=4), progress=False,
        )
        assert len(history.loss) == 2
        if method != "grpo":  # a random model is never right, and then nothing is learned
            assert any(not torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="dpo, ppo, grpo"):
        align(model, chat_tokenizer, "sft", talks)
    with pytest.raises(ValueError, match="both a right and a wrong"):
        align(model, chat_tokenizer, "dpo", talks, config=quick)
