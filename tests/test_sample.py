"""Sampling: filters by hand and against transformers, fast ways against slow ones, draws against distributions."""

from __future__ import annotations

import math

import pytest
import torch
from test_gpt import REFERENCES, randomize

from llmfs.attention import KVCache
from llmfs.config import GPTConfig
from llmfs.gpt import GPT
from llmfs.sample import Acceptance, accept, beam_search, filter_logits, generate, pad_left, speculative


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
    assert kept(logits, top_p=1.0) == [0, 1, 2]
    assert kept(logits, min_p=0.5) == [0, 2]
    assert kept(logits, min_p=0.8) == [0, 2]  # 0.4 is 0.8 of 0.5
    assert kept(logits, min_p=0.0) == [0, 1, 2]
    assert kept(logits, min_p=1.0) == [2]
    assert kept(logits, temperature=1e-40) == [2]  # no overflow
    assert kept(logits, top_k=99) == [0, 1, 2]
    torch.testing.assert_close(filter_logits(logits, temperature=2.0), logits / 2)


def test_ties_at_the_edge_of_top_k_all_stay():
    from transformers.generation import TopKLogitsWarper

    logits = torch.tensor([[1.0, 3.0, 1.0, 0.0, 1.0]])
    assert kept(logits, top_k=2) == [0, 1, 2, 4]
    torch.testing.assert_close(filter_logits(logits, top_k=2), TopKLogitsWarper(2)(None, logits))
    assert kept(logits, temperature=0) == [1]
    assert kept(logits[:, :1].expand(1, 4), temperature=0) == [0]  # one token, though all are best


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
        dict(min_p=0.0),
        dict(top_p=0.0),
        dict(repetition_penalty=1.7),
        dict(repetition_penalty=0.5, temperature=1.3, top_k=30, top_p=0.95, min_p=0.02),
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


def test_chunked_prefill_gives_what_generate_gives(model):
    ids = torch.randint(0, 31, (3, 11), generator=torch.Generator().manual_seed(8))
    cache = KVCache(model.config, 3)
    for chunk in ids.split(4, dim=1):
        logits = model(chunk, cache)
    assert torch.equal(logits[:, -1].argmax(-1), next(generate(model, ids, 1, temperature=0)))


# --- past the block ----------------------------------------------------------------------------------------


def test_past_the_block_the_window_is_cut_in_half_and_read_again(model):
    """Greedy, with the window written out: block 16, so 8 tokens stay whenever it would hold 17."""
    ids = torch.randint(0, 31, (2, 20), generator=torch.Generator().manual_seed(9))  # longer than the block
    window = ids[:, -16:]
    for token in generate(model, ids, 30, temperature=0):
        assert torch.equal(token, model(window)[:, -1].argmax(-1))
        window = torch.cat((window, token[:, None]), dim=1)
        if window.shape[1] > 16:
            window = window[:, -8:]


# --- batches of unequal prompts ----------------------------------------------------------------------------

PROMPTS = [[3, 1, 4, 1, 5, 9, 2], [6], [5, 3, 5, 8]]


def columns(tokens) -> list[list[int]]:
    return torch.stack(list(tokens), dim=1).tolist()


def test_pad_left_by_hand():
    ids, real = pad_left([[7, 8, 9], [5]], pad_id=2)
    assert ids.tolist() == [[7, 8, 9], [2, 2, 5]]
    assert real.tolist() == [[True, True, True], [False, False, True]]
    for prompts in ([], [[1], []]):
        with pytest.raises(ValueError, match="at least one token"):
            pad_left(prompts)


@pytest.mark.parametrize("pos", ["rope", "learned", "none"])
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("pad_id", [0, 5])
def test_each_row_of_a_padded_batch_is_continued_as_if_alone(pos, use_cache, pad_id):
    model = randomize(GPT(GPTConfig(vocab_size=31, block_size=16, n_layer=2, n_embd=32, n_head=4, pos=pos)), 1)
    ids, real = pad_left(PROMPTS, pad_id)
    settings = dict(temperature=0, repetition_penalty=1.3)  # the padding must not be penalized either
    batch = columns(generate(model, ids, 9, real=real, use_cache=use_cache, **settings))
    for prompt, row in zip(PROMPTS, batch):
        assert row == columns(generate(model, torch.tensor([prompt]), 9, **settings))[0]


