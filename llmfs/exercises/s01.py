"""Exercises of S01: how alike two texts are, what leaks, a smoothed probability, and the perplexity of a corpus."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence

from llmfs.evaluate import perplexity
from llmfs.exercises import Args, Exercise, Mistake

Gram = tuple[str, ...]

# --- how alike two texts are ---------------------------------------------------------------------------


def _windows(text: str, k: int) -> list[Gram]:
    """Every k words in a row, lower case."""
    words = text.lower().split()
    return [tuple(words[i : i + k]) for i in range(len(words) - k + 1)]


def _jaccard(a: str, b: str, k: int) -> float:
    x, y = set(_windows(a, k)), set(_windows(b, k))
    return len(x & y) / len(x | y) if x | y else 0.0


def _over_smaller(a: str, b: str, k: int) -> float:
    x, y = set(_windows(a, k)), set(_windows(b, k))
    return len(x & y) / min(len(x), len(y)) if x and y else 0.0


def _over_sum(a: str, b: str, k: int) -> float:
    x, y = set(_windows(a, k)), set(_windows(b, k))
    return len(x & y) / (len(x) + len(y)) if x or y else 0.0


def _counted(a: str, b: str, k: int) -> float:
    """Jaccard of the lists, repetitions counted."""
    x, y = Counter(_windows(a, k)), Counter(_windows(b, k))
    union = sum((x | y).values())
    return sum((x & y).values()) / union if union else 0.0


def _case_kept(a: str, b: str, k: int) -> float:
    x, y = ({tuple(w[i : i + k]) for i in range(len(w) - k + 1)} for w in (a.split(), b.split()))
    return len(x & y) / len(x | y) if x | y else 0.0


similarity = Exercise(
    "similarity",
    right=_jaccard,
    cases=lambda: [
        ("the owl sat on the old mill", "at noon the owl sat on the mill", 3),
        ("a b c d e f", "f e d c b a", 2),
        ("a b c a b c a b c d", "a b c d", 3),
        ("The fox ran home", "the Fox ran home at once", 2),
        ("too short", "two words", 3),
        ("one two three", "one two three", 3),
    ],
    mistakes=(
        Mistake(
            lambda a, b, k: _jaccard(a, b, 1),
            "you compare single words, so two texts with the same words in another order count as equal. Compare k words "
            "in a row",
        ),
        Mistake(
            _over_smaller,
            "you divide by the smaller set: that is the containment. It is useful, but it calls a quotation and a copy "
            "the same; the Jaccard similarity divides by the union",
        ),
        Mistake(
            _over_sum,
            "you divide by the sum of the two sizes, which counts what they share twice: a copy gets 0.5 instead of 1",
        ),
        Mistake(_counted, "you count repetitions; the sets hold each run of words once"),
        Mistake(_case_kept, "'The Fox' and 'the fox' should count as equal: compare in lower case"),
    ),
)

# --- what leaks ----------------------------------------------------------------------------------------

Texts = Sequence[str]


def _leaked(train: Texts, held_out: Texts, n: int) -> float:
    """The share of the held-out windows that stand in a training document, too."""
    known = {gram for text in train for gram in _windows(text, n)}
    grams = [gram for text in held_out for gram in _windows(text, n)]
    return sum(gram in known for gram in grams) / len(grams) if grams else 0.0


def _leaked_joined(train: Texts, held_out: Texts, n: int) -> float:
    return _leaked([" ".join(train)], [" ".join(held_out)], n)


def _leaked_distinct(train: Texts, held_out: Texts, n: int) -> float:
    known = {gram for text in train for gram in _windows(text, n)}
    grams = {gram for text in held_out for gram in _windows(text, n)}
    return len(grams & known) / len(grams) if grams else 0.0


def _leaked_documents(train: Texts, held_out: Texts, n: int) -> float:
    """The share of held-out documents with at least one known window."""
    known = {gram for text in train for gram in _windows(text, n)}
    return sum(any(gram in known for gram in _windows(text, n)) for text in held_out) / len(held_out)


def _leaked_case_kept(train: Texts, held_out: Texts, n: int) -> float:
    def runs(text: str) -> list[Gram]:
        words = text.split()
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    known = {gram for text in train for gram in runs(text)}
    grams = [gram for text in held_out for gram in runs(text)]
    return sum(gram in known for gram in grams) / len(grams) if grams else 0.0


def _leaked_unguarded(train: Texts, held_out: Texts, n: int) -> float:
    known = {gram for text in train for gram in _windows(text, n)}
    grams = [gram for text in held_out for gram in _windows(text, n)]
    return sum(gram in known for gram in grams) / len(grams)


def _leaked_mean(train: Texts, held_out: Texts, n: int) -> float:
    return sum(_leaked(train, [text], n) for text in held_out if _windows(text, n)) / len(held_out)


leaked = Exercise(
    "leaked",
    right=_leaked,
    cases=lambda: [
        (["a b c d e", "f g h"], ["a b c x", "e f g h y z"], 3),
        (["a b c", "d e f"], ["b c d e", "x y z", "a b c a b c"], 3),
        (["the fox ran", "home at night"], ["the fox ran home", "ran home at night"], 2),
        (["p q"], ["a b c d e"], 2),
        (["The Fox ran"], ["the fox RAN"], 2),
        (["a b c"], ["a b"], 3),
    ],
    mistakes=(
        Mistake(
            lambda train, held_out, n: _leaked(train, held_out, 1),
            "you look up single words. Almost every word of a language stands in the training text; that is no leak. "
            "Look up n words in a row",
        ),
        Mistake(
            lambda train, held_out, n: _leaked(held_out, train, n),
            "the other way round: the question is how much of the *held-out* text is known from training",
        ),
        Mistake(
            _leaked_joined,
            "you join the documents, so windows appear that run from the end of one into the next. They stand in no "
            "document",
        ),
        Mistake(
            _leaked_distinct,
            "you count each different window once. A loss is a mean over all positions, so count every window of the "
            "held-out text as often as it occurs",
        ),
        Mistake(_leaked_documents, "that is the share of the documents in which something is known; count windows"),
        Mistake(
            _leaked_mean,
            "that is a mean over documents, in which a short one weighs as much as a long one. Add up, then divide once",
        ),
        Mistake(_leaked_case_kept, "'The Fox' and 'the fox' should count as equal: compare in lower case"),
        Mistake(
            _leaked_unguarded,
            "right, but a held-out text may be too short to hold a run of n words at all, and then you divide by zero: "
            "return 0 there",
        ),
    ),
)

# --- a smoothed probability ----------------------------------------------------------------------------

Counts = Counter[Gram]


def _smooth(gram: Gram, counts: Counts, totals: Counts, V: int, strength: float, start: float | None = None) -> float:
    """From the shortest context to the longest, each leaning on the one before."""
    p = 1 / V if start is None else start
    for k in range(len(gram) - 1, -1, -1):
        part = gram[k:]
        p = (counts[part] + strength * p) / (totals[part[:-1]] + strength)
    return p


def _plain_ratio(gram: Gram, counts: Counts, totals: Counts, V: int, strength: float) -> float:
    return counts[gram] / totals[gram[:-1]] if totals[gram[:-1]] else 0.0


def _add(gram: Gram, counts: Counts, totals: Counts, V: int, amount: float) -> float:
    return (counts[gram] + amount) / (totals[gram[:-1]] + amount * V)


def _flat(gram: Gram, counts: Counts, totals: Counts, V: int, strength: float) -> float:
    """Leans on 1/V at once, whatever the shorter contexts say."""
    return (counts[gram] + strength / V) / (totals[gram[:-1]] + strength)


def _back_off(gram: Gram, counts: Counts, totals: Counts, V: int, strength: float) -> float:
    for k in range(len(gram)):
        if counts[gram[k:]]:
            return counts[gram[k:]] / totals[gram[k:-1]]
    return 1 / V


def _wrong_end(gram: Gram, counts: Counts, totals: Counts, V: int, strength: float) -> float:
    """Shortens the context at its end, the word next to the one to be predicted."""
    p = 1 / V
    for k in range(len(gram)):
        part = (*gram[:k], gram[-1])
        p = (counts[part] + strength * p) / (totals[part[:-1]] + strength)
    return p


def _smooth_cases() -> list[Args]:
    text = ["the", "fox", "saw", "the", "owl", "and", "the", "owl", "saw", "the", "fox", "and", "the", "fox", "ran"]
    counts = Counter(tuple(text[i:j]) for i in range(len(text)) for j in range(i + 1, min(i + 3, len(text)) + 1))
    totals: Counts = Counter()
    for gram, count in counts.items():
        totals[gram[:-1]] += count
    grams = [("saw", "the", "owl"), ("saw", "the", "ran"), ("the", "fox"), ("fox",), ("moon", "the", "fox"), ("moon",)]
    return [(gram, counts, totals, 8, strength) for gram in grams for strength in (1.0, 5.0)]


probability = Exercise(
    "probability",
    right=_smooth,
    cases=_smooth_cases,
    tolerance=1e-9,
    mistakes=(
        Mistake(
            _plain_ratio,
            "nothing is smoothed: what was never seen gets the probability 0, and one such word makes the perplexity of "
            "the whole text infinite",
        ),
        Mistake(
            lambda gram, counts, totals, V, strength: counts[gram] / totals[gram[:-1]],
            "nothing is smoothed: what was never seen gets the probability 0, and a context that was never seen divides "
            "by zero",
        ),
        Mistake(
            lambda gram, counts, totals, V, strength: _add(gram, counts, totals, V, 1),
            "that is add-one smoothing: it gives every unseen word the same share, and with a large vocabulary the unseen "
            "ones take most of it. Lean on the shorter context instead",
        ),
        Mistake(
            lambda gram, counts, totals, V, strength: _add(gram, counts, totals, V, strength),
            "the strength is the weight of the whole shorter guess, not of each word: strength * p, where p is the "
            "probability given the shorter context",
        ),
        Mistake(
            _flat,
            "you lean on 1/V at once. A word that is likely after the shorter context should stay likely: go through all "
            "contexts, from the empty one to the longest",
        ),
        Mistake(
            _back_off,
            "you use the longest context that was seen, and trust it fully, even if it was seen once. The sum over all "
            "words is then more than 1",
        ),
        Mistake(
            lambda gram, counts, totals, V, strength: _smooth(gram, counts, totals, V, strength, start=0.0),
            "the guess before anything is counted is 1/V, not 0: a word that never occurred must keep a probability",
        ),
        Mistake(
            _wrong_end,
            "you shorten the context at the wrong end: the words right before the one to be predicted are those to keep",
        ),
    ),
)

# --- the perplexity of a corpus ------------------------------------------------------------------------

LogProbs = Sequence[Sequence[float]]


def _over_tokens(documents: LogProbs) -> float:
    values = list(itertools.chain.from_iterable(documents))
    return perplexity(-sum(values) / len(values))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _clipped_exp(x: float) -> float:
    return math.exp(min(x, 700.0))


perplexity_of = Exercise(
    "perplexity_of",
    right=_over_tokens,
    cases=lambda: [
        ([[math.log(0.5), math.log(0.25)], [math.log(0.1)]],),
        ([[-1.0, -2.0, -3.0, -0.5]],),
        ([[-0.1] * 9, [-4.0]],),
    ],
    tolerance=1e-9,
    mistakes=(
        Mistake(
            lambda documents: _clipped_exp(-_mean([_mean(d) for d in documents])),
            "you take the mean of each document first, and then the mean of those: a token of a short document weighs "
            "more than one of a long document. Add up over all tokens, divide once",
        ),
        Mistake(
            lambda documents: _mean([_clipped_exp(-_mean(d)) for d in documents]),
            "that is the mean of the documents' perplexities. Perplexities are not to be averaged: average -log p over all "
            "tokens, then take exp",
        ),
        Mistake(
            lambda documents: _mean([_clipped_exp(-x) for d in documents for x in d]),
            "that is the mean of 1/p. Take the mean of -log p first, then exp",
        ),
        Mistake(
            lambda documents: 2 ** -_mean([x for d in documents for x in d]),
            "the log-probabilities are natural logarithms, in nats: use exp, not a power of 2",
        ),
        Mistake(
            lambda documents: -_mean([x for d in documents for x in d]),
            "that is the loss in nats; its exp is the perplexity",
        ),
        Mistake(
            lambda documents: math.exp(_mean([x for d in documents for x in d])),
            "a sign is missing: that is the mean probability (1 over the perplexity)",
        ),
        Mistake(
            lambda documents: _clipped_exp(-sum(x for d in documents for x in d)),
            "that is 1 over the probability of everything; divide the sum by the number of tokens before exp",
        ),
        Mistake(
            lambda documents: _clipped_exp(-sum(x for d in documents for x in d) / len(documents)),
            "you divide by the number of documents; divide by the number of tokens",
        ),
    ),
)
