"""Tokenizers against hand-worked examples, `tiktoken`, Hugging Face `tokenizers` and random strings."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import random
import shutil
import string
import subprocess
import sys
import time
import unicodedata
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmfs.tokenizer import (
    BASE_BYTES,
    GPT2_PATTERN,
    GPT4_PATTERN,
    BPETokenizer,
    CharTokenizer,
    PairIndex,
    Tokenizer,
    TokenizerError,
    WordTokenizer,
    compile_pattern,
    learn_merges,
    load_tokenizer,
    merge_long_word,
    merge_short_word,
    to_tokens,
    vocabulary,
    whole_tokens,
    word_splitter,
)

PATTERNS = ["gpt2", "gpt4"]
EOT = "<|endoftext|>"
ODD_SPECIALS = [EOT, "<| two words |>", "line\nend", "\"quoted\" \\ 'both'", "<|€|>", " "]
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

CODE = """def f(x):\n\treturn {"a": [1, 22, 333], 'b': x**2 - 1e-5}  # don't, WE'LL, it'S\r\n
    \n    if x != 0: pass\n"""
PROSE = (
    "It's a truth universally acknowledged, that 12345 men aren't 1.5 women; we'll see — “naïve” café, "
    "日本語の文章, Здравствуйте, مرحبا, 👩‍👩‍👧 and 🇫🇷.  Two  spaces,\ttabs\n\nand lines \n "
)


def data_file(name: str) -> Path:
    """A file in the folder that LLMFS_DATA names; the test is skipped where it is not there."""
    path = Path(os.environ.get("LLMFS_DATA", "/nonexistent")) / name
    if not path.is_file():
        pytest.skip(f"{name} is not in the folder that LLMFS_DATA names")
    return path


@cache
def text() -> str:
    """Generated prose with a Zipf-like vocabulary, several scripts and some code."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 9))) for _ in range(800)]
    words += ["don't", "naïve", "日本語", "привет", "👍", "3.14159", "1000000", "x_1", "==", "\n", "\n\n  "]
    weights = [1 / (k + 1) for k in range(len(words))]
    return " ".join(rng.choices(words, weights, k=20_000)) + CODE * 20 + PROSE * 20


@cache
def trained(pattern: str, vocab_size: int = 1000) -> BPETokenizer:
    return BPETokenizer.train(text(), vocab_size, pattern=pattern, special_tokens=[EOT])


def random_strings(n: int, seed: int = 0) -> list[str]:
    """Strings of assigned characters from all of Unicode, mixed with ASCII, spaces and line ends."""
    rng = random.Random(seed)
    assigned = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
    common = string.printable + " \n'" * 20
    return [
        "".join(rng.choice(assigned if rng.random() < 0.4 else common) for _ in range(rng.randint(0, 40)))
        for _ in range(n)
    ]


# --- by hand -------------------------------------------------------------------------------------------


def test_the_textbook_example_by_hand() -> None:
    # aaabdaaabac: "aa" occurs 4 times (aaa holds it twice) -> Z; then "ab" and "Za" tie at 2, and "ab" has
    # the smaller ids -> Y; then "ZY" -> X. Left is X d X a c.
    tokenizer = BPETokenizer.train("aaabdaaabac", 259)
    a, b, c, d = (BASE_BYTES.index(letter) for letter in b"abcd")
    assert tokenizer.merges == [(a, a), (a, b), (256, 257)]
    assert tokenizer.encode("aaabdaaabac") == [258, d, 258, a, c]
    assert tokenizer.token_bytes(258) == b"aaab"
    assert tokenizer.decode([258, d, 258, a, c]) == "aaabdaaabac"


def test_base_ids_are_gpt2s_order() -> None:
    assert sorted(BASE_BYTES) == list(range(256))
    assert BASE_BYTES[:3] == b'!"#' and BASE_BYTES[93] == ord("~") and BASE_BYTES[188] == 0
    assert to_tokens(" a") == chr(220) + chr(64)  # GPT-2 has "Ġ" = 220 and "a" = 64


def test_ties_go_to_the_smaller_pair_of_ids() -> None:
    tokenizer = BPETokenizer.train("zy xw ba", 257)
    assert tokenizer.decode(tokenizer.merges[0]) == "ba"


def test_repeated_pairs_keep_the_counts_exact() -> None:
    rng = random.Random(1)
    for _ in range(300):
        words = {"".join(rng.choices("ab", k=rng.randint(1, 14))): rng.randint(1, 5) for _ in range(6)}
        index = PairIndex(words)
        for k in range(10):
            pair = index.most_frequent()
            if pair is None:
                break
            recounted = counted_pairs(index)
            assert recounted[pair] == max(recounted.values())
            assert pair == min(p for p, n in recounted.items() if n == recounted[pair])
            index.merge(pair, chr(256 + k))
            assert {p: n for p, n in index.count.items() if n} == counted_pairs(index)