def test_padded_rows_stop_each_at_its_own_stop_token(model):
    ids, real = pad_left(PROMPTS)
    free = columns(generate(model, ids, 9, real=real, temperature=0))
    stop = {free[0][2], free[1][4]}
    stopped = columns(generate(model, ids, 9, real=real, temperature=0, stop=stop))
    for row, expected in zip(stopped, free):
        at = next((i for i, token in enumerate(expected) if token in stop), len(expected))
        assert row == (expected[: at + 1] + expected[at : at + 1] * 9)[: len(row)]


def test_a_padded_batch_goes_on_past_the_block(model):
    ids, real = pad_left(PROMPTS)
    with_cache, without = (
        columns(generate(model, ids, 30, real=real, temperature=0, use_cache=c)) for c in (True, False)
    )
    assert with_cache == without and len(with_cache[0]) == 30


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_group_continues_one_prompt_several_times(model, use_cache):
    """The same draws as for a batch that repeats each prompt, past the block too."""
    ids, real = pad_left(PROMPTS)
    draw = lambda: torch.Generator().manual_seed(3)  # noqa: E731
    together = columns(generate(model, ids, 30, real=real, group=3, generator=draw(), use_cache=use_cache))
    repeated = columns(
        generate(model, ids.repeat_interleave(3, 0), 30, real=real.repeat_interleave(3, 0), generator=draw())
    )
    assert together == repeated and len(together) == 3 * len(PROMPTS)
    with pytest.raises(ValueError, match="group is 0"):
        generate(model, ids, 1, real=real, group=0)


# --- beam search -------------------------------------------------------------------------------------------


def hf_generate(theirs, ids, real=None, **settings):
    with torch.no_grad():
        return theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids) if real is None else real.long(),
            pad_token_id=96,
            do_sample=False,
            **settings,
        )


@pytest.mark.parametrize("name", ["gpt2", "llama, grouped queries"])
def test_greedy_equals_transformers(name):
    ours, theirs = REFERENCES[name]()
    ids = torch.randint(0, 97, (3, 6), generator=torch.Generator().manual_seed(1))
    assert (
        columns(generate(ours, ids, 12, temperature=0)) == hf_generate(theirs, ids, max_new_tokens=12)[:, 6:].tolist()
    )


