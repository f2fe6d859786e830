"""Tales: an endless corpus of short stories whose exact probability is known.

A tale is told by one program, `tell`, a probabilistic grammar with a world state (who is who, who
holds what, what is where). The program is run by one of two tellers:

* a `Writer` makes every choice at random and writes the words;
* a `Reader` is given the words and finds which choices were made.

Both add up the log-probabilities of the choices, so log p(text) is exact. The mean of -log p(text) is
the entropy of the corpus: no model of any size can have a lower loss, which makes it the floor to draw
under a loss curve.

A template is ordinary text with two kinds of holes. `{hero}` is a slot: its first mention chooses a
new member of the slot's family, every later mention must repeat that member. `[a|b]` chooses one of
the alternatives, and `[weather]` one member of a named list. `{Hero}` with a capital is the full name:
short for `{hero} {hero.animal}`.

The unit of `next_words` and of every distance is the *word*: a run of letters or one punctuation mark,
with the white space before it. Joining the words gives the text back.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

__all__ = [
    "END",
    "QUESTION_KINDS",
    "RECALL_KINDS",
    "Problem",
    "Question",
    "Reader",
    "Recall",
    "Search",
    "Tale",
    "TaleError",
    "Teller",
    "Writer",
    "check",
    "generate",
    "logprob",
    "next_words",
    "parse",
    "questions",
    "split_words",
    "stories",
    "tell",
]

END = ""  # the key of `next_words` for "the tale ends here": no word is empty

RECALL_KINDS: tuple[str, ...] = (  # easy to hard
    "refrain",  # a line of a song or of a cumulative verse, repeated
    "epithet",  # the animal after a name that was met before: Mira -> Mouse
    "near name",  # a name last read at most NEAR words ago
    "thing",  # an object named before
    "pronoun",  # his or her, as the name demands
    "far name",  # a name last read more than NEAR words ago
    "place",  # where someone lives or something happened
    "spot",  # where someone hid or something lay
    "who",  # the one who hid in this spot, who brought this thing
    "holder",  # who has the thing now, after it changed hands
    "whereabouts",  # where the thing is now, after it was moved
)
NEAR = 20  # words

QUESTION_KINDS: tuple[str, ...] = (  # easy to hard
    "animal",  # What is Mira?
    "verse",  # Who chased the hen? (of a cumulative verse)
    "home",  # Where does Mira live?
    "thing",  # What did Mira take along?
    "place",  # Where did they play?
    "last",  # Who won the game?
    "helper",  # Who helped Mira?
    "spot",  # Where did Tom hide?
    "gift",  # What did Tom bring?
    "giver",  # Who brought the drum?
    "holder",  # Who has the drum?
    "whereabouts",  # Where is the drum?
)


# ------------------------------------------------------------------------------------ what callers see


@dataclass(frozen=True)
class Recall:
    """A stretch of a tale that the text before it determines."""

    kind: str  # one of RECALL_KINDS
    start: int  # characters: text[start:end] is what must be recalled, without its leading space
    end: int
    distance: int  # words since the fact was last stated


@dataclass(frozen=True)
class Question:
    """A question about a tale, with the one right answer."""

    kind: str  # one of QUESTION_KINDS
    text: str
    answer: str
    distance: int  # words from the last statement of the fact to the end of the tale


@dataclass(frozen=True)
class Tale:
    """A story, how likely the grammar is to write it, and what may be asked about it."""

    text: str
    logp: float  # nats: log-probability of the whole text, its end included
    recalls: tuple[Recall, ...]
    questions: tuple[Question, ...]
    plot: str


@dataclass(frozen=True)
class Problem:
    """An error in a text: against the grammar, or against a fact that the text itself has stated."""

    kind: Literal["grammar", "fact"]
    where: int  # character
    explanation: str


class TaleError(ValueError):
    """The text is not in the language of the tales."""


def generate(rng: random.Random) -> Tale:
    """Write one tale, every choice drawn from `rng`."""
    writer = Writer(rng)
    tell(writer)
    return writer.tale()


def stories(n: int, seed: int) -> Iterator[Tale]:
    """Yield `n` tales: the same ones for the same (n, seed), and a prefix of any longer run."""
    rng = random.Random(seed)
    for _ in range(n):
        yield generate(rng)


def parse(text: str) -> Tale:
    """Read a text back into the tale that `generate` returned. Raises TaleError if it is not one."""
    search = Search(tell, split_words(text))
    found = list(search.readings())
    if not found:
        raise TaleError(f"not a tale: {search.dead_end()}")
    assert len(found) == 1, f"the grammar is ambiguous: {len(found)} readings of {text!r}"
    return found[0].tale()


def logprob(text: str) -> float | None:
    """log p(text) in nats, or None if the text is not in the language (its probability is zero)."""
    try:
        return parse(text).logp
    except TaleError:
        return None


def questions(text: str) -> tuple[Question, ...]:
    """The questions that the tale answers. Raises TaleError if the text is not a tale."""
    return parse(text).questions


def check(text: str) -> list[Problem]:
    """Name what is wrong with a text: [] if it is in the language and true to its own facts.

    The text is read with every recalled word allowed to be wrong, in the way that leaves the fewest
    wrong: each of those is a "fact". A text that cannot be read even so has one problem, "grammar",
    where the longest reading breaks off.
    """
    words = split_words(text)
    starts = [*_visible_starts(words), len(text)]
    search = Search(tell, words, relaxed=True)
    reader = next(search.readings(), None)
    if reader is None:
        return [Problem("grammar", starts[search.furthest], search.dead_end())]
    return [
        Problem("fact", starts[slip.at], f"expected {slip.expected}, found {slip.found}")
        for slip in reader.slips
    ]


def next_words(prefix: str) -> dict[str, float]:
    """The exact distribution of the word (with its leading space) that follows a prefix of a tale.

    The key END ("") stands for the end of the tale. The prefix must end between two words; raises
    TaleError if no tale begins with it.
    """
    ahead: defaultdict[str, float] = defaultdict(float)
    search = Search(tell, split_words(prefix), ahead=ahead)
    for reader in search.readings():
        ahead[END] += math.exp(reader.logp)
    if not ahead:
        raise TaleError(f"no tale begins so: {search.dead_end()}")
    total = math.fsum(ahead.values())  # the probability that a tale begins with this prefix
    return {word: p / total for word, p in ahead.items()}


# ------------------------------------------------------------------------------------ words and templates

_WORD = re.compile(r"\s*(?:[A-Za-z]+|[^A-Za-z\s])")
_PIECE = re.compile(r"(\s*)\{([\w.]+)\}|(\s*)\[([^\]]+)\]|(\s*(?:[A-Za-z]+|[^A-Za-z\s]))")

Words = tuple[str, ...]


@cache
def _words(text: str) -> Words:
    return tuple(_WORD.findall(text))


def split_words(text: str) -> list[str]:
    """Split into words, each with the white space before it: joining them gives the text back."""
    words = _WORD.findall(text)
    rest = text[sum(map(len, words)) :]
    return [*words, rest] if rest else words  # white space at the very end belongs to no tale


def _visible_starts(words: Sequence[str]) -> list[int]:
    """The character at which each word starts, after its white space."""
    ends = itertools.accumulate(map(len, words))
    return [end - len(word.lstrip()) for end, word in zip(ends, words, strict=True)]


@dataclass(frozen=True)
class Family:
    """The values that a slot can take, and the kind of recall that a later mention is."""

    kind: str
    members: tuple[str, ...]
    distinct: bool = True  # two slots of a tale never have the same value


@dataclass(frozen=True)
class Slot:
    """A place in a template that a fact of the story fills."""

    name: str
    space: str  # the white space before its value


@dataclass(frozen=True)
class Alternatives:
    """A place in a template where one of several wordings is drawn."""

    options: tuple[Words, ...]  # equally likely; none is the beginning of another


Piece = Words | Slot | Alternatives


@cache
def compile_template(template: str) -> tuple[Piece, ...]:
    """Cut a template into literal words, slots and alternatives."""
    pieces: list[Piece] = []
    for space, slot, list_space, options, literal in _PIECE.findall(template):
        if slot:
            name = slot[0].lower() + slot[1:]
            pieces.append(Slot(name, space))
            if name != slot:
                pieces.append(Slot(name + ".animal", " "))
        elif options:
            chosen = options.split("|") if "|" in options else LISTS[options]
            pieces.append(Alternatives(tuple(_words(list_space + option) for option in chosen)))
        elif pieces and isinstance(pieces[-1], tuple):
            pieces[-1] += (literal,)
        else:
            pieces.append((literal,))
    return tuple(pieces)


def number(template: str, n: int) -> str:
    """Number the slots of a template: `{thing#}` is thing n, `{thing#+}` thing n + 1."""
    return template.replace("#+", str(n + 1)).replace("#", str(n)) if "#" in template else template


def numbered(template: str, last: int) -> list[str]:
    """The template numbered 1, 2, ... last."""
    return [number(template, n) for n in range(1, last + 1)]


# ------------------------------------------------------------------------------------ tellers


@dataclass(frozen=True)
class Mention:
    """A slot shown inside a passage."""

    slot: Slot
    offset: int  # words from the start of the passage
    length: int  # words
    new: bool  # the first mention, which chooses the value


@dataclass(frozen=True)
class Slip:
    """A recalled word that contradicts the world."""

    at: int  # word
    expected: str
    found: str


@dataclass
class Passage:
    """A template filled in: the whole of it, or its beginning where a text breaks off or differs."""

    whole: bool = False
    words: list[str] = field(default_factory=list)
    logp: float = 0.0
    bound: dict[str, str] = field(default_factory=dict)  # slots that get their value here
    mentions: list[Mention] = field(default_factory=list)
    slips: list[Slip] = field(default_factory=list)
    ahead: dict[str, float] = field(default_factory=dict)  # what may follow where the text breaks off


@dataclass(frozen=True)
class Option:
    """One way to go on: say a template, or go on in silence (None)."""

    p: float
    template: str | None = None


class Teller:
    """The world of a tale, and the three ways to choose that `tell` is written with."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.logp = 0.0
        self.plot = ""
        self.slips: list[Slip] = []
        self._world: dict[str, str] = {}  # slot -> value
        self._alias: dict[str, str] = {}  # slot -> the slot that it stands for at present
        self._stated: dict[str, int] = {}  # slot -> number of words told when it was last stated
        self._recalls: list[tuple[str, int, int, int]] = []  # kind, first word, last word, distance
        self._asked: list[tuple[str, str, str]] = []  # kind, question, answer: two templates

    # ---- what the grammar is written with

    def say(self, *templates: str, n: int = 0) -> int:
        """Say one of the templates, numbered for `n`, all equally likely; return which."""
        return self._choose([Option(1 / len(templates), number(t, n)) for t in templates])

    def maybe(self, p: float, *templates: str, n: int = 0) -> bool:
        """With probability p say one of the templates, numbered for `n`; return whether one was said."""
        options = [Option(p / len(templates), number(t, n)) for t in templates]
        return self._choose([*options, Option(1 - p)]) < len(templates)

    def pick(self, *weights: float) -> int:
        """Choose in silence. What is said next must show which choice was made."""
        return self._choose([Option(w / sum(weights)) for w in weights])

    def stand(self, alias: str, slot: str) -> None:
        """From now on `alias` (who holds a thing, where it is) stands for `slot`."""
        self._alias[alias] = slot
        self._stated[alias] = len(self.words)

    def ask(self, kind: str, question: str, answer: str, n: int = 0) -> None:
        """Note a question, numbered for `n`; it is filled in, and holds, when the tale is over."""
        self._asked.append((kind, number(question, n), number(answer, n)))

    # ---- the world

    def value(self, name: str, bound: dict[str, str] | None = None) -> str | None:
        """The value of a slot, or None before its first mention. `bound`: values not yet committed."""
        owner, _, part = name.partition(".")
        if part in PRONOUNS:
            who = self.value(owner, bound)
            return PRONOUNS[part][who in MALE] if who else None
        key = self._key(name)
        return (bound or {}).get(key) or self._world.get(key)

    def fill(self, template: str) -> str:
        """Fill a template whose slots are all bound."""
        words: list[str] = []
        for piece in compile_template(template):
            if isinstance(piece, Slot):
                words.append(f"{piece.space}{self.value(piece.name)}")
            else:
                assert isinstance(piece, tuple), "a question has no alternatives"
                words.extend(piece)
        return "".join(words)

    def tale(self) -> Tale:
        """What was told so far, as a story."""
        starts = _visible_starts(self.words)
        recalls = tuple(
            Recall(kind, starts[i], starts[j] + len(self.words[j].lstrip()), distance)
            for kind, i, j, distance in self._recalls
        )
        asked = []
        for kind, question, answer in self._asked:
            slot = next(piece.name for piece in compile_template(answer) if isinstance(piece, Slot))
            distance = len(self.words) - self._stated[self._fact(slot)]
            asked.append(Question(kind, self.fill(question), self.fill(answer), distance))
        return Tale("".join(self.words), self.logp, recalls, tuple(asked), self.plot)

    # ---- choosing

    def _choose(self, options: Sequence[Option]) -> int:
        raise NotImplementedError

    def _pieces(self, template: str) -> tuple[Piece, ...]:
        """Sentences are joined by one space, unless the template brings its own line break."""
        joined = template if template[0] == "\n" or not self.words else " " + template
        return compile_template(joined)

    def _fillings(self, piece: Piece, bound: dict[str, str]) -> list[Filling]:
        """The equally likely ways to fill a piece: (value, its words)."""
        if isinstance(piece, tuple):
            return [("", piece)]
        if isinstance(piece, Alternatives):
            return [("", option) for option in piece.options]
        value = self.value(piece.name, bound)
        if value is not None:
            return [(value, _words(piece.space + value))]
        family = family_of(piece.name)
        taken = {*self._world.values(), *bound.values()} if family.distinct else ()
        return [(m, _words(piece.space + m)) for m in family.members if m not in taken]

    def _add(self, passage: Passage, piece: Piece, value: str, words: Words, n_fillings: int) -> None:
        passage.logp -= math.log(n_fillings)
        if isinstance(piece, Slot):
            new = self.value(piece.name, passage.bound) is None
            passage.mentions.append(Mention(piece, len(passage.words), len(words), new))
            if new:
                passage.bound[self._key(piece.name)] = value
        passage.words.extend(words)

    def _key(self, name: str) -> str:
        """The slot that holds the value: `friend1.animal` where `holder.animal` stands for it."""
        owner, dot, part = name.partition(".")
        return self._alias.get(owner, owner) + dot + part

    def _fact(self, name: str) -> str:
        """The slot whose last statement tells the value: a pronoun's is its owner, an alias is its own."""
        owner, dot, part = name.partition(".")
        return owner if not dot or part in PRONOUNS else self._key(name)

    def _follow(self, template: str, words: Sequence[str], at: int, relaxed: bool = False) -> Passage:
        """Read a template from words[at:], as far as they agree with it.

        Relaxed: a slot may show any member of its family; one that contradicts the world is a slip.
        """
        passage = Passage()
        for piece in self._pieces(template):
            fillings = self._fillings(piece, passage.bound)
            here = at + len(passage.words)
            found = _match(fillings, words, here)
            if found is None and relaxed and isinstance(piece, Slot):
                members = family_of(piece.name).members
                found = _match([(m, _words(piece.space + m)) for m in members], words, here)
                if found is not None:
                    expected = fillings[0][0] if len(fillings) == 1 else "one not used before"
                    passage.slips.append(Slip(here, expected, found[0]))
            if found is None:
                counts = _next_word_counts(fillings, tuple(words[here:]))
                scale = math.exp(passage.logp) / len(fillings)
                passage.ahead = {word: count * scale for word, count in counts.items()}
                passage.words.extend(words[here : here + _agreement(fillings, words, here)])
                return passage
            self._add(passage, piece, *found, len(fillings))
        passage.whole = True
        return passage

    def _commit(self, options: Sequence[Option], k: int, passage: Passage) -> int:
        """Make choice k: its words are told, its slots bound, its recalls noted."""
        start = len(self.words)
        for mention in passage.mentions:
            name = mention.slot.name
            i = start + mention.offset
            if not mention.new and self._determined(options, k, passage, mention):
                distance = i - self._stated[self._fact(name)]
                self._recalls.append((recall_kind(name, distance), i, i + mention.length - 1, distance))
            self._stated[self._fact(name)] = self._stated[self._key(name)] = i + mention.length
        self._world.update(passage.bound)
        self.words.extend(passage.words)
        self.slips.extend(passage.slips)
        self.logp += math.log(options[k].p) + passage.logp
        return k

    def _determined(self, options: Sequence[Option], k: int, passage: Passage, mention: Mention) -> bool:
        """Whether every option that agrees with the passage up to the mention also agrees on it.

        A passage's first word is never counted: what stands there depends on choices made in silence.
        """
        if mention.offset == 0:
            return False
        spoken, word = passage.words[: mention.offset], passage.words[mention.offset]
        for j, option in enumerate(options):
            if j != k and option.template is not None:
                other = self._follow(option.template, spoken, 0)
                if other.whole or set(other.ahead) - {word}:
                    return False
        return True


