"""The book's own model, made from nothing: seconds, distance to the floor, recall by kind and by distance.

python -m benchmarks.tales_model [small|large] [stories]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from llmfs.checkpoint import load_checkpoint
from llmfs.recipes import RECIPES, tales_report, train_on_tales


def main(name: str = "small", stories: str = "500") -> None:
    """Train, then print the report."""
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        history = train_on_tales(RECIPES[name], Path(folder), progress=sys.stderr.isatty())
        checkpoint = load_checkpoint(folder)
    print(
        f"{checkpoint.model.n_params():,} parameters, {len(history.loss):,} steps, {history.tokens[-1]:,} tokens, "
        f"{history.seconds[-1]:.0f} s of training"
    )
    print(tales_report(checkpoint.model, checkpoint.tokenizer, int(stories)))


if __name__ == "__main__":
    main(*sys.argv[1:])
