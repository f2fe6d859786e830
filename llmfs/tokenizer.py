"""From text to token ids and back: characters, words, and byte-level BPE.

Three tokenizers share one interface, `Tokenizer`: `encode`, `decode`, `vocab_size`, `special_tokens`, `save`,
`load` and `fingerprint`. `BPETokenizer` is the one that language models use. Its ids equal those of Hugging
Face `tokenizers` and of `tiktoken` for the same merges, and it reads GPT-2's own files.

Byte-level BPE starts from the 256 bytes and repeatedly merges the most frequent pair of neighboring tokens
(Sennrich et al., 2016, https://arxiv.org/abs/1508.07909; on bytes: Radford et al., 2019, "Language Models are
Unsupervised Multitask Learners").

The module keeps a word as a Python string that holds one character per token: token `id` is written
`chr(id)`. A merge is then `str.split` and `str.join`, which run at the speed of C, and the order of strings
is the order of ids, which breaks ties.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import json
import math
import operator
import os
import re
import uuid
from abc import ABC, abstractmethod
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice, repeat
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, Literal, Self

import regex

if TYPE_CHECKING:
    import tiktoken

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2's pre-tokenizer: contractions; words, numbers and signs with the space before them; then spaces."""

GPT4_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s*[\r\n]|\s+(?!\S)|\s+"
)
"""GPT-4's pre-tokenizer as first published: at most three digits a word, contractions in any case, signs with the
line's end. (Newer versions of tiktoken keep white space at the very end of a text in one piece.)"""

PATTERNS = {"gpt2": GPT2_PATTERN, "gpt4": GPT4_PATTERN}

FORMAT = "llmfs-tokenizer"
VERSION = 1

_LONG_WORD = 64  # tokens: above this a word is merged with a heap, and is not kept in the cache
_CACHE_WORDS = 1 << 17  # words kept before the cache starts afresh
_MAX_IDS = 0x110000  # one character per id: Python has this many code points
_NOTHING = 2 * chr(_MAX_IDS - 1)  # no token, and behind every token in the order of strings
_MAX_BYTES = 1 << 26  # of all tokens of a vocabulary; GPT-2's have 320,000
_SECONDS = 5.0  # for a pattern that is not one of ours to cut a text, and 20 for each million characters
_MAX_REPEATS = 10_000  # of counts in a pattern, multiplied

AllowedSpecial = Collection[str] | Literal["all"]


class TokenizerError(ValueError):
    """A tokenizer file that cannot be used. The message names the file."""


# --- the interface -------------------------------------------------------------------------------------