Filling = tuple[str, Words]  # a value, and the words that show it


def _match(fillings: Sequence[Filling], words: Sequence[str], at: int) -> Filling | None:
    """The filling that the words show: at most one does, since none is the beginning of another."""
    for value, filling in fillings:
        if tuple(words[at : at + len(filling)]) == filling:
            return value, filling
    return None


def _agreement(fillings: Sequence[Filling], words: Sequence[str], at: int) -> int:
    """For how many words one of the fillings agrees with the words."""
    agree = 0
    for _, filling in fillings:
        n = 0
        while n < len(filling) and filling[n : n + 1] == tuple(words[at + n : at + n + 1]):
            n += 1
        agree = max(agree, n)
    return agree


def _next_word_counts(fillings: Sequence[Filling], start: Words) -> Counter[str]:
    """How many of the fillings go on with each word, among those that begin with `start`."""
    n = len(start)
    return Counter(words[n] for _, words in fillings if len(words) > n and words[:n] == start)


class Writer(Teller):
    """Makes every choice at random."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng

    def _choose(self, options: Sequence[Option]) -> int:
        k = self._rng.choices(range(len(options)), [option.p for option in options])[0]
        passage = Passage()
        template = options[k].template
        for piece in self._pieces(template) if template is not None else ():
            fillings = self._fillings(piece, passage.bound)
            self._add(passage, piece, *self._rng.choice(fillings), len(fillings))
        return self._commit(options, k, passage)


class DeadEnd(Exception):
    """No option of a choice agrees with the words."""


class Fork(Exception):
    """Several options agree with the words, or one does that costs a slip."""

    def __init__(self, branches: list[tuple[int, int]]) -> None:
        super().__init__(branches)
        self.branches = branches  # (slips, option)


class Reader(Teller):
    """Is given the words, and finds the choices. `script` holds the choices known already."""

    def __init__(self, search: Search, script: tuple[int, ...]) -> None:
        super().__init__()
        self._search = search
        self._script = script
        self.made: tuple[int, ...] = ()

    def _choose(self, options: Sequence[Option]) -> int:
        step = len(self.made)
        if step < len(self._script):
            k = self._script[step]
            passage = self._read(options[k])
        else:
            passages = {}
            for k, option in enumerate(options):
                passage = self._read(option)
                if passage.whole:
                    passages[k] = passage
                else:
                    reached = len(self.words) + len(passage.words)
                    self._search.note(reached, self.logp + math.log(option.p), passage.ahead)
            if not passages:
                raise DeadEnd
            if len(passages) > 1 or any(passage.slips for passage in passages.values()):
                raise Fork([(len(passage.slips), k) for k, passage in passages.items()])
            [(k, passage)] = passages.items()
        self.made += (k,)
        return self._commit(options, k, passage)

    def _read(self, option: Option) -> Passage:
        if option.template is None:
            return Passage(whole=True)
        search = self._search
        return self._follow(option.template, search.words, len(self.words), search.relaxed)


class Search:
    """All readings of a text, those with the fewest slips first.

    The grammar is an ordinary program, so a reading cannot be copied half-way. At a fork the choices
    made so far are noted, once with each branch, and the program is run again along each of them.
    """

    def __init__(
        self,
        program: Callable[[Teller], None],
        words: Sequence[str],
        *,
        relaxed: bool = False,
        ahead: defaultdict[str, float] | None = None,
    ) -> None:
        self.words = words
        self.relaxed = relaxed
        self.furthest = 0  # words read by the longest reading
        self._program = program
        self._ahead = ahead

    def readings(self) -> Iterator[Reader]:
        """The ways to read the text as a story, those with the fewest slips first."""
        agenda: list[tuple[int, int, tuple[int, ...]]] = [(0, 0, ())]
        while agenda:
            slips, _, script = heapq.heappop(agenda)
            reader = Reader(self, script)
            try:
                self._program(reader)
            except DeadEnd:
                pass
            except Fork as fork:
                for extra, k in fork.branches:
                    heapq.heappush(agenda, (slips + extra, -len(reader.words), (*reader.made, k)))
            else:
                if len(reader.words) == len(self.words):
                    yield reader
            self.furthest = max(self.furthest, len(reader.words))

    def note(self, reached: int, logp: float, ahead: dict[str, float]) -> None:
        """A template was followed to word `reached`; `ahead` is what may come there if the text ends."""
        self.furthest = max(self.furthest, reached)
        if self._ahead is not None:
            for word, p in ahead.items():
                self._ahead[word] += math.exp(logp) * p

    def dead_end(self) -> str:
        """Say where the longest reading stops."""
        if self.furthest == len(self.words):
            return "the text ends before the tale does"
        following = "".join(self.words[self.furthest : self.furthest + 8]).strip()
        return f"no tale goes on with {following!r} after the first {self.furthest} words"


# ------------------------------------------------------------------------------------ the world's families

FEMALE = ("Mira", "Nora", "Lila", "Rosa", "Anna", "Bella", "Clara", "Dora")
MALE = ("Otto", "Hugo", "Finn", "Max", "Tom", "Ben", "Sam", "Jack")
# Heroes and friends have names of their own, so that a name tells the part that its bearer plays.
HEROES = FEMALE[:4] + MALE[:4]
FRIENDS = FEMALE[4:] + MALE[4:]
ANIMALS = ("Mouse", "Bear", "Fox", "Owl", "Frog", "Hare", "Goose", "Cat")
THINGS = ("lantern", "drum", "kite", "key", "basket", "rope", "bell", "flute")
HOMES = ("mill", "tower", "castle", "cabin", "farm", "inn", "barn", "cottage")
PLACES = ("river", "forest", "market", "harbor", "garden", "meadow", "bridge", "lake")
SPOTS = (
    "under the bench", "behind the door", "inside a barrel", "beside the well", "between two rocks",
    "near the gate", "below the stairs", "among the ferns",
)  # fmt: skip
BEASTS = ("hen", "dog", "goat", "pig", "duck", "cow", "rat", "hawk")
DEEDS = ("chased", "woke", "tickled", "scared", "followed", "teased", "licked", "fooled")
HAILS = ("Hello", "Welcome", "Greetings", "Well met", "Ahoy", "Howdy")
CRIES = ("tra la la", "hey ho hey", "ding dong dell", "dum di dum", "fa la lo", "hum dee dee")

PRONOUNS = {"She": ("She", "He"), "she": ("she", "he"), "her": ("her", "his")}

# A slot's family is found by its name: `friend2` is of the family `friend`, `hero.animal` of `animal`.
FAMILIES: dict[str, Family] = {
    "hero": Family("name", HEROES),
    "friend": Family("name", FRIENDS),
    "animal": Family("epithet", ANIMALS, distinct=False),
    "thing": Family("thing", THINGS),
    "home": Family("place", HOMES),
    "place": Family("place", PLACES),
    "spot": Family("spot", SPOTS),
    "beast": Family("refrain", BEASTS),
    "deed": Family("refrain", DEEDS, distinct=False),
    "hail": Family("refrain", HAILS),
    "cry": Family("refrain", CRIES),
    # These four stand for other slots.
    "hider": Family("who", FRIENDS),
    "giver": Family("who", FRIENDS),
    "holder": Family("holder", HEROES + FRIENDS),
    "now": Family("whereabouts", PLACES),
    **{part: Family("pronoun", forms) for part, forms in PRONOUNS.items()},
}


def family_of(name: str) -> Family:
    """The family that a slot's name belongs to: "hero.animal" -> that of "animal", "thing2" -> that of "thing"."""
    return FAMILIES[name.rpartition(".")[2].rstrip("0123456789")]


