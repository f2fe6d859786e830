"""Tiny Shakespeare, character by character: loss on the last tenth of the text after a minute or two on two cores.

    python -m benchmarks.shakespeare

Ours with Muon and with AdamW alone, and nanoGPT's published CPU setting (4 layers of 128 channels, 64 characters of
context, batches of 12, 2,000 steps of AdamW), as `transformers`' GPT-2 with torch's own AdamW. Every model has about
0.8 M parameters and is measured on the same characters. Seconds are of training steps, evaluation left out.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn

from llmfs.config import GPTConfig
from llmfs.corpus import load_texts
from llmfs.data import encode_documents, get_batch, sequential_batches, split
from llmfs.evaluate import evaluate
from llmfs.gpt import GPT
from llmfs.optim import cosine_lr
from llmfs.recipes import TEXT_RECIPES
from llmfs.tokenizer import CharTokenizer
from llmfs.train import train


class NanoGPT(nn.Module):
    """nanoGPT's CPU setting, built of `transformers`' GPT-2; ids (B, T) -> logits (B, T, V)."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        self.gpt2: Any = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocab_size,
                n_positions=64,
                n_embd=128,
                n_layer=4,
                n_head=4,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                bos_token_id=0,
                eos_token_id=0,
            )
        )

    def forward(self, ids: Tensor) -> Tensor:
        return self.gpt2(ids).logits


def reference(tokens: Any, held_out: Any, vocab_size: int) -> tuple[int, float, float]:
    """-> parameters, seconds, nats a character."""
    torch.manual_seed(0)
    model = NanoGPT(vocab_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    began = time.perf_counter()
    for step in range(2_000):
        for group in optimizer.param_groups:
            group["lr"] = cosine_lr(step, peak=1e-3, total_steps=2_000, warmup_steps=100, final=0.1)
        x, y = get_batch(tokens, 12, 64, seed=0, step=step)
        loss = nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    seconds = time.perf_counter() - began
    return sum(p.numel() for p in model.parameters()), seconds, evaluate(model, sequential_batches(held_out, 32, 64))


def ours(tokens: Any, held_out: Any, vocab_size: int, **changes: Any) -> tuple[int, float, float]:
    """-> parameters, seconds, nats a character."""
    recipe = TEXT_RECIPES["small"]
    config = dataclasses.replace(recipe.train, eval_every=0, **changes)
    model = GPT(GPTConfig(vocab_size=vocab_size, **recipe.model), generator=torch.Generator().manual_seed(0))
    history = train(
        model,
        lambda step, micro: get_batch(tokens, recipe.rows, recipe.seq_len, seed=0, step=step, rank=micro),
        config,
        progress=sys.stderr.isatty(),
    )
    return model.n_params(), history.seconds[-1], evaluate(model, sequential_batches(held_out, 32, recipe.seq_len))


def main() -> None:
    """Train all, one after the other, and print the table."""
    torch.set_num_threads(2)
    learn, held_out = split(load_texts("tiny-shakespeare"), 0.1)
    tokenizer = CharTokenizer.train(learn + held_out)
    a, b = encode_documents(tokenizer, learn), encode_documents(tokenizer, held_out)
    print(f"{len(a):,} characters to learn from, {len(b):,} held out\n")
    print(f"{'':34}{'parameters':>12}{'seconds':>9}{'nats a character':>18}")
    for name, run in (
        ("llmfs, Muon and AdamW, bf16", lambda: ours(a, b, tokenizer.vocab_size)),
        ("llmfs, AdamW alone, bf16", lambda: ours(a, b, tokenizer.vocab_size, optimizer="adamw", lr=3e-3)),
        ("nanoGPT's setting, transformers", lambda: reference(a, b, tokenizer.vocab_size)),
    ):
        n, seconds, loss = run()
        print(f"{name:34}{n:>12,}{seconds:>9.0f}{loss:>18.3f}", flush=True)


if __name__ == "__main__":
    main()
