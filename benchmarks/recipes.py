"""How much is learned in which time: the package's own recipes, trained to their end.

Tiny Shakespeare by characters: ours with Muon, as many steps of that as two minutes have room for, and with AdamW
alone, beside nanoGPT's published CPU setting (4 layers of 128 channels, 64 characters of context, batches of 12, 2,000
steps of AdamW) as transformers' GPT-2. All have about 0.8 M parameters and are measured on the same characters. Then,
if asked for, the book's own model on its tales.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.measure import Section, Settings, Table
from benchmarks.training import their_step
from llmfs.checkpoint import load_checkpoint
from llmfs.config import GPTConfig
from llmfs.corpus import CorpusError, load_texts
from llmfs.data import Tokens, encode_documents, get_batch, sequential_batches, split
from llmfs.evaluate import evaluate
from llmfs.gpt import GPT
from llmfs.optim import cosine_lr
from llmfs.recipes import RECIPES, TEXT_RECIPES, tales_report, train_on_tales
from llmfs.tokenizer import BPETokenizer, CharTokenizer
from llmfs.train import History, train

TWO_MINUTES = 120.0
Found = tuple[int, float, float]  # parameters, seconds of training steps, nats per character on held-out text


def run(settings: Settings, tales: str | None = None) -> Section:
    """tales: "tiny", "small" or "large", to make that model of the book from nothing too."""
    section = Section("recipes", "What is learned in which time")
    try:
        learn, held_out = split(load_texts("tiny-shakespeare"), 0.1)
        what = "Tiny Shakespeare"
    except CorpusError:
        learn, held_out = split(load_texts("tales", n=4_000), 0.1)
        what = "the book's tales"
    tokenizer = CharTokenizer.train(learn + held_out)
    a, b = encode_documents(tokenizer, learn), encode_documents(tokenizer, held_out)
    if settings.quick:
        b = b[:2_000]
    V = tokenizer.vocab_size
    columns = ["", "parameters", "seconds", "nats per character, held out"]
    table = Table(f"{what}, {len(a):,} characters to learn from, {len(b):,} held out", columns, [])
    in_time = steps_within(TWO_MINUTES, a, V, settings)
    for name, found in (
        ("llmfs, Muon and AdamW", ours(a, b, V, settings)),
        (f"the same, {in_time:,} steps", ours(a, b, V, settings, steps=in_time)),
        ("llmfs, AdamW alone", ours(a, b, V, settings, optimizer="adamw", lr=3e-3)),
        ("nanoGPT's setting, transformers", nanogpt(a, b, V, settings)),
    ):
        table.rows.append([name, found[0], round(found[1], 1), round(found[2], 3)])
    section.tables.append(table)
    if tales is not None:
        section.notes.append(book_model(tales, settings))
    return section


def ours(tokens: Tokens, held_out: Tokens, vocab_size: int, settings: Settings, **changes: Any) -> Found:
    """The package's recipe for a text of this size."""
    model, history = trained(tokens, vocab_size, settings, **changes)
    batches = sequential_batches(held_out, 32, model.config.block_size)
    return model.n_params(), history.seconds[-1], evaluate(model, batches)


def steps_within(seconds: float, tokens: Tokens, vocab_size: int, settings: Settings) -> int:
    """How many steps of the recipe this machine takes in so many seconds, with a tenth to spare."""
    warm, steps = settings.pick((1, 2), (10, 50))  # the first steps are slower than the others
    took = trained(tokens, vocab_size, settings, steps=steps)[1].seconds
    return settings.pick(steps, int(0.9 * seconds * (steps - warm) / (took[-1] - took[warm - 1])))


def trained(tokens: Tokens, vocab_size: int, settings: Settings, **changes: Any) -> tuple[GPT, History]:
    """The recipe with changes to how it trains, carried out."""
    recipe = TEXT_RECIPES[settings.pick("tiny", "small")]
    if settings.quick:
        changes["steps"] = 2
    config = dataclasses.replace(recipe.train, eval_every=0, save_every=0, **changes)
    model = GPT(GPTConfig(vocab_size=vocab_size, **recipe.model), generator=torch.Generator().manual_seed(0))
    history = train(
        model,
        lambda step, micro: get_batch(tokens, recipe.rows, recipe.seq_len, seed=0, step=step, rank=micro),
        config,
        progress=settings.progress,
    )
    return model, history


def nanogpt(tokens: Tokens, held_out: Tokens, vocab_size: int, settings: Settings) -> Found:
    """nanoGPT's setting, built of transformers and torch."""
    steps = settings.pick(2, 2_000)
    model = NanoGPT(vocab_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    began = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine_lr(step, peak=1e-3, total_steps=steps, warmup_steps=100, final=0.1)
        their_step(model.gpt2, optimizer, *get_batch(tokens, 12, 64, seed=0, step=step), "float32")
    seconds = time.perf_counter() - began
    n_params = sum(p.numel() for p in model.parameters())
    return n_params, seconds, evaluate(model, sequential_batches(held_out, 32, 64))


class NanoGPT(nn.Module):
    """nanoGPT's CPU setting; ids (B, T) -> logits (B, T, V)."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        fields: dict[str, Any] = dict(vocab_size=vocab_size, n_positions=64, n_embd=128, n_layer=4, n_head=4)
        fields |= dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)
        self.gpt2: Any = GPT2LMHeadModel(GPT2Config(**fields))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.gpt2(ids).logits


def book_model(name: str, settings: Settings) -> str:
    """The book's own model, made from nothing: seconds, distance to the floor, recall."""
    with tempfile.TemporaryDirectory() as folder:
        history = train_on_tales(RECIPES[name], Path(folder), progress=settings.progress)
        checkpoint = load_checkpoint(folder)
    assert isinstance(checkpoint.model, GPT) and isinstance(checkpoint.tokenizer, BPETokenizer)
    report = tales_report(checkpoint.model, checkpoint.tokenizer, settings.pick(20, 500))
    return (
        f"The book's model, {name!r}: {checkpoint.model.n_params():,} parameters, {len(history.loss):,} steps, "
        f"{history.tokens[-1]:,} tokens, {history.seconds[-1]:.0f} s of training. {report}"
    )