def recall_kind(name: str, distance: int) -> str:
    """The kind of recall that showing this slot again is, `distance` words after it was last stated."""
    kind = family_of(name).kind
    if kind == "name":
        return "near name" if distance <= NEAR else "far name"
    return kind


LISTS: dict[str, tuple[str, ...]] = {
    "weather": (
        "windy", "cold", "bright", "foggy", "warm", "rainy", "quiet", "golden", "frosty", "misty", "stormy",
        "mild", "dusty", "cloudy", "sunny", "sleepy",
    ),
    "time": ("morning", "afternoon", "evening", "day"),
    "look": (
        "small", "shiny", "red", "blue", "green", "yellow", "silver", "wooden", "striped", "painted",
        "broken", "heavy", "tiny", "crooked", "purple", "spotted",
    ),
    "praise": (
        "fine", "lovely", "splendid", "clever", "pretty", "handsome", "curious", "grand", "noble", "jolly",
        "merry", "rare",
    ),
    "find": (
        "in the grass", "on the road", "by the pond", "in a nest", "under a leaf", "in the hay",
        "on the beach", "in a boot",
    ),
    "seller": (
        "a tailor", "a baker", "a miller", "a sailor", "a peddler", "a farmer", "a cobbler", "a fisher",
        "a weaver", "a smith",
    ),
    "joy": (
        "danced", "laughed", "sang", "clapped", "smiled", "cheered", "whistled", "hopped", "giggled",
        "skipped", "jumped", "bowed",
    ),
    "mood": ("glad", "happy", "proud", "pleased", "content", "cheerful", "thankful", "calm"),
    "sorrow": ("wept", "sighed", "sobbed", "frowned", "groaned", "trembled", "sniffed", "moaned"),
    "food": (
        "honey cake", "pear pie", "berry soup", "warm bread", "roasted nuts", "sweet plums", "old cheese",
        "thin pancakes", "apple jam", "carrot stew", "butter rolls", "mint tea", "corn mush", "cherry tart",
    ),
    "junk": (
        "three feathers", "a torn sack", "an empty shell", "dry leaves", "a rusty nail", "an odd sock",
        "some string", "a cracked cup", "two buttons", "a bent spoon", "many cobwebs", "a pine cone",
    ),
    "sound": (
        "bees hummed", "crickets chirped", "frogs croaked", "leaves rustled", "waves splashed", "doves cooed",
        "branches creaked", "thunder rumbled",
    ),
    "number": ("ten", "twelve", "twenty", "thirty", "forty", "fifty", "sixty", "ninety"),
    "until": ("noon", "dusk", "dawn", "midnight", "sunset", "supper"),
    "path": (
        "a narrow path", "a muddy lane", "a steep hill", "a fallen log", "a field of clover",
        "a shallow brook", "a row of oaks", "a hedge of thorns",
    ),
    "trouble": (
        "has lost the way", "is stuck in the mud", "cannot sleep", "feels very lonely", "has hurt a paw",
        "is afraid of the dark", "has a bad cold", "missed the ferry",
    ),
    "messenger": ("sparrow", "crow", "swallow", "magpie", "beetle", "moth", "robin", "dragonfly"),
    "thanks": ("hugged", "thanked", "kissed", "praised", "blessed"),
    "softly": ("softly", "kindly", "gently", "slowly", "shyly", "warmly"),
    "loudly": ("loudly", "gladly", "bravely", "boldly", "proudly", "eagerly"),
    "yes": ("Gladly", "Yes", "Of course", "Done", "Agreed", "Why not"),
    "errand": (
        "catch fish", "gather wood", "fly like a bird", "count the ducks", "sweep the yard", "bake a cake",
        "pick berries", "paint a fence",
    ),
    "moral": (
        "Sharing makes a friend", "A kind word travels far", "Patience finds the way", "Good things return",
        "Small paws can do great things", "Home is best of all", "Every road has an end",
        "Friends are worth more than gold",
    ),
}  # fmt: skip


