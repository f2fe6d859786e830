"""Experiments that one command repeats: variants on the same text at a stated cost, over several seeds.

Each returns a `Result`: a table with one value a seed, so that a difference can be set beside the spread that chance
alone makes. The small defaults take minutes on one core; larger `steps` and more `seeds` say more.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from llmfs import recipes, tales
from llmfs.attention import KVCache
from llmfs.checkpoint import load_checkpoint
from llmfs.config import GPTConfig
from llmfs.corpus import count_bytes
from llmfs.data import END_OF_TEXT, document_starts, encode_documents, get_batch, split, story_batches
from llmfs.evaluate import accuracy_by, evaluate, measure_recalls
from llmfs.gpt import GPT
from llmfs.layers import Block
from llmfs.rnn import PARTS, RNNLM, Cell, RNNConfig
from llmfs.sample import generate
from llmfs.scale import flops_per_token, n_params
from llmfs.tokenizer import BPETokenizer, CharTokenizer, Tokenizer, WordTokenizer
from llmfs.train import TrainConfig, TrainingError, train

# --- results ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One variant of an experiment."""

    name: str
    facts: dict[str, Any]  # what no seed changes, such as the number of parameters
    values: dict[str, list[float]]  # what was measured: one number a seed
    sample: str = ""  # what the first seed's model writes


