"""S01's checks: right answers pass, and people's wrong ones are told what they look like."""

from __future__ import annotations

import math
import statistics
from collections import Counter

import pytest

from llmfs.exercises import s01


def runs(text, k, lower=True):
    words = (text.lower() if lower else text).split()
    return list(zip(*(words[i:] for i in range(k))))


def good_similarity(a, b, k):
    a, b = set(runs(a, k)), set(runs(b, k))
    return len(a.intersection(b)) / max(1, len(a.union(b)))


def similar_words(a, b, k):
    return good_similarity(a, b, 1)


def contained(a, b, k):
    a, b = set(runs(a, k)), set(runs(b, k))
    return len(a & b) / (min(len(a), len(b)) or 1)


def halved(a, b, k):
    a, b = set(runs(a, k)), set(runs(b, k))
    return len(a & b) / ((len(a) + len(b)) or 1)


def with_repeats(a, b, k):
    a, b = Counter(runs(a, k)), Counter(runs(b, k))
    return (a & b).total() / ((a | b).total() or 1)


def case_matters(a, b, k):
    a, b = set(runs(a, k, lower=False)), set(runs(b, k, lower=False))
    return len(a & b) / (len(a | b) or 1)


@pytest.mark.parametrize(
    "answer, hint",
    [
        (similar_words, "single words"),
        (contained, "containment"),
        (halved, "counts what they share twice"),
        (with_repeats, "count repetitions"),
        (case_matters, "lower case"),
        (lambda a, b, k: None, "nothing yet"),
        (lambda a, b, k: 1.0, "should give"),
    ],
)
def test_similarity(answer, hint):
    assert s01.similarity(good_similarity)
    result = s01.similarity(answer)
    assert not result and hint in result.message


def good_leaked(train, held_out, n):
    known = set().union(*(runs(text, n) for text in train))
    hits = [run in known for text in held_out for run in runs(text, n)]
    return statistics.fmean(hits) if hits else 0.0


def any_in_document(train, held_out, n):
    known = set().union(*(runs(text, n) for text in train))
    return statistics.fmean(bool(known & set(runs(text, n))) for text in held_out)


def each_once(train, held_out, n):
    known = set().union(*(runs(text, n) for text in train))
    asked = set().union(*(runs(text, n) for text in held_out))
    return statistics.fmean([run in known for run in asked] or [0])


def case_kept(train, held_out, n):
    known = set().union(*(runs(text, n, lower=False) for text in train))
    hits = [run in known for text in held_out for run in runs(text, n, lower=False)]
    return statistics.fmean(hits or [0])


def unguarded(train, held_out, n):
    known = set().union(*(runs(text, n) for text in train))
    hits = [run in known for text in held_out for run in runs(text, n)]
    return sum(hits) / len(hits)


@pytest.mark.parametrize(
    "answer, hint",
    [
        (lambda train, held_out, n: good_leaked(train, held_out, 1), "single words"),
        (lambda train, held_out, n: good_leaked(held_out, train, n), "other way round"),
        (lambda train, held_out, n: good_leaked([" ".join(train)], [" ".join(held_out)], n), "stand in no"),
        (each_once, "as often as it occurs"),
        (any_in_document, "count windows"),
        (
            lambda train, held_out, n: statistics.fmean(good_leaked(train, [text], n) for text in held_out),
            "mean over documents",
        ),
        (case_kept, "lower case"),
        (unguarded, "divide by zero"),
    ],
)
def test_leaked(answer, hint):
    assert s01.leaked(good_leaked)
    result = s01.leaked(answer)
    assert not result and hint in result.message


def good_probability(gram, counts, totals, V, strength):
    shorter = good_probability(gram[1:], counts, totals, V, strength) if len(gram) > 1 else 1 / V
    weight = strength / (totals[gram[:-1]] + strength)
    seen = counts[gram] / totals[gram[:-1]] if totals[gram[:-1]] else 0.0
    return (1 - weight) * seen + weight * shorter


def from_nothing(gram, counts, totals, V, strength):
    if not gram:
        return 0.0
    p = from_nothing(gram[1:], counts, totals, V, strength)
    return (counts[gram] + strength * p) / (totals[gram[:-1]] + strength)


def longest_seen(gram, counts, totals, V, strength):
    if not gram:
        return 1 / V
    if gram in counts:
        return counts[gram] / totals[gram[:-1]]
    return longest_seen(gram[1:], counts, totals, V, strength)


def drops_the_last(gram, counts, totals, V, strength):
    *context, word = gram
    p = 1 / V
    for k in range(len(context) + 1):
        c = tuple(context[:k])
        p = (counts[(*c, word)] + strength * p) / (totals[c] + strength)
    return p


@pytest.mark.parametrize(
    "answer, hint",
    [
        (lambda g, c, t, V, a: c[g] / (t[g[:-1]] or 1), "infinite"),
        (lambda g, c, t, V, a: c[g] / t[g[:-1]], "divides by zero"),
        (lambda g, c, t, V, a: (c[g] + 1) / (t[g[:-1]] + V), "add-one"),
        (lambda g, c, t, V, a: (c[g] + a) / (t[g[:-1]] + a * V), "weight of the whole shorter guess"),
        (lambda g, c, t, V, a: (c[g] + a * (1 / V)) / (t[g[:-1]] + a), "lean on 1/V at once"),
        (longest_seen, "trust it fully"),
        (from_nothing, "not 0"),
        (drops_the_last, "wrong end"),
    ],
)
def test_probability(answer, hint):
    assert s01.probability(good_probability)
    result = s01.probability(answer)
    assert not result and hint in result.message


def flat(documents):
    return [x for document in documents for x in document]


@pytest.mark.parametrize(
    "answer, hint",
    [
        (lambda d: math.exp(-statistics.fmean(map(statistics.fmean, d))), "mean of each document first"),
        (lambda d: statistics.fmean(math.exp(-statistics.fmean(x)) for x in d), "not to be averaged"),
        (lambda d: statistics.fmean(1 / math.exp(x) for x in flat(d)), "mean of 1/p"),
        (lambda d: 2.0 ** (-statistics.fmean(flat(d))), "in nats"),
        (lambda d: -statistics.fmean(flat(d)), "its exp"),
        (lambda d: math.exp(statistics.fmean(flat(d))), "sign"),
        (lambda d: math.exp(-math.fsum(flat(d))), "before exp"),
        (lambda d: math.exp(-math.fsum(flat(d)) / len(d)), "number of documents"),
    ],
)
def test_perplexity_of(answer, hint):
    assert s01.perplexity_of(lambda d: math.prod(math.exp(-x) for x in flat(d)) ** (1 / len(flat(d))))
    result = s01.perplexity_of(answer)
    assert not result and hint in result.message