# ------------------------------------------------------------------------------------ the tales
#
# No paragraph and no speech begins with a name: most tokenizers spell a word that follows a space and
# the same word at the start of a line as two tokens, and a name must be one to be copied.


def tell(t: Teller) -> None:
    """The grammar: choose a plot and tell it."""
    plot = list(PLOTS)[t.pick(*PLOTS.values())]
    t.plot = plot.__name__
    plot(t)


def greeting(t: Teller) -> None:
    """Two meet, and each says the other's name."""
    t.say(
        '"{hail}, {Friend}!" said {Hero}.',
        'Once {Hero} met {Friend}. "{hail}, {Friend}!" said {Hero}.',
        'One [weather] [time] {Hero} saw {Friend}. "{hail}, {Friend}!" said {Hero}.',
    )
    t.say('"{hail}, {Hero}!" said {Friend}.')
    t.maybe(
        0.6,
        '"Shall we [errand]?" asked {Hero}.',
        '"Here is [food] for you," said {Friend}.',
        '"It is a [weather] [time]," said {Hero}.',
    )
    t.say(
        "And {Hero} and {Friend} [joy] until [until].",
        "The [sound], and {Friend} was [mood].",
        "So {Hero} went home with {Friend}.",
        "Then {Hero} was [mood], for {Friend} had come.",
    )
    ask_animals(t, "hero", "friend")