@dataclass(frozen=True)
class Result:
    """What an experiment found."""

    title: str
    seeds: tuple[int, ...]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    def row(self, name: str) -> Row:
        """The variant of this name. Raises ValueError where there is none."""
        for row in self.rows:
            if row.name == name:
                return row
        raise ValueError(f"no row is called {name!r}; there are {', '.join(row.name for row in self.rows)}")

    def values(self, name: str, column: str) -> list[float]:
        """What was measured of one variant, a number a seed, in the order of `seeds`."""
        return self.row(name).values[column]

    def interval(self, name: str, column: str) -> tuple[float, float]:
        """Mean over the seeds, and half the width of its 95% interval; see `interval`."""
        return interval(self.values(name, column))

    def difference(self, name: str, other: str, column: str) -> tuple[float, float]:
        """Mean of `name` minus `other`, and half the width of its 95% interval.

        Taken seed by seed: runs of one seed read the same batches, and what these do to both cancels.
        """
        pairs = zip(self.values(name, column), self.values(other, column), strict=True)
        return interval([a - b for a, b in pairs])

    def to_markdown(self) -> str:
        """The table, with "mean ± half a 95% interval" where there are seeds enough, the notes, and the samples."""
        facts = list(dict.fromkeys(name for row in self.rows for name in row.facts))
        columns = list(dict.fromkeys(name for row in self.rows for name in row.values))
        lines = [f"**{self.title}** Seeds: {len(self.seeds)}.", ""]
        lines += ["| | " + " | ".join(facts + columns) + " |", "|---|" + "--:|" * len(facts + columns)]
        for row in self.rows:
            cells = [_number(row.facts.get(name, "")) for name in facts]
            cells += [_plus_minus(row.values[name]) if name in row.values else "" for name in columns]
            lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
        lines += ["", *self.notes]
        for row in self.rows:
            if row.sample:
                lines += ["", f"{row.name}:", "", "```text", row.sample.replace("```", "'''"), "```"]
        return "\n".join(lines).rstrip() + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; None for the loss of a run that diverged."""
        fields = dataclasses.asdict(self)
        for row in fields["rows"]:
            row["values"] = {
                name: [value if math.isfinite(value) else None for value in values]
                for name, values in row["values"].items()
            }
        return fields


def interval(values: Sequence[float]) -> tuple[float, float]:
    """-> the mean, and half the width of its 95% interval by Student's t; nan for one value, or an infinite one.

    It is wide for few values, and should be: two of them hardly say how far a third may lie.
    """
    mean = statistics.fmean(values)
    degrees = len(values) - 1
    if degrees < 1 or not math.isfinite(mean):
        return mean, math.nan
    return mean, _student(degrees) * statistics.stdev(values) / math.sqrt(len(values))


def _student(degrees: int) -> float:
    """The number of standard errors that hold 95%: a table where few, an expansion that is right to 0.01 where many."""
    table = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
    return table[degrees - 1] if degrees <= len(table) else 1.960 + 2.372 / degrees + 2.82 / degrees**2


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if isinstance(value, float) else str(value)


def _plus_minus(values: Sequence[float]) -> str:
    mean, half = interval(values)
    return f"{mean:.3f}" if math.isnan(half) else f"{mean:.3f} ± {half:.3f}"


# --- one training run on tales, in words ------------------------------------------------------------------


@dataclass(frozen=True)
class Stories:
    """Tales as words: what the small experiments learn from and are measured on."""

    tokenizer: WordTokenizer
    tokens: Any  # (N,), every tale between two end tokens
    starts: Any  # where tales begin
    unseen: list[tales.Tale]

    @property
    def end(self) -> int:
        """The token between tales."""
        return self.tokenizer.special_tokens[END_OF_TEXT]

    @functools.cached_property
    def floor(self) -> float:
        """The lowest loss that any model can have on the unseen tales, in nats per token."""
        return -sum(tale.logp for tale in self.unseen) / sum(len(ids) - 1 for ids in self.unseen_ids)

    @functools.cached_property
    def unseen_ids(self) -> list[list[int]]:
        """The ids of each unseen tale, its end tokens included; sorted by length, for little padding."""
        return sorted(([self.end, *self.tokenizer.encode(tale.text), self.end] for tale in self.unseen), key=len)


@functools.lru_cache(maxsize=1)
def stories_in_words(n_learn: int = 8_000, n_unseen: int = 200) -> Stories:
    """n_learn tales to learn from, and n_unseen that are never trained on."""
    learn = [tale.text for tale in tales.stories(n_learn, recipes.TRAIN_SEED)]
    words = WordTokenizer.train(learn, special_tokens=[END_OF_TEXT])
    tokens = encode_documents(words, learn)
    starts = document_starts(tokens, words.special_tokens[END_OF_TEXT])
    return Stories(words, tokens, starts, recipes.held_out_tales(n_unseen))


SMALL = GPTConfig(vocab_size=1, block_size=256, n_layer=2, n_head=2, n_embd=60, d_ff=128, qk_norm=True)
HOW = TrainConfig(steps=160, lr=0.04, matrix_lr=0.04, warmup_steps=10)
ROWS, SEQ_LEN = 24, 96  # of a batch


def _fit(
    model: nn.Module,
    stories: Stories,
    config: TrainConfig,
    *,
    seed: int,
    rows: int = ROWS,
    device: str = "cpu",
    progress: bool = False,
) -> float:
    """Train on the tales -> the seconds that the steps took."""

    def batches(step: int, micro: int) -> tuple[Tensor, Tensor]:
        return get_batch(stories.tokens, rows, SEQ_LEN, seed=seed, step=step, rank=micro, starts=stories.starts)

    return train(model.to(device), batches, dataclasses.replace(config, seed=seed), progress=progress).seconds[-1]


def _unseen_loss(model: nn.Module, stories: Stories) -> float:
    return evaluate(model, story_batches(stories.unseen_ids, 25))


def _runs(names: Sequence[str], seeds: Sequence[int], progress: bool) -> Iterator[tuple[str, int]]:
    """Every name with every seed, under a progress bar. Raises ValueError for no seed, or the same one twice."""
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds {list(seeds)}: expected at least one, and each of them once")
    with tqdm(total=len(names) * len(seeds), desc="runs", unit="run", disable=not progress) as bar:
        for name in names:
            for seed in seeds:
                bar.set_postfix_str(f"{name}, seed {seed}")
                yield name, seed
                bar.update()


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- who remembers? ---------------------------------------------------------------------------------------

NOT_FACTS = {"refrain", "pronoun"}  # repeated lines, and "his" or "her"
DISTANCES = {"1-5": 5, "6-10": 10, "11-20": 20, "21-40": 40, "over 40": 10**6}  # tokens, upper ends of the groups


def rememberers(vocab_size: int, n_embd: int = SMALL.n_embd) -> dict[str, Callable[[torch.Generator], RNNLM | GPT]]:
    """Four kinds of model with as nearly the same number of parameters as whole channels allow -> how to make each.

    n_embd: channels of the Transformer, which sets the size of the others.
    """
    gpt = SMALL.replace(vocab_size=vocab_size, n_embd=n_embd, d_ff=SMALL.ff_size * n_embd // SMALL.n_embd)
    size = n_params(gpt)

    def recurrent(cell: Cell, attention: bool = False) -> Callable[[torch.Generator], RNNLM | GPT]:
        def excess(C: int) -> int:
            matrices = PARTS[cell] * 2 * (C + 1) * C + (4 * C * C if attention else 0)
            return abs(matrices + 2 * vocab_size * C - size)

        channels = min(range(1, 4 * n_embd), key=excess)
        config = RNNConfig(vocab_size, SMALL.block_size, cell=cell, n_embd=channels, attention=attention)
        return lambda generator: RNNLM(config, generator=generator)

    return {
        "RNN": recurrent("rnn"),
        "LSTM": recurrent("lstm"),
        "LSTM + attention": recurrent("lstm", attention=True),
        "Transformer": lambda generator: GPT(gpt, generator=generator),
    }


def remember(
    *,
    steps: int = 160,
    seeds: Sequence[int] = (0, 1, 2),
    n_embd: int = SMALL.n_embd,
    device: str = "cpu",
    progress: bool = True,
) -> Result:
    """Which kind of network says what the story so far determines, and over which distance?

    Equal parameters, the same batches and the same settings for all. Measured on tales that nobody has seen: the
    loss, and the share of facts that are right, in all and by the number of tokens since the fact was last stated.
    """
    stories = stories_in_words()
    makers = rememberers(stories.tokenizer.vocab_size, n_embd)
    config = dataclasses.replace(HOW, steps=steps)
    rows: dict[str, Row] = {}
    for name, seed in _runs(list(makers), seeds, progress):
        model = makers[name](_seeded(seed))
        row = rows.setdefault(name, Row(name, {"parameters": model.n_params()}, {}))
        seconds = _fit(model, stories, config, seed=seed, device=device, progress=progress)
        hits = measure_recalls(model, stories.tokenizer, stories.unseen, end_id=stories.end)
        facts = [hit for hit in hits if hit.kind not in NOT_FACTS]
        groups = accuracy_by(facts, lambda hit: next(name for name, end in DISTANCES.items() if hit.distance <= end))
        measured = {"loss": _unseen_loss(model, stories), "facts": accuracy_by(facts, lambda hit: 0)[0][0]}
        measured |= {group: groups[group][0] for group in DISTANCES if group in groups} | {"seconds": seconds}
        _add(row, measured)
    n_tokens = steps * ROWS * SEQ_LEN
    return Result(
        f"Who remembers? Tales in words, {n_tokens:,} tokens for each model.",
        tuple(seeds),
        list(rows.values()),
        [
            f"loss: nats per token on {len(stories.unseen)} unseen tales; the lowest possible is {stories.floor:.3f}. "
            "facts: share of the words that the story so far determines; then by tokens since the fact was stated."
        ],
    )


def _add(row: Row, measured: dict[str, float]) -> None:
    """One more seed's numbers."""
    for name, value in measured.items():
        row.values.setdefault(name, []).append(value)