class Tokenizer(ABC):
    """What every tokenizer can do. Ids run from 0 to `vocab_size - 1`; special tokens come last.

    A special token stands for itself, never for its letters: it marks the end of a text or the turn of a
    speaker. Special tokens in a text are plain text unless the caller allows them, so that a user who types
    `<|endoftext|>` cannot forge one.
    """

    kind: ClassVar[str]  # "type" in the file

    def __init__(self, n_ordinary: int, special_tokens: Sequence[str]) -> None:
        self._n_ordinary = n_ordinary
        self._special_tokens = {
            token: n_ordinary + k for k, token in enumerate(check_special_tokens(special_tokens))
        }
        self._special_text = {id: token for token, id in self._special_tokens.items()}

    @property
    def vocab_size(self) -> int:
        """The number of ids, special tokens included."""
        return self._n_ordinary + len(self._special_tokens)

    @property
    def special_tokens(self) -> dict[str, int]:
        """The special tokens and their ids (a copy)."""
        return dict(self._special_tokens)

    def encode(self, text: str, allowed_special: AllowedSpecial = frozenset()) -> list[int]:
        """text -> ids.

        allowed_special names the special tokens that are recognized in the text, or is "all". The others are
        encoded letter by letter. Where two special tokens match at the same place, the longer one is taken.
        """
        allowed = self._allowed(allowed_special)
        if not allowed:
            return self._encode_ordinary(text)
        ids: list[int] = []
        for piece in re.split(_any_of(allowed), text):
            if piece in allowed:
                ids.append(self._special_tokens[piece])
            else:
                ids += self._encode_ordinary(piece)
        return ids

    def encode_batch(
        self, texts: Iterable[str], allowed_special: AllowedSpecial = frozenset()
    ) -> list[list[int]]:
        """texts -> one list of ids for each."""
        return [self.encode(text, allowed_special) for text in texts]

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """ids (a list, or an array or tensor of one dimension) -> text. An id out of range: ValueError."""

    @abstractmethod
    def token_bytes(self, id: int) -> bytes:
        """The bytes that one token stands for."""

    @abstractmethod
    def _encode_ordinary(self, text: str) -> list[int]:
        """text -> ids, with no special token recognized."""

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """Everything that determines the ids, as JSON."""

    @classmethod
    @abstractmethod
    def _from_state(cls, state: Mapping[str, Any]) -> Self:
        """The tokenizer of a `_state`."""

    def fingerprint(self) -> str:
        """A short hash of everything that determines the ids: equal fingerprints, equal ids."""
        state = json.dumps([self.kind, self._state()], sort_keys=True)
        return hashlib.sha256(state.encode()).hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """Write the tokenizer as JSON. The file appears whole or not at all."""
        content = {"format": FORMAT, "version": VERSION, "type": self.kind, "fingerprint": self.fingerprint()}
        with atomic_file(path) as file:
            file.write(json.dumps({**content, **self._state()}).encode())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote. A file of another kind, or a damaged one: TokenizerError."""
        tokenizer = load_tokenizer(path)
        if not isinstance(tokenizer, cls):
            raise TokenizerError(
                f"{path} holds a tokenizer of type {tokenizer.kind!r}, not {cls.kind!r}; use load_tokenizer"
            )
        return tokenizer

    def __reduce__(self) -> tuple[Callable[[Mapping[str, Any]], Self], tuple[dict[str, Any]]]:
        """What a copy is made from, in this process or in another: the state that a file would hold."""
        return self._from_state, (self._state(),)

    def _allowed(self, allowed_special: AllowedSpecial) -> frozenset[str]:
        if isinstance(allowed_special, str):
            if allowed_special != "all":
                raise ValueError(
                    f"allowed_special is the string {allowed_special!r}; give a collection such as "
                    f'{{{allowed_special!r}}}, or "all"'
                )
            return frozenset(self._special_tokens)
        unknown = [token for token in allowed_special if token not in self._special_tokens]
        if unknown:
            raise ValueError(
                f"allowed_special names {unknown[0]!r}; this tokenizer's special tokens are "
                f"{list(self._special_tokens)}"
            )
        return frozenset(allowed_special)

    def _unknown_id(self, ids: Iterable[Any], known: Callable[[Any], bool]) -> ValueError:
        bad = next(id for id in ids if not known(id))
        return ValueError(f"token id {bad!r} is not in the vocabulary: ids are 0 to {self.vocab_size - 1}")


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a tokenizer of any type. A damaged or foreign file raises TokenizerError."""
    types: dict[str, type[Tokenizer]] = {c.kind: c for c in (CharTokenizer, WordTokenizer, BPETokenizer)}
    try:
        content = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not a tokenizer file, or it is damaged: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise TokenizerError(f"{path} is not a tokenizer file: it has no \"format\": \"{FORMAT}\"")
    if content.get("version") != VERSION:
        raise TokenizerError(
            f"{path} has version {content.get('version')!r}; this package reads version {VERSION}"
        )
    kind = content.get("type")
    if not isinstance(kind, str) or kind not in types:
        raise TokenizerError(f"{path} has type {kind!r}; known types are {', '.join(types)}")
    try:
        tokenizer = types[kind]._from_state(content)
        written = content.get("fingerprint", tokenizer.fingerprint())  # older versions wrote none
    except (KeyError, TypeError, ValueError) as error:
        raise TokenizerError(f"{path} is damaged: {type(error).__name__}: {error!s:.500}") from error
    if written != tokenizer.fingerprint():
        raise TokenizerError(f"{path} is damaged: its tokens are not those that were written")
    return tokenizer


def check_special_tokens(special_tokens: Sequence[str]) -> list[str]:
    """The special tokens as a list; ValueError where one is empty, given twice or not a string."""
    if isinstance(special_tokens, str):
        raise ValueError(f"special_tokens is one string, {special_tokens!r}; give a list of strings")
    tokens = list(special_tokens)
    seen: set[str] = set()
    for token in tokens:
        if not isinstance(token, str) or not token:
            raise ValueError(f"a special token is a string of at least one character, not {token!r}")
        if token in seen:
            raise ValueError(f"special token {token!r:.200} is given twice")
        seen.add(token)
    return tokens


def _any_of(tokens: Collection[str]) -> str:
    """A pattern that captures any of the tokens, the longest first."""
    return "(" + "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) + ")"


def _documents(texts: str | Iterable[str], progress: bool, what: str) -> Iterable[str]:
    """The texts one by one, with a progress bar if asked for."""
    documents = [texts] if isinstance(texts, str) else texts
    if progress:
        from tqdm.auto import tqdm

        documents = tqdm(documents, desc=what, unit=" texts")
    return documents