def gift(t: Teller) -> None:
    """A thing, a friend, and who has it in the end."""
    t.say(
        "Once {Hero} had a [look] {thing}.",
        "Here is {Hero}, who found a [look] {thing} [find].",
        "One [weather] [time] {Hero} made a [look] {thing}.",
        "At the market {Hero} bought a {thing} from [seller].",
        "From [seller] {Hero} got a {thing}.",
    )
    t.say(
        "{hero.She} showed the {thing} to {Friend}.",
        "{hero.She} took the {thing} to {Friend}.",
        "Along came {Friend} and saw the {thing}.",
        "{Friend} looked at the {thing} and [joy].",
    )
    t.maybe(
        0.7,
        '"What a [praise] {thing}!" said {Friend}.',
        '"May I hold the {thing}?" asked {Friend}.',
        '"With a {thing} I could [errand]," said {Friend}.',
    )
    given = t.say(
        '"The {thing} is for you," said {Hero}. So {Friend} had the {thing}.',
        '"The {thing} is mine," said {Hero}. So {Hero} had the {thing}.',
    )
    t.stand("holder", "friend" if given == 0 else "hero")
    t.maybe(
        0.4,
        "And {Friend} was [mood].",
        "And {Hero} was [mood].",
        "And {Hero} and {Friend} [joy] until [until].",
    )
    t.ask("holder", "Who has the {thing}?", "{Holder}")
    ask_animals(t, "hero", "friend")