# --- a part taken out -------------------------------------------------------------------------------------


class NoResidualBlock(Block):
    """A block whose parts replace what they read, and are not added to it."""

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """x (B, T, C) -> (B, T, C)"""
        x = self.drop(self.attn(self.attn_norm(x), rope, mask, cache))
        return self.drop(self.mlp(self.mlp_norm(x)))


class AddNothing(nn.Module):
    """Stands where a part was taken out: the residual passes unchanged."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> zeros (B, T, C)"""
        return torch.zeros_like(x)


def _without_residual(model: GPT) -> None:
    for layer, block in enumerate(model.blocks):
        bare = NoResidualBlock(model.config, layer)
        bare.load_state_dict(block.state_dict())
        model.blocks[layer] = bare


def _without_norm(model: GPT) -> None:
    for block in model.blocks:
        block.attn_norm = block.mlp_norm = nn.Identity()
    model.final_norm = nn.Identity()


def _without_mlp(model: GPT) -> None:
    for block in model.blocks:
        block.mlp, block.mlp_norm = AddNothing(), nn.Identity()


ABLATED = GPTConfig(vocab_size=1, block_size=256, n_layer=3, n_head=4, n_embd=48, d_ff=96)
# name -> fields of the config that change, and what is done to the model that they give
ABLATIONS: dict[str, tuple[dict[str, Any], Callable[[GPT], None] | None]] = {
    "whole": ({}, None),
    "no positions": ({"pos": "none"}, None),
    "no residual": ({}, _without_residual),
    "no norm": ({}, _without_norm),
    "no MLP": ({}, _without_mlp),
    "one head": ({"n_head": 1}, None),
}