@contextmanager
def atomic_file(path: str | Path) -> Iterator[IO[bytes]]:
    """A binary file that takes path's place when the block ends without an error.

    It is written beside path and renamed, so that a reader sees the old file or the new one, never a part.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with open(partial, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


# --- characters and words ------------------------------------------------------------------------------


class _TableTokenizer(Tokenizer):
    """A tokenizer that is a list of strings: token `id` is `tokens[id]`."""

    def __init__(self, tokens: Sequence[str], special_tokens: Sequence[str]) -> None:
        super().__init__(len(tokens), special_tokens)
        self._tokens = list(tokens)
        self._ids = {token: id for id, token in enumerate(tokens)}
        if len(self._ids) != len(self._tokens):
            raise ValueError("a token is given twice")
        self._text = dict(enumerate(self._tokens)) | self._special_text

    def decode(self, ids: Iterable[int]) -> str:
        """ids -> text."""
        ids = _as_list(ids)
        try:
            return "".join(map(self._text.__getitem__, ids))
        except (KeyError, TypeError) as error:
            raise self._unknown_id(ids, self._text.__contains__) from error

    def token_bytes(self, id: int) -> bytes:
        """The token's text in UTF-8."""
        return self.decode([id]).encode("utf-8", "surrogatepass")


class CharTokenizer(_TableTokenizer):
    """One token per character (code point), in the order of the code points.

    A character that the training text did not have raises ValueError, unless the tokenizer was trained with
    an unk_token, a special token that stands for every unknown character.
    """

    kind = "char"

    def __init__(
        self, characters: Sequence[str], *, special_tokens: Sequence[str] = (), unk_token: str | None = None
    ) -> None:
        super().__init__(characters, special_tokens)
        if any(len(character) != 1 for character in characters):
            raise ValueError("a token of a CharTokenizer is one character")
        if unk_token is not None and unk_token not in self._special_tokens:
            raise ValueError(f"unk_token {unk_token!r} is not among the special tokens {special_tokens}")
        self.unk_token = unk_token

    @classmethod
    def train(
        cls,
        texts: str | Iterable[str],
        *,
        special_tokens: Sequence[str] = (),
        unk_token: str | None = None,
        progress: bool = False,
    ) -> Self:
        """The tokenizer of the characters in texts. unk_token is added in front of special_tokens."""
        characters: set[str] = set()
        for text in _documents(texts, progress, "characters"):
            characters.update(text)
        specials = _with_unk(special_tokens, unk_token)
        return cls(sorted(characters), special_tokens=specials, unk_token=unk_token)

    def _encode_ordinary(self, text: str) -> list[int]:
        try:
            return list(map(self._ids.__getitem__, text))
        except KeyError:
            if self.unk_token is not None:
                unk = self._special_tokens[self.unk_token]
                return [self._ids.get(character, unk) for character in text]
        position, character = next((i, c) for i, c in enumerate(text) if c not in self._ids)
        raise ValueError(
            f"character {character!r} at position {position} is not among the {len(self._ids)} characters of "
            "the training text; train on a text that has it, or with an unk_token"
        )

    def _state(self) -> dict[str, Any]:
        return {
            "characters": self._tokens,
            "special_tokens": list(self._special_tokens),
            "unk_token": self.unk_token,
        }

    @classmethod
    def _from_state(cls, state: Mapping[str, Any]) -> Self:
        return cls(
            _strings(state["characters"]),
            special_tokens=_strings(state["special_tokens"]),
            unk_token=state["unk_token"],
        )


class WordTokenizer(_TableTokenizer):
    """One token per word; the space before a word belongs to it, so that known text decodes exactly.

    A token is a word (letters, digits, apostrophes inside) with the space before it, one other sign with the
    space before it, or one whitespace character. A word that is not in the vocabulary becomes `<unk>`, after
    the space that stood before it. That loses the word: `decode(encode(text))` equals text only if every word
    is known. Raises ValueError for words without the space, or special tokens without `<unk>`.
    """

    kind = "word"
    unk_token = "<unk>"

    _WORD = re.compile(r" ?\w+(?:['’]\w+)*| ?[^\w\s]|\s")

    def __init__(self, words: Sequence[str], *, special_tokens: Sequence[str] = (unk_token,)) -> None:
        super().__init__(words, special_tokens)
        if self.unk_token not in self._special_tokens or " " not in self._ids:
            raise ValueError(f"a word vocabulary has the word ' ' and the special token {self.unk_token!r}")

    @classmethod
    def train(
        cls,
        texts: str | Iterable[str],
        vocab_size: int | None = None,
        *,
        special_tokens: Sequence[str] = (),
        progress: bool = False,
    ) -> Self:
        """The tokenizer of the most frequent words of texts, of all of them if vocab_size is None.

        vocab_size counts `<unk>` and special_tokens. Ids follow the frequency; equal ones, the alphabet.
        Raises ValueError for a vocab_size that leaves no room for a word.
        """
        counts: Counter[str] = Counter()
        for text in _documents(texts, progress, "words"):
            counts.update(cls._WORD.findall(text))
        counts[" "] += 0  # always a token: it stands before an unknown word
        specials = _with_unk(special_tokens, cls.unk_token)
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        if vocab_size is not None:
            room = vocab_size - len(specials)
            if room < 1:
                raise ValueError(
                    f"vocab_size is {vocab_size}; the space and {len(specials)} special tokens need "
                    f"{len(specials) + 1}"
                )
            kept = set(ranked[:room])
            ranked = ranked[:room] if " " in kept else [*ranked[: room - 1], " "]
        return cls(ranked, special_tokens=specials)

    def _encode_ordinary(self, text: str) -> list[int]:
        unk, space, ids = self._special_tokens[self.unk_token], self._ids[" "], []
        for word in self._WORD.findall(text):
            id = self._ids.get(word)
            if id is not None:
                ids.append(id)
            elif word[0] == " ":
                ids += [space, unk]
            else:
                ids.append(unk)
        return ids

    def _state(self) -> dict[str, Any]:
        return {"words": self._tokens, "special_tokens": list(self._special_tokens)}

    @classmethod
    def _from_state(cls, state: Mapping[str, Any]) -> Self:
        return cls(_strings(state["words"]), special_tokens=_strings(state["special_tokens"]))


