"""BPE side by side: training against Hugging Face `tokenizers`, encoding against `tiktoken`.

    python -m benchmarks.bpe [--corpus NAME_OR_PATH] [--vocab-size 4096] [--rounds 7]

Before anything is timed, both trainers must give the same merges and both encoders the same ids. The two sides of
a comparison take turns in one process, so that what else the machine does falls on both; a ratio is taken within
a round, and the table shows the median of the ratios and their range.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmfs.corpus import CorpusError, load_texts
from llmfs.tokenizer import BPETokenizer

N_CHARACTERS = 1_100_000  # what is measured on
MAX_TRAIN_RATIO = 1.0  # target: our time to train over that of tokenizers
MIN_ENCODE_RATIO = 0.4  # target: our rate with a warm cache over that of tiktoken


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", help="tiny-shakespeare where it can be had, else tales")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()

    name, text = choose_text(arguments.corpus)
    n_bytes = len(text.encode())
    print(f"{name}: {n_bytes:,} bytes, {arguments.vocab_size:,} ids, {arguments.rounds} rounds, {os.cpu_count()} CPUs")

    train_times = compare_training(text, arguments.vocab_size, arguments.rounds)
    encode_times = compare_encoding(text, arguments.vocab_size, arguments.rounds)
    print(f"\n{'':34}{'median':>10}{'range':>20}")
    for what, times in (train_times | encode_times).items():
        print_row(what, times, "s")
    ratios = [a / b for a, b in zip(train_times["train, ours"], train_times["train, tokenizers"], strict=True)]
    rates = {
        kind: [b / a for a, b in zip(encode_times[f"encode, ours, {kind}"], encode_times["encode, tiktoken"], strict=True)]
        for kind in ("cold", "warm")
    }
    print_row("training time, ours / tokenizers", ratios, "")
    print_row("encoding rate, ours cold / tiktoken", rates["cold"], "")
    print_row("encoding rate, ours warm / tiktoken", rates["warm"], "")
    warm = statistics.median(rates["warm"])
    print(f"\nencoding, warm: {n_bytes / 1e6 / statistics.median(encode_times['encode, ours, warm']):.1f} MB/s")
    print(f"target, training ratio at most {MAX_TRAIN_RATIO}: {verdict(statistics.median(ratios) <= MAX_TRAIN_RATIO)}")
    print(f"target, warm encoding ratio at least {MIN_ENCODE_RATIO}: {verdict(warm >= MIN_ENCODE_RATIO)}")