def ablated(name: str, vocab_size: int, *, seed: int = 0) -> GPT:
    """The GPT of `ablations`, with one part taken out. Raises ValueError for a name that is not in `ABLATIONS`."""
    if name not in ABLATIONS:
        raise ValueError(f"no ablation is called {name!r}; there are {', '.join(ABLATIONS)}")
    changes, surgery = ABLATIONS[name]
    model = GPT(ABLATED.replace(vocab_size=vocab_size, **changes), generator=_seeded(seed))
    if surgery is not None:
        surgery(model)
    return model


def ablations(
    *,
    steps: int = 160,
    seeds: Sequence[int] = (0, 1, 2),
    lr: float = 0.02,
    names: Sequence[str] = tuple(ABLATIONS),
    device: str = "cpu",
    progress: bool = True,
) -> Result:
    """What does each part of a GPT do for its loss? One part is taken out at a time, and nothing else changes.

    Measured: the loss on unseen tales, and how much of it is above the whole model's, seed by seed. A variant with
    fewer parameters is not made larger: the table says how many it has.
    """
    stories = stories_in_words()
    config = dataclasses.replace(HOW, steps=steps, lr=lr, matrix_lr=lr)
    rows: dict[str, Row] = {}
    for name, seed in _runs(list(names), seeds, progress):
        model = ablated(name, stories.tokenizer.vocab_size, seed=seed)
        row = rows.setdefault(name, Row(name, {"parameters": model.n_params()}, {}))
        seconds = _fit(model, stories, config, seed=seed, device=device, progress=progress)
        _add(row, {"loss": _unseen_loss(model, stories), "seconds": seconds})
    if "whole" in rows:
        for row in rows.values():
            row.values["above whole"] = [a - b for a, b in zip(row.values["loss"], rows["whole"].values["loss"])]
    return Result(
        f"One part taken out. Tales in words, {steps * ROWS * SEQ_LEN:,} tokens for each model.",
        tuple(seeds),
        list(rows.values()),
        [
            f"loss: nats per token on {len(stories.unseen)} unseen tales; the lowest possible is {stories.floor:.3f}.",
            "above whole: the same seed's loss of the whole model is taken off.",
        ],
    )


# --- a sweep ----------------------------------------------------------------------------------------------

RATES = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
BATCHES = (6, 12, 24, 48, 96)  # rows
DEPTHS = (1, 2, 4, 8)
SWEPT = ("rate", "batch", "shape")