def _with_unk(special_tokens: Sequence[str], unk_token: str | None) -> list[str]:
    tokens = check_special_tokens(special_tokens)
    return tokens if unk_token is None or unk_token in tokens else [unk_token, *tokens]


def _strings(value: object) -> list[str]:
    """A list of strings out of a file; TypeError if it is something else."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError("expected a list of strings")
    return value


def _as_list(ids: Iterable[int]) -> list[int]:
    """Ids as a list: arrays and tensors give their numbers, not elements of their own."""
    return list(ids.tolist() if hasattr(ids, "tolist") else ids)


# --- byte-level BPE: training --------------------------------------------------------------------------

# GPT-2 gives the first ids to the bytes that Latin-1 prints, in order, and the next ones to the rest.
_PRINTS = [*range(33, 127), *range(161, 173), *range(174, 256)]
BASE_BYTES = bytes([*_PRINTS, *sorted(set(range(256)) - set(_PRINTS))])
"""The byte of each base id: token `id` is the byte `BASE_BYTES[id]` for ids below 256."""

_ID_OF_BYTE = bytes(BASE_BYTES.index(b) for b in range(256))


def to_tokens(word: str) -> str:
    """A word as a string of base tokens: one character `chr(id)` for each byte of its UTF-8.

    A lone surrogate has no UTF-8; its three bytes are what UTF-8's rule would give.
    """
    return _base_tokens(word.encode("utf-8", "surrogatepass"))


def _base_tokens(data: bytes) -> str:
    return data.translate(_ID_OF_BYTE).decode("latin-1")


def count_words(texts: Iterable[str], split: Callable[[str], list[str]]) -> Counter[str]:
    """How often each pre-token ("word") occurs in texts; split cuts a text into them, as `word_splitter` does."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(split(text))
    return counts


def pairs(word: str) -> Iterator[str]:
    """The neighboring pairs of a word: "abc" -> "ab", "bc"."""
    return map(operator.add, word, word[1:])


def learn_merges(word_counts: Mapping[str, int], n_merges: int) -> Iterable[tuple[int, int]]:
    """The pairs to merge, in order; merge k makes token 256 + k. Fewer, where no pair is left.

    word_counts: how often each word (a string of tokens) occurs. Equal counts: the smaller pair of ids first.
    """
    index = PairIndex(word_counts)
    for k in range(n_merges):
        pair = index.most_frequent()
        if pair is None:
            return
        index.merge(pair, chr(256 + k))
        yield ord(pair[0]), ord(pair[1])


