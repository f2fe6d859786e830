from __future__ import annotations

import itertools
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable

import pytest

from llmfs import tales
from llmfs.tales import QUESTION_KINDS, RECALL_KINDS, Recall, Search, Tale, TaleError, Teller

N = 500


@pytest.fixture(scope="module")
def corpus() -> list[Tale]:
    return list(tales.stories(N, seed=0))


# ---- the machinery, on grammars small enough to enumerate


def tiny(t: Teller) -> None:
    """A grammar with every device: silent choice, optional sentence, alternatives, slots, an alias."""
    t.say("{beast1} [ran|sat].", "A {beast1} slept.")
    t.stand("holder", "beast1")
    for n in range(2, 2 + t.pick(3, 1)):
        t.maybe(0.25, "{beast#} woke {holder}.", "Rain fell.", n=n)
        t.stand("holder", f"beast{n}")
        t.say("So {beast#} [ate|sang].", n=n)
    t.maybe(0.5, "Well, well.")


def ambiguous(t: Teller) -> None:
    """Two derivations of the text "Rain fell."."""
    t.pick(0.5, 0.5)
    t.say("Rain fell.")


def all_texts(program: Callable[[Teller], None]) -> dict[str, float]:
    """Enumerate a grammar by following `ahead` word by word from the empty text."""
    done: dict[str, float] = {}
    agenda: list[tuple[list[str], float]] = [([], 1.0)]
    while agenda:
        words, p = agenda.pop()
        ahead: defaultdict[str, float] = defaultdict(float)
        complete = list(Search(program, words, ahead=ahead).readings())
        if complete:
            done["".join(words)] = sum(math.exp(reader.logp) for reader in complete)
        total = sum(ahead.values()) + done.get("".join(words), 0.0)
        assert total == pytest.approx(p, abs=1e-12)
        agenda += [([*words, word], q) for word, q in ahead.items()]
    return done


def test_probabilities_of_a_small_grammar_sum_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    beasts = tales.Family("name", ("hen", "dog", "cat"))
    monkeypatch.setitem(tales.FAMILIES, "beast", beasts)
    texts = all_texts(tiny)
    assert len(texts) > 100
    assert math.fsum(texts.values()) == pytest.approx(1.0, abs=1e-12)
    for text in itertools.islice(texts, 50):
        [reader] = Search(tiny, tales.split_words(text)).readings()
        assert reader.logp == pytest.approx(math.log(texts[text]), abs=1e-9)


def test_written_frequencies_agree_with_probabilities() -> None:
    def program(t: Teller) -> None:
        t.say("It [rained|snowed].", "{beast} ran.")

    rng, n = random.Random(0), 8000
    counts: Counter[str] = Counter()
    for _ in range(n):
        writer = tales.Writer(rng)
        program(writer)
        counts[writer.tale().text] += 1
    assert counts["It rained."] / n == pytest.approx(0.25, abs=0.02)
    assert counts["hen ran."] / n == pytest.approx(0.5 / 8, abs=0.012)


def test_two_derivations_of_one_text_are_found() -> None:
    assert len(list(Search(ambiguous, tales.split_words("Rain fell.")).readings())) == 2


def test_no_filling_is_the_beginning_of_another() -> None:
    families = [family.members for family in tales.FAMILIES.values()]
    for members in [*families, *tales.LISTS.values()]:
        words = [tuple(tales.split_words(member)) for member in members]
        for a, b in itertools.permutations(words, 2):
            assert a != b[: len(a)], f"{a} begins {b}"


# ---- the corpus


def test_parse_returns_the_generated_tale(corpus: list[Tale]) -> None:
    for tale in corpus:
        read = tales.parse(tale.text)  # asserts inside that there is one reading only
        assert read == tale
        assert read.logp == pytest.approx(tale.logp, abs=1e-9)


def test_stories_are_pure_in_their_seed(corpus: list[Tale]) -> None:
    assert list(tales.stories(20, seed=0)) == corpus[:20]
    assert list(tales.stories(20, seed=1)) != corpus[:20]
    assert tales.generate(random.Random(0)) == corpus[0]


def test_variety(corpus: list[Tale]) -> None:
    more = [*corpus, *tales.stories(2500, seed=1)]
    assert len({tale.plot for tale in corpus}) >= 6
    vocabulary = {word.strip().lower() for tale in more for word in tales.split_words(tale.text)}
    assert sum(word.isalpha() for word in vocabulary) >= 400
    assert len({tale.text for tale in corpus}) == N
    assert all(tale.text.isascii() and tale.text == tale.text.strip() for tale in corpus)
    assert not any(mark in tale.text for tale in corpus for mark in ("  ", " .", " ,", "{", "["))


def test_every_name_follows_a_space(corpus: list[Tale]) -> None:
    names = {*tales.HEROES, *tales.FRIENDS, *tales.ANIMALS, *tales.THINGS, *tales.HOMES}
    for tale in corpus:
        assert not names & set(tales.split_words(tale.text)), tale.text


def test_split_words_loses_nothing(corpus: list[Tale]) -> None:
    for text in [*(tale.text for tale in corpus[:50]), "", "  a b \n", "Tom's 3 hats!  "]:
        assert "".join(tales.split_words(text)) == text