@pytest.mark.parametrize("name", ["gpt2", "llama, grouped queries"])
@pytest.mark.parametrize(
    "width, length_penalty, n_stop", [(1, 1.0, 1), (3, 1.0, 0), (4, 1.0, 1), (4, 0.0, 2), (5, 2.0, 12), (3, -1.0, 6)]
)
def test_beam_search_equals_transformers(name, width, length_penalty, n_stop):
    """Prompts of equal and of unequal length, without and with stop tokens: the same best sequences and scores."""
    ours, theirs = REFERENCES[name]()
    with torch.no_grad():  # soft enough that the beams compete
        theirs.lm_head.weight.mul_(0.2)
        ours.lm_head.weight.copy_(theirs.lm_head.weight)
    stop = list(range(1, 1 + n_stop))
    generator = torch.Generator().manual_seed(2)
    prompts = [torch.randint(0, 97, (length,), generator=generator).tolist() for length in (6, 6, 6, 2, 4)]
    for ids, real in (pad_left(prompts[:3]), pad_left(prompts)):
        out = theirs.generate(
            ids, attention_mask=real.long(), pad_token_id=96, eos_token_id=stop or None, do_sample=False, num_beams=width,
            num_return_sequences=width, max_new_tokens=10, length_penalty=length_penalty, early_stopping=False,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        found = beam_search(ours, ids, 10, width, stop=stop, length_penalty=length_penalty, real=real)
        flat = [hypothesis for row in found for hypothesis in row]
        assert len(flat) == len(out.sequences)
        for hypothesis, sequence in zip(flat, out.sequences[:, ids.shape[1] :].tolist()):
            assert sequence == hypothesis.ids + [96] * (len(sequence) - len(hypothesis.ids))
        if width > 1:  # transformers takes another path, without scores, for one beam
            theirs_scores = out.sequences_scores.tolist()
            assert [hypothesis.score for hypothesis in flat] == pytest.approx(theirs_scores, rel=1e-4)


def test_beam_search_with_and_without_cache_and_by_exhaustion(model):
    ids, real = pad_left(PROMPTS)
    with_cache, without = (beam_search(model, ids, 6, 4, stop={2, 3}, real=real, use_cache=c) for c in (True, False))
    assert [[h.ids for h in row] for row in with_cache] == [[h.ids for h in row] for row in without]
    # As wide as the vocabulary, two steps see everything.
    best = beam_search(model, ids[:1], 2, 31)[0][0]
    first = model(ids[:1])[0, -1].log_softmax(-1)
    second = model(torch.cat((ids[:1].expand(31, -1), torch.arange(31)[:, None]), 1))[:, -1].log_softmax(-1)
    total = first[:, None] + second
    assert best.ids == list(divmod(int(total.argmax()), 31))
    assert best.logp == pytest.approx(total.max().item(), abs=1e-4)
    assert best.score == pytest.approx(best.logp / 2)


def test_one_beam_is_greedy_and_more_find_no_less_likely_ones(model):
    ids = torch.tensor([[3, 1, 4], [1, 5, 9]])
    greedy = columns(generate(model, ids, 8, temperature=0))
    assert [row[0].ids for row in beam_search(model, ids, 8, 1)] == greedy
    assert beam_search(model, ids, 0, 2) == [[], []]


# --- speculative decoding ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def soft() -> tuple[GPT, GPT]:
    """A model and a draft over 7 tokens, unlike each other, and not too sure of themselves."""
    large = randomize(GPT(GPTConfig(vocab_size=7, block_size=16, n_layer=2, n_embd=16, n_head=2)), 21)
    small = randomize(GPT(GPTConfig(vocab_size=7, block_size=12, n_layer=1, n_embd=8, n_head=1, pos="learned")), 22)
    with torch.no_grad():
        large.lm_head.weight.mul_(0.5)
    return large, small


def chi_squared_holds(counts: torch.Tensor, p: torch.Tensor) -> bool:
    """Do the counts of many draws fit the probabilities? At about four standard deviations, by pooling rare cells."""
    expected = p.double() * counts.sum()
    common = expected >= 5
    counts = torch.cat((counts[common], counts[~common].sum()[None])).double()
    expected = torch.cat((expected[common], expected[~common].sum()[None])).clamp(min=1e-9)
    freedom = len(counts) - 1
    return ((counts - expected) ** 2 / expected).sum().item() < freedom + 4 * math.sqrt(2 * freedom) + 4


def exact(model: GPT, prompt: list[int], n: int, **settings) -> torch.Tensor:
    """The probability of each of the V^n continuations, in order."""
    texts, p = torch.tensor([prompt]), torch.ones(1)
    for _ in range(n):
        with torch.no_grad():
            step = filter_logits(model(texts)[:, -1], context=texts, **settings).softmax(-1)  # (N, V)
        p = (p[:, None] * step).flatten()
        texts = torch.cat((texts.repeat_interleave(7, 0), torch.arange(7).repeat(len(texts))[:, None]), dim=1)
    return p


@pytest.mark.parametrize(
    "lookahead, prompt, settings, B, draws",
    [
        (1, [0], {}, 4, 200),
        (2, [3, 1, 4, 1, 5], {}, 1, 500),
        (4, [0], dict(temperature=0.7, top_k=4), 1, 500),
        (2, [3, 1, 4, 1, 5], dict(top_p=0.8, repetition_penalty=1.4), 4, 200),
    ],
)
def test_speculative_samples_have_the_models_distribution(soft, lookahead, prompt, settings, B, draws):
    """Three tokens, 343 texts: as often as the model alone would write them. Rows that wait for others too."""
    large, small = soft
    ids, generator = torch.tensor([prompt]).expand(B, -1), torch.Generator().manual_seed(5)
    rows = [
        torch.stack(list(speculative(large, small, ids, 3, lookahead=lookahead, generator=generator, **settings)), 1)
        for _ in range(draws)
    ]
    index = (torch.cat(rows) * torch.tensor([49, 7, 1])).sum(1)
    assert chi_squared_holds(torch.bincount(index, minlength=343), exact(large, prompt, 3, **settings))


def test_the_chi_squared_test_would_see_a_wrong_distribution(soft):
    """The draft's own draws, and a rejection that draws from p instead of what is left of it."""
    large, small = soft
    p = exact(large, [0], 1)
    generator = torch.Generator().manual_seed(6)
    q = exact(small, [0], 1)
    x = torch.multinomial(q, 1600, replacement=True, generator=generator)
    assert not chi_squared_holds(torch.bincount(x, minlength=7), p)
    kept = torch.rand(1600, generator=generator) < p[x] / q[x]
    wrong = torch.where(kept, x, torch.multinomial(p, 1600, replacement=True, generator=generator))
    assert not chi_squared_holds(torch.bincount(wrong, minlength=7), p)
    right, _ = accept(p.expand(1600, -1), q.expand(1600, -1), x, generator=generator)
    assert chi_squared_holds(torch.bincount(right, minlength=7), p)


def test_acceptance_is_the_overlap_of_the_distributions():
    """A token of the draft is kept with probability sum min(p, q) (Leviathan et al. 2023, theorem 3.5)."""
    generator = torch.Generator().manual_seed(7)
    p, q = torch.tensor([0.5, 0.3, 0.2, 0.0]), torch.tensor([0.1, 0.2, 0.3, 0.4])
    x = torch.multinomial(q, 40_000, replacement=True, generator=generator)
    _, kept = accept(p.expand(40_000, -1), q.expand(40_000, -1), x, generator=generator)
    assert kept.float().mean().item() == pytest.approx(0.1 + 0.2 + 0.2, abs=0.01)
    same, kept = accept(q.expand(40_000, -1), q.expand(40_000, -1), x, generator=generator)
    assert kept.all() and torch.equal(same, x)


@pytest.mark.parametrize("lookahead", [1, 3, 5, 20])
def test_greedy_speculative_is_greedy_for_unequal_prompts_too(soft, lookahead):
    large, small = soft
    ids, real = pad_left([[0, 1, 2], [5], [6, 6]])
    greedy = columns(generate(large, ids, 9, temperature=0, real=real))
    count = Acceptance()
    assert (
        columns(speculative(large, small, ids, 9, temperature=0, real=real, lookahead=lookahead, count=count)) == greedy
    )
    assert 0 <= count.accepted < count.proposed and count.reads <= 9
    stop = {greedy[0][4]}
    expected = columns(generate(large, ids, 9, temperature=0, real=real, stop=stop))
    assert (
        columns(speculative(large, small, ids, 9, temperature=0, real=real, lookahead=lookahead, stop=stop)) == expected
    )


def test_a_model_accepts_all_of_itself_and_reads_less(soft):
    large, _ = soft
    count = Acceptance()
    tokens = list(
        speculative(
            large, large, torch.tensor([[1]]), 15, lookahead=4, generator=torch.Generator().manual_seed(0), count=count
        )
    )
    assert len(tokens) == 15 and count.rate == 1.0
    assert count.reads == 3 and count.proposed == 12  # each read gives four proposals and one token of its own
    assert math.isnan(Acceptance().rate)


# --- what is refused ---------------------------------------------------------------------------------------


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


def test_what_else_is_refused(soft):
    large, small = soft
    ids, real = pad_left([[1, 2, 3], [4]])
    other = GPT(GPTConfig(vocab_size=8, block_size=12, n_layer=1, n_embd=8, n_head=1))
    for call, message in [
        (lambda: generate(large, ids, -1), "n is -1"),
        (lambda: generate(large, ids, 3, real=real[:1]), "as the prompt"),
        (lambda: generate(large, ids, 3, real=real.long()), "expected bool"),
        (lambda: generate(large, ids, 3, real=real.flip(1)), "on the left"),
        (lambda: beam_search(large, ids, 3, 0), "width is 0"),
        (lambda: beam_search(large, ids, 14, 2), "3 tokens and 14 new ones do not fit a block of 16"),
        (lambda: speculative(large, small, ids, 10), "do not fit a block of 12"),
        (lambda: speculative(large, small, ids, 3, lookahead=0), "lookahead is 0"),
        (lambda: speculative(large, other, ids, 3), "7 tokens and the draft 8"),
        (lambda: speculative(large, small, ids, 3, top_p=2.0), "top_p is 2.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