class PairIndex:
    """The pairs of neighboring tokens in a set of words: how often each occurs, and in which words.

    A merge touches only the words that have the pair, and there only the pairs beside it. Two structures are
    allowed to be out of date, because looking twice is cheaper than tidying up: `words_with` may name a word
    that the pair has left, and the heap may hold a count that has since fallen.
    """

    def __init__(self, word_counts: Mapping[str, int]) -> None:
        self.words = list(word_counts)
        self.n_times = list(word_counts.values())
        self.words_with: defaultdict[str, list[int]] = defaultdict(list)  # a word that has a pair twice is named twice
        for i, word in enumerate(self.words):
            for pair in pairs(word):
                self.words_with[pair].append(i)
        self.count = {pair: self.occurrences(words) for pair, words in self.words_with.items()}
        self.heap = [(-n, pair) for pair, n in self.count.items()]
        heapq.heapify(self.heap)

    def occurrences(self, words: Iterable[int]) -> int:
        """How often these words occur in the text, all together."""
        return sum(map(self.n_times.__getitem__, words))

    def most_frequent(self) -> str | None:
        """The pair with the highest count, of equal ones the smallest; None when no pair is left."""
        while self.heap:
            n, pair = heapq.heappop(self.heap)
            now = self.count.get(pair, 0)
            if now == -n:
                return pair
            if now > 0:  # counts only fall after a pair is pushed: put it back where it belongs
                heapq.heappush(self.heap, (-now, pair))
        return None

    def merge(self, pair: str, new: str) -> None:
        """Replace the pair by the token `new` in every word, and bring the counts up to date.

        In "xaby", merging "ab" to N turns the pairs "xa" and "by" into "xN" and "Ny". In "abab" the pair "ba" between
        two occurrences becomes "NN".
        """
        first, second = pair[0], pair[1]
        count, words = self.count, self.words
        made: defaultdict[str, list[int]] = defaultdict(list)  # the pairs with the new token, and the words with each
        for i in set(self.words_with.pop(pair)):
            pieces = words[i].split(pair)  # what stands between the occurrences, found from the left
            if len(pieces) == 1:
                continue  # the pair is no longer in this word
            words[i] = new.join(pieces)
            n = self.n_times[i]
            was = left = pieces[0][-1:]  # the token on the left of an occurrence, before this merge and after it
            for right in pieces[1:]:
                if left:
                    count[was + first] -= n
                    made[left + new].append(i)
                if right:
                    count[second + right[0]] -= n
                    made[new + right[0]].append(i)
                    was = left = right[-1]
                else:
                    was, left = second, new
        del count[pair]
        self.words_with.update(made)
        for after, of in made.items():
            count[after] = self.occurrences(of)
            heapq.heappush(self.heap, (-count[after], after))


# --- byte-level BPE: encoding --------------------------------------------------------------------------


def merge_short_word(word: str, merged: Mapping[str, str]) -> str:
    """Merge the pair learned first, and the leftmost of equal ones, until no pair is left that was learned.

    merged: {pair: the token it makes}. A token learned earlier is a smaller character, so `min` finds it.
    Takes time in proportion to length times merges: for words, not for pages.
    """
    tokens = list(word)
    made = list(map(merged.get, pairs(word), repeat(_NOTHING)))  # by each token and the one behind it
    while made and (new := min(made)) != _NOTHING:
        i = made.index(new)
        tokens[i] = new
        del made[i], tokens[i + 1]
        if i > 0:
            made[i - 1] = merged.get(tokens[i - 1] + new, _NOTHING)
        if i < len(made):
            made[i] = merged.get(new + tokens[i + 1], _NOTHING)
    return "".join(tokens)


def merge_long_word(word: str, merged: Mapping[str, str]) -> str:
    """What `merge_short_word` gives, in time and memory in proportion to the length.

    A linked list of tokens, and for each token that can be made the places where. Tokens are made in the order in which
    they were learned, each from the left; a merge only offers places for tokens that were learned later.
    """
    tokens = list(word)  # a token that was merged into the one before it is ""
    before = array("i", range(-1, len(tokens) - 1))  # an array takes a tenth of a list's memory
    after = array("i", chain(range(1, len(tokens)), [-1]))
    places: dict[str, array[int]] = {}
    waiting: list[str] = []  # the keys of places, as a heap

    def offer(i: int, pair: str) -> None:
        if (made := merged.get(pair)) is not None:
            if made not in places:
                places[made] = array("i")
                heapq.heappush(waiting, made)
            places[made].append(i)

    for i, pair in enumerate(pairs(word)):
        offer(i, pair)
    while waiting:
        new = heapq.heappop(waiting)
        for i in _in_order(places.pop(new)):
            j = after[i]
            if j < 0 or merged.get(tokens[i] + tokens[j]) != new:
                continue  # one of the two has been merged with another neighbor since
            tokens[i], tokens[j] = new, ""
            after[i] = k = after[j]
            if before[i] >= 0:
                offer(before[i], tokens[before[i]] + new)
            if k >= 0:
                before[k] = i
                offer(i, new + tokens[k])
    return "".join(tokens)


def _in_order(numbers: array[int]) -> Iterable[int]:
    """The numbers, ascending; those that are so already are not copied."""
    ordered = all(map(operator.lt, numbers, islice(numbers, 1, None)))
    return numbers if ordered else sorted(numbers)


