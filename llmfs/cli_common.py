"""What the modules of the command line share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch takes seconds to import: `llmfs --help` does without
    from llmfs.checkpoint import Checkpoint

SOURCE_HELP = "a text file, a folder of .txt and .md files, or the name of a corpus (llmfs data list)"
DEVICE_HELP = "cpu, cuda, mps, or auto for the best there is"


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, but not where the default is to leave a thing out."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, argparse.SUPPRESS):
            return action.help
        return super()._get_help_string(action)


def command(commands: Any, name: str, run: Any, help: str) -> argparse.ArgumentParser:
    """Add a command that calls run(args) -> its parser."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help, description=help, formatter_class=Help)
    parser.set_defaults(run=run)
    return parser


def find_device(name: str) -> str:
    """The device to use; auto: the best there is. Raises ValueError for one that is not there."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return name


@contextmanager
def joined(device: str) -> Iterator[bool]:
    """Join the processes that `torchrun` has started, if it has -> whether this one speaks for all."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield True
        return
    import torch
    from torch import distributed

    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # each process has a GPU of its own
    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield distributed.get_rank() == 0
    finally:
        distributed.destroy_process_group()


def tokenizer_of(checkpoint: Checkpoint) -> Any:
    """The checkpoint's tokenizer. Raises ValueError where it has none."""
    if checkpoint.tokenizer is None:
        raise ValueError(f"{checkpoint.path} holds no tokenizer.json, so its ids mean nothing")
    return checkpoint.tokenizer
