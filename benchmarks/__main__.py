"""The command line: `python -m benchmarks`."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmfs.cli_common import Help, command
from llmfs.tokenizer import atomic_file

MEASURES = {  # command -> module and what it says of itself
    "bpe-train": ("bpe_train", "train BPE beside tokenizers: seconds and memory"),
    "encode": ("encode", "encode and decode beside tiktoken: MB/s, and the worst inputs"),
    "train": ("training", "train beside transformers with torch's AdamW: tokens/s and losses"),
    "generate": ("generation", "generate beside transformers: tokens/s with a cache"),
    "rnn": ("rnn", "recurrent cells beside torch's own"),
    "book": ("book", "seconds for each lesson, builds, weight of the pages"),
    "recipes": ("recipes", "train the package's recipes to their end, beside nanoGPT's setting (minutes; not in all)"),
}
IN_ALL = [name for name in MEASURES if name != "recipes"]


def build_parser() -> argparse.ArgumentParser:
    """Every command and option."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure llmfs beside what a reader would otherwise use. Both sides take turns in one run, and "
        "first show that they do the same work.",
        formatter_class=Help,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (_, text) in MEASURES.items():
        one = command(commands, name, run_measures, text)
        one.set_defaults(names=[name], file=f"{name}.json")
        _add_options(one)
        if name == "book":
            one.add_argument("--build", action="store_true", help="also build the book, cold and warm; removes _build")
            one.add_argument("--junit", type=Path, metavar="FILE", help="the lessons' seconds, of pytest --junitxml")
        if name == "recipes":
            one.add_argument("--tales", choices=("tiny", "small", "large"), help="also make this model of the book")
    every = command(commands, "all", run_measures, "all of these, one after the other; results in one file")
    every.set_defaults(names=IN_ALL, file="results.json")
    _add_options(every)
    page = command(commands, "page", run_page, "write results as a page of Markdown")
    page.add_argument("results", type=Path, nargs="+", metavar="RESULTS", help="result files, or folders of them")
    page.add_argument("--out", type=Path, metavar="FILE", help="the page; left out: standard output")
    return parser


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the results go, as JSON")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, and no more")
    parser.add_argument("--rounds", type=int, metavar="N", help="turns of each side; left out: as each command needs")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of each side")
    parser.add_argument(
        "--cpu-clock", action="store_true", help="count processor time, on a machine that others use (one thread only)"
    )


def run_measures(args: argparse.Namespace) -> None:
    """One command, or `all`."""
    from benchmarks import measure

    if args.threads < 1 or (args.rounds is not None and args.rounds < 1):
        raise ValueError(f"--threads {args.threads} and --rounds {args.rounds} must be at least 1")
    if args.cpu_clock and args.threads > 1:
        raise ValueError("--cpu-clock adds up the time of all threads: it goes with --threads 1 only")
    args.out.mkdir(parents=True, exist_ok=True)
    measure.use_threads(args.threads)
    settings = measure.Settings(args.quick, args.rounds, args.threads, args.cpu_clock, progress=sys.stderr.isatty())
    results: dict[str, Any] = {
        "machine": measure.machine(),
        "versions": measure.versions(),
        "settings": asdict(settings),
        "seconds": {},
        "sections": {},
    }
    path = args.out / args.file
    for name in args.names:
        began = time.perf_counter()
        module = importlib.import_module(f"benchmarks.{MEASURES[name][0]}")
        options = {key: getattr(args, key) for key in ("build", "junit", "tales") if hasattr(args, key)}
        section = module.run(settings, **options)
        results["seconds"][name] = round(time.perf_counter() - began, 1)
        results["sections"][name] = section.to_dict()
        with atomic_file(path) as file:  # after each, so that a run that is cut off leaves what it has
            file.write((json.dumps(results, indent=1) + "\n").encode())
        summarize(section, results["seconds"][name])
    print(f"written to {path}")


def summarize(section: Any, seconds: float) -> None:
    """The tables, on standard output."""
    from benchmarks import page

    print(f"## {section.title} ({seconds:.0f} s)\n")
    if section.comparisons:
        print(page.comparison_table(section.comparisons))
    for table in section.tables:
        print(f"{table.title}\n\n{page.markdown(table.columns, table.rows)}")
    for note in section.notes:
        print(note)
    print(flush=True)


def run_page(args: argparse.Namespace) -> None:
    """`python -m benchmarks page`."""
    from benchmarks import page

    text = page.render(page.read(args.results))
    if args.out is None:
        print(text, end="")
        return
    with atomic_file(args.out) as file:
        file.write(text.encode())
    print(f"written to {args.out}")


def main(arguments: list[str] | None = None) -> int:
    """Run a command -> the exit status; what went wrong is one line on standard error."""
    from benchmarks.measure import DifferentWork

    args = build_parser().parse_args(arguments)
    try:
        args.run(args)
    except (DifferentWork, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