def whole_tokens(merges: Sequence[tuple[int, int]], vocabulary: Sequence[bytes]) -> list[bool]:
    """For each token: is it what its own bytes are merged to? A word that is such a token needs no merging.

    Every token that was learned from words is one. Of the merges (a, b), (b, c) and (a, bc) the last makes none:
    the letters abc give ab and c. Tokens longer than short words are not looked at.
    """
    made = {pair: token for token, pair in enumerate(merges, 256)}
    whole = [True] * 256
    for token, (left, right) in enumerate(merges, 256):
        # Undo the merges beside the seam, the latest first: nothing may have merged across it before them. Of equal
        # tokens the right one was made later, so a pair across the seam that makes the same comes before it.
        fits = whole[left] and whole[right] and len(vocabulary[token]) <= _LONG_WORD
        while fits and max(left, right) >= 256:
            last = max(left, right)
            if left > right:
                left = merges[left - 256][1]
                fits = made.get((left, right), last) >= last
            else:
                right = merges[right - 256][0]
                fits = made.get((left, right), token) > last
        whole.append(fits)
    return whole


class _WordCache(dict[str, list[int]]):
    """{word: ids}, filled as words are met. It starts afresh when it is full, so that it stays bounded."""

    def __init__(self, merges: Sequence[tuple[int, int]], vocabulary: Sequence[bytes]) -> None:
        self.merged = {chr(a) + chr(b): chr(token) for token, (a, b) in enumerate(merges, 256)}
        whole = whole_tokens(merges, vocabulary)
        self.whole = {_base_tokens(data): token for token, data in enumerate(vocabulary) if whole[token]}

    def __missing__(self, word: str) -> list[int]:
        tokens = to_tokens(word)
        if len(tokens) > _LONG_WORD:
            return list(map(ord, merge_long_word(tokens, self.merged)))
        token = self.whole.get(tokens)
        ids = list(map(ord, merge_short_word(tokens, self.merged))) if token is None else [token]
        if len(self) >= _CACHE_WORDS:
            self.clear()
        self[word] = ids
        return ids