def test_recalls_name_what_the_text_determines(corpus: list[Tale]) -> None:
    kinds: Counter[str] = Counter()
    distances: Counter[int] = Counter()
    for tale in corpus:
        for recall in tale.recalls:
            kinds[recall.kind] += 1
            distances[recall.distance // 25] += 1
            word = tale.text[recall.start : recall.end]
            assert word == word.strip() and len(word) >= 3
            assert recall.distance >= 0
    assert set(kinds) == set(RECALL_KINDS)
    assert all(distances[k] >= 10 for k in (2, 3, 4, 5)), distances


def test_next_words_is_the_distribution_behind_logp(corpus: list[Tale]) -> None:
    by_plot = {tale.plot: tale for tale in corpus}
    for tale in by_plot.values():
        recalled = {recall.start for recall in tale.recalls}
        prefix, logp = "", 0.0
        for word in [*tales.split_words(tale.text), tales.END]:
            ahead = tales.next_words(prefix)
            assert math.fsum(ahead.values()) == pytest.approx(1.0, abs=1e-9)
            logp += math.log(ahead[word])
            if len(prefix) + len(word) - len(word.lstrip()) in recalled and word:
                assert ahead == {word: pytest.approx(1.0)}
            prefix += word
        assert logp == pytest.approx(tale.logp, abs=1e-9)


def test_next_words_needs_a_prefix_of_a_tale() -> None:
    with pytest.raises(TaleError, match="no tale begins so"):
        tales.next_words("Call me Ishmael")


# ---- errors


def plant(tale: Tale, recalls: list[Recall], rng: random.Random) -> str:
    """Put another member of the family in the place of each of these recalled words."""
    text = tale.text
    for recall in reversed(recalls):  # from the back, so that the earlier places stay valid
        said = text[recall.start : recall.end]
        family = next(family for family in tales.FAMILIES.values() if said in family.members)
        wrong = rng.choice([member for member in family.members if member != said])
        text = text[: recall.start] + wrong + text[recall.end :]
    return text


def test_a_planted_inconsistency_is_a_fact(corpus: list[Tale]) -> None:
    rng = random.Random(0)
    for tale in corpus[:300]:
        text = plant(tale, [rng.choice(tale.recalls)], rng)
        problems = tales.check(text)
        assert problems, text
        assert {problem.kind for problem in problems} == {"fact"}, (text, problems)
        assert tales.logprob(text) is None


def test_every_planted_inconsistency_is_named_where_it_stands(corpus: list[Tale]) -> None:
    tale = next(t for t in corpus if t.plot == "gift" and t.text.count("said") == 2)
    chosen = [tale.recalls[0], tale.recalls[-2], tale.recalls[-1]]
    text = plant(tale, chosen, random.Random(0))
    problems = tales.check(text)
    assert len(problems) == 3
    for problem, recall in zip(problems, chosen, strict=True):
        expected, found = problem.explanation.removeprefix("expected ").split(", found ")
        assert expected == tale.text[recall.start : recall.end]
        assert text[problem.where :].startswith(found)


def test_a_planted_break_is_grammar(corpus: list[Tale]) -> None:
    rng = random.Random(0)
    for tale in corpus[:100]:
        words = tales.split_words(tale.text)
        i = rng.randrange(1, len(words))
        text = "".join([*words[:i], " zebra", *words[i:]])
        [problem] = tales.check(text)
        assert problem.kind == "grammar"
        assert text[problem.where :].startswith("zebra")
        assert tales.logprob(text) is None


@pytest.mark.parametrize("text", ["", "   ", "Mira", "zebra", "This is the hen that lived at the mill.\n"])
def test_what_is_no_tale(text: str) -> None:
    [problem] = tales.check(text)
    assert problem.kind == "grammar"
    assert tales.logprob(text) is None
    with pytest.raises(TaleError, match="not a tale"):
        tales.parse(text)


def test_a_tale_cut_short_or_continued_is_no_tale(corpus: list[Tale]) -> None:
    for tale in corpus[:50]:
        assert tales.logprob(tale.text + " ") is None
        assert tales.logprob(tale.text + "\n" + tale.text) is None
        assert tales.logprob(tale.text[:-1]) is None


# ---- questions


def test_answers_stand_in_the_tale(corpus: list[Tale]) -> None:
    kinds = set()
    for tale in corpus:
        assert tale.questions
        assert tales.questions(tale.text) == tale.questions
        for question in tale.questions:
            kinds.add(question.kind)
            assert question.text.endswith("?") and question.distance >= 0
            assert question.answer in tale.text or question.answer.split()[-1] in tale.text
    assert kinds == set(QUESTION_KINDS)


def last_holder(text: str, thing: str) -> str:
    """Found without the grammar: who stands before the last "had the <thing>"."""
    before = text.split(f" had the {thing}")[-2]
    return " ".join(before.split()[-2:])


def test_holders_found_by_hand(corpus: list[Tale]) -> None:
    seen = 0
    for tale in corpus:
        for question in tale.questions:
            if question.kind == "holder" and tale.plot in ("gift", "trade"):
                thing = question.text.removesuffix("?").split()[-1]
                assert question.answer == last_holder(tale.text, thing)
                seen += 1
    assert seen > 100


def test_animals_found_by_hand(corpus: list[Tale]) -> None:
    for tale in corpus:
        for question in tale.questions:
            if question.kind == "animal":
                name = question.text.removesuffix("?").split()[-1]
                assert f"{name} {question.answer}" in tale.text
