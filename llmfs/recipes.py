"""The book's own tokenizer and models, by name: made when first asked for, then kept.

A result is kept in the cache folder under a key of everything that determines it: the recipe, the code that carries
it out and the version of torch. A change in any of them makes it anew.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from filelock import FileLock
from torch import nn

from llmfs import tales
from llmfs.checkpoint import MODELS, load_checkpoint
from llmfs.config import GPTConfig
from llmfs.corpus import cache_dir, count_bytes
from llmfs.data import document_starts, encode_documents, get_batch, sequential_batches, split, story_batches
from llmfs.evaluate import accuracy_by, bits_per_byte, evaluate, measure_recalls
from llmfs.gpt import GPT
from llmfs.sample import generate
from llmfs.tokenizer import BPETokenizer, Tokenizer
from llmfs.train import History, TrainConfig, train

END = "<|endoftext|>"
TRAIN_SEED, HELD_OUT_SEED = 1, 2  # of the tales; different seeds share no random choice


@dataclass(frozen=True)
class Recipe:
    """How one of the book's models is made."""

    model: dict[str, Any]  # fields of GPTConfig or RNNConfig; the vocabulary size is the tokenizer's
    train: TrainConfig
    n_tales: int = 0  # stories to train on, for recipes on tales
    rows: int = 16  # rows a batch
    seq_len: int = 256  # tokens per row
    vocab_size: int = 1024  # of the book's tokenizer


@dataclass(frozen=True)
class Book:
    """A model, the tokenizer that it reads with, and how its training went."""

    model: GPT
    tokenizer: BPETokenizer
    history: History

    @property
    def end_id(self) -> int:
        """The token that stands before, between and behind stories."""
        return self.tokenizer.special_tokens[END]


SHAPE = dict(block_size=256, n_layer=3, n_head=3, n_embd=192, d_ff=352, qk_norm=True)
RECIPES = {
    "small": Recipe(
        SHAPE,
        TrainConfig(
            steps=1_100,
            lr=1e-2,
            matrix_lr=0.01,
            warmup_steps=50,
            constant=0.4,
            vector_final=0.5,
            precision="auto",
            eval_every=100,
        ),
        n_tales=60_000,
    ),
    "tiny": Recipe(
        {**SHAPE, "n_layer": 2, "n_head": 2, "n_embd": 64, "d_ff": 128},
        TrainConfig(steps=30, lr=1e-2, matrix_lr=0.01, vector_final=0.5, eval_every=15),
        n_tales=2_000,
        rows=8,
        seq_len=128,
    ),
    "large": Recipe(
        {**SHAPE, "n_layer": 6, "n_head": 8, "n_embd": 256, "d_ff": 704},
        TrainConfig(
            steps=6_000,
            lr=5e-3,
            matrix_lr=0.01,
            warmup_steps=100,
            vector_final=0.5,
            precision="auto",
            eval_every=250,
            save_every=500,
        ),
        n_tales=300_000,
    ),
}


# What determines the weights of a model of the tales: whole modules, and functions of this one.
MODEL_CODE = (
    *("attention", "checkpoint", "config", "data", "embeddings", "evaluate", "gpt", "layers", "optim", "tales"),
    *("tokenizer", "train", "recipes.book_tokenizer", "recipes.train_on_tales"),
)

# For any other text. About a megabyte of it, as Tiny Shakespeare is, is learned in the time of "small".
TEXT_SHAPE = dict(block_size=128, n_layer=4, n_head=4, n_embd=128, qk_norm=True)
TEXT_RECIPES = {
    "small": Recipe(
        TEXT_SHAPE, TrainConfig(steps=1_500, precision="auto", eval_every=250, save_every=500), seq_len=128
    ),
    "tiny": Recipe(
        {**TEXT_SHAPE, "n_layer": 2, "n_head": 2, "n_embd": 64},
        TrainConfig(steps=100, eval_every=50),
        rows=8,
        seq_len=128,
    ),
    "large": Recipe(
        {**TEXT_SHAPE, "block_size": 512, "n_layer": 8, "n_head": 8, "n_embd": 512, "dropout": 0.1},
        TrainConfig(steps=10_000, lr=3e-3, warmup_steps=100, precision="auto", eval_every=250, save_every=500),
        rows=32,
        seq_len=512,
    ),
}


@dataclass(frozen=True)
class TextModel:
    """A kind of model that can be trained on any text."""

    tokenizer: str  # that it reads with where none is asked for: bpe, char or word
    model: str  # its kind, as checkpoints name it: one of MODELS
    presets: dict[str, Recipe]