class BPETokenizer(Tokenizer):
    """Byte-level byte pair encoding: the tokenizer of GPT-2, GPT-4 and Llama 3.

    A pattern cuts the text into words; inside a word, pairs of tokens are merged in the order in which they
    were learned. Ids: the 256 bytes in GPT-2's order, then the merges, then the special tokens.

    Every string is encoded, and `decode(encode(text)) == text`. That holds for lone surrogates too (half of a
    pair in UTF-16, which a Python string may hold and UTF-8 may not): they are written as three bytes by
    UTF-8's rule, and read back as surrogates. Any other bytes that are not UTF-8 decode to U+FFFD, the
    replacement character.

    pattern: "gpt2", "gpt4", or a regular expression of the `regex` module without capturing groups. A
    character that it leaves out becomes a word of its own.
    """

    kind = "bpe"

    def __init__(
        self, merges: Sequence[tuple[int, int]], *, pattern: str = "gpt2", special_tokens: Sequence[str] = ()
    ) -> None:
        super().__init__(256 + len(merges), special_tokens)
        self.pattern = PATTERNS.get(pattern, pattern)
        self._merges = [(operator.index(a), operator.index(b)) for a, b in merges]
        self._split = word_splitter(self.pattern)
        tokens = vocabulary(self._merges)
        self._cache = _WordCache(self._merges, tokens)
        self._bytes = dict(enumerate(tokens))
        self._bytes |= {id: text.encode("utf-8", "surrogatepass") for id, text in self._special_text.items()}

    @classmethod
    def train(
        cls,
        texts: str | Iterable[str],
        vocab_size: int,
        *,
        pattern: str = "gpt2",
        special_tokens: Sequence[str] = (),
        progress: bool = False,
    ) -> Self:
        """Learn merges from texts until there are vocab_size ids, special tokens included.

        texts is one string, or an iterable of documents, which is read once. Special tokens in it are left
        out. A text too small for so many merges stops when each of its words is one token, and a word of endless
        repeats before the tokens have too many bytes together: the tokenizer's `vocab_size` is then smaller than
        what was asked for. Of pairs that are equally frequent, the smaller pair of ids is merged first. Raises
        ValueError for a vocab_size below the bytes and special tokens.
        """
        specials = check_special_tokens(special_tokens)
        n_merges = vocab_size - 256 - len(specials)
        if n_merges < 0:
            raise ValueError(
                f"vocab_size is {vocab_size}; the 256 bytes and {len(specials)} special tokens need at least "
                f"{256 + len(specials)}"
            )
        if vocab_size > _MAX_IDS:
            raise ValueError(f"vocab_size is {vocab_size}; the largest possible is {_MAX_IDS}")
        documents = _documents(texts, progress, "counting words")
        if specials:
            between = re.compile(_any_of(specials).replace("(", "(?:", 1))
            documents = chain.from_iterable(map(between.split, documents))
        word_counts = count_words(documents, word_splitter(PATTERNS.get(pattern, pattern)))
        merges = _that_fit(learn_merges({to_tokens(word): n for word, n in word_counts.items()}, n_merges))
        if progress:
            from tqdm.auto import tqdm

            merges = tqdm(merges, desc="learning merges", total=n_merges)
        return cls(list(merges), pattern=pattern, special_tokens=specials)

    @property
    def merges(self) -> list[tuple[int, int]]:
        """The pairs of ids in the order in which they were learned; merge k makes token 256 + k (a copy)."""
        return list(self._merges)

    def _encode_ordinary(self, text: str) -> list[int]:
        return list(chain.from_iterable(map(self._cache.__getitem__, self._split(text))))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """ids -> bytes, which need not be UTF-8: a token can be part of a character."""
        ids = _as_list(ids)
        try:
            return b"".join(map(self._bytes.__getitem__, ids))
        except (KeyError, TypeError) as error:
            raise self._unknown_id(ids, self._bytes.__contains__) from error

    def decode(self, ids: Iterable[int]) -> str:
        """ids -> text; bytes that are not UTF-8 give U+FFFD."""
        return decode_utf8(self.decode_bytes(ids))

    def token_bytes(self, id: int) -> bytes:
        """The bytes that one token stands for."""
        return self.decode_bytes([id])

    def _state(self) -> dict[str, Any]:
        return {
            "pattern": self.pattern,
            "merges": self._merges,
            "special_tokens": list(self._special_tokens),
        }

    @classmethod
    def _from_state(cls, state: Mapping[str, Any]) -> Self:
        specials = _strings(state["special_tokens"])
        (pattern,) = _strings([state["pattern"]])
        return cls(state["merges"], pattern=pattern, special_tokens=specials)

    def to_tiktoken(self) -> tiktoken.Encoding:
        """The same tokenizer as a `tiktoken.Encoding`, with the same ids.

        Two exceptions: tiktoken replaces lone surrogates, and it leaves out what a pattern leaves out.
        """
        import tiktoken

        ranks = {self._bytes[id]: id for id in range(self._n_ordinary)}
        return tiktoken.Encoding(
            name=f"llmfs-{self.fingerprint()}",
            pat_str=self.pattern,
            mergeable_ranks=ranks,
            special_tokens=self._special_tokens,
        )

    @classmethod
    def from_gpt2_files(cls, vocab_bpe_path: str | Path, encoder_json_path: str | Path) -> Self:
        """GPT-2's own tokenizer from the two files of its release, `vocab.bpe` and `encoder.json`.

        The files print the bytes as characters. Their ids are checked against ours, `<|endoftext|>` = 50256
        included; files that do not agree raise TokenizerError.
        """
        try:
            ids: dict[str, int] = json.loads(Path(encoder_json_path).read_bytes())
            lines = Path(vocab_bpe_path).read_text(encoding="utf-8").split("\n")
            halves = [line.split(" ") for line in lines[1:] if line]  # the first line names the version
            merges = [(ids[left], ids[right]) for left, right in halves]
            specials = sorted((t for t in ids if ids[t] >= 256 + len(merges)), key=ids.__getitem__)
            tokenizer = cls(merges, pattern="gpt2", special_tokens=specials)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise TokenizerError(
                f"{vocab_bpe_path} and {encoder_json_path} are not GPT-2's two files: {error!r:.500}"
            ) from error
        ours = {token: id for id, token in enumerate([*PRINTED, *map("".join, halves), *specials])}
        for token in specials:  # one that two others make is no special token, but one whose merge is lost
            if any(token[:cut] in ids and token[cut:] in ids for cut in range(1, min(len(token), 256))):
                raise TokenizerError(f"{vocab_bpe_path} is cut off: it has no merge for {token!r:.60}")
        if ours != ids:
            raise TokenizerError(f"{encoder_json_path} gives other ids than the merges of {vocab_bpe_path}")
        return tokenizer


# GPT-2's files print a byte as the character of its number or, where that is blank, as one from U+0100 on.
PRINTED = [chr(byte) if id < 188 else chr(256 + id - 188) for id, byte in enumerate(BASE_BYTES)]


def word_splitter(pattern: str) -> Callable[[str], list[str]]:
    """What cuts a text into the words of a pattern, so that put together again they are the text.

    Raises ValueError for a pattern that `compile_pattern` refuses. So does the function, for one that takes too long.
    """
    compiled = compile_pattern(pattern)
    if pattern not in PATTERNS.values():
        return _in_good_time(compiled)
    fast = _for_re(pattern)  # no time limit: these patterns never take long
    return lambda text: (compiled if _BEYOND_BMP.search(text) else fast).findall(text)


