"""The command `llmfs experiment`: one table for each, with seeds and intervals."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmfs.cli_common import DEVICE_HELP, SOURCE_HELP, Help, command, find_device

if TYPE_CHECKING:  # torch takes seconds to import: `llmfs --help` does without
    from llmfs.experiments import Result

# name -> steps and seeds without and with --full; None: each preset's own
SIZES: dict[str, tuple[tuple[int | None, int], tuple[int | None, int]]] = {
    "models": ((None, 1), (None, 3)),
    "bits": ((200, 3), (2_000, 5)),
    "ablations": ((160, 3), (1_600, 5)),
    "sweep": ((160, 3), (1_600, 5)),
    "remember": ((160, 3), (1_600, 5)),
}
SOURCES = {"models": ["tiny-shakespeare", "tales"], "bits": ["tales"]}  # where none is given
QUICK_SHARE = 0.1  # of each preset's steps, for `models` without --full


def add_commands(commands: Any) -> None:
    """Add `experiment` and what can be asked with it."""
    group = commands.add_parser(
        "experiment", help="measure one thing against another, over several seeds", formatter_class=Help
    )
    sub = group.add_subparsers(required=True, metavar="NAME")
    for name, run, text in (
        ("models", run_models, "the kinds of model that `llmfs train` knows, on the same text"),
        ("bits", run_bits, "characters, words and BPE in bits per byte, at the same number of operations"),
        ("ablations", run_ablations, "a GPT with one part taken out at a time"),
        ("sweep", run_sweep, "learning rate; batch; depth against width at equal cost"),
        ("remember", run_remember, "who recalls facts over which distance: RNN, LSTM, LSTM with attention, GPT"),
    ):
        parser = command(sub, name, run, text)
        if name in SOURCES:
            left_out = f"; a table for each; left out: {' and '.join(SOURCES[name])}"
            parser.add_argument("sources", nargs="*", metavar="SOURCE", help=SOURCE_HELP + left_out)
        if name == "models":
            parser.add_argument("--preset", choices=("small", "large", "tiny"), default="small", help="of every model")
            parser.add_argument("--model", action="append", metavar="MODEL", help="only this one; may be repeated")
        if name == "sweep":
            parser.add_argument("--part", action="append", choices=("rate", "batch", "shape"), help="only this part")
        _add_common(parser, name)


def _add_common(parser: argparse.ArgumentParser, name: str) -> None:
    (steps, seeds), (full_steps, full_seeds) = SIZES[name]
    quick, full = (
        (f"{steps:,} steps", f"{full_steps:,} steps")
        if steps is not None
        else (f"{QUICK_SHARE:.0%} of each preset's steps", "each preset's steps")
    )
    counted = [f"{n} seed{'s' if n > 1 else ''}" for n in (seeds, full_seeds)]
    text = f"the long version: {full}, {counted[1]}; without it {quick}, {counted[0]}"
    parser.add_argument("--full", action="store_true", help=text.replace("%", "%%"))
    parser.add_argument("--steps", type=int, metavar="N", help="optimizer steps of a run")
    parser.add_argument("--seeds", type=int, metavar="N", help="runs of each kind, with seeds 0 to N - 1")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="also write the tables here: .md, or .json with all runs"
    )
    parser.add_argument("--device", default="auto", help=DEVICE_HELP)


def _size(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """What every experiment takes, checked before anything is trained."""
    steps, n_seeds = SIZES[name][args.full]
    steps = steps if args.steps is None else args.steps
    n_seeds = n_seeds if args.seeds is None else args.seeds
    if (steps is not None and steps < 1) or n_seeds < 1:
        raise ValueError(f"--steps {steps} and --seeds {n_seeds} must be at least 1")
    if args.out is not None and (args.out.suffix not in (".md", ".json") or not args.out.absolute().parent.is_dir()):
        raise ValueError(f"--out {args.out}: expected a .md or .json file in a folder that exists")
    return dict(steps=steps, seeds=range(n_seeds), device=find_device(args.device))


def run_models(args: argparse.Namespace) -> None:
    """`llmfs experiment models`."""
    from llmfs import experiments, recipes

    size = _size(args, "models") | {"share": 1.0 if args.full else QUICK_SHARE, "preset": args.preset}
    kinds = args.model or list(recipes.TEXT_MODELS)
    results = {}
    for source, texts in _load(args.sources or SOURCES["models"]).items():
        floor = experiments.tales_floor(len(texts)) if source.partition(":")[0] == "tales" else None
        results[source] = experiments.models(texts, kinds=kinds, floor=floor, **size)
    _report(results, args.out)


def run_bits(args: argparse.Namespace) -> None:
    """`llmfs experiment bits`."""
    from llmfs import experiments

    size = _size(args, "bits")
    texts = _load(args.sources or SOURCES["bits"])
    _report({source: experiments.bits(text, **size) for source, text in texts.items()}, args.out)


def run_ablations(args: argparse.Namespace) -> None:
    """`llmfs experiment ablations`."""
    from llmfs import experiments

    _report({"tales": experiments.ablations(**_size(args, "ablations"))}, args.out)


def run_sweep(args: argparse.Namespace) -> None:
    """`llmfs experiment sweep`."""
    from llmfs import experiments

    parts = args.part or experiments.SWEPT
    _report({"tales": experiments.sweep(parts=parts, **_size(args, "sweep"))}, args.out)


def run_remember(args: argparse.Namespace) -> None:
    """`llmfs experiment remember`."""
    from llmfs import experiments

    _report({"tales": experiments.remember(**_size(args, "remember"))}, args.out)


def _load(sources: list[str]) -> dict[str, list[str]]:
    """All texts, before anything is trained: a source that is not there is known at once."""
    from llmfs.corpus import load_texts

    return {source: load_texts(source, progress=True) for source in sources}


def _report(results: dict[str, Result], out: Path | None) -> None:
    """Print the tables, and write them where that was asked for."""
    from llmfs.tokenizer import atomic_file

    text = "\n".join(f"## {source}\n\n{result.to_markdown()}" for source, result in results.items())
    print(text, end="")
    if out is not None:
        if out.suffix == ".json":
            text = json.dumps({source: result.to_dict() for source, result in results.items()}, indent=2) + "\n"
        with atomic_file(out) as file:
            file.write(text.encode("utf-8", "surrogatepass"))
        print(f"\nwritten to {out}")