def same_cost(config: GPTConfig, n_layer: int) -> GPTConfig:
    """Another depth at the width that makes a token cost nearly the same number of operations."""

    def shape(n_embd: int) -> GPTConfig:
        d_ff = round(config.ff_size * n_embd / config.n_embd)
        return config.replace(n_layer=n_layer, n_embd=n_embd, d_ff=d_ff)

    budget, unit = flops_per_token(config, SEQ_LEN), 2 * config.n_head  # heads of an even size
    widths = [unit * k for k in range(1, 4 * config.n_embd // unit)]
    return min(map(shape, widths), key=lambda other: abs(flops_per_token(other, SEQ_LEN) - budget))


def sweep(
    *,
    steps: int = 160,
    seeds: Sequence[int] = (0, 1, 2),
    parts: Sequence[str] = SWEPT,
    rates: Sequence[float] = RATES,
    batches: Sequence[int] = BATCHES,
    depths: Sequence[int] = DEPTHS,
    device: str = "cpu",
    progress: bool = True,
) -> Result:
    """Learning rate; batch at an equal number of tokens; depth against width at equal operations per token.

    One thing changes at a time. parts: which of "rate", "batch" and "shape"; ValueError for another. A run whose loss
    is no number any more counts with an infinite one.
    """
    if unknown := set(parts) - set(SWEPT):
        raise ValueError(f"no part of the sweep is called {min(unknown)!r}; there are {', '.join(SWEPT)}")
    stories = stories_in_words()
    base = SMALL.replace(vocab_size=stories.tokenizer.vocab_size)
    plans: dict[str, tuple[GPTConfig, TrainConfig, int]] = {}
    how = dataclasses.replace(HOW, steps=steps, lr=0.02, matrix_lr=0.02)
    if "rate" in parts:
        plans |= {f"rate {rate:g}": (base, dataclasses.replace(how, lr=rate, matrix_lr=rate), ROWS) for rate in rates}
    if "batch" in parts:
        for n in batches:
            plans[f"batch of {n} rows"] = (base, dataclasses.replace(how, steps=max(1, steps * ROWS // n)), n)
    if "shape" in parts:
        for depth in depths:
            config = same_cost(base, depth)
            plans[f"{depth} layer{'s' if depth > 1 else ''} of {config.n_embd}"] = (config, how, ROWS)
    rows: dict[str, Row] = {}
    for name, seed in _runs(list(plans), seeds, progress):
        config, training, n_rows = plans[name]
        model = GPT(config, generator=_seeded(seed))
        facts = {
            "steps": training.steps,
            "parameters": model.n_params(),
            "MFLOP a token": round(flops_per_token(config, SEQ_LEN) / 1e6, 2),
        }
        row = rows.setdefault(name, Row(name, facts, {}))
        try:
            seconds = _fit(model, stories, training, seed=seed, rows=n_rows, device=device, progress=progress)
            _add(row, {"loss": _unseen_loss(model, stories), "seconds": seconds})
        except TrainingError:  # too fast: that too is an answer
            _add(row, {"loss": math.inf, "seconds": math.nan})
    return Result(
        f"A sweep. Tales in words, {steps * ROWS * SEQ_LEN:,} tokens for each model.",
        tuple(seeds),
        list(rows.values()),
        [f"loss: nats per token on {len(stories.unseen)} unseen tales; the lowest possible is {stories.floor:.3f}."],
    )


# --- any text: tokens, and kinds of model -----------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """One model that was trained on a text as `llmfs train` does, and what it is worth on the held-out tenth."""

    model: Any
    nats: float  # a character
    bits: float  # a byte
    seconds: float  # of training
    n_tokens: int  # trained on


def train_and_score(
    kind: str,
    recipe: recipes.Recipe,
    texts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = False,
) -> Score:
    """Train one of `recipes.TEXT_MODELS`, and measure it per character and per byte of the held-out text.

    A word that a `WordTokenizer` does not know costs what spelling it costs; see `spelling_nats`.
    """
    learn, held_out = split(texts, 0.1)
    # One evaluation, at the end: the time of the others would be the only thing that they change.
    how = dataclasses.replace(recipe.train, eval_every=recipe.train.steps, save_every=0)
    with tempfile.TemporaryDirectory() as folder:
        history = recipes.train_on_text(
            dataclasses.replace(recipe, train=how),
            texts,
            tokenizer,
            Path(folder),
            kind=kind,
            seed=seed,
            progress=progress,
            device=device,
        )
        model = load_checkpoint(folder, device=device).model
    n_bytes, n_chars = count_bytes(held_out), sum(map(len, held_out))
    nats = history.evals[-1]["bits_per_byte"] * n_bytes * math.log(2) + spelling_nats(tokenizer, learn, held_out)
    return Score(model, nats / n_chars, nats / math.log(2) / n_bytes, history.seconds[-1], history.tokens[-1])


def spelling_nats(tokenizer: Tokenizer, learn: Sequence[str], held_out: Sequence[str]) -> float:
    """What the unknown words of the held-out texts cost to spell, in nats: what `<unk>` leaves unsaid.

    Letter by letter, and an end, each with its frequency in the words of `learn`. So a model of words is charged for
    every character, as the others are. 0 for tokenizers that know every string.
    """
    if not isinstance(tokenizer, WordTokenizer):
        return 0.0
    all_words = WordTokenizer.train([*learn, *held_out])
    unknown = tokenizer.special_tokens[tokenizer.unk_token]

    def words(texts: Sequence[str]) -> Counter[str]:  # each with the space before it, where there is one
        ids = Counter(id for text in texts for id in all_words.encode(text))
        return Counter({all_words.decode([id]): count for id, count in ids.items()})

    def letters(word: str) -> tuple[str, ...]:
        return (*word.lstrip(" "), "")  # the space has a token of its own; "" stands for the end of a word

    counts: Counter[str] = Counter()
    for word, n in words(learn).items():
        for letter in letters(word):
            counts[letter] += n
    new = {word: n for word, n in words(held_out).items() if unknown in tokenizer.encode(word)}
    alphabet = counts.keys() | {letter for word in new for letter in letters(word)}
    total = counts.total() + len(alphabet)  # as if every letter had been seen once more: none is impossible
    return -sum(n * math.log((counts[letter] + 1) / total) for word, n in new.items() for letter in letters(word))


VOCAB_SIZE = {"char": None, "word": 4096, "bpe": 1024}
TOKENS = {"characters": "char", "words": "word", "BPE": "bpe"}


def make_tokenizer(kind: str, texts: Sequence[str]) -> Tokenizer:
    """A "char", "word" or "bpe" tokenizer for the experiments on any text, learned from its training part.

    The alphabet of "char" is that of the whole text: it has no other way to read the held-out part.
    """
    learn, _ = split(texts, 0.1)
    if kind == "char":
        return CharTokenizer.train(texts, special_tokens=[END_OF_TEXT])
    if kind == "word":
        return WordTokenizer.train(learn, VOCAB_SIZE["word"], special_tokens=[END_OF_TEXT])
    return BPETokenizer.train(learn, VOCAB_SIZE["bpe"] or 0, special_tokens=[END_OF_TEXT])


BITS_SHAPE = dict(block_size=128, n_layer=3, n_head=3, n_embd=96, qk_norm=True)


def bits(
    texts: Sequence[str],
    *,
    steps: int = 200,
    seeds: Sequence[int] = (0, 1, 2),
    device: str = "cpu",
    progress: bool = True,
) -> Result:
    """Characters, words and BPE as the tokens of one GPT, in bits per byte: the same text and the same operations.

    steps: of the model with BPE. The others take as many as cost the same number of floating-point operations, for
    a larger vocabulary makes a token dearer. All read rows of as many tokens, which are fewer characters where
    tokens are characters.
    """
    tokenizers = {name: make_tokenizer(kind, texts) for name, kind in TOKENS.items()}
    _, held_out = split(texts, 0.1)
    n_bytes, seq_len = count_bytes(held_out), BITS_SHAPE["block_size"]
    cost = {
        name: flops_per_token(GPTConfig(vocab_size=tokenizer.vocab_size, **BITS_SHAPE), seq_len)  # type: ignore[arg-type]
        for name, tokenizer in tokenizers.items()
    }
    rows: dict[str, Row] = {}
    for name, seed in _runs(list(tokenizers), seeds, progress):
        tokenizer = tokenizers[name]
        n = max(1, round(steps * cost["BPE"] / cost[name]))
        recipe = recipes.Recipe(BITS_SHAPE, TrainConfig(steps=n, lr=1e-2, precision="auto"), seq_len=seq_len)
        score = train_and_score("gpt", recipe, texts, tokenizer, seed=seed, device=device, progress=progress)
        facts = {
            "vocabulary": tokenizer.vocab_size,
            "parameters": score.model.n_params(),
            "steps": n,
            "bytes per token": round(n_bytes / len(encode_documents(tokenizer, held_out)), 2),
            "TFLOP": round(cost[name] * score.n_tokens / 1e12, 2),
        }
        _add(
            rows.setdefault(name, Row(name, facts, {})),
            {"bits per byte": score.bits, "nats per character": score.nats, "seconds": score.seconds},
        )
    return Result(
        f"One model, three kinds of token. {count_bytes(texts):,} bytes of text, the last tenth held out.",
        tuple(seeds),
        list(rows.values()),
        ["Measured on the held-out text. Words that a vocabulary of words lacks are charged with their spelling."],
    )


def models(
    texts: Sequence[str],
    *,
    share: float = 0.1,
    steps: int | None = None,
    kinds: Sequence[str] = tuple(recipes.TEXT_MODELS),
    preset: str = "small",
    seeds: Sequence[int] = (0,),
    floor: float | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> Result:
    """The kinds of model that `llmfs train` knows, each with its own preset, on the same text.

    share: of each preset's own steps; steps: that many for all, instead. floor: the lowest loss that is possible, in
    nats per character, where it is known (`tales_floor`). Raises ValueError for a kind that is not there.
    """
    if unknown := [kind for kind in kinds if kind not in recipes.TEXT_MODELS]:
        raise ValueError(f"no model is called {unknown[0]!r}; there are {', '.join(recipes.TEXT_MODELS)}")
    needed = {recipes.TEXT_MODELS[kind].tokenizer for kind in kinds}
    tokenizers = {kind: make_tokenizer(kind, texts) for kind in needed}
    rows: dict[str, Row] = {}
    for name, seed in _runs(list(kinds), seeds, progress):
        recipe, tokenizer = recipes.TEXT_MODELS[name].presets[preset], tokenizers[recipes.TEXT_MODELS[name].tokenizer]
        how = dataclasses.replace(recipe.train, steps=steps or max(1, round(share * recipe.train.steps)))
        score = train_and_score(
            name,
            dataclasses.replace(recipe, train=how),
            texts,
            tokenizer,
            seed=seed,
            device=device,
            progress=progress,
        )
        if name not in rows:
            facts = {"parameters": score.model.n_params(), "tokens": score.n_tokens}
            rows[name] = Row(name, facts, {}, _write(score.model, tokenizer, texts))
        _add(
            rows[name],
            {"minutes": score.seconds / 60, "nats per character": score.nats, "bits per byte": score.bits},
        )
    notes = ["Measured on the held-out text. Words that a vocabulary of words lacks are charged with their spelling."]
    if floor is not None:
        notes.append(f"The lowest loss possible: {floor:.3f} nats per character.")
    return Result(
        f"Kinds of model. {count_bytes(texts):,} bytes of text, the last tenth held out.",
        tuple(seeds),
        list(rows.values()),
        notes,
    )


def tales_floor(n: int) -> float:
    """The lowest loss that is possible on the held-out tenth of the corpus of n tales, in nats per character."""
    logp = {tale.text: tale.logp for tale in tales.stories(n, 0)}  # as `load_texts` makes them
    _, held_out = split(list(logp), 0.1)
    return -sum(logp[text] for text in held_out) / sum(map(len, held_out))


def _write(model: nn.Module, tokenizer: Tokenizer, texts: Sequence[str], n_chars: int = 240) -> str:
    """About so many characters that the model writes, from the start of a text or, of one long text, of a line."""
    end = tokenizer.special_tokens[END_OF_TEXT]
    # The one start of a long text is hardly ever in a batch: a model cannot learn what follows it.
    prompt = tokenizer.encode("\n") if len(texts) == 1 and "\n" in texts[0] else [end]
    device = next(model.parameters()).device
    written: list[int] = []
    drawn = generate(
        model,
        torch.tensor([prompt], device=device),
        n_chars,
        generator=torch.Generator(device).manual_seed(0),
        temperature=0.8,
        stop={end},
    )
    for token in drawn:
        if int(token) == end:
            break
        written.append(int(token))
        if len(text := tokenizer.decode(written)) >= n_chars:
            return text
    return tokenizer.decode(written)
