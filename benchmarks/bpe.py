"""BPE side by side: training against Hugging Face `tokenizers`, encoding against `tiktoken`.

    python -m benchmarks.bpe [--corpus NAME_OR_PATH] [--vocab-size 4096] [--rounds 7]

Before anything is timed, both trainers must give the same merges and both encoders the same ids. The two sides
of a comparison take turns in one process, so that whatever else the machine does falls on both. A ratio is taken
within a round; the table shows the median and the range over the rounds.

Training is measured twice: on the text as one document, and on its paragraphs. `tokenizers` reads several
documents at once, one on each core; ours reads them one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

from llmfs.corpus import CorpusError, load_texts
from llmfs.tokenizer import BPETokenizer

N_CHARACTERS = 1_115_394  # what is measured on: as long as Tiny Shakespeare
MAX_TRAINING_RATIO = 1.0  # target: our time to train on one document, over that of tokenizers
MIN_WARM_RATIO = 0.4  # target: our encoding rate with a warm cache, over that of tiktoken

Times = dict[str, list[float]]  # seconds, one for each round


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", help="default: tiny-shakespeare where it can be had, else tales")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()

    name, text = choose_text(arguments.corpus)
    print(
        f"{name}: {len(text.encode()):,} bytes, {arguments.vocab_size:,} ids, {arguments.rounds} rounds, "
        f"{os.cpu_count()} CPUs\n"
    )
    print(f"{'':44}{'median':>9}  range")
    one = compare_training([text], arguments.vocab_size, arguments.rounds)
    report("train on one document", one)
    many = compare_training(text.split("\n\n"), arguments.vocab_size, arguments.rounds)
    report("train on paragraphs", many)
    encoding = compare_encoding(text, arguments.vocab_size, arguments.rounds)
    report("encode", encoding)

    training = ratios(one["ours"], one["tokenizers"])
    warm = ratios(encoding["tiktoken"], encoding["ours, warm cache"])
    cold = ratios(encoding["tiktoken"], encoding["ours, cold cache"])
    print_row("training time, document: ours / tokenizers", training)
    print_row("training time, paragraphs: ours / tokenizers", ratios(many["ours"], many["tokenizers"]))
    print_row("encoding rate, warm: ours / tiktoken", warm)
    print_row("encoding rate, cold: ours / tiktoken", cold)
    print()
    print_target(f"training, one document: at most {MAX_TRAINING_RATIO}", median(training) <= MAX_TRAINING_RATIO)
    print_target(f"encoding, warm: at least {MIN_WARM_RATIO}", median(warm) >= MIN_WARM_RATIO)


def choose_text(corpus: str | None) -> tuple[str, str]:
    """The corpus's name and its first N_CHARACTERS."""
    if corpus is None:
        try:
            return "tiny-shakespeare", load_texts("tiny-shakespeare")[0]
        except CorpusError:
            corpus = "tales:4000"
    return corpus, "\n\n".join(load_texts(corpus))[:N_CHARACTERS]


def compare_training(texts: list[str], vocab_size: int, rounds: int) -> Times:
    """Seconds to learn the merges of texts, which must be the same."""
    if BPETokenizer.train(texts, vocab_size).merges != huggingface_merges(texts, vocab_size):
        raise SystemExit("the merges differ: there is nothing to compare")
    return take_turns(
        rounds,
        {
            "ours": lambda: BPETokenizer.train(texts, vocab_size),
            "tokenizers": lambda: huggingface_train(texts, vocab_size),
        },
    )


def compare_encoding(text: str, vocab_size: int, rounds: int) -> Times:
    """Seconds to encode the text, with one vocabulary, to ids that must be the same."""
    ours = BPETokenizer.train(text, vocab_size)
    reference = ours.to_tiktoken()
    if ours.encode(text) != reference.encode_ordinary(text):
        raise SystemExit("the ids differ: there is nothing to compare")
    fresh = iter([BPETokenizer(ours.merges) for _ in range(rounds)])
    return take_turns(
        rounds,
        {
            "ours, cold cache": lambda: next(fresh).encode(text),
            "ours, warm cache": lambda: ours.encode(text),
            "tiktoken": lambda: reference.encode_ordinary(text),
        },
    )


def huggingface_train(texts: list[str], vocab_size: int) -> str:
    """Train with `tokenizers`; the result as its JSON."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str())


def huggingface_merges(texts: list[str], vocab_size: int) -> list[tuple[int, int]]:
    """The merges of `huggingface_train` as pairs of ids."""
    model = json.loads(huggingface_train(texts, vocab_size))["model"]
    return [(model["vocab"][a], model["vocab"][b]) for a, b in model["merges"]]


def take_turns(rounds: int, sides: dict[str, Callable[[], object]]) -> Times:
    """Run each side once a round -> its seconds."""
    times: Times = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return times


def ratios(above: list[float], below: list[float]) -> list[float]:
    """above / below, round by round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def median(values: list[float]) -> float:
    return statistics.median(values)


def report(what: str, times: Times) -> None:
    for name, seconds in times.items():
        print_row(f"{what}: {name}", seconds, " s")
    print()


def print_row(what: str, values: list[float], unit: str = "") -> None:
    print(f"{what:44}{median(values):9.3f}{unit}  {min(values):.3f} to {max(values):.3f}{unit}")


def print_target(what: str, met: bool) -> None:
    print(f"target, {what}: {'met' if met else 'MISSED'}")


if __name__ == "__main__":
    main()
