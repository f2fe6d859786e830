"""The texts that tokenizers are measured on, with a sentence on how each is made."""

from __future__ import annotations

import itertools
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from llmfs.corpus import CorpusError, load_texts

MB = 1_000_000  # bytes
PROSE = ("tiny-shakespeare", "wikitext-2/validation", "wikitext-2/test", "kjv")
SCRIPTS = {  # first and last letter
    "Greek": (0x3B1, 0x3C9),
    "Cyrillic": (0x430, 0x44F),
    "Hebrew": (0x5D0, 0x5EA),
    "Arabic": (0x627, 0x64A),
    "Devanagari": (0x904, 0x939),
    "Thai": (0xE01, 0xE2E),
    "Hiragana": (0x3041, 0x3096),
    "Chinese": (0x4E00, 0x5200),
    "Hangul": (0xAC00, 0xAE00),
    "Emoji": (0x1F600, 0x1F64F),
}


def prose(n_bytes: int) -> tuple[str, str]:
    """English -> the text, and what it is."""
    found, names = [], []
    for name in PROSE:
        try:
            found.append("\n\n".join(load_texts(name)))
            names.append(name)
        except CorpusError:
            continue
    if not found:  # about a thousand bytes per tale
        found, names = ["\n\n".join(load_texts("tales", n=max(1, n_bytes // 500)))], ["tales"]
    # A piece of each in turn, so that a short text is a mixture too.
    pieces = [_pieces(text, 50_000) for text in found]
    text = "".join(piece for turn in itertools.zip_longest(*pieces, fillvalue="") for piece in turn)
    return cut(text, n_bytes), f"English: {', '.join(names)}, a piece of each in turn"


def code(n_bytes: int) -> tuple[str, str]:
    """Source code -> the text, and what it is."""
    return cut("".join(_python_files(n_bytes)), n_bytes), "the source of Python's own standard library"


def scripts(n_bytes: int) -> tuple[str, str]:
    """Words of random letters in ten scripts, rare ones and common ones -> the text, and what it is."""
    rng = random.Random(0)
    lines: list[str] = []
    size = 0
    words = {name: [_word(rng, *ends) for _ in range(3_000)] for name, ends in SCRIPTS.items()}
    weights = [1 / rank for rank in range(1, 3_001)]  # as in a language: Zipf's law
    while size < n_bytes:
        name = rng.choice(list(SCRIPTS))
        line = " ".join(rng.choices(words[name], weights, k=12)) + ".\n"
        lines.append(line)
        size += len(line.encode())
    return cut("".join(lines), n_bytes), f"random words, as frequent as Zipf's law says, in {', '.join(SCRIPTS)}"


def mixture(n_bytes: int) -> tuple[str, str]:
    """Prose as far as it goes, then source code: no sentence is there twice by our doing -> text, what it is."""
    text, what = prose(n_bytes)
    missing = n_bytes - len(text.encode())
    if missing < 1_000:
        return text, what
    more, more_what = code(missing)
    return text + "\n\n" + more, f"{what} ({(n_bytes - missing) / MB:.1f} MB), then {more_what} ({missing / MB:.1f} MB)"


def cut(text: str, n_bytes: int) -> str:
    """The first n_bytes of a text, without a broken character at the end."""
    return text.encode("utf-8", "ignore")[:n_bytes].decode("utf-8", "ignore")


def paragraphs(text: str) -> list[str]:
    """The documents that a text is given as."""
    return text.split("\n\n")


def _pieces(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


def _python_files(n_bytes: int) -> Iterator[str]:
    size = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if size >= n_bytes:
            return
        if "site-packages" in path.parts:
            continue
        try:
            text = path.read_text("utf-8")
        except (UnicodeDecodeError, OSError):  # tests of broken files
            continue
        size += len(text.encode())
        yield text


def _word(rng: random.Random, first: int, last: int) -> str:
    return "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(2, 9)))
