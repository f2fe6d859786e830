"""Encoding and decoding against `tiktoken` with the same ranks: MB/s cold and warm, batches, and the worst inputs."""

from __future__ import annotations

import os
import random
import statistics
from pathlib import Path
from typing import Any

from benchmarks import texts
from benchmarks.measure import Comparison, Section, Settings, Table, expect_same, take_turns
from llmfs.tokenizer import BPETokenizer

WARM_GOAL, COLD_GOAL = 0.5, 0.25  # times tiktoken's rate, on prose
GROWTH = 6.0  # four times the input may take so many times as long: n log n and a margin


def run(settings: Settings) -> Section:
    """Encode and decode three kinds of text, then the worst inputs."""
    n_bytes = settings.pick(20_000, texts.MB)
    rounds = settings.n_rounds(2, 7)
    tokenizer, ranks = make_tokenizer(settings)
    section = Section(
        "encode", "Encoding and decoding", [f"Ranks: {ranks} where nothing else is said, the same for both sides."]
    )
    for name, make in (("prose", texts.prose), ("code", texts.code), ("other scripts", texts.scripts)):
        text, what = make(n_bytes)
        section.notes.append(f"{name}: {len(text.encode()) / texts.MB:.2g} MB; {what}.")
        section.comparisons += compare(tokenizer, name, text, rounds, settings)
    text, _ = texts.prose(n_bytes)
    small = BPETokenizer.train(text, settings.pick(300, 256 + 4_096))
    section.comparisons += compare(small, f"prose, {small.vocab_size:,} ranks", text, rounds, settings)
    section.notes.append(f"{small.vocab_size:,} ranks: learned from the prose itself.")
    section.tables.append(worst_inputs(tokenizer, settings))
    section.notes.append(
        "Cold: a tokenizer that has seen no text; llmfs keeps the ids of words that it has met, tiktoken keeps none. "
        "Every side uses one thread. Ids and decoded texts are compared first."
    )
    return section


def make_tokenizer(settings: Settings) -> tuple[BPETokenizer, str]:
    """GPT-2's own where LLMFS_DATA has its files, else one that is trained here -> it, and what it is."""
    folder = Path(os.environ.get("LLMFS_DATA", "."))
    files = folder / "gpt2-vocab.bpe", folder / "gpt2-encoder.json"
    if all(file.is_file() for file in files) and not settings.quick:
        return BPETokenizer.from_gpt2_files(*files), "GPT-2's 50,257"
    tokenizer = BPETokenizer.train(texts.mixture(settings.pick(50_000, 4 * texts.MB))[0], settings.pick(400, 8_192))
    return tokenizer, f"{tokenizer.vocab_size:,} learned from the mixture of texts"


def compare(
    ours: BPETokenizer, name: str, text: str, rounds: int, settings: Settings, theirs: Any = None
) -> list[Comparison]:
    """Encode cold and warm, as one text and as a batch of paragraphs, and decode."""
    theirs = ours.to_tiktoken() if theirs is None else theirs
    documents = texts.paragraphs(text)
    ids = ours.encode(text)
    expect_same(f"ids of {name}", ids, theirs.encode_ordinary(text))
    expect_same(f"{name}, decoded", ours.decode(ids), theirs.decode(ids))
    batch = theirs.encode_ordinary_batch(documents, num_threads=1)
    expect_same(f"ids of a batch of {name}", ours.encode_batch(documents), batch)
    fresh = iter([BPETokenizer(ours.merges, pattern=ours.pattern) for _ in range(rounds + 1)])
    seconds = take_turns(
        {
            "cold": lambda: next(fresh).encode(text),
            "their encode": lambda: theirs.encode_ordinary(text),
            "warm": lambda: ours.encode(text),
            "batch": lambda: ours.encode_batch(documents),
            "their batch": lambda: theirs.encode_ordinary_batch(documents, num_threads=1),
            "decode": lambda: ours.decode(ids),
            "their decode": lambda: theirs.decode(ids),
        },
        rounds,
        settings,
        f"encode, {name}",
    )
    size = len(text.encode()) / texts.MB
    cases = (
        ("encode, cold", "cold", "their encode", COLD_GOAL),
        ("encode, warm", "warm", "their encode", WARM_GOAL),
        ("encode a batch, warm", "batch", "their batch", WARM_GOAL),
        ("decode", "decode", "their decode", None),
    )
    return [
        Comparison(
            f"{name}: {what}",
            "tiktoken",
            seconds[a],
            seconds[b],
            size,
            "MB/s",
            goal if name.startswith("prose") else None,
        )
        for what, a, b, goal in cases
    ]


def worst_inputs(tokenizer: BPETokenizer, settings: Settings) -> Table:
    """Words as long as the text: time for n, 2n and 4n characters."""
    n = settings.pick(1_000, 50_000)
    rng = random.Random(0)
    letters = "".join(rng.choices("etaoinshrdlu", k=4 * n))
    inputs = {
        "one letter": "a" * 4 * n,
        "spaces": " " * 4 * n,
        "random letters": letters,
        "digits": "".join(rng.choices("0123456789", k=4 * n)),
        "signs": "=-" * 2 * n,
        "line ends": "\n" * 4 * n,
        "Chinese": "".join(chr(rng.randint(0x4E00, 0x9FA5)) for _ in range(4 * n)),
    }
    theirs = tokenizer.to_tiktoken()
    title = f"Worst inputs: seconds for n = {n:,} characters without a break, 2n and 4n"
    table = Table(title, ["input", "n", "2n", "4n", "4n over n", f"at most {GROWTH:g}", "tiktoken, n"], [])
    for name, text in inputs.items():
        expect_same(f"ids of {name}", tokenizer.encode(text[:n]), theirs.encode_ordinary(text[:n]))
        sides: dict[str, Any] = {str(k): (lambda k=k, text=text: tokenizer.encode(text[: k * n])) for k in (1, 2, 4)}
        sides["theirs"] = lambda text=text: theirs.encode_ordinary(text[:n])
        seconds = {
            side: statistics.median(found)
            for side, found in take_turns(sides, settings.n_rounds(1, 3), settings, f"encode, {name}").items()
        }
        growth = seconds["4"] / seconds["1"]
        row = [name, *(round(seconds[side], 4) for side in "124"), round(growth, 1)]
        table.rows.append([*row, "met" if growth <= GROWTH else "missed", round(seconds["theirs"], 4)])
    return table