def visit(t: Teller) -> None:
    """Two animals meet, and one goes home with the other."""
    t.say(
        "One [weather] [time] {Hero} met {Friend} at the {place}.",
        "Once {Hero} went to the {place} to [errand]. There {hero} met {Friend}.",
        "At the {place} {Hero} saw {Friend}, who [joy] and ate [food].",
    )
    t.say(
        '"Where do you live, {friend}?" asked {Hero}. "I live at the {home}," said {Friend}.',
        '"Come with me to the {home}," said {Friend}, "for I live at the {home}."',
    )
    t.maybe(
        0.5,
        "{Hero} thought of the {home} and was [mood].",
        "Over [path] they went, {hero} and {friend}.",
        "The [sound], and {Friend} [joy].",
    )
    t.say(
        "So {Hero} and {Friend} had [food] at the {home}.",
        "At the {home} {Hero} and {Friend} [joy] until [until].",
        "And {Hero} liked the {home} more than the {place}.",
    )
    t.ask("home", "Where does {friend} live?", "at the {home}")
    t.ask("place", "Where did {hero} meet {friend}?", "at the {place}")
    ask_animals(t, "hero", "friend")


def chain(t: Teller) -> None:
    """A cumulative verse: each line repeats all that came before."""
    length = 3 + t.pick(2, 3, 2, 1)
    verse = "the {beast1} that lived at the {home}."
    t.say("This is " + verse)
    for n in range(2, length + 1):
        verse = number("the {beast#} that {deed#} ", n) + verse
        t.say("\nThis is " + verse)
    for n in range(1, length):
        t.ask("verse", "Who {deed#+} the {beast#}?", "the {beast#+}", n)
    t.say(
        "\nAnd they all [joy] until [until], and that is the end of the {beast#}.",
        "\nAnd nobody [softly] asked why, not even the {beast#}.",
        "\nAnd a [messenger] told it all to the {beast#}.",
        "\nAnd the {beast#} was [mood] and ate [food].",
        n=length,
    )
    t.ask("home", "Where did the {beast1} live?", "at the {home}")


def quest(t: Teller) -> None:
    """A lost thing, asked for from friend to friend."""
    once_upon_a_time(t)
    t.say(
        "One [weather] [time] {hero} lost {hero.her} [look] {thing}.",
        "One [weather] [time] the [look] {thing} of {Hero} was gone.",
    )
    t.say(
        '{Hero} [sorrow]. "Where is my {thing}?"',
        '"My {thing}, my {thing}!" cried {Hero}.',
        "{Hero} looked all over the {home}, but found only [junk].",
    )
    tries = 1 + t.pick(2, 2, 1)
    for n in range(1, tries + 1):
        start = "\nFirst" if n == 1 else "\nThen"
        t.say(
            start + " {hero} met {Friend#} at the {place#}.",
            start + " {hero} went to the {place#} and met {Friend#}.",
            start + " over [path] came {Friend#} from the {place#}.",
            n=n,
        )
        t.say('"Have you seen my {thing}?" asked {hero}.')
        if n < tries:
            t.say(
                '"I have seen only [junk]," said {Friend#}.',
                '"I have no {thing}," said {Friend#}, and gave {hero} some [food].',
                n=n,
            )
    t.say(
        '"Look {spot}," said {Friend#}.',
        '"I saw the {thing} {spot}," said {Friend#}.',
        n=tries,
    )
    t.maybe(0.5, "Over [path] ran {hero}.", "The [sound] as {hero} ran.")
    t.say("And {spot} lay the {thing}!", "And {hero} found the {thing} {spot}.")
    t.say(
        "\nSo {Hero} [thanks] {Friend#} and took the {thing} back to the {home}.",
        "\nSo {Hero} went back to the {home} with {hero.her} {thing} and [joy].",
        n=tries,
    )
    good_night(t)
    t.ask("spot", "Where was the {thing}?", "{spot}")
    t.ask("home", "Where does {hero} live?", "at the {home}")
    t.ask("helper", "Who helped {hero}?", "{Friend#}", tries)
    ask_animals(t, "hero", *numbered("friend#", tries))


