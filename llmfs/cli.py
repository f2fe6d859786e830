"""The command line: `llmfs`, or `python -m llmfs`.

Every command is a thin layer over a function of the package; what a user got wrong is one line on standard error and
exit code 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmfs import cli_experiments, cli_tuning
from llmfs.cli_common import DEVICE_HELP, SOURCE_HELP, Help, command, find_device, joined, tokenizer_of

if TYPE_CHECKING:  # torch takes seconds to import: `llmfs --help` does without
    from llmfs.recipes import Recipe
    from llmfs.tokenizer import Tokenizer
    from llmfs.train import History


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command -> its exit code: 0, 1 where it cannot go on, 2 for a user's mistake, 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a character gets a "?" for it
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    args = build_parser().parse_args(argv)
    try:
        args.run(args)
        return 0
    except (ValueError, OSError) as error:
        print(f"llmfs: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        from llmfs.train import TrainingError

        if isinstance(error, MemoryError) or re.search(r"allocate memory|out of memory", str(error)):
            print(
                "llmfs: error: there is not enough memory for this: use a smaller model, fewer or shorter rows, "
                f"or less text ({' '.join(str(error).split()):.200})",
                file=sys.stderr,
            )
            return 1
        if not isinstance(error, TrainingError):
            raise
        print(f"llmfs: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nllmfs: interrupted", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    parser = argparse.ArgumentParser(
        prog="llmfs",
        description="Train, sample, evaluate and fine-tune small GPTs; the companion of the book LLM From Scratch.",
        formatter_class=Help,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_data(commands)
    _add_tokenizer(commands)
    _add_train(commands)
    _add_generate(commands)
    _add_evaluate(commands)
    cli_tuning.add_commands(commands)
    cli_experiments.add_commands(commands)
    return parser


# --- data ----------------------------------------------------------------------------------------------


def _add_data(commands: Any) -> None:
    group = commands.add_parser("data", help="corpora: list them, fetch one", formatter_class=Help)
    sub = group.add_subparsers(required=True, metavar="COMMAND")
    command(sub, "list", run_data_list, "list the corpora that have a name")
    get = command(sub, "get", run_data_get, "fetch a corpus once, check it, and print what it holds")
    get.add_argument("name", help="the corpus")
    get.add_argument("--out", type=Path, help="also write its text to this file")


def run_data_list(args: argparse.Namespace) -> None:
    """`llmfs data list`."""
    from llmfs.corpus import list_corpora

    for corpus in list_corpora():
        print(f"{corpus.name:18} {corpus.description}\n{'':18} {corpus.size}; {corpus.license}")
        if any(file.checksum.startswith("size:") for file in corpus.parts().values()):
            print(f"{'':18} no hash of it is known: its size is checked, and that it stays the same")


def run_data_get(args: argparse.Namespace) -> None:
    """`llmfs data get`."""
    from llmfs.corpus import count_bytes, load_texts
    from llmfs.tokenizer import atomic_file

    texts = load_texts(args.name, progress=True)
    print(f"{args.name}: {len(texts):,} documents, {count_bytes(texts):,} bytes")
    if args.out is not None:
        with atomic_file(args.out) as file:
            file.write("\n\n".join(texts).encode("utf-8", "surrogatepass"))
        print(f"written to {args.out}")


# --- tokenizer -----------------------------------------------------------------------------------------


def _add_tokenizer(commands: Any) -> None:
    group = commands.add_parser("tokenizer", help="train a tokenizer, encode, decode", formatter_class=Help)
    sub = group.add_subparsers(required=True, metavar="COMMAND")
    train = command(sub, "train", run_tokenizer_train, "learn a tokenizer from text and write it to a file")
    train.add_argument("source", help=SOURCE_HELP)
    train.add_argument("--out", type=Path, required=True, help="the file to write (JSON)")
    train.add_argument("--kind", choices=("bpe", "char", "word"), default="bpe", help="what a token is")
    train.add_argument("--vocab-size", type=int, default=1024, metavar="N", help="tokens in all (bpe, word)")
    train.add_argument(
        "--pattern", choices=("gpt2", "gpt4"), default="gpt2", help="how text is cut before merging (bpe)"
    )
    encode = command(sub, "encode", run_tokenizer_encode, "turn text into ids")
    encode.add_argument("tokenizer", type=Path, help="the tokenizer's file")
    encode.add_argument("text", nargs="?", help="the text; left out: standard input")
    decode = command(sub, "decode", run_tokenizer_decode, "turn ids into text")
    decode.add_argument("tokenizer", type=Path, help="the tokenizer's file")
    decode.add_argument("ids", nargs="*", type=int, help="the ids; left out: standard input")


def run_tokenizer_train(args: argparse.Namespace) -> None:
    """`llmfs tokenizer train`."""
    from llmfs.corpus import load_texts

    tokenizer = _train_tokenizer(load_texts(args.source, progress=True), args.kind, args.vocab_size, args.pattern)
    tokenizer.save(args.out)
    print(f"{tokenizer.vocab_size:,} tokens, written to {args.out}")


def run_tokenizer_encode(args: argparse.Namespace) -> None:
    """`llmfs tokenizer encode`."""
    from llmfs.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(args.tokenizer)
    if args.text is None and isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", newline="")  # "\r\n" stays what it is
    print(*tokenizer.encode(sys.stdin.read() if args.text is None else args.text))


def run_tokenizer_decode(args: argparse.Namespace) -> None:
    """`llmfs tokenizer decode`."""
    from llmfs.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(args.tokenizer)
    try:
        ids = args.ids or [int(word) for word in sys.stdin.read().split()]
    except ValueError as error:
        raise ValueError(f"ids are whole numbers with spaces between: {error}") from error
    print(tokenizer.decode(ids))


def _train_tokenizer(texts: list[str], kind: str, vocab_size: int, pattern: str, progress: bool = True) -> Tokenizer:
    from llmfs import tokenizer
    from llmfs.recipes import END

    if kind == "char":
        return tokenizer.CharTokenizer.train(texts, special_tokens=[END])
    if kind == "word":
        return tokenizer.WordTokenizer.train(texts, vocab_size, special_tokens=[END])
    return tokenizer.BPETokenizer.train(texts, vocab_size, pattern=pattern, special_tokens=[END], progress=progress)


# --- train ---------------------------------------------------------------------------------------------


def _add_train(commands: Any) -> None:
    train = command(
        commands, "train", run_train, "train a model on text; the newest checkpoint and its tokenizer stay in a folder"
    )
    train.add_argument("source", help=SOURCE_HELP)
    train.add_argument("--out", type=Path, required=True, help="the run's folder")
    train.add_argument(
        "--model",
        choices=("gpt", "mini-transformer", "char-rnn", "word-rnn", "lstm-attention"),
        default="gpt",
        help="what kind of model",
    )
    train.add_argument("--cell", choices=("lstm", "gru", "rnn"), help="of a recurrent model")
    train.add_argument(
        "--preset",
        choices=("small", "large", "tiny"),
        default="small",
        help="a size with its training settings; tiny: seconds, to try things out; small: minutes on two "
        "cores; large: a GPU, or hours of CPU",
    )
    train.add_argument(
        "--tokenizer",
        default=None,
        metavar="KIND|FILE",
        help="bpe, char or word, learned from the text, or a tokenizer's file; left out: what the model reads best",
    )
    train.add_argument("--vocab-size", type=int, default=1024, metavar="N", help="tokens in all, where one is learned")
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the run's folder")
    train.add_argument("--seed", type=int, default=0, help="of initial weights, batches and dropout")
    train.add_argument("--device", default="auto", help=DEVICE_HELP)
    model = train.add_argument_group("model, in place of the preset's")
    for flag, text in (
        ("n-layer", "blocks"),
        ("n-head", "attention heads a block"),
        ("n-embd", "channels"),
        ("block-size", "longest context, tokens"),
    ):
        model.add_argument(f"--{flag}", type=int, metavar="N", help=text)
    model.add_argument("--dropout", type=float, metavar="P", help="probability of dropping an activation")
    how = train.add_argument_group("training, in place of the preset's")
    for flag, text in (
        ("steps", "optimizer steps"),
        ("rows", "rows a batch"),
        ("seq-len", "tokens per row"),
        ("accumulate", "batches a step"),
        ("eval-every", "steps between evaluations"),
        ("save-every", "steps between checkpoints"),
    ):
        how.add_argument(f"--{flag}", type=int, metavar="N", help=text)
    how.add_argument("--lr", type=float, help="AdamW's peak learning rate")
    how.add_argument("--matrix-lr", type=float, help="Muon's peak learning rate")
    how.add_argument("--optimizer", choices=("muon", "adamw"), help="for the blocks' matrices")
    how.add_argument(
        "--shard",
        action="store_true",
        default=None,
        help="under torchrun: every process keeps a part of each weight (FSDP), not a copy of all",
    )
    how.add_argument(
        "--precision", choices=("auto", "float32", "bf16"), help="of the forward pass; auto: bf16 where it is faster"
    )
    how.add_argument(
        "--compile",
        action="store_true",
        default=None,
        help="fuse the model's operations (torch.compile): a slow first step, then faster ones; on a CPU this needs a "
        "C++ compiler",
    )


def run_train(args: argparse.Namespace) -> None:
    """`llmfs train`."""
    from llmfs.checkpoint import list_checkpoints

    found = list_checkpoints(args.out)
    if found and not args.resume:
        raise ValueError(
            f"{args.out} already holds a run ({found[-1].name}); give --resume to go on with it, or another --out"
        )
    if args.resume and not found:
        raise ValueError(f"there is nothing to resume in {args.out}")
    if not 0 <= args.seed < 2**63:
        raise ValueError(f"--seed is {args.seed}; expected a number from 0 to {2**63 - 1}")
    device = find_device(args.device)
    with joined(device) as speaks:
        history = _train(args, found, device, speaks)
    if not speaks:
        return
    last = history.evals[-1] if history.evals else {}
    print(
        f"trained {len(history.loss):,} steps on {history.tokens[-1]:,} tokens in {history.seconds[-1]:.0f} s; "
        + "".join(f"{name} {last[key]:.3f}; " for key, name in LABELS.items() if key in last)
        + f"saved in {args.out}"
    )


def _train(args: argparse.Namespace, found: list[Path], device: str, progress: bool) -> History:
    """Train what `run_train` was asked for."""
    from llmfs import recipes
    from llmfs.corpus import load_texts
    from llmfs.tokenizer import load_tokenizer

    kind = recipes.TEXT_MODELS[args.model]
    on_tales = args.source == "tales" and args.tokenizer is None and args.model == "gpt"
    recipe = _recipe((recipes.RECIPES if on_tales else kind.presets)[args.preset], args)
    settings = dict(seed=args.seed, device=device, progress=progress, resume=args.resume)
    if on_tales:
        recipe = dataclasses.replace(recipe, vocab_size=args.vocab_size)
        if recipe.rows > recipe.n_tales:
            raise ValueError(
                f"--rows is {recipe.rows}, but this preset trains on {recipe.n_tales} tales: use fewer rows"
            )
        return recipes.train_on_tales(recipe, args.out, **settings)
    texts = load_texts(args.source, progress=progress)
    if found:
        tokenizer = load_tokenizer(found[-1] / "tokenizer.json")
    elif args.tokenizer in (None, "bpe", "char", "word"):
        tokenizer = _train_tokenizer(texts, args.tokenizer or kind.tokenizer, args.vocab_size, "gpt2", progress)
    else:
        tokenizer = load_tokenizer(args.tokenizer)
    return recipes.train_on_text(recipe, texts, tokenizer, args.out, kind=args.model, **settings)


LABELS = {"loss": "held-out loss, nats per token:", "floor": "the lowest possible:", "bits_per_byte": "bits per byte:"}


def _recipe(recipe: Recipe, args: argparse.Namespace) -> Recipe:
    """The preset with what the user changed."""

    def given(*names: str) -> dict[str, Any]:
        return {name: getattr(args, name) for name in names if getattr(args, name) is not None}

    model = {**recipe.model, **given("n_layer", "n_head", "n_embd", "block_size", "dropout", "cell")}
    if "n_embd" in given("n_embd"):
        model.pop("d_ff", None)  # follows from the width
    train = dataclasses.replace(
        recipe.train,
        **given("steps", "accumulate", "eval_every", "save_every", "lr", "matrix_lr", "optimizer"),
        **given("precision", "shard", "compile"),
    )
    changed = dataclasses.replace(recipe, model=model, train=train, **given("rows", "seq_len"))
    if changed.seq_len > model["block_size"]:
        if args.seq_len is not None:
            raise ValueError(f"--seq-len {changed.seq_len} is more than the block size {model['block_size']}")
        changed = dataclasses.replace(changed, seq_len=model["block_size"])  # a shorter block was asked for
    return changed


# --- generate and evaluate -----------------------------------------------------------------------------


def _add_generate(commands: Any) -> None:
    generate = command(commands, "generate", run_generate, "let a trained model write; the text streams as it comes")
    generate.add_argument("run_dir", type=Path, metavar="run", help="the run's folder, or one checkpoint's")
    generate.add_argument("--prompt", default="", help="what to go on from; left out: the start of a text")
    generate.add_argument("--tokens", type=int, default=200, metavar="N", help="at most this many tokens")
    generate.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest token; 1: as learned")
    generate.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens")
    generate.add_argument(
        "--top-p", type=float, metavar="P", help="draw from the likeliest tokens that hold probability P"
    )
    generate.add_argument("--min-p", type=float, metavar="P", help="leave out tokens below P times the likeliest one's")
    generate.add_argument(
        "--repetition-penalty", type=float, default=1.0, help="above 1: tokens seen before become rarer"
    )
    generate.add_argument(
        "--beams",
        type=int,
        metavar="N",
        help="search for the likeliest text with N beams, in place of drawing tokens; it comes all at once",
    )
    generate.add_argument("--seed", type=int, help="the same seed gives the same text; left out: another each time")
    generate.add_argument("--device", default="auto", help=DEVICE_HELP)


def run_generate(args: argparse.Namespace) -> None:
    """`llmfs generate`."""
    import codecs

    import torch

    from llmfs.checkpoint import load_checkpoint
    from llmfs.recipes import END
    from llmfs.sample import beam_search, generate

    device = find_device(args.device)
    if args.tokens < 1:
        raise ValueError(f"--tokens is {args.tokens}; expected at least 1")
    checkpoint = load_checkpoint(args.run_dir, device=device)
    tokenizer = tokenizer_of(checkpoint)
    end = tokenizer.special_tokens.get(END)
    ids = ([] if end is None else [end]) + tokenizer.encode(args.prompt)
    if not ids:
        raise ValueError("this model's tokenizer has no token that begins a text; give a --prompt")
    stop = set() if end is None else {end}
    if args.beams is not None:
        prompt = torch.tensor([ids], device=device)
        best = beam_search(checkpoint.model, prompt, args.tokens, args.beams, stop=stop)[0][0]
        print(args.prompt + tokenizer.decode([id for id in best.ids if id != end]))
        return
    generator = torch.Generator(device)
    generator.seed() if args.seed is None else generator.manual_seed(args.seed)
    # A character may be split between tokens: show it when its last byte is there.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    print(args.prompt, end="", flush=True)
    for token in generate(
        checkpoint.model,
        torch.tensor([ids], device=device),
        args.tokens,
        generator=generator,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        stop=stop,
    ):
        if token.item() != end:
            print(decoder.decode(tokenizer.token_bytes(int(token))), end="", flush=True)
    print(decoder.decode(b"", final=True))


def _add_evaluate(commands: Any) -> None:
    evaluate = command(commands, "evaluate", run_evaluate, "measure a trained model on text that it has not seen")
    evaluate.add_argument("run_dir", type=Path, metavar="run", help="the run's folder, or one checkpoint's")
    evaluate.add_argument("source", help=SOURCE_HELP + "; tales: stories that no training run sees")
    evaluate.add_argument("--tales", type=int, default=500, metavar="N", help="how many stories, for tales")
    evaluate.add_argument("--device", default="auto", help=DEVICE_HELP)


def run_evaluate(args: argparse.Namespace) -> None:
    """`llmfs evaluate`."""
    from llmfs import recipes
    from llmfs.checkpoint import load_checkpoint
    from llmfs.corpus import load_texts
    from llmfs.evaluate import perplexity

    checkpoint = load_checkpoint(args.run_dir, device=find_device(args.device))
    tokenizer = tokenizer_of(checkpoint)
    if args.source == "tales":
        report = recipes.tales_report(checkpoint.model, tokenizer, args.tales)
        print(report)
        return
    texts = load_texts(args.source, progress=True)
    loss, bpb = recipes.text_loss(checkpoint.model, tokenizer, texts)
    print(f"loss {loss:.4f} nats per token, perplexity {perplexity(loss):.2f}, {bpb:.4f} bits per byte")


def run() -> None:
    """The installed command."""
    code = main()
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe, `head` for one, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