_BEYOND_BMP = re.compile("[\U00010000-\U0010ffff]")


@functools.cache
def _for_re(pattern: str) -> re.Pattern[str]:
    """One of `PATTERNS` for `re`, which takes less than half of the time of `regex`, but does not know \\p{L}.

    Its classes are spelled out: the characters that `regex` finds in them, up to U+FFFF (the "basic multilingual
    plane"). There `re` looks characters up in a table; it would go through the many ranges beyond one by one.
    """
    plane = "".join(map(chr, range(0x10000)))
    ranges = {
        name: "".join(f"{re.escape(run[0])}-{re.escape(run[-1])}" for run in regex.findall(f"{name}+", plane))
        for name in (r"\s", r"\p{L}", r"\p{N}")
    }

    def spelled_out(found: re.Match[str]) -> str:
        members = found[0]
        for name in ranges:
            members = members.replace(name, ranges[name])
        return members if found[0][0] == "[" else f"[{members}]"

    return re.compile(re.sub(r"\[.*?\]|\\s|\\p\{.\}", spelled_out, pattern.replace(r"\S", r"[^\s]")))


def compile_pattern(pattern: str) -> regex.Pattern[str]:
    """A pre-tokenizer's pattern, extended so that no character falls between two words.

    Raises ValueError for one that is no regular expression, has a capturing group or repeats its parts too often.
    """
    try:
        _check_repeats(pattern)
        compiled = regex.compile(f"{pattern}|(?s:.)")
    except (regex.error, RecursionError) as error:
        raise ValueError(
            f"pattern {pattern!r:.200} is not a regular expression ({error}), nor one of {', '.join(PATTERNS)}"
        ) from error
    if compiled.groups:
        raise ValueError(f"pattern {pattern!r:.200} has a capturing group; write (?:...) in place of (...)")
    return compiled


def _in_good_time(compiled: regex.Pattern[str]) -> Callable[[str], list[str]]:
    """`findall` of a pattern that may be anyone's: "(?:a|aa)+$" would take years on forty letters."""

    def findall(text: str) -> list[str]:
        try:
            found: list[str] = compiled.findall(text, timeout=_SECONDS + len(text) / 50_000)
        except TimeoutError as error:
            raise ValueError(
                f"pattern {compiled.pattern!r:.200} takes too long to cut this text of {len(text):,} characters"
            ) from error
        return found

    return findall


def _check_repeats(pattern: str) -> None:
    """Raises ValueError for counts as in "(?:a{1000}){1000}": a compiled pattern holds what is repeated that often."""
    counts = (int(n[:10]) for n in re.findall(r"\{(\d+)", pattern))
    if math.prod(max(1, n) for n in counts) > _MAX_REPEATS:
        raise ValueError(f"pattern {pattern!r:.200} repeats its parts more than {_MAX_REPEATS:,} times")


def vocabulary(merges: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes of every token: the 256 bytes, then the two halves of each merge put together.

    Raises ValueError for a merge of tokens that are not there yet, two that make the same, and too many.
    """
    if len(merges) > _MAX_IDS - 256:
        raise ValueError(f"{len(merges)} merges are too many; the most possible is {_MAX_IDS - 256}")
    tokens = [bytes([byte]) for byte in BASE_BYTES]
    room = _MAX_BYTES
    for a, b in merges:
        if not (0 <= a < len(tokens) and 0 <= b < len(tokens)):
            raise ValueError(f"merge ({a}, {b}) makes token {len(tokens)}, so its parts must be below that")
        room -= len(tokens[a]) + len(tokens[b])
        if room < 0:  # forty merges of a token with itself would make one of a terabyte
            raise ValueError(f"the tokens up to {len(tokens)} have more than {_MAX_BYTES:,} bytes together")
        tokens.append(tokens[a] + tokens[b])
    if len(set(tokens)) != len(tokens):
        raise ValueError("two merges make the same bytes: each token needs bytes of its own")
    return tokens


def _that_fit(merges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The merges before the first that would give tokens more bytes than `vocabulary` takes."""
    lengths, room = [1] * 256, _MAX_BYTES
    for a, b in merges:
        lengths.append(lengths[a] + lengths[b])
        room -= lengths[-1]
        if room < 0:
            return
        yield a, b


def decode_utf8(data: bytes) -> str:
    """bytes -> text: lone surrogates are read back, anything else that is not UTF-8 becomes U+FFFD."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        # Proper UTF-8 has no ED followed by A0 to BF, so a surrogate's three bytes cannot be part of it.
        parts = re.split(rb"(\xed[\xa0-\xbf][\x80-\xbf])", data)
        return "".join(
            part.decode("utf-8", "surrogatepass" if k % 2 else "replace") for k, part in enumerate(parts)
        )
