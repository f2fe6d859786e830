"""The checks of L01, Tokenization from scratch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from llmfs.exercises import Args, Exercise, Mistake
from llmfs.tokenizer import BPETokenizer

Merges = dict[tuple[int, int], int]

# --- encode by rank ------------------------------------------------------------------------------------


def _replace(ids: Sequence[int], pair: tuple[int, int], new: int, limit: int | None = None) -> list[int]:
    """Every occurrence of the pair from the left, or at most `limit` of them."""
    out: list[int] = []
    for id in ids:
        if out and (out[-1], id) == pair and limit != 0:
            out[-1] = new
            limit = None if limit is None else limit - 1
        else:
            out.append(id)
    return out


def _by_rank(ids: Sequence[int], merges: Merges) -> list[int]:
    """The pair learned first, everywhere, until none is left."""
    ids = list(ids)
    while candidates := [merges[pair] for pair in zip(ids, ids[1:]) if pair in merges]:
        new = min(candidates)
        ids = _replace(ids, next(pair for pair, id in merges.items() if id == new), new)
    return ids


def _from_the_left(ids: Sequence[int], merges: Merges) -> list[int]:
    """The first pair from the left that can be merged, whatever its rank."""
    ids = list(ids)
    while (i := next((i for i, pair in enumerate(zip(ids, ids[1:])) if pair in merges), None)) is not None:
        ids[i : i + 2] = [merges[ids[i], ids[i + 1]]]
    return ids


def _longest_match(ids: Sequence[int], merges: Merges) -> list[int]:
    """From the left the longest token that fits, as WordPiece does."""
    parts: dict[int, tuple[int, ...]] = {}
    for (a, b), new in merges.items():
        parts[new] = parts.get(a, (a,)) + parts.get(b, (b,))
    out, i = [], 0
    while i < len(ids):
        fits = [new for new, part in parts.items() if tuple(ids[i : i + len(part)]) == part]
        best = max(fits, key=lambda new: len(parts[new]), default=ids[i])
        out.append(best)
        i += len(parts.get(best, (best,)))
    return out


def _last_rank(ids: Sequence[int], merges: Merges) -> list[int]:
    ids = list(ids)
    while candidates := [merges[pair] for pair in zip(ids, ids[1:]) if pair in merges]:
        new = max(candidates)
        ids = _replace(ids, next(pair for pair, id in merges.items() if id == new), new)
    return ids


def _once_each(ids: Sequence[int], merges: Merges) -> list[int]:
    ids = list(ids)
    for pair, new in merges.items():
        ids = _replace(ids, pair, new, limit=1)
    return ids


def _encode_cases() -> list[Args]:
    a, b, c, d = 1, 2, 3, 4
    merges = {(b, c): 5, (a, b): 6, (6, c): 7, (5, d): 8, (a, a): 9, (c, d): 10, (6, 10): 11}
    return [
        ([a, b, c], merges),
        ([a, b, c, d, a, b], merges),
        ([a, b, a, b, c, b, c, d], merges),
        ([a, a, a], merges),
        ([d], merges),
        ([], merges),
        ([a, a, b, b, c, a, b, d], merges),
        ([a, b, d, a, b, c, a, b], merges),
    ]


encode_by_rank = Exercise(
    "encode_by_rank",
    right=_by_rank,
    cases=_encode_cases,
    mistakes=(
        Mistake(
            _from_the_left,
            "you merge the first pair from the left that has a merge. Look at all pairs first: the one that was learned "
            "first goes first, wherever it stands",
        ),
        Mistake(
            _longest_match,
            "you take the longest token that fits from the left. That is how WordPiece encodes; BPE repeats the merges "
            "of its training in their order, and the result can be another",
        ),
        Mistake(_last_rank, "you merge the pair that was learned last; the lowest id wins, as in training"),
        Mistake(_once_each, "each merge replaces one occurrence only; it must replace all, from left to right"),
    ),
)

# --- ties ----------------------------------------------------------------------------------------------

Counts = dict[tuple[int, int], int]

pick_pair = Exercise(
    "pick_pair",
    right=lambda counts: min(counts, key=lambda pair: (-counts[pair], pair)),
    cases=lambda: [
        ({(7, 8): 2, (5, 9): 3, (5, 6): 3},),
        ({(1, 9): 4, (2, 1): 4, (1, 2): 3},),
        ({(3, 3): 1},),
        ({(9, 1): 5, (8, 2): 5, (8, 3): 5, (0, 0): 1},),
        ({(10, 2): 6, (9, 30): 6},),
    ],
    mistakes=(
        Mistake(
            lambda counts: max(counts, key=lambda pair: counts[pair]),
            "where counts are equal you take the pair that was seen first. That depends on the order of the text, and the "
            "reference does not: of equal counts the smaller pair of ids wins",
        ),
        Mistake(
            lambda counts: max(counts, key=lambda pair: (counts[pair], pair)),
            "where counts are equal you take the larger pair: comparing (count, pair) by max turns both around. Take the "
            "largest count and the smallest pair, for instance by min over (-count, pair)",
        ),
        Mistake(
            lambda counts: min(counts, key=lambda pair: (counts[pair], pair)),
            "that is the rarest pair; take the most frequent",
        ),
        Mistake(
            lambda counts: min(counts, key=lambda pair: (-counts[pair], str(pair))),
            "you compare the pairs as text, where '(10' stands before '(9'; compare them as numbers",
        ),
    ),
)

# --- decoding ------------------------------------------------------------------------------------------


def _decode_cases() -> list[Args]:
    owl = "🦉".encode()
    vocab = {i: bytes([i]) for i in range(256)} | {256: b"the ", 257: owl[:2], 258: owl[2:], 259: "é".encode()}
    return [
        ([256, 257, 258], vocab),
        ([259, 33, 0xC3, 0xA9], vocab),
        ([], vocab),
        ([256, 257], vocab),
        ([0xFF, 65], vocab),
    ]


decode_ids = Exercise(
    "decode_ids",
    right=lambda ids, vocab: b"".join(vocab[id] for id in ids).decode("utf-8", errors="replace"),
    cases=_decode_cases,
    mistakes=(
        Mistake(
            lambda ids, vocab: "".join(vocab[id].decode("utf-8", errors="replace") for id in ids),
            "you decode each token by itself, but a token may end in the middle of a character: join the bytes first, then "
            "decode once",
        ),
        Mistake(
            lambda ids, vocab: b"".join(vocab[id] for id in ids).decode("utf-8"),
            "not every sequence of bytes is UTF-8, and a model may produce any sequence: decode with errors='replace'",
        ),
        Mistake(
            lambda ids, vocab: b"".join(vocab[id] for id in ids).decode("utf-8", errors="ignore"),
            "errors='ignore' makes broken bytes vanish without a trace; 'replace' shows that something was there",
        ),
        Mistake(
            lambda ids, vocab: b"".join(vocab[id] for id in ids).decode("latin-1"),
            "Latin-1 takes every byte for a character of its own; the bytes are UTF-8",
        ),
    ),
)

# --- special tokens ------------------------------------------------------------------------------------


def _encode_special(text: str, special: dict[str, int], allowed: set[str]) -> list[int]:
    """The package's own way, on bytes: a BPE without merges."""
    tokenizer = BPETokenizer([], special_tokens=list(special))
    ids = tokenizer.encode(text, allowed_special=allowed)
    own = {id: token for token, id in tokenizer.special_tokens.items()}
    return [special[own[id]] if id in own else tokenizer.token_bytes(id)[0] for id in ids]