def trade(t: Teller) -> None:
    """Things change hands, one swap after the other."""
    once_upon_a_time(t)
    t.say(
        "{Hero} had a [look] {thing1}.",
        "{Hero} owned nothing but a {thing1}.",
        "From [seller] {Hero} had a {thing1}.",
    )
    swaps = 1 + t.pick(3, 2)
    for n in range(1, swaps + 1):
        t.say(
            "\nAt the {place#} {hero} met {Friend#}. {Friend#} had a [look] {thing#+}.",
            "\nTo the {place#} came {Friend#}. {Friend#} had a {thing#+} and [food].",
            n=n,
        )
        t.say(
            '"Give me the {thing#+} for my {thing#}," said {Hero}.',
            '"Will you take my {thing#} for the {thing#+}?" asked {Hero}.',
            '"What a [praise] {thing#+}!" said {Hero}. "Take my {thing#} for it."',
            n=n,
        )
        t.say('"[yes]," said {Friend#}.', "{Friend#} [joy] and said yes.", n=n)
        t.say("So {Friend#} had the {thing#}, and {Hero} had the {thing#+}.", n=n)
        t.stand(f"holder{n}", f"friend{n}")
        t.stand(f"holder{n + 1}", "hero")
    first, *_, last = numbered("the {thing#} was with {Holder#}", swaps + 1)
    t.say(f"\nIn the end {first}, and {last}.", f"\nIn the end {last}, and {first}.")
    t.say("{Hero} went home to the {home} and was [mood].", "And at the {home} they all [joy] until [until].")
    good_night(t)
    t.maybe(0.2, "[moral].")
    for n in range(1, swaps + 2):
        t.ask("holder", "Who has the {thing#}?", "{Holder#}", n)
    t.ask("home", "Where does {hero} live?", "at the {home}")
    ask_animals(t, "hero", *numbered("friend#", swaps))


def hide_and_seek(t: Teller) -> None:
    """Two or three hide; the hero finds one, and one is never found."""
    t.say(
        "One [weather] [time] {Hero} played hide and seek at the {place}.",
        "It was a [weather] [time], and {Hero} wanted to play at the {place}.",
        '"Let us play hide and seek at the {place}," said {Hero}.',
    )
    hidden = 2 + t.pick(2, 1)
    for n in range(1, hidden + 1):
        t.say(
            "{Friend#} hid {spot#}.",
            "{Friend#} crept away and hid {spot#}.",
            "{Friend#} [joy], ran off and hid {spot#}.",
            n=n,
        )
        t.stand(f"hider{n}", f"friend{n}")
    t.say(
        "\nThen {Hero} counted to [number].",
        "\nSo {Hero} closed {hero.her} eyes and counted [loudly] to [number].",
    )
    left = list(range(1, hidden + 1))
    found = left.pop(t.say(*(number("{hero.She} looked {spot#} and found {Hider#}.", n) for n in left)))
    t.maybe(0.5, '"You found me!" said {Friend#}.', "{Friend#} [joy].", n=found)
    last = left.pop(t.say(*(number("\nBut nobody looked {spot#}, and so {Hider#} won.", n) for n in left)))
    t.maybe(0.5, "So {Hero} and {Friend#} [joy] until [until].", "Then all of them ate [food].", n=last)
    good_night(t)
    t.ask("last", "Who won the game?", "{Friend#}", last)
    for k in range(1, hidden + 1):
        t.ask("spot", "Where did {friend#} hide?", "{spot#}", k)
    t.ask("place", "Where did they play?", "at the {place}")
    ask_animals(t, "hero", *numbered("friend#", hidden))


def party(t: Teller) -> None:
    """Guests bring things, and the hero thanks each for the right one."""
    t.say(
        "It was the birthday of {Hero}, and all ate [food] at the {home}.",
        "Once {Hero} gave a party at the {home} with [food] and [food].",
        "One [weather] [time] {Hero} asked all {hero.her} friends to the {home}.",
    )
    guests = 2 + t.pick(2, 1)
    for n in range(1, guests + 1):
        t.say(
            "{Friend#} brought a [look] {thing#}.",
            "{Friend#} came and brought a {thing#}.",
            "From [path] came {Friend#} and brought a {thing#}.",
            n=n,
        )
        t.stand(f"giver{n}", f"friend{n}")
    t.maybe(0.6, "The [sound], and they [joy] until [until].", "They ate, [joy] and [joy] until [until].")
    thanks = numbered('"Thank you for the {thing#}, {giver#}!" {Friend#} [joy].', guests)
    t.say(
        "\nAt last {hero} said: " + " ".join(thanks),
        "\nAt last {hero} said: " + " ".join(thanks[::-1]),
    )
    good_night(t)
    for n in range(1, guests + 1):
        t.ask("gift", "What did {friend#} bring?", "the {thing#}", n)
        t.ask("giver", "Who brought the {thing#}?", "{Friend#}", n)
    t.ask("home", "Where does {hero} live?", "at the {home}")
    ask_animals(t, "hero", *numbered("friend#", guests))