def _text_presets(shape: dict[str, Any], train: TrainConfig, *, seq_len: int, rows: int) -> dict[str, Recipe]:
    """One shape as "small", cut down as "tiny", and twice as wide and deep as "large"."""
    halved = {name: max(1, size // 2) for name, size in shape.items() if name in ("n_layer", "n_head")}
    dropout = max(0.1, shape.get("dropout", 0.0))
    doubled = {"n_layer": 2 * shape["n_layer"], "n_embd": 2 * shape["n_embd"], "dropout": dropout}
    return {
        "small": Recipe(shape, train, rows=rows, seq_len=seq_len),
        "tiny": Recipe(
            {**shape, **halved, "n_embd": 64},
            dataclasses.replace(train, steps=100, eval_every=50, save_every=0),
            rows=8,
            seq_len=min(64, seq_len),
        ),
        "large": Recipe(
            {**shape, **doubled}, dataclasses.replace(train, steps=10 * train.steps), rows=rows, seq_len=seq_len
        ),
    }


_HOW = TrainConfig(steps=1_300, matrix_lr=0.02, warmup_steps=20, eval_every=250, save_every=500)
TEXT_MODELS = {
    "gpt": TextModel("bpe", "gpt", TEXT_RECIPES),
    # The Transformer with the fewest ideas: characters, learned positions, LayerNorm, GELU.
    "mini-transformer": TextModel(
        "char",
        "gpt",
        _text_presets(
            dict(
                block_size=128, n_layer=2, n_head=4, n_embd=128, pos="learned", norm="layernorm", mlp="gelu", bias=True
            ),
            dataclasses.replace(_HOW, lr=1e-2, matrix_lr=0.04, precision="auto"),
            seq_len=128,
            rows=32,
        ),
    ),
    # One wide layer; carried over longer rows than it learns from, its state is worth a little more.
    "char-rnn": TextModel(
        "char",
        "rnn",
        _text_presets(
            dict(block_size=512, n_layer=1, n_embd=512, dropout=0.2),
            dataclasses.replace(_HOW, steps=900, matrix_lr=0.03, precision="auto"),
            seq_len=64,
            rows=64,
        ),
    ),
    "word-rnn": TextModel(
        "word",
        "rnn",
        # A megabyte holds few words for so many parameters: dropout, and fewer steps.
        _text_presets(
            dict(block_size=64, n_layer=1, n_embd=192, dropout=0.3),
            dataclasses.replace(_HOW, steps=500, lr=1e-2, matrix_lr=0.04),
            seq_len=64,
            rows=32,
        ),
    ),
    "lstm-attention": TextModel(
        "bpe",
        "rnn",
        _text_presets(
            dict(block_size=128, n_layer=1, n_embd=192, attention=True),
            dataclasses.replace(_HOW, lr=1e-2, matrix_lr=0.04),
            seq_len=128,
            rows=16,
        ),
    ),
}


def book_tokenizer(vocab_size: int = 1024, *, progress: bool = True) -> BPETokenizer:
    """The byte-level BPE that the book's models read with, trained on tales."""

    def make(folder: Path) -> None:
        texts = [tale.text for tale in tales.stories(6_000, TRAIN_SEED)]
        BPETokenizer.train(texts, vocab_size, special_tokens=[END], progress=progress).save(folder / "tokenizer.json")

    folder = kept("tokenizer", {"vocab_size": vocab_size}, ["tales", "tokenizer", "recipes.book_tokenizer"], make)
    return BPETokenizer.load(folder / "tokenizer.json")


def book_model(name: str = "small", *, seed: int = 0, progress: bool = True) -> Book:
    """The book's model: a GPT trained on tales. "small" takes three to seven minutes on two CPU cores, once.

    Raises ValueError for a name that is not in `RECIPES`.
    """
    if name not in RECIPES:
        raise ValueError(f"no recipe is called {name!r}; there are {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    folder = kept(
        f"model-{name}",
        {"recipe": dataclasses.asdict(recipe), "seed": seed},
        MODEL_CODE,
        lambda folder: train_on_tales(recipe, folder, seed=seed, progress=progress),
    )
    checkpoint = load_checkpoint(folder)
    history = History(**json.loads((folder / "history.json").read_text(encoding="utf-8")))
    return Book(checkpoint.model, checkpoint.tokenizer, history)  # type: ignore[arg-type]


def held_out_tales(n: int) -> list[tales.Tale]:
    """n tales that no recipe trains on."""
    return list(tales.stories(n, HELD_OUT_SEED))


def tales_loss(model: nn.Module, tokenizer: BPETokenizer, stories: Sequence[tales.Tale]) -> tuple[float, float]:
    """-> (the model's loss, the lowest loss that any model can have) on these stories, in nats per token.

    Every story is read alone, and its end counts as a token. The second number is exact: the mean of -log p(story)
    under the grammar that wrote them.
    """
    end = tokenizer.special_tokens[END]
    ids = [[end, *tokenizer.encode(tale.text), end] for tale in stories]
    loss = evaluate(model, story_batches(sorted(ids, key=len), 25))  # sorted, for little padding
    return loss, -sum(tale.logp for tale in stories) / sum(len(story) - 1 for story in ids)


def write_tales(
    model: nn.Module, tokenizer: BPETokenizer, n: int, *, seed: int = 0, temperature: float = 1.0
) -> list[str]:
    """n texts that the model writes from nothing, each until its end or the end of the block."""
    end = tokenizer.special_tokens[END]
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    texts: list[str] = []
    while len(texts) < n:
        start = torch.full((min(100, n - len(texts)), 1), end, device=device)
        steps = generate(
            model,
            start,
            model.config.block_size - 1,  # type: ignore[union-attr, operator, arg-type]
            generator=generator,
            temperature=temperature,
            stop={end},
        )
        for row in torch.stack(list(steps), dim=1).tolist():
            texts.append(tokenizer.decode(row[: row.index(end)] if end in row else row))
    return texts


def train_on_tales(
    recipe: Recipe,
    run_dir: Path,
    *,
    seed: int = 0,
    progress: bool = True,
    resume: bool = False,
    device: torch.device | str = "cpu",
) -> History:
    """Carry out a recipe: the last checkpoint and history.json in run_dir -> the history.

    Every evaluation adds to the history: the loss on held-out tales, the share of recalls by kind, and a sample.
    """
    tokenizer = book_tokenizer(recipe.vocab_size, progress=progress)
    end = tokenizer.special_tokens[END]
    texts = [tale.text for tale in tales.stories(recipe.n_tales, TRAIN_SEED)]
    tokens = encode_documents(tokenizer, texts, progress=progress)
    starts = document_starts(tokens, end)
    held_out = held_out_tales(100)

    def batches(step: int, micro: int) -> tuple[torch.Tensor, torch.Tensor]:
        return get_batch(tokens, recipe.rows, recipe.seq_len, seed=seed, step=step, rank=micro, starts=starts)

    def watch(model: nn.Module) -> dict[str, Any]:
        loss, floor = tales_loss(model, tokenizer, held_out)
        hits = measure_recalls(model, tokenizer, held_out, end_id=end)
        recall = {kind: share for kind, (share, _) in accuracy_by(hits, lambda hit: hit.kind).items()}
        return {"loss": loss, "floor": floor, "recall": recall, "sample": write_tales(model, tokenizer, 1)[0]}

    config = GPTConfig(vocab_size=tokenizer.vocab_size, **recipe.model)
    model = GPT(config, generator=torch.Generator().manual_seed(seed)).to(device)
    history = train(
        model,
        batches,
        dataclasses.replace(recipe.train, seed=seed),
        evaluate=watch,
        run_dir=run_dir,
        tokenizer=tokenizer,
        progress=progress,
        resume=resume,
    )
    if not dist.is_initialized() or dist.get_rank() == 0:
        (run_dir / "history.json").write_text(json.dumps(dataclasses.asdict(history)), encoding="utf-8")
    return history


def train_on_text(
    recipe: Recipe,
    texts: Sequence[str],
    tokenizer: Tokenizer,
    run_dir: Path,
    *,
    kind: str = "gpt",
    seed: int = 0,
    progress: bool = True,
    resume: bool = False,
    device: torch.device | str = "cpu",
) -> History:
    """Train a model of the recipe's shape on any text, the last tenth of it held out -> the history.

    kind: one of `TEXT_MODELS`. Every evaluation adds the held-out loss, in nats per token and bits per byte.
    Raises ValueError for a text that is too short.
    """
    learn, held_out = split(texts, 0.1)
    tokens, held_out_tokens = (encode_documents(tokenizer, part, progress=progress) for part in (learn, held_out))
    if len(held_out_tokens) < 2:
        raise ValueError("the text is too short to hold a tenth of it out; give a longer one")
    if recipe.model["block_size"] > len(tokens):
        raise ValueError(
            f"a block of {recipe.model['block_size']} tokens is longer than the text to learn from, "
            f"{len(tokens)} tokens: use a shorter block or a longer text"
        )
    n_bytes = count_bytes(held_out)
    fields = {"vocab_size": tokenizer.vocab_size, **recipe.model}
    make, read_config = MODELS[TEXT_MODELS[kind].model]
    model = make(read_config(fields), generator=torch.Generator().manual_seed(seed)).to(device)

    def batches(step: int, micro: int) -> tuple[torch.Tensor, torch.Tensor]:
        return get_batch(tokens, recipe.rows, recipe.seq_len, seed=seed, step=step, rank=micro)

    # A recurrent model reads on past the length of the rows that it learned from; a GPT has met no later position.
    length = model.config.block_size if TEXT_MODELS[kind].model == "rnn" else recipe.seq_len

    def watch(model: nn.Module) -> dict[str, Any]:
        loss = evaluate(model, sequential_batches(held_out_tokens, 16, length))
        return {"loss": loss, "bits_per_byte": bits_per_byte(loss, len(held_out_tokens) - 1, n_bytes)}

    batches(0, 0)  # a text that is too short for one batch is refused before anything is made
    return train(
        model,
        batches,
        dataclasses.replace(recipe.train, seed=seed),
        evaluate=watch,
        run_dir=run_dir,
        tokenizer=tokenizer,
        progress=progress,
        resume=resume,
    )


def text_loss(model: nn.Module, tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[float, float]:
    """-> the model's loss on these texts in nats per token, and in bits per byte."""
    tokens = encode_documents(tokenizer, texts)
    loss = evaluate(model, sequential_batches(tokens, 16, model.config.block_size))  # type: ignore[arg-type, union-attr]
    return loss, bits_per_byte(loss, len(tokens) - 1, count_bytes(texts))


def tales_report(model: nn.Module, tokenizer: BPETokenizer, n: int) -> str:
    """What a model of the tales can do, as a table to print: loss, recall by kind and by distance, its own stories."""
    stories = held_out_tales(n)
    loss, floor = tales_loss(model, tokenizer, stories)
    hits = measure_recalls(model, tokenizer, stories, end_id=tokenizer.special_tokens[END])
    lines = [
        f"loss {loss:.4f} nats per token on {n} unseen tales; the lowest possible is {floor:.4f}, "
        f"so {loss - floor:.4f} is left to learn",
        "",
        "recall by kind",
    ]
    by_kind = accuracy_by(hits, lambda hit: hit.kind)
    lines += [
        f"  {kind:14} {by_kind[kind][0]:7.1%} of {by_kind[kind][1]:,}" for kind in tales.RECALL_KINDS if kind in by_kind
    ]
    lines += ["recall by distance, words"]
    by_distance = accuracy_by(hits, lambda hit: next(d for d in DISTANCES if hit.distance <= d))
    lines += [
        f"  up to {d if d < 10**6 else 'any':>4}     {by_distance[d][0]:7.1%} of {by_distance[d][1]:,}"
        for d in DISTANCES
        if d in by_distance
    ]
    problems = [tales.check(text) for text in write_tales(model, tokenizer, n)]
    grammatical = sum(all(problem.kind != "grammar" for problem in found) for found in problems)
    lines += [
        f"of {n} stories that it wrote, {grammatical / n:.1%} are in the language, and "
        f"{sum(not found for found in problems) / n:.1%} contradict nothing they said before"
    ]
    return "\n".join(lines)


DISTANCES = (5, 20, 50, 100, 10**6)  # upper ends, in words


def kept(name: str, settings: dict[str, Any], code: Sequence[str], make: Callable[[Path], object]) -> Path:
    """The folder of a kept result. make(folder) fills it where it is not there yet, in one process at a time."""
    final = kept_folder(name, settings, code)
    if final.is_dir():  # it took its place in one step, so it is whole
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{final}.lock"):
        if not final.is_dir():  # another process may have made it meanwhile
            partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=final.parent))
            try:
                make(partial)
                partial.rename(final)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return final


def kept_folder(name: str, settings: dict[str, Any], code: Sequence[str]) -> Path:
    """Where a result is kept, or will be: settings and `code` (modules of llmfs, or "module.function") decide that."""
    key = hashlib.sha256(
        json.dumps([settings, torch.__version__, *map(code_digest, code)], sort_keys=True).encode()
    ).hexdigest()[:16]
    return cache_dir() / "recipes" / f"{name}-{key}"


@functools.cache
def code_digest(code: str) -> str:
    """A hash of what a module or function of llmfs does: its syntax tree, without comments and docstrings."""
    module, _, function = code.partition(".")
    tree: ast.AST = ast.parse((Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8"))
    if function:
        tree = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == function)
    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()