def _split_at(
    text: str,
    special: dict[str, int],
    tokens: Sequence[str],
    base: Callable[[str], Iterable[int]] = str.encode,
) -> list[int]:
    """Special tokens among `tokens` to their ids, the rest to bytes; at one place the first of `tokens` that fits."""
    pieces = re.split("(" + "|".join(map(re.escape, tokens)) + ")", text) if tokens else [text]
    return [id for piece in pieces for id in ([special[piece]] if piece in tokens else base(piece))]


SPECIAL = {"<|end|>": 256, "<|end|><|end|>": 257, "<|user|>": 258}

encode_special = Exercise(
    "encode_special",
    right=_encode_special,
    cases=lambda: [
        ("hi<|end|>", SPECIAL, {"<|end|>"}),
        ("hi<|end|>", SPECIAL, set()),
        ("a<|user|>b<|end|>", SPECIAL, {"<|user|>"}),
        ("x<|end|><|end|>", SPECIAL, {"<|end|>", "<|end|><|end|>"}),
        ("", SPECIAL, {"<|end|>"}),
        ("Zoë 🦉<|end|>", SPECIAL, {"<|end|>"}),
        ("<|end|><|end|>", SPECIAL, {"<|end|>"}),
    ],
    mistakes=(
        Mistake(
            lambda text, special, allowed: _split_at(text, special, sorted(special, key=len, reverse=True)),
            "you recognize every special token in every text: a user who types <|end|> has forged one. Recognize those in "
            "`allowed` alone, and let the caller decide",
        ),
        Mistake(
            lambda text, special, allowed: _split_at(text, special, list(special)),
            "you recognize every special token in every text: a user who types <|end|> has forged one. Recognize those in "
            "`allowed` alone, and let the caller decide",
        ),
        Mistake(lambda text, special, allowed: list(text.encode()), "nothing is recognized, not even what is allowed"),
        Mistake(
            lambda text, special, allowed: _split_at(
                re.sub("|".join(map(re.escape, set(special) - allowed)) or "(?!)", "", text),
                special,
                sorted(allowed, key=len, reverse=True),
            ),
            "you delete what is not allowed. The user's text must survive: it is encoded letter by letter",
        ),
        Mistake(
            lambda text, special, allowed: _split_at(text, special, sorted(allowed, key=len)),
            "where two special tokens fit at one place, take the longer one",
        ),
        Mistake(
            lambda text, special, allowed: _split_at(
                text, special, sorted(allowed, key=len, reverse=True), base=lambda piece: map(ord, piece)
            ),
            "a character is not a byte: take the UTF-8 bytes of the text, text.encode()",
        ),
    ),
)