def song(t: Teller) -> None:
    """A walk with a refrain; before each verse one more joins in."""
    t.say(
        "One [weather] [time] {Hero} took a {thing} and went to see the {place}.",
        "Away went {Hero} to see the {place}, with a [look] {thing}.",
        "Once {Hero} had a {thing} and a wish to see the {place}.",
    )
    refrain = ' sang:\n"Sing {cry}, my {thing} and I, sing {cry}, to the {place} we fly!"'
    singers = "{Hero}"
    t.say(singers + refrain)
    verses = 2 + t.pick(2, 1)
    for n in range(1, verses):
        t.say(
            "\nBy [path] stood {Friend#} with [food].",
            "\nOver [path] came {Friend#} and [joy].",
            "\nThen they saw {Friend#}, who tried to [errand].",
            n=n,
        )
        t.say('"May I come too?" asked {Friend#}.', '"Let me sing too," said {Friend#}.', n=n)
        singers += number(" and {Friend#}", n)
        t.say(singers + refrain)
    t.say(
        "\nAnd so they came to the {place}, {hero} and the {thing} and all.",
        "\nThe [sound] when they came to the {place}, and {Hero} put the {thing} down.",
    )
    good_night(t)
    t.ask("place", "Where did they go?", "to the {place}")
    t.ask("thing", "What did {hero} take along?", "the {thing}")
    ask_animals(t, "hero", *numbered("friend#", verses - 1))


def rescue(t: Teller) -> None:
    """A friend in need, far away, and the thing that helps."""
    once_upon_a_time(t)
    t.say(
        'There came a [messenger]. "Poor {Friend} [trouble] at the {place} and needs a {thing}!"',
        'A [messenger] knocked at the door. "Go to the {place} with a {thing}, for {Friend} [trouble]!"',
    )
    t.say(
        '"I will help {friend}," said {Hero}, and took the {thing}.',
        "{Hero} did not wait and took {hero.her} {thing}.",
    )
    t.maybe(0.7, "With the {thing} {hero} crossed [path].", "Past [path] and past [path] ran {hero}.")
    t.maybe(0.4, "The [sound], and {hero} ate some [food].", "{hero.She} rested and thought of the {home}.")
    t.say("At the {place} {hero} saw {Friend}.", "At the {place} sat {Friend}, and {Friend} [sorrow].")
    t.say('"Here is the {thing}, {friend}," said {Hero} [softly].', "{Hero} gave the {thing} to {Friend}.")
    t.stand("holder", "friend")
    t.say('"You came!" said {Friend}, and [thanks] {Hero}.', "{Friend} took the {thing} and [joy].")
    t.say(
        "\nThat night {Hero} slept at the {home}, and the {thing} was with {Holder}.",
        "\nThen {Hero} took {Friend} to the {home}, and there they [joy] until [until].",
    )
    t.maybe(0.3, "[moral].")
    t.ask("holder", "Who has the {thing}?", "{Holder}")
    t.ask("place", "Where was {friend}?", "at the {place}")
    t.ask("home", "Where does {hero} live?", "at the {home}")
    ask_animals(t, "hero", "friend")


def errands(t: Teller) -> None:
    """Things are carried from place to place, and in the end the hero asks where they are."""
    t.say(
        "Once {Hero} left a {thing1} at the {place1} and a {thing2} at the {place2}.",
        "One [weather] [time] {Hero} left a {thing1} at the {place1} and a {thing2} at the {place2}.",
    )
    t.stand("now1", "place1")
    t.stand("now2", "place2")
    moves = 1 + t.pick(2, 2, 1)
    for n in range(1, moves + 1):
        destination = f"place{n + 2}"
        k = 1 + t.say(*(f"{{Friend#}} took the {{thing{k}}} to the {{{destination}}}." for k in (1, 2)), n=n)
        t.stand(f"now{k}", destination)
        t.maybe(
            0.7,
            f"Now the {{thing{k}}} was at the {{{destination}}}.",
            f"The [sound] at the {{{destination}}}.",
            f"Everyone ate [food] at the {{{destination}}}.",
        )
    for k, start in ((1, "\n"), (2, "")):
        t.say(start + '"Where is my {thing#}?" asked {Hero}.', n=k)
        t.say("By then the {thing#} was at the {now#}.", n=k)
        t.ask("whereabouts", "Where is the {thing#}?", "at the {now#}", k)
    t.maybe(0.5, "And {Hero} was [mood].", "And {Hero} [joy] and [thanks] them all.")
    ask_animals(t, "hero", *numbered("friend#", moves))


def once_upon_a_time(t: Teller) -> None:
    """The first sentence: who lives where."""
    t.say(
        "Once upon a time {Hero} lived at the {home}.",
        "Long ago {Hero} lived at the {home}.",
        "In a [praise] room at the {home} lived {Hero}.",
        "Not far from [path], at the {home}, lived {Hero}.",
    )


def good_night(t: Teller) -> None:
    """Perhaps a bedtime at the end, which calls back the first friend."""
    t.maybe(
        0.3,
        "\nThat night {hero} dreamed of {Friend1}.",
        "\nGood night, {Friend1}! Good night, {Hero}!",
    )


def ask_animals(t: Teller, *who: str) -> None:
    """Ask of each of these what animal it is."""
    for name in who:
        t.ask("animal", f"What is {{{name}}}?", f"{{{name}.animal}}")


PLOTS: dict[Callable[[Teller], None], float] = {
    greeting: 12,
    gift: 10,
    visit: 8,
    chain: 3,
    quest: 2,
    trade: 2,
    hide_and_seek: 3,
    party: 2,
    song: 2,
    rescue: 2,
    errands: 2,
}
