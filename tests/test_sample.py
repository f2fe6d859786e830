"""Sampling: filters worked out by hand, the cache against no cache, the generator in charge."""

from __future__ import annotations

import math

import pytest
import torch

from llmfs.config import GPTConfig
from llmfs.gpt import GPT
from llmfs.sample import filter_logits, generate


@pytest.fixture(scope="module")
def model() -> GPT:
    config = GPTConfig(vocab_size=31, block_size=16, n_layer=2, n_embd=32, n_head=4, n_kv_head=2)
    model = GPT(config, generator=torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # sharp enough that mistakes would show
    return model


def kept(logits: torch.Tensor, **settings) -> list[int]:
    return filter_logits(logits, **settings)[0].isfinite().nonzero()[:, 0].tolist()


P = torch.tensor([[0.4, 0.1, 0.5]])


def test_filters_by_hand():
    logits = P.log()
    assert kept(logits) == [0, 1, 2]
    assert kept(logits, temperature=0) == [2]
    assert kept(logits, top_k=2) == [0, 2]
    assert kept(logits, top_p=0.6) == [0, 2]  # the one that crosses p stays
    assert kept(logits, top_p=0.0) == [2]  # and one always does
    assert kept(logits, top_p=0.9) == [0, 2]  # 0.5 + 0.4 is 0.9, whatever the floats say
    assert kept(logits, top_p=0.5) == [2]
    assert kept(logits, min_p=0.5) == [0, 2]
    torch.testing.assert_close(filter_logits(logits, temperature=2.0), logits / 2)


def test_repetition_penalty_lowers_negative_logits_too():
    logits = torch.tensor([[2.0, -2.0, 1.0]])
    out = filter_logits(logits, repetition_penalty=2.0, context=torch.tensor([[0, 1, 1]]))
    torch.testing.assert_close(out, torch.tensor([[1.0, -4.0, 1.0]]))


@pytest.mark.parametrize(
    "settings",
    [
        dict(temperature=0.7),
        dict(top_k=7),
        dict(top_p=0.8),
        dict(top_p=0.9, top_k=20),
        dict(min_p=0.05),
        dict(repetition_penalty=1.7),
    ],
)
def test_filters_equal_transformers(settings):
    from transformers import generation

    g = torch.Generator().manual_seed(1)
    logits, context = torch.randn(200, 50, generator=g) * 3, torch.randint(0, 50, (200, 9), generator=g)
    theirs = {
        "temperature": generation.TemperatureLogitsWarper,
        "top_k": generation.TopKLogitsWarper,
        "top_p": generation.TopPLogitsWarper,
        "min_p": generation.MinPLogitsWarper,
        "repetition_penalty": generation.RepetitionPenaltyLogitsProcessor,
    }
    expected = logits
    for name in ("repetition_penalty", "temperature", "top_k", "top_p", "min_p"):
        if name in settings:
            expected = theirs[name](settings[name])(context, expected)
    torch.testing.assert_close(filter_logits(logits, context=context, **settings), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("settings", [dict(temperature=0), dict(temperature=1.0, top_p=0.9)])
def test_cache_changes_nothing_even_past_the_block(model, B, settings):
    ids = torch.randint(0, 31, (B, 5), generator=torch.Generator().manual_seed(2))

    def text(use_cache: bool) -> list[list[int]]:
        tokens = generate(model, ids, 40, use_cache=use_cache, generator=torch.Generator().manual_seed(3), **settings)
        return torch.stack(list(tokens), dim=1).tolist()

    assert text(True) == text(False)
    assert len(text(True)[0]) == 40


def test_seed_decides_and_the_global_generator_is_left_alone(model):
    ids = torch.zeros(1, 1, dtype=torch.long)
    draw = lambda seed: [t.item() for t in generate(model, ids, 12, generator=torch.Generator().manual_seed(seed))]  # noqa: E731
    before = torch.get_rng_state()
    assert draw(0) == draw(0) and draw(0) != draw(1)
    assert torch.equal(before, torch.get_rng_state())


def test_greedy_is_argmax(model):
    ids = torch.tensor([[3, 1, 4]])
    for token in generate(model, ids, 6, temperature=0):
        assert token.item() == model(ids)[0, -1].argmax().item()
        ids = torch.cat((ids, token[:, None]), dim=1)


def test_stop_ends_a_row_then_the_batch(model):
    ids = torch.randint(0, 31, (4, 3), generator=torch.Generator().manual_seed(5))
    stop = {int(t) for t in torch.stack(list(generate(model, ids, 5, temperature=0)), 1)[:2, 1]}
    out = torch.stack(list(generate(model, ids, 30, temperature=0, stop=stop)), dim=1)
    for row in out.tolist():
        hit = next((i for i, t in enumerate(row) if t in stop), None)
        if hit is not None:
            assert set(row[hit:]) == {row[hit]}


def test_sampling_follows_the_distribution(model):
    """20,000 draws of the first token against the model's probabilities, by a chi-squared statistic."""
    ids = torch.zeros(20_000, 1, dtype=torch.long)
    tokens = next(iter(generate(model, ids, 1, generator=torch.Generator().manual_seed(6))))
    expected = model(ids[:1])[0, -1].softmax(-1).double() * 20_000
    counts = torch.bincount(tokens, minlength=31).double()
    common = expected >= 5
    chi2 = ((counts - expected) ** 2 / expected)[common].sum().item()
    freedom = int(common.sum()) - 1
    assert chi2 < freedom + 4 * math.sqrt(2 * freedom)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(temperature=-1), "temperature"),
        (dict(top_k=0), "top_k"),
        (dict(top_p=1.5), "top_p"),
        (dict(min_p=-0.1), "min_p"),
        (dict(repetition_penalty=0), "repetition_penalty"),
    ],
)
def test_bad_settings_are_refused_at_the_call(model, settings, message):
    with pytest.raises(ValueError, match=message):
        generate(model, torch.zeros(1, 1, dtype=torch.long), 3, **settings)
    with pytest.raises(ValueError, match="at least one token"):
        generate(model, torch.zeros(1, 0, dtype=torch.long), 3)
