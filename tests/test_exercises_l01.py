"""L01's checks: right answers pass, and people's wrong ones are told what they look like."""

from __future__ import annotations

import pytest

from llmfs.exercises import l01


def good_encode(ids, merges):
    ids = list(ids)
    for pair, new in sorted(merges.items(), key=lambda item: item[1]):
        i = 0
        while i < len(ids) - 1:
            if (ids[i], ids[i + 1]) == pair:
                ids[i : i + 2] = [new]
            i += 1
    return ids


def greedy(ids, merges):
    ids, i = list(ids), 0
    while i < len(ids) - 1:
        new = merges.get((ids[i], ids[i + 1]))
        if new is None:
            i += 1
        else:
            ids, i = ids[:i] + [new] + ids[i + 2 :], 0
    return ids


def wordpiece(ids, merges):
    text = {i: chr(96 + i) for i in range(1, 5)}
    for (a, b), new in merges.items():
        text[new] = text[a] + text[b]
    word, out = "".join(text[i] for i in ids), []
    while word:
        best = max((t for t in text if word.startswith(text[t])), key=lambda t: len(text[t]))
        out.append(best)
        word = word[len(text[best]) :]
    return out


def one_each(ids, merges):
    ids = list(ids)
    for pair, new in merges.items():
        for i in range(len(ids) - 1):
            if (ids[i], ids[i + 1]) == pair:
                ids[i : i + 2] = [new]
                break
    return ids


@pytest.mark.parametrize(
    "answer, hint",
    [
        (greedy, "first pair from the left"),
        (wordpiece, "WordPiece"),
        (one_each, "one occurrence only"),
        (lambda ids, merges: ids, "should give"),
    ],
)
def test_encode_by_rank(answer, hint):
    assert l01.encode_by_rank(good_encode)
    result = l01.encode_by_rank(answer)
    assert not result and hint in result.message, result


@pytest.mark.parametrize(
    "answer, hint",
    [
        (lambda counts: [p for p, n in counts.items() if n == max(counts.values())][0], "seen first"),
        (lambda counts: sorted((n, p) for p, n in counts.items())[-1][1], "larger pair"),
        (lambda counts: sorted((n, p) for p, n in counts.items())[0][1], "rarest"),
        (lambda counts: sorted(counts, key=lambda p: (-counts[p], repr(p)))[0], "as text"),
    ],
)
def test_pick_pair(answer, hint):
    assert l01.pick_pair(lambda counts: min(p for p in counts if counts[p] == max(counts.values())))
    result = l01.pick_pair(answer)
    assert not result and hint in result.message, result


@pytest.mark.parametrize(
    "answer, hint",
    [
        (lambda ids, vocab: "".join(str(vocab[i], "utf-8", "replace") for i in ids), "join the bytes first"),
        (lambda ids, vocab: str(b"".join([vocab[i] for i in ids]), "utf-8"), "errors='replace'"),
        (lambda ids, vocab: b"".join(map(vocab.get, ids)).decode(errors="ignore"), "vanish"),
        (lambda ids, vocab: "".join(chr(byte) for i in ids for byte in vocab[i]), "Latin-1"),
    ],
)
def test_decode_ids(answer, hint):
    def right(ids, vocab):
        out = b""
        for i in ids:
            out += vocab[i]
        return out.decode(errors="replace")

    assert l01.decode_ids(right)
    result = l01.decode_ids(answer)
    assert not result and hint in result.message, result


def tokens_at(text, special, wanted):
    """Find the wanted tokens by hand, the first of `wanted` that fits at each place."""
    out, i = [], 0
    while i < len(text):
        hit = next((t for t in wanted if text.startswith(t, i)), None)
        out += [special[hit]] if hit else text[i].encode()
        i += len(hit) if hit else 1
    return out


def deleting(text, special, allowed):
    for token in sorted(special, key=len)[::-1]:
        if token not in allowed:
            text = text.replace(token, "")
    return tokens_at(text, special, sorted(allowed, key=len)[::-1])


def code_points(text, special, allowed):
    out = tokens_at(text, special, sorted(allowed, key=len)[::-1])
    return out if text.isascii() else [ord(c) for c in text.split("<|end|>")[0]] + [special["<|end|>"]]


@pytest.mark.parametrize(
    "answer, hint",
    [
        (lambda text, special, allowed: tokens_at(text, special, sorted(special, key=len)[::-1]), "forged"),
        (lambda text, special, allowed: tokens_at(text, special, special), "forged"),
        (lambda text, special, allowed: [*bytes(text, "utf-8")], "nothing is recognized"),
        (deleting, "must survive"),
        (lambda text, special, allowed: tokens_at(text, special, sorted(allowed, key=len)), "longer one"),
        (code_points, "UTF-8"),
    ],
)
def test_encode_special(answer, hint):
    assert l01.encode_special(lambda text, special, allowed: tokens_at(text, special, sorted(allowed, key=len)[::-1]))
    result = l01.encode_special(answer)
    assert not result and hint in result.message, result
