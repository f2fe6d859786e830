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
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

END = ""  # the key of `next_words` for "the tale ends here": no word is empty

RECALL_KINDS: tuple[str, ...] = (
    "refrain",  # a line of a song or of a cumulative verse, repeated
    "epithet",  # the animal after a name that was met before: Mira -> Mouse
    "near name",  # a name last read at most NEAR words ago
    "thing",  # an object named before
    "pronoun",  # she or he, as the name demands
    "far name",  # a name last read more than NEAR words ago
    "spot",  # where someone hid or something lay
    "holder",  # who has the thing now, after it changed hands
    "place",  # where someone lives or something happened
    "whereabouts",  # where a thing is now, after several moves
)
NEAR = 20  # words


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

    kind: str
    text: str
    answer: str
    distance: int  # words from the last statement of the fact to the end of the tale


@dataclass(frozen=True)
class Tale:
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
    search = Search(tell, words, relaxed=True)
    reader = next(search.readings(), None)
    if reader is None:
        return [Problem("grammar", _starts(words)[search.furthest], search.dead_end())]
    starts = _starts(words)
    return [
        Problem("fact", starts[slip.at] + len(slip.space), f"expected {slip.expected}, found {slip.found!r}")
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


def _starts(words: Sequence[str]) -> list[int]:
    """The character at which each word starts, and the length of the text."""
    starts = [0]
    for word in words:
        starts.append(starts[-1] + len(word))
    return starts


@dataclass(frozen=True)
class Family:
    """The values that a slot can take, and the kind of recall that a later mention is."""

    kind: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class Slot:
    name: str
    space: str  # the white space before its value


@dataclass(frozen=True)
class Alternatives:
    options: tuple[Words, ...]  # equally likely; none is the beginning of another


Piece = Words | Slot | Alternatives


@cache
def compile_template(template: str) -> tuple[Piece, ...]:
    """Cut a template into literal words, slots and alternatives."""
    pieces: list[Piece] = []
    for space, slot, list_space, options, literal in _PIECE.findall(template):
        if slot:
            pieces.append(Slot(slot[0].lower() + slot[1:] if "." not in slot else slot, space))
            if slot[0].isupper():
                pieces.append(Slot(slot[0].lower() + slot[1:] + ".animal", " "))
        elif options:
            chosen = options.split("|") if "|" in options else LISTS[options]
            pieces.append(Alternatives(tuple(_words(list_space + option) for option in chosen)))
        elif pieces and isinstance(pieces[-1], tuple):
            pieces[-1] += (literal,)
        else:
            pieces.append((literal,))
    return tuple(pieces)


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
    space: str
    expected: str
    found: str


@dataclass
class Passage:
    """One template, filled in."""

    words: list[str] = field(default_factory=list)
    logp: float = 0.0
    bound: dict[str, str] = field(default_factory=dict)  # slots that get their value here
    mentions: list[Mention] = field(default_factory=list)
    slips: list[Slip] = field(default_factory=list)
    ahead: dict[str, float] = field(default_factory=dict)  # not empty: the words end inside the template


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
        self._recalls: list[tuple[str, int, int, int]] = []  # kind, first word, last word + 1, distance
        self._asked: list[tuple[str, str, str]] = []  # kind, question, answer: two templates

    # ---- what the grammar is written with

    def say(self, *templates: str) -> int:
        """Say one of the templates, all equally likely; return which."""
        return self._choose([Option(1 / len(templates), t) for t in templates])

    def maybe(self, p: float, *templates: str) -> bool:
        """With probability p say one of the templates; return whether one was said."""
        options = [Option(p / len(templates), t) for t in templates]
        return self._choose([*options, Option(1 - p)]) < len(templates)

    def pick(self, *weights: float) -> int:
        """Choose in silence. What is said next must show which choice was made."""
        return self._choose([Option(w / sum(weights)) for w in weights])

    def stand(self, alias: str, slot: str) -> None:
        """From now on `alias` (who holds a thing, where it is) stands for `slot`."""
        self._alias[alias] = slot
        self._stated[alias] = len(self.words)

    def ask(self, kind: str, question: str, answer: str) -> None:
        """Note a question; it is filled in, and holds, when the tale is over."""
        self._asked.append((kind, question, answer))

    # ---- the world

    def value(self, name: str, bound: dict[str, str] | None = None) -> str | None:
        """The value of a slot, or None before its first mention. `bound`: values not yet committed."""
        owner, _, part = name.partition(".")
        owner = self._alias.get(owner, owner)
        if part in PRONOUNS:
            who = self.value(owner, bound)
            return PRONOUNS[part][who in MALE] if who else None
        key = f"{owner}.{part}" if part else owner
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
        starts = _starts(self.words)
        recalls = tuple(
            Recall(kind, starts[i] + len(self.words[i]) - len(self.words[i].lstrip()), starts[j], distance)
            for kind, i, j, distance in self._recalls
        )
        asked = tuple(
            Question(kind, self.fill(question), self.fill(answer), len(self.words) - self._last_stated(answer))
            for kind, question, answer in self._asked
        )
        return Tale("".join(self.words), self.logp, recalls, asked, self.plot)

    def _last_stated(self, template: str) -> int:
        slots = [piece.name for piece in compile_template(template) if isinstance(piece, Slot)]
        return max(self._stated[slot] for slot in slots if slot in self._stated)

    # ---- choosing

    def _choose(self, options: Sequence[Option]) -> int:
        raise NotImplementedError

    def _pieces(self, template: str) -> tuple[Piece, ...]:
        """Sentences are joined by one space, unless the template brings its own line break."""
        joined = template if template[0] == "\n" or not self.words else " " + template
        return compile_template(joined)

    def _fillings(self, piece: Piece, bound: dict[str, str]) -> list[tuple[str, Words]]:
        """The equally likely ways to fill a piece: (value, its words)."""
        if isinstance(piece, tuple):
            return [("", piece)]
        if isinstance(piece, Alternatives):
            return [("", option) for option in piece.options]
        value = self.value(piece.name, bound)
        if value is not None:
            return [(value, _words(piece.space + value))]
        taken = {*self._world.values(), *bound.values()}
        return [(m, _words(piece.space + m)) for m in family_of(piece.name).members if m not in taken]

    def _add(self, passage: Passage, piece: Piece, value: str, words: Words, n_fillings: int) -> None:
        passage.logp -= math.log(n_fillings)
        if isinstance(piece, Slot):
            new = self.value(piece.name, passage.bound) is None
            passage.mentions.append(Mention(piece, len(passage.words), len(words), new))
            if new:
                passage.bound[self._key(piece.name)] = value
        passage.words.extend(words)

    def _key(self, name: str) -> str:
        owner, dot, part = name.partition(".")
        return self._alias.get(owner, owner) + dot + part

    def _follow(self, pieces: tuple[Piece, ...], words: Sequence[str], at: int, relaxed: bool) -> Passage | None:
        """Read a template from words[at:]; None if they differ from it.

        If the words end inside the template, the passage's `ahead` has the distribution of what is next.
        """
        passage = Passage()
        for piece in pieces:
            fillings = self._fillings(piece, passage.bound)
            here = at + len(passage.words)
            found = _first_match(fillings, words, here)
            if found is None:
                left = tuple(words[here:])
                inside = [f for _, f in fillings if len(f) > len(left) and f[: len(left)] == left]
                if inside:
                    counts = Counter(f[len(left)] for f in inside)
                    scale = math.exp(passage.logp) / len(fillings)
                    passage.ahead = {word: n * scale for word, n in counts.items()}
                    return passage
                if not (relaxed and isinstance(piece, Slot)):
                    return None
                found = _first_match(
                    [(v, _words(piece.space + v)) for v in family_of(piece.name).members], words, here
                )
                if found is None:
                    return None
                expected = fillings[0][0] if len(fillings) == 1 else "one not used before"
                passage.slips.append(Slip(here, piece.space, expected, found[0]))
            self._add(passage, piece, *found, len(fillings))
        return passage

    def _commit(self, options: Sequence[Option], k: int, passage: Passage) -> int:
        """Make choice k: its words are told, its slots bound, its recalls noted."""
        start = len(self.words)
        for mention in passage.mentions:
            name = mention.slot.name
            if not mention.new and name in self._stated and self._determined(options, k, passage, mention):
                i = start + mention.offset
                distance = i - self._stated[name]
                self._recalls.append((self._recall_kind(name, distance), i, i + mention.length, distance))
            self._stated[name] = start + mention.offset + mention.length
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
            if j == k or option.template is None:
                continue
            other = self._follow(self._pieces(option.template), spoken, 0, relaxed=False)
            if other is not None and set(other.ahead) != {word}:
                return False
        return True

    def _recall_kind(self, name: str, distance: int) -> str:
        kind = family_of(name).kind
        return kind if kind != "name" else "near name" if distance <= NEAR else "far name"


def _first_match(
    fillings: Sequence[tuple[str, Words]], words: Sequence[str], at: int
) -> tuple[str, Words] | None:
    for value, filling in fillings:
        if tuple(words[at : at + len(filling)]) == filling:
            return value, filling
    return None


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
        known = step < len(self._script)
        passages = {}
        for k, option in enumerate(options):
            if not known or k == self._script[step]:
                passage = self._read(option)
                if passage is not None and not passage.ahead:
                    passages[k] = passage
                elif passage is not None and not known:
                    self._search.note(self.logp + math.log(option.p), passage.ahead)
        if not passages:
            raise DeadEnd
        if not known and (len(passages) > 1 or any(passage.slips for passage in passages.values())):
            raise Fork([(len(passage.slips), k) for k, passage in passages.items()])
        [(k, passage)] = passages.items()
        self.made += (k,)
        return self._commit(options, k, passage)

    def _read(self, option: Option) -> Passage | None:
        if option.template is None:
            return Passage()
        search = self._search
        return self._follow(self._pieces(option.template), search.words, len(self.words), search.relaxed)


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

    def note(self, logp: float, ahead: dict[str, float]) -> None:
        """Collect what may follow the words, where that was asked for."""
        if self._ahead is not None:
            for word, p in ahead.items():
                self._ahead[word] += math.exp(logp) * p

    def dead_end(self) -> str:
        following = "".join(self.words[self.furthest : self.furthest + 8]).strip()
        return f"cannot read on after {self.furthest} words, at {following!r}"


# ------------------------------------------------------------------------------------ the world's families

FEMALE = ("Mira", "Nora", "Lila", "Rosa", "Anna", "Bella", "Clara", "Dora")
MALE = ("Otto", "Hugo", "Finn", "Max", "Tom", "Ben", "Sam", "Jack")
# Heroes and friends have names of their own, so that a name tells the part that its bearer plays.
HEROES = Family("name", FEMALE[:4] + MALE[:4])
FRIENDS = Family("name", FEMALE[4:] + MALE[4:])
ANIMALS = Family("epithet", ("Mouse", "Bear", "Fox", "Owl", "Frog", "Hare", "Goose", "Cat"))
THINGS = Family("thing", ("lantern", "drum", "kite", "key", "basket", "rope", "bell", "flute"))
PLACES = Family("place", ("mill", "river", "forest", "market", "harbor", "garden", "tower", "meadow"))
SPOTS = Family(
    "spot",
    ("under the bench", "behind the door", "inside a barrel", "beside the well", "between two rocks",
     "near the gate", "below the stairs", "among the ferns"),
)  # fmt: skip
BEASTS = Family("refrain", ("hen", "dog", "goat", "pig", "duck", "cow", "rat", "hawk"))
DEEDS = Family("refrain", ("chased", "woke", "kissed", "tickled", "scared", "followed", "teased", "licked"))
CRIES = Family("refrain", ("Tra la la", "Hey ho hey", "Ding dong dell", "Dum di dum", "Fa la lo", "Hum dee dee"))
SKIES = Family("refrain", ("sun", "moon", "wind", "rain", "snow", "stars", "clouds", "mist"))

PRONOUNS = {"she": ("she", "he"), "She": ("She", "He"), "her": ("her", "his"), "him": ("her", "him")}

FAMILIES: dict[str, Family] = {
    "hero": HEROES,
    "friend": FRIENDS,
    "animal": ANIMALS,
    "thing": THINGS,
    "home": PLACES,
    "place": PLACES,
    "spot": SPOTS,
    "beast": BEASTS,
    "deed": DEEDS,
    "cry": CRIES,
    "sky": SKIES,
    "holder": Family("holder", HEROES.members + FRIENDS.members),
    "now": Family("whereabouts", PLACES.members),
    **{part: Family("pronoun", forms) for part, forms in PRONOUNS.items()},
}


def family_of(name: str) -> Family:
    """The family of a slot: of `friend2` that of `friend`, of `hero.animal` that of `animal`."""
    return FAMILIES[name.rpartition(".")[2].rstrip("0123456789")]


LISTS: dict[str, tuple[str, ...]] = {
    "weather": ("windy", "cold", "bright", "foggy", "warm", "rainy", "quiet", "golden", "frosty", "misty",
                "stormy", "mild", "dusty", "cloudy", "sunny", "sleepy"),
    "time": ("morning", "afternoon", "evening", "day"),
    "look": ("small", "shiny", "red", "blue", "green", "yellow", "silver", "wooden", "striped", "painted",
             "broken", "heavy", "tiny", "crooked", "purple", "spotted"),
    "praise": ("fine", "lovely", "splendid", "clever", "pretty", "handsome", "curious", "grand", "noble",
               "jolly", "merry", "rare"),
    "find": ("in the grass", "on the road", "by the pond", "in a nest", "under a leaf", "in the hay",
             "on the beach", "in a boot"),
    "seller": ("a tailor", "a baker", "a miller", "a sailor", "a peddler", "a farmer", "a cobbler", "a fisher"),
    "joy": ("danced", "laughed", "sang", "clapped", "smiled", "cheered", "whistled", "hopped", "giggled",
            "skipped", "jumped", "bowed"),
    "mood": ("glad", "happy", "proud", "pleased", "content", "cheerful", "thankful", "calm"),
    "sorrow": ("wept", "sighed", "sobbed", "frowned", "groaned", "trembled", "sniffed", "moaned"),
    "food": ("honey cake", "pear pie", "berry soup", "warm bread", "roasted nuts", "sweet plums", "old cheese",
             "thin pancakes", "apple jam", "carrot stew", "butter rolls", "mint tea", "corn mush", "cherry tart"),
    "junk": ("three feathers", "a torn sack", "an empty shell", "dry leaves", "a rusty nail", "an odd sock",
             "some string", "a cracked cup", "two buttons", "a bent spoon", "old cobwebs", "a pine cone"),
    "sound": ("bees hummed", "crickets chirped", "frogs croaked", "leaves rustled", "waves splashed",
              "doves cooed", "branches creaked", "thunder rumbled"),
    "number": ("ten", "twelve", "twenty", "thirty", "forty", "fifty", "sixty", "ninety"),
    "until": ("noon", "dusk", "dawn", "midnight", "sunset", "supper"),
    "path": ("a narrow path", "a muddy lane", "a steep hill", "a stone bridge", "a field of clover",
             "a shallow brook", "a row of oaks", "a hedge of thorns"),
    "trouble": ("had lost the way", "was stuck in the mud", "could not sleep", "felt very lonely",
                "had hurt a paw", "was afraid of the dark", "had a bad cold", "missed the ferry"),
    "messenger": ("sparrow", "crow", "swallow", "magpie", "beetle", "moth", "robin", "dragonfly"),
    "thanks": ("hugged", "thanked", "kissed", "praised", "blessed"),
    "soft": ("softly", "kindly", "gently", "slowly", "shyly", "warmly"),
    "loud": ("loudly", "gladly", "bravely", "boldly", "proudly", "eagerly"),
    "moral": ("Sharing makes a friend", "A kind word travels far", "Patience finds the way",
              "Good things return", "Small paws can do great things", "Home is best of all",
              "Every road has an end", "Friends are worth more than gold"),
}  # fmt: skip


# ------------------------------------------------------------------------------------ the tales


def tell(t: Teller) -> None:
    """The grammar: choose a plot and tell it."""
    plots = list(PLOTS)
    t.plot = plots[t.pick(*PLOTS.values())].__name__
    globals()[t.plot](t)


def ask_animals(t: Teller, *who: str) -> None:
    for name in who:
        t.ask("animal", f"What is {{{name}}}?", f"{{{name}.animal}}")


def gift(t: Teller) -> None:
    """Two to five sentences: one thing, one friend."""
    t.say(
        "{Hero} had a [look] {thing}.",
        "{Hero} found a [look] {thing} [find].",
        "{Hero} made a [look] {thing}.",
        "{Hero} bought a {thing} from [seller].",
    )
    t.say(
        "{hero.She} showed the {thing} to {Friend}.",
        "{hero.She} took the {thing} to {Friend}.",
        "Along came {Friend} and saw the {thing}.",
    )
    t.maybe(
        0.7,
        '"What a [praise] {thing}!" said {Friend}.',
        '"May I hold the {thing}?" asked {Friend}.',
        "{Friend} [joy] and [joy].",
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


def chain(t: Teller) -> None:
    """A cumulative verse: each line repeats all that came before."""
    length = 2 + t.pick(2, 3, 2, 1)
    t.say("This is the {beast1} that lived at the {home}.")
    tail = "the {beast1} that lived at the {home}."
    for n in range(2, length + 2):
        tail = f"the {{beast{n}}} that {{deed{n}}} {tail}"
        t.say("\nThis is " + tail)
        t.ask("verse", f"Who {{deed{n}}} the {{beast{n - 1}}}?", f"the {{beast{n}}}")
    t.ask("home", "Where did the {beast1} live?", "at the {home}")
    t.say(
        f"\nAnd they all [joy] until [until], and that is the end of the {{beast{length + 1}}}.",
        f"\nAnd nobody [soft] asked why, not even the {{beast{length + 1}}}.",
        f"\nAnd {WHO_TELLS} told it to the {{beast{length + 1}}}.",
    )


WHO_TELLS = "[a sparrow|a crow|a swallow|a magpie|a beetle|a moth|a robin|a dragonfly]"


def open_at_home(t: Teller) -> None:
    t.say(
        "Once upon a time {Hero} lived at the {home}.",
        "Long ago {Hero} lived at the {home}.",
        "In a [praise] house at the {home} lived {Hero}.",
    )


def quest(t: Teller) -> None:
    """A lost thing, asked for from friend to friend."""
    open_at_home(t)
    t.say(
        "One [weather] [time] {hero} lost a [look] {thing}.",
        "One [weather] [time] the [look] {thing} of {Hero} was gone.",
    )
    t.say('{Hero} [sorrow]. "Where is my {thing}?"', '"My {thing}, my {thing}!" cried {Hero}.')
    tries = 1 + t.pick(3, 2, 1)
    for n in range(1, tries + 1):
        start = "\nFirst" if n == 1 else "\nThen"
        t.say(
            f"{start} {{hero}} met {{Friend{n}}} at the {{place{n}}}.",
            f"{start} {{hero}} went to the {{place{n}}} and met {{Friend{n}}}.",
        )
        t.say('"Have you seen my {thing}?" asked {hero}.')
        if n < tries:
            t.say(
                f'"I have seen only [junk]," said {{Friend{n}}}.',
                f'"I have no {{thing}}," said {{Friend{n}}}, and gave {{hero}} some [food].',
            )
    t.say(f'"Look {{spot}}," said {{Friend{tries}}}.', f'"I saw the {{thing}} {{spot}}," said {{Friend{tries}}}.')
    t.maybe(0.5, "Over [path] ran {hero}.", "The [sound] as {hero} ran.")
    t.say("And {spot} lay the {thing}!", "And {hero} found the {thing} {spot}.")
    t.say(
        f"\nSo {{Hero}} [thanks] {{Friend{tries}}} and took the {{thing}} back to the {{home}}.",
        "\nSo {Hero} went back to the {home} with the {thing} and [joy].",
    )
    t.maybe(0.3, "[moral].")
    t.ask("spot", "Where was the {thing}?", "{spot}")
    t.ask("home", "Where does {hero} live?", "at the {home}")
    t.ask("helper", "Who saw the {thing}?", f"{{Friend{tries}}}")
    ask_animals(t, "hero", *(f"friend{n}" for n in range(1, tries + 1)))


def trade(t: Teller) -> None:
    """Things change hands, one swap after the other."""
    open_at_home(t)
    swaps = 1 + t.pick(2, 2, 1)
    t.say("{Hero} had a [look] {thing1}.", "{Hero} owned nothing but a {thing1}.")
    for n in range(1, swaps + 1):
        mine, theirs, friend = f"thing{n}", f"thing{n + 1}", f"friend{n}"
        full = f"{{Friend{n}}}"
        t.say(
            f"\nAt the {{place{n}}} {{hero}} met {full}. {full} had a [look] {{{theirs}}}.",
            f"\nTo the {{place{n}}} came {full}. {full} had a {{{theirs}}} and [food].",
        )
        t.say(
            f'"Give me the {{{theirs}}} for my {{{mine}}}," said {{Hero}}.',
            f'"Will you take my {{{mine}}} for the {{{theirs}}}?" asked {{Hero}}.',
        )
        t.say(f'"[Gladly|Yes|Of course|Done|Agreed|Why not]," said {full}.')
        t.say(f"So {full} had the {{{mine}}}, and {{Hero}} had the {{{theirs}}}.")
        t.stand(f"holder{n}", friend)
        t.ask("holder", f"Who has the {{{mine}}}?", f"{{Holder{n}}}")
    t.stand(f"holder{swaps + 1}", "hero")
    t.ask("holder", f"Who has the {{thing{swaps + 1}}}?", f"{{Holder{swaps + 1}}}")
    order = list(range(1, swaps + 2))
    recaps = [order, order[::-1]]
    t.say(*(
        "\nIn the end " + ", ".join(f"the {{thing{n}}} was with {{Holder{n}}}" for n in recap) + "."
        for recap in recaps
    ))  # fmt: skip
    t.maybe(0.5, "{Hero} went home to the {home} and was [mood].", "[moral].")
    t.ask("home", "Where does {hero} live?", "at the {home}")
    ask_animals(t, "hero", *(f"friend{n}" for n in range(1, swaps + 1)))


def hide_and_seek(t: Teller) -> None:
    """Two or three hide; the hero seeks."""
    t.say(
        "One [weather] [time] {Hero} played hide and seek at the {place}.",
        "It was a [weather] [time], and {Hero} wanted to play at the {place}.",
    )
    n_hidden = 2 + t.pick(2, 1)
    for n in range(1, n_hidden + 1):
        t.say(f"{{Friend{n}}} hid {{spot{n}}}.", f"{{Friend{n}}} crept away and hid {{spot{n}}}.")
        t.ask("spot", f"Where did {{friend{n}}} hide?", f"{{spot{n}}}")
    t.say("\n{Hero} counted to [number].", "\n{Hero} closed both eyes and counted [loud] to [number].")
    left = list(range(1, n_hidden + 1))
    while left:
        k = t.say(*(f"{{hero.She}} looked {{spot{n}}} and found {{Friend{n}}}." for n in left))
        n = left.pop(k)
        t.maybe(0.3, f'"You found me!" said {{Friend{n}}}.', f"{{Friend{n}}} [joy].")
    t.ask("last", "Who won the game?", f"{{Friend{n}}}")
    t.say(
        f"\nThe winner was {{Friend{n}}}, and {{Hero}} [joy].",
        f"\n{{Friend{n}}} had won, and all of them ate [food].",
    )
    t.ask("place", "Where did they play?", "at the {place}")
    ask_animals(t, "hero", *(f"friend{n}" for n in range(1, n_hidden + 1)))


def party(t: Teller) -> None:
    """Guests bring things; the hero thanks each for the right one."""
    t.say(
        "It was the birthday of {Hero}, and there was [food] for all.",
        "{Hero} gave a party at the {home} with [food] and [food].",
    )
    guests = 2 + t.pick(3, 2, 1)
    for n in range(1, guests + 1):
        t.say(f"{{Friend{n}}} brought a [look] {{thing{n}}}.", f"{{Friend{n}}} came and brought a {{thing{n}}}.")
        t.ask("gift", f"What did {{friend{n}}} bring?", f"the {{thing{n}}}")
        t.ask("giver", f"Who brought the {{thing{n}}}?", f"{{Friend{n}}}")
    t.maybe(0.6, "The [sound], and they [joy] until [until].", "They ate, [joy] and [joy] until [until].")
    orders = [list(range(1, guests + 1)), list(range(guests, 0, -1))]
    t.say(*(
        "\nAt last {hero} said: "
        + " ".join(f'"Thank you for the {{thing{n}}}, {{friend{n}}}!" {{Friend{n}}} [joy].' for n in order)
        for order in orders
    ))  # fmt: skip
    t.maybe(0.3, "[moral].", "And {Hero} was [mood].")
    ask_animals(t, "hero", *(f"friend{n}" for n in range(1, guests + 1)))


def song(t: Teller) -> None:
    """A walk with a refrain; at each verse one more joins in."""
    t.say(
        "One [weather] [time] {Hero} took a {thing} and went to see the {place}.",
        "{Hero} set out for the {place} with a [look] {thing}.",
    )
    verses = 2 + t.pick(2, 1)
    refrain = ':\n"{cry}, my {thing} and I, {cry}, we follow the {sky}!"'
    names = "{Hero}"
    t.say(names + " sang" + refrain)
    for n in range(1, verses):
        t.say(
            f"\nBy [path] stood {{Friend{n}}} with [food].",
            f"\nOver [path] came {{Friend{n}}} and [joy].",
        )
        t.say('"May I come too?" asked {Friend%d}.' % n, '"Let me sing too," said {Friend%d}.' % n)
        names += f" and {{Friend{n}}}"
        t.say(names + " sang" + refrain)
    t.say(
        "\nAnd so they came to the {place}, {hero} and the {thing} and all.",
        "\nThe [sound] when they came to the {place}, and {Hero} put the {thing} down.",
    )
    t.ask("place", "Where did they go?", "to the {place}")
    t.ask("thing", "What did {hero} take along?", "the {thing}")
    ask_animals(t, "hero", *(f"friend{n}" for n in range(1, verses)))


def rescue(t: Teller) -> None:
    """A friend in need, far away, and the thing that helps."""
    open_at_home(t)
    t.say(
        'One [weather] [time] a [messenger] came. "{Friend} [trouble] at the {place} and needs a {thing}!"',
        'A [messenger] knocked at the door. "Go to the {place} and take a {thing}, for {Friend} [trouble]!"',
    )
    t.say('"I will help {friend}," said {Hero}, and took the {thing}.', "{Hero} took a {thing} at once.")
    t.maybe(0.7, "With the {thing} {hero} crossed [path].", "Past [path] and past [path] ran {hero}.")
    t.maybe(0.4, "The [sound], and {hero} ate some [food].", "{hero.She} rested and ate [food].")
    t.say("At the {place} {hero} saw {Friend}.", "At the {place} sat {Friend}, and {Friend} [sorrow].")
    t.say('"Here is the {thing}, {friend}," said {Hero} [soft].', "{Hero} gave the {thing} to {Friend}.")
    t.stand("holder", "friend")
    t.say('"You came!" said {Friend}, and [thanks] {Hero}.', "{Friend} took the {thing} and [joy].")
    t.say(
        "\nThat night {Hero} slept at the {home}, and {Friend} kept the {thing}.",
        "\nThen {Hero} took {Friend} home to the {home}, and there they [joy] until [until].",
    )
    t.maybe(0.3, "[moral].")
    t.ask("holder", "Who has the {thing}?", "{Holder}")
    t.ask("place", "Where was {friend}?", "at the {place}")
    t.ask("home", "Where does {hero} live?", "at the {home}")
    ask_animals(t, "hero", "friend")


def errands(t: Teller) -> None:
    """Things are carried from place to place; at the end somebody asks where they are."""
    t.say(
        "{Hero} left a {thing1} at the {place1} and a {thing2} at the {place2}.",
        "One [weather] [time] {Hero} put a {thing1} at the {place1} and a {thing2} at the {place2}.",
    )
    t.stand("now1", "place1")
    t.stand("now2", "place2")
    moves = 1 + t.pick(2, 2, 1)
    for n in range(1, moves + 1):
        k = 1 + t.say(
            f"{{Friend{n}}} took the {{thing1}} to the {{place{n + 2}}}.",
            f"{{Friend{n}}} took the {{thing2}} to the {{place{n + 2}}}.",
        )
        t.stand(f"now{k}", f"place{n + 2}")
        t.maybe(0.4, f"{{Friend{n}}} [joy] and ate [food].", "The [sound].")
    t.say('\n"Where is my {thing1}?" asked {Hero}.')
    t.say('"The {thing1} is at the {now1}," said a [messenger].')
    t.say('"And where is my {thing2}?" asked {Hero}.')
    t.say('"The {thing2} is at the {now2}," said the old [messenger].')
    t.maybe(0.5, "And {Hero} was [mood].")
    t.ask("whereabouts", "Where is the {thing1}?", "at the {now1}")
    t.ask("whereabouts", "Where is the {thing2}?", "at the {now2}")
    ask_animals(t, "hero", *(f"friend{n}" for n in range(1, moves + 1)))


PLOTS: dict[Callable[[Teller], None], float] = {
    gift: 6,
    chain: 3,
    quest: 2,
    trade: 2,
    hide_and_seek: 2,
    party: 2,
    song: 2,
    rescue: 2,
    errands: 2,
}