def counted_pairs(index: PairIndex) -> dict[str, int]:
    counts: dict[str, int] = {}
    for word, n in zip(index.words, index.n_times, strict=True):
        for a, b in pairwise(word):
            counts[a + b] = counts.get(a + b, 0) + n
    return counts


# --- against the libraries -----------------------------------------------------------------------------


def huggingface_merges(text: str, vocab_size: int, pattern: str) -> list[tuple[int, int]]:
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    reference = tokenizers.Tokenizer(models.BPE())
    if pattern == "gpt2":
        reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(tokenizers.Regex(GPT4_PATTERN), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        reference.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    reference.train_from_iterator([text], trainer)
    model = json.loads(reference.to_str())["model"]
    return [(model["vocab"][a], model["vocab"][b]) for a, b in model["merges"]]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("vocab_size", [256, 300, 1000, 3000])
def test_merges_equal_huggingface(pattern: str, vocab_size: int) -> None:
    ours = BPETokenizer.train(text(), vocab_size, pattern=pattern)
    assert ours.merges == huggingface_merges(text(), vocab_size, pattern)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_merges_equal_huggingface_on_tales(pattern: str) -> None:
    tales = pytest.importorskip("llmfs.tales")
    stories = "\n\n".join(tale.text for tale in tales.stories(300, seed=0))
    ours = BPETokenizer.train(stories, 800, pattern=pattern)
    assert ours.merges == huggingface_merges(stories, 800, pattern)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_merges_equal_huggingface_on_shakespeare(pattern: str) -> None:
    play = data_file("tinyshakespeare.txt").read_text(encoding="utf-8")
    assert BPETokenizer.train(play, 4096, pattern=pattern).merges == huggingface_merges(play, 4096, pattern)


def test_merges_equal_huggingface_on_words_of_repeated_letters() -> None:
    rng = random.Random(2)
    words = " ".join("".join(rng.choices("ab", k=rng.randint(1, 30))) for _ in range(3000))
    assert BPETokenizer.train(words, 2000).merges == huggingface_merges(words, 2000, "gpt2")


def test_ids_in_the_surrogate_range_and_beyond() -> None:
    """Token ids above 0xD800, where a character is not a character of text, and above 0xFFFF."""
    rng = random.Random(3)
    words = " ".join("".join(rng.choices(string.ascii_letters, k=5)) for _ in range(40_000))
    tokenizer = BPETokenizer.train(words, 70_000)
    assert tokenizer.vocab_size == 70_000
    assert tokenizer.merges == huggingface_merges(words, 70_000, "gpt2")
    ids = tokenizer.encode(words)
    assert any(0xD800 <= id < 0xE000 for id in ids) and max(ids) > 0xFFFF
    assert tokenizer.decode(ids) == words
    assert ids == tokenizer.to_tiktoken().encode(words)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_ids_equal_tiktoken(pattern: str) -> None:
    ours, reference = trained(pattern), trained(pattern).to_tiktoken()
    for sample in [text(), PROSE, CODE, PROSE + EOT + CODE, *random_strings(3000)]:
        assert ours.encode(sample) == reference.encode(sample, disallowed_special=())
    sample = f"{EOT}{PROSE}{EOT}{EOT} {CODE}"
    assert ours.encode(sample, {EOT}) == reference.encode(sample, allowed_special={EOT})
    ids = [random.Random(4).randrange(ours.vocab_size) for _ in range(2000)]
    assert ours.decode_bytes(ids) == reference.decode_bytes(ids)


@pytest.fixture(scope="module")
def gpt2() -> BPETokenizer:
    return BPETokenizer.from_gpt2_files(data_file("gpt2-vocab.bpe"), data_file("gpt2-encoder.json"))


def test_gpt2s_own_files_give_gpt2s_ids(
    gpt2: BPETokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tiktoken

    # tiktoken reads its cache by the SHA-1 of each file's address, so this needs no network.
    shutil.copy(data_file("gpt2-vocab.bpe"), tmp_path / "6d1cbeee0f20b3d9449abfede4726ed8212e3aee")
    shutil.copy(data_file("gpt2-encoder.json"), tmp_path / "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    reference = tiktoken.get_encoding("gpt2")
    assert gpt2.vocab_size == reference.n_vocab == 50257
    assert gpt2.special_tokens == {EOT: 50256}
    assert gpt2.encode("Hello, world!") == [15496, 11, 995, 0]
    for sample in [PROSE, CODE, text(), "a" * 3000, *random_strings(1000, seed=5)]:
        assert gpt2.encode(sample) == reference.encode(sample)


def test_gpt2_files_that_do_not_agree(tmp_path: Path) -> None:
    bpe, encoder = data_file("gpt2-vocab.bpe"), data_file("gpt2-encoder.json")
    with pytest.raises(TokenizerError, match="not GPT-2's two files"):
        BPETokenizer.from_gpt2_files(encoder, bpe)
    ids = json.loads(encoder.read_text(encoding="utf-8"))
    cut = tmp_path / "vocab.bpe"
    cut.write_text("".join(bpe.read_text(encoding="utf-8").splitlines(keepends=True)[:-3]), encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"vocab\.bpe is cut off: it has no merge for"):
        BPETokenizer.from_gpt2_files(cut, encoder)
    ids["Ġthe"], ids["Ġa"] = ids["Ġa"], ids["Ġthe"]
    swapped = tmp_path / "encoder.json"
    swapped.write_text(json.dumps(ids), encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"encoder\.json"):
        BPETokenizer.from_gpt2_files(bpe, swapped)


# --- any string ----------------------------------------------------------------------------------------

any_text = st.text(st.characters(exclude_categories=()))  # lone surrogates included
tricky_text = st.text(st.sampled_from("ab '\n\r\t\u3000é日👍\ud83d\ude00\udfff0_<|endoftext>"), max_size=200)


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(deadline=None, max_examples=300)
@given(sample=any_text | tricky_text)
def test_round_trip_of_any_string(pattern: str, sample: str) -> None:
    tokenizer = trained(pattern)
    assert tokenizer.decode(tokenizer.encode(sample)) == sample
    assert tokenizer.decode(tokenizer.encode(sample, "all")) == sample


@pytest.mark.parametrize("pattern", [GPT2_PATTERN, GPT4_PATTERN], ids=PATTERNS)
@pytest.mark.parametrize("form", ["{0}", "'{0}", "a{0}", "1{0}a", " {0}", "\n{0}{0}", "{0}\n  x", "!{0} "])
def test_every_character_is_cut_as_regex_cuts_it(pattern: str, form: str) -> None:
    split, expected = word_splitter(pattern), compile_pattern(pattern).findall
    characters = [chr(k) for k in (*range(0x10000), *range(0x10000, 0x110000, 997))]
    assert [c for c in characters if split(form.format(c)) != expected(form.format(c))] == []


@settings(deadline=None, max_examples=500)
@given(sample=any_text | tricky_text | st.text("ab'sſLl \t\n\r\x1c\x85\u2028 1²Ⅷ一!-—🦉"))
def test_every_text_is_cut_as_regex_cuts_it(sample: str) -> None:
    for pattern in (GPT2_PATTERN, GPT4_PATTERN):
        assert word_splitter(pattern)(sample) == compile_pattern(pattern).findall(sample)


@settings(deadline=None, max_examples=200)
@given(sample=tricky_text)
def test_a_pattern_of_ones_own_loses_nothing(sample: str) -> None:
    tokenizer = trained(r"[a-z]+|\d*")  # matches no space, no accent, and the empty string
    assert tokenizer.decode(tokenizer.encode(sample)) == sample


@settings(deadline=None, max_examples=300)
@given(word=st.text("abcdefgh", max_size=150))
def test_long_and_short_words_are_merged_alike(word: str) -> None:
    words = {to_tokens("".join(random.Random(k).choices("abcdefgh", k=12))): 1 for k in range(150)}
    merged = {chr(a) + chr(b): chr(256 + k) for k, (a, b) in enumerate(learn_merges(words, 200))}
    assert merge_long_word(to_tokens(word), merged) == merge_short_word(to_tokens(word), merged)


def some_merges(seed: int) -> list[tuple[int, int]]:
    """Merges of any two tokens, few of which training would find; no two make the same bytes."""
    rng, merges = random.Random(seed), []
    made = set(vocabulary([]))
    for _ in range(40):
        tokens = vocabulary(merges)
        pair = rng.choice([*range(3), *range(256, len(tokens))]), rng.choice([*range(3), *range(256, len(tokens))])
        if (new := tokens[pair[0]] + tokens[pair[1]]) not in made and len(new) <= 40:
            made.add(new)
            merges.append(pair)
    return merges


def test_whole_tokens_are_those_that_their_own_bytes_are_merged_to() -> None:
    seen = []
    for seed in range(200):
        merges = some_merges(seed)
        merged = {chr(a) + chr(b): chr(256 + k) for k, (a, b) in enumerate(merges)}
        words = [to_tokens(token.decode("latin-1")) for token in vocabulary(merges)[256:]]  # of !, " and #
        expected = [merge_short_word(word, merged) == chr(256 + k) for k, word in enumerate(words)]
        assert whole_tokens(merges, vocabulary(merges)) == [True] * 256 + expected
        seen += expected
    assert min(seen.count(True), seen.count(False)) > 1_000
    merges = [(0, 1), (1, 2), (0, 257)]
    assert whole_tokens(merges, vocabulary(merges))[256:] == [True, True, False]


@pytest.mark.parametrize("letters", ["a", "ab", "abcd"])
def test_every_token_that_was_learned_is_whole(letters: str) -> None:
    rng = random.Random(1)
    words = {to_tokens("".join(rng.choices(letters, k=rng.randint(1, 40)))): rng.randint(1, 5) for _ in range(500)}
    merges = list(learn_merges(words, 400))
    assert len(merges) > 30 and all(whole_tokens(merges, vocabulary(merges)))


@settings(deadline=None, max_examples=300)
@given(data=st.binary(max_size=60))
def test_bytes_that_are_not_utf8(data: bytes) -> None:
    tokenizer = trained("gpt2")
    ids = [BASE_BYTES.index(byte) for byte in data]
    assert tokenizer.decode_bytes(ids) == data
    decoded = tokenizer.decode(ids)
    if not any(0xD800 <= ord(character) < 0xE000 for character in decoded):
        assert decoded == data.decode("utf-8", "replace")


def test_invalid_utf8_becomes_the_replacement_character() -> None:
    tokenizer = trained("gpt2")
    euro = [BASE_BYTES.index(byte) for byte in "€".encode()]
    assert tokenizer.decode(euro) == "€"
    assert tokenizer.decode(euro[:2]) == "\ufffd"
    assert tokenizer.decode(tokenizer.encode("\ud83d")) == "\ud83d"  # a lone surrogate comes back
    half = tokenizer.encode("\ud83d")
    assert tokenizer.decode([*half, euro[0], *half, *euro]) == "\ud83d\ufffd\ud83d€"


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(
    "sample",
    ["a" * 200_000, " " * 200_000, "\n" * 200_000, "ab" * 100_000, "'" * 200_000, "1" * 200_000,
     "日" * 70_000, " " * 200_000 + "x", "e" * 199_999 + "\ud800"],
    ids=["a", "space", "newline", "ab", "quote", "digit", "cjk", "spaces-x", "surrogate"],
)  # fmt: skip
def test_the_worst_strings_are_encoded_in_good_time(pattern: str, sample: str) -> None:
    tokenizer = trained(pattern)
    assert tokenizer.decode(tokenizer.encode(sample)) == sample


LONG = {
    "letters": lambda n: "".join(random.Random(8).choices("abcdefghij", k=n)),  # one word, all of it merged
    "one letter": lambda n: "a" * n,
    "spaces, then a letter": lambda n: " " * n + "x",
    "line ends and spaces": lambda n: "\n   " * (n // 4) + "x",
    "quotes": lambda n: "'" * n,
    "signs and line ends": lambda n: "!\n" * (n // 2),
    "combining marks": lambda n: "e" + "\u0301" * n,
    "right to left": lambda n: "\u05e9\u05dc\u05d5\u05dd \u200f" * (n // 6),
    "zero bytes": lambda n: "\0" * n,
    "surrogates": lambda n: "\ud800\udc00" * (n // 2),  # not a pair in a Python string, but two lone halves
    "forged": lambda n: EOT * (n // len(EOT)),
    "half forged": lambda n: "<|endoftext" * (n // 11),
}


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("tokenizer", ["gpt2", "gpt4", "word", "char"])
def test_time_grows_with_the_length(name: str, tokenizer: str) -> None:
    """Eight times the text takes about eight times as long; a quadratic step would take 64 times."""
    make, short = LONG[name], 8_000
    encoder: Tokenizer = trained(tokenizer) if tokenizer in PATTERNS else _table(tokenizer, make(100))
    seconds = []
    for n in (short, 8 * short):
        sample = make(n)
        best = math.inf
        for _ in range(3):
            encoder._cache.clear() if isinstance(encoder, BPETokenizer) else None
            began = time.process_time()
            ids = encoder.encode(sample, "all" if name == "forged" else ())
            text = encoder.decode(ids)
            best = min(best, time.process_time() - began)
        assert text == sample or tokenizer == "word"
        seconds.append(best)
    assert seconds[1] < 24 * seconds[0] + 0.05, f"{seconds[0]:.3f} s for {short}, {seconds[1]:.3f} s for {8 * short}"


def _table(kind: str, sample: str) -> Tokenizer:
    if kind == "char":
        return CharTokenizer.train(sample + EOT, special_tokens=[EOT])
    return WordTokenizer.train(sample, special_tokens=[EOT])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prose", *LONG])
def test_a_line_of_fifty_megabytes(name: str) -> None:
    if name == "prose":
        sample = (PROSE.replace("\n", " ") * (50_000_000 // len(PROSE) + 1))[:50_000_000]
    else:  # of other lines in full length see below
        sample = LONG[name](10_000_000)
    tokenizer = trained("gpt2")
    assert tokenizer.decode(tokenizer.encode(sample)) == sample


def any_line(n: int, *, surrogates: bool = False) -> str:
    """n bytes or so of one line: a third each of all code points, of Hebrew, Arabic and marks, and of ASCII."""
    import numpy as np

    rng = np.random.default_rng(9)
    points = rng.integers(0x110000, size=n // 2)
    marks = np.array([*range(0x590, 0x700), *range(0x300, 0x370), 0x200F, 0x202E])
    kind = rng.integers(3, size=len(points))
    points = np.where(kind == 1, rng.choice(marks, len(points)), points)
    points = np.where(kind == 2, rng.integers(0x80, size=len(points)), points)
    plain = ~np.isin(points, [0x0A, 0x0D])
    if not surrogates:
        plain &= (points > 0) & ((points < 0xD800) | (points > 0xDFFF))
    return points[plain].astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


LINES = {
    "one letter": lambda n: "a" * n,
    "spaces, then a letter": lambda n: " " * (n - 1) + "x",  # a text of spaces alone is empty
    "digits": lambda n: random.Random(9).randbytes(n).translate(bytes(48 + k % 10 for k in range(256))).decode(),
    "anything": any_line,
}


def run_command(*arguments: object, read: Path, write: Path) -> tuple[float, float]:
    """llmfs tokenizer ... with a file as its input and one as its output -> its CPU seconds, and its gigabytes."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "llmfs", "tokenizer", *map(str, arguments)]
    with open(read, "rb") as stdin, open(write, "wb") as stdout:
        process = subprocess.Popen(command, stdin=stdin, stdout=stdout, env=env)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20


@pytest.mark.slow
@pytest.mark.parametrize("name", LINES)
def test_fifty_megabytes_in_one_line_through_the_commands(name: str, tmp_path: Path) -> None:
    """Trained on, encoded and decoded; ten times the text takes about ten times as long."""
    text, saved, ids, out = (tmp_path / file for file in ("text.txt", "t.json", "ids", "out"))
    used = []
    for n in (5_000_000, 50_000_000):
        text.write_bytes(LINES[name](n).encode())
        used += [
            run_command("train", text, "--out", saved, "--vocab-size", 300, read=text, write=out),
            run_command("encode", saved, read=text, write=ids),
            run_command("decode", saved, read=ids, write=out),
        ]
        assert out.read_bytes() == text.read_bytes() + b"\n"
    print(*(f"{seconds:.1f} s, {gigabytes:.2f} GB" for seconds, gigabytes in used), sep="; ")
    for (short, _), (long, gigabytes) in zip(used[:3], used[3:]):
        assert long < 25 * short and gigabytes < 8


@pytest.mark.slow
def test_fifty_megabytes_of_any_code_points() -> None:
    """Lone surrogates and zero bytes too, which no command is given."""
    seconds = []
    for n in (5_000_000, 50_000_000):
        sample, began = any_line(n, surrogates=True), time.process_time()
        tokenizer = BPETokenizer.train(sample, 300)
        assert tokenizer.decode(tokenizer.encode(sample)) == sample
        seconds.append(time.process_time() - began)
    assert seconds[1] < 25 * seconds[0]


@pytest.mark.parametrize("sample", [EOT, EOT + "<|user|>", "<|end|>" * 3, "<|endoftext|", "a<|endoftext|>b"])
def test_special_tokens_in_a_text_stay_text(sample: str) -> None:
    for tokenizer in (trained("gpt2"), trained("gpt4"), _table("char", sample + "user"), _table("word", sample)):
        specials = set(tokenizer.special_tokens.values()) - {tokenizer.special_tokens.get("<unk>")}
        assert not specials & set(tokenizer.encode(sample))
        assert tokenizer.decode(tokenizer.encode(sample)) == sample


def test_one_long_word_without_spaces_trains_and_encodes_like_the_libraries() -> None:
    dna = "".join(random.Random(6).choices("ACGT", k=100_000))
    tokenizer = BPETokenizer.train(dna, 400)
    assert tokenizer.merges == huggingface_merges(dna, 400, "gpt2")
    assert tokenizer.encode(dna) == tokenizer.to_tiktoken().encode(dna)


def test_the_cache_stays_bounded_and_changes_no_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmfs.tokenizer._CACHE_WORDS", 50)
    tokenizer = BPETokenizer(trained("gpt2").merges)
    assert tokenizer.encode(text()) == trained("gpt2").encode(text())
    assert len(tokenizer._cache) <= 50
    tokenizer.encode("z" * 1000)
    assert all(len(word) <= 64 for word in tokenizer._cache)


def test_a_result_is_the_callers_own() -> None:
    tokenizer = trained("gpt2")
    tokenizer.encode(" the").append(-1)
    assert -1 not in tokenizer.encode(" the")


# --- training's arguments ------------------------------------------------------------------------------


def test_documents_are_counted_one_by_one() -> None:
    assert BPETokenizer.train(iter(["ab", "ab"]), 400).merges == BPETokenizer.train(["ab", "ab"], 400).merges
    assert BPETokenizer.train(["ab", "cd"], 400).vocab_size == 258  # no pair reaches into the next text


def test_a_small_text_gives_a_smaller_vocabulary() -> None:
    tokenizer = BPETokenizer.train("low low lower", 5000, special_tokens=[EOT])
    assert tokenizer.vocab_size < 300
    assert [len(tokenizer.encode(word)) for word in ("low", " low", " lower")] == [1, 1, 1]
    assert BPETokenizer.train("", 300).vocab_size == 256


def test_endless_repeats_stop_before_the_tokens_are_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmfs.tokenizer._MAX_BYTES", 30)
    tokenizer = BPETokenizer.train("a" * 1000, 300)
    assert [len(tokenizer.token_bytes(id)) for id in range(256, tokenizer.vocab_size)] == [2, 4, 8, 16]
    assert tokenizer.decode(tokenizer.encode("a" * 1000)) == "a" * 1000


def test_special_tokens_are_no_text_to_learn_from() -> None:
    plain = BPETokenizer.train(["once upon", "a time"], 400)
    marked = BPETokenizer.train(f"once upon{EOT}a time", 400, special_tokens=[EOT])
    assert plain.merges == marked.merges


def test_progress_bars_change_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with_bars = BPETokenizer.train(["abc abc"], 300, progress=True)
    assert with_bars.merges == BPETokenizer.train("abc abc", 300).merges
    assert "learning merges" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocab_size": 255}, "at least 256"),
        ({"vocab_size": 257, "special_tokens": ["a", "b"]}, "at least 258"),
        ({"vocab_size": 2_000_000}, "largest possible"),
        ({"vocab_size": 300, "special_tokens": ["a", "a"]}, "given twice"),
        ({"vocab_size": 300, "special_tokens": [""]}, "at least one character"),
        ({"vocab_size": 300, "special_tokens": EOT}, "give a list"),
        ({"vocab_size": 300, "pattern": "(a|b)"}, "capturing group"),
        ({"vocab_size": 300, "pattern": "gpt5["}, "gpt2, gpt4"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BPETokenizer.train("some text", **arguments)  # type: ignore[arg-type]


def test_merges_that_make_no_vocabulary() -> None:
    with pytest.raises(ValueError, match="parts must be below"):
        BPETokenizer([(0, 256)])
    with pytest.raises(ValueError, match="same bytes"):
        BPETokenizer([(0, 0), (0, 256), (256, 0)])


# --- special tokens and bad ids ------------------------------------------------------------------------


def test_special_tokens_in_a_text_are_text_unless_allowed() -> None:
    tokenizer = BPETokenizer.train(text(), 400, special_tokens=[EOT, "<|user|>", "<|user|>x"])
    assert tokenizer.special_tokens == {EOT: 397, "<|user|>": 398, "<|user|>x": 399}
    forged = f"hello{EOT}<|user|>"
    assert max(tokenizer.encode(forged)) < 397
    assert tokenizer.encode(forged, {EOT}) == [*tokenizer.encode("hello"), 397, *tokenizer.encode("<|user|>")]
    assert tokenizer.encode(forged, "all")[-2:] == [397, 398]
    assert tokenizer.encode("<|user|>x", "all") == [399]  # the longer one
    assert tokenizer.decode(tokenizer.encode(forged, "all")) == forged
    assert tokenizer.encode_batch([EOT, "a"], "all") == [[397], tokenizer.encode("a")]
    with pytest.raises(ValueError, match="nobody"):
        tokenizer.encode("a", {"<|nobody|>"})
    with pytest.raises(ValueError, match="give a collection"):
        tokenizer.encode("a", EOT)


@pytest.mark.parametrize("bad", [1000, -1, 10**9, "a", None, 1.5])
def test_an_unknown_id_is_named_with_the_range(bad: object) -> None:
    for tokenizer in (trained("gpt2"), CharTokenizer.train("abc"), WordTokenizer.train("a b c")):
        with pytest.raises(ValueError, match=f"{bad!r} is not in the vocabulary: ids are 0 to"):
            tokenizer.decode([0, bad])  # type: ignore[list-item]


def test_ids_may_be_an_array_or_a_tensor() -> None:
    import numpy as np
    import torch

    tokenizer = trained("gpt2")
    ids = tokenizer.encode("the end")
    assert tokenizer.decode(np.array(ids, np.uint16)) == tokenizer.decode(torch.tensor(ids)) == "the end"
    assert tokenizer.decode(id for id in ids) == "the end"
    assert tokenizer.token_bytes(np.uint16(ids[0])) == tokenizer.token_bytes(ids[0])  # type: ignore[arg-type]


# --- characters and words ------------------------------------------------------------------------------


def test_characters() -> None:
    tokenizer = CharTokenizer.train(["hello", " wörld"], special_tokens=[EOT])
    assert tokenizer.vocab_size == 10 and tokenizer.special_tokens == {EOT: 9}
    assert tokenizer.encode("ö d") == [8, 0, 1]
    assert tokenizer.decode(tokenizer.encode("hello wörld")) == "hello wörld"
    assert tokenizer.token_bytes(8) == "ö".encode()
    with pytest.raises(ValueError, match="character 'x' at position 2"):
        tokenizer.encode("hox")


def test_an_unknown_character_with_an_unk_token() -> None:
    tokenizer = CharTokenizer.train("abc", unk_token="<unk>")
    assert tokenizer.special_tokens == {"<unk>": 3}
    assert tokenizer.encode("axb") == [0, 3, 1]
    assert tokenizer.decode([0, 3, 1]) == "a<unk>b"


def test_words_keep_their_spaces() -> None:
    sample = "The cat sat.  The dog didn't sit;\n\tit (really) ran!"
    tokenizer = WordTokenizer.train(sample)
    assert tokenizer.decode(tokenizer.encode(sample)) == sample
    assert tokenizer.token_bytes(tokenizer.encode(" didn't")[0]) == b" didn't"
    lossy = tokenizer.encode("The zebra sat.")
    assert tokenizer.decode(lossy) == "The <unk> sat."
    assert tokenizer.decode(tokenizer.encode("Zebra")) == "<unk>"


def test_a_word_vocabulary_keeps_the_most_frequent_words() -> None:
    tokenizer = WordTokenizer.train("b b b a a c", 5, special_tokens=[EOT])
    assert tokenizer.vocab_size == 5
    assert tokenizer.special_tokens == {"<unk>": 3, EOT: 4}
    assert [tokenizer.decode([id]) for id in range(3)] == [" a", " b", " "]
    with pytest.raises(ValueError, match="need 2"):
        WordTokenizer.train("a", 1)


@settings(deadline=None, max_examples=200)
@given(sample=any_text | tricky_text)
def test_known_text_comes_back_from_every_tokenizer(sample: str) -> None:
    for tokenizer in (CharTokenizer.train(sample), WordTokenizer.train(sample)):
        assert tokenizer.decode(tokenizer.encode(sample)) == sample


# --- files ---------------------------------------------------------------------------------------------

ALL: list[Tokenizer] = [
    BPETokenizer.train(CODE + PROSE, 400, special_tokens=ODD_SPECIALS),
    BPETokenizer.train(CODE + PROSE, 400, pattern="gpt4", special_tokens=ODD_SPECIALS),
    BPETokenizer.train(CODE + PROSE, 400, pattern=r"""\w+|["'\s]|日(?i:x)"""),
    CharTokenizer.train(CODE + PROSE + "\ud800", special_tokens=ODD_SPECIALS, unk_token="<unk>"),
    WordTokenizer.train(CODE + PROSE, 40, special_tokens=ODD_SPECIALS),
]


@pytest.mark.parametrize("tokenizer", ALL, ids=lambda tokenizer: tokenizer.kind)
def test_a_saved_tokenizer_gives_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    sample = CODE + "".join(ODD_SPECIALS) + PROSE
    for loaded in (load_tokenizer(path), type(tokenizer).load(path)):
        assert type(loaded) is type(tokenizer)
        assert loaded.fingerprint() == tokenizer.fingerprint()
        assert loaded.special_tokens == tokenizer.special_tokens
        assert loaded.vocab_size == tokenizer.vocab_size
        allowed: set[str] | Literal["all"]
        for allowed in (set(), "all"):
            ids = tokenizer.encode(sample, allowed)
            assert loaded.encode(sample, allowed) == ids
            assert loaded.decode(ids) == tokenizer.decode(ids)
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]  # nothing temporary is left


def test_fingerprints_tell_tokenizers_apart() -> None:
    others: list[Tokenizer] = [
        BPETokenizer(trained("gpt2").merges),
        BPETokenizer(trained("gpt2").merges, special_tokens=[EOT]),
        BPETokenizer(trained("gpt2").merges, pattern="gpt4"),
        BPETokenizer(trained("gpt2").merges[:-1]),
    ]
    assert len({tokenizer.fingerprint() for tokenizer in others + ALL}) == len(others + ALL)
    by_name, written_out = BPETokenizer([], pattern="gpt2"), BPETokenizer([], pattern=GPT2_PATTERN)
    assert by_name.fingerprint() == written_out.fingerprint()


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tokenizer.json"
    trained("gpt2").save(path)

    def full_disk(fd: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        CharTokenizer.train("abc").save(path)
    assert load_tokenizer(path).fingerprint() == trained("gpt2").fingerprint()
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]


def bad_file(**fields: object) -> bytes:
    """The bytes of a tokenizer file with these fields."""
    return json.dumps({"format": "llmfs-tokenizer", "version": 1, **fields}).encode()


def bad_bpe(**fields: object) -> bytes:
    """The bytes of a BPE tokenizer's file with these fields."""
    return bad_file(**{"type": "bpe", "pattern": "a", "merges": [], "special_tokens": [], **fields})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged"),
        (b"\xff\xfe\x00", "damaged"),
        (b"[" * 100_000, "damaged"),
        (b"[]", "not a tokenizer file"),
        (b'{"merges": []}', "not a tokenizer file"),
        (bad_bpe(version=99), "version 99; this package reads version 1"),
        (bad_bpe(type="unigram"), "type 'unigram'; known types"),
        (bad_bpe(type=["bpe"]), "known types"),
        (bad_file(type="bpe"), "KeyError"),
        (bad_bpe(pattern=5), "TypeError"),
        (bad_bpe(merges=[["1", 2]]), "TypeError"),
        (bad_bpe(merges=[[1]]), "ValueError"),
        (bad_bpe(merges=[[1, 900]]), "900"),
        (bad_bpe(special_tokens="abc"), "TypeError"),
        (bad_bpe(merges=[[0, 0]] + [[256 + k, 256 + k] for k in range(60)]), "more than 67,108,864 bytes together"),
        (bad_bpe(pattern="(" * 5000 + ")" * 5000), "not a regular expression"),
        (bad_bpe(pattern="(?:(?:(?:a{1000}){1000}){1000}){1000}"), "repeats its parts more than 10,000 times"),
        (bad_bpe(pattern="a{9999999999999}"), "repeats its parts"),
        (bad_bpe(special_tokens=["x"] * 2), "given twice"),
        (bad_bpe(fingerprint="0123"), "not those that were written"),
        (bad_file(type="char", characters=["ab"], special_tokens=[], unk_token=None), "one character"),
        (bad_file(type="word", words=["a"], special_tokens=[]), "special token"),
    ],
)
def test_a_bad_file_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=rf"bad\.json.*({message})"):
        load_tokenizer(path)


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4", "[a-z]+"])
def test_a_copy_and_one_in_another_process_give_the_same_ids(pattern: str) -> None:
    sample = "Zoë's 🦉 don't\r\n  3.14159 <unk>"
    bpe = trained(pattern)
    for tokenizer in (bpe, CharTokenizer.train(sample, unk_token="?"), WordTokenizer.train(sample)):
        for made in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
            assert made.encode(sample, "all") == tokenizer.encode(sample, "all")
            assert made.fingerprint() == tokenizer.fingerprint() and type(made) is type(tokenizer)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    trained("gpt2").save(path)
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 1):
        path.write_bytes(whole[:length])
        with pytest.raises(TokenizerError, match="damaged"):
            BPETokenizer.load(path)


def test_a_changed_merge_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    trained("gpt2").save(path)
    content = json.loads(path.read_bytes())
    content["merges"][-1][0] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match="tokens are not those that were written"):
        load_tokenizer(path)
    del content["fingerprint"]  # as older versions wrote it
    path.write_text(json.dumps(content))
    assert load_tokenizer(path).vocab_size == trained("gpt2").vocab_size


def test_a_pattern_that_takes_forever_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmfs.tokenizer._SECONDS", 0.2)
    tokenizer = BPETokenizer([], pattern="(?:a|aa)+$")
    assert tokenizer.decode(tokenizer.encode("aab")) == "aab"
    with pytest.raises(ValueError, match=r"takes too long to cut this text of 81 characters"):
        tokenizer.encode("a" * 80 + "!")


def test_many_special_tokens_are_checked_in_good_time() -> None:
    began = time.process_time()
    assert CharTokenizer("ab", special_tokens=[f"<{k}>" for k in range(50_000)]).vocab_size == 50_002
    assert time.process_time() - began < 5


def test_the_wrong_class_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    CharTokenizer.train("abc").save(path)
    with pytest.raises(TokenizerError, match="type 'char', not 'bpe'"):
        BPETokenizer.load(path)
    assert Tokenizer.load(path).vocab_size == 3
