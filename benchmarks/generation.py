"""Generation against `transformers.generate` on the same weights: greedy, with a cache, the same tokens."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from benchmarks.measure import (
    Comparison,
    Section,
    Settings,
    Table,
    bar,
    expect_same,
    matrix_rate,
    reading_seconds,
    take_turns,
)
from benchmarks.training import make_ours, to_transformers
from llmfs.config import GPTConfig
from llmfs.gpt import GPT
from llmfs.sample import generate
from llmfs.scale import flops_per_token, matrix_params

GOAL = 3.0  # times the tokens per second
SIZES: dict[str, tuple[Any, dict[str, int]]] = {
    "Llama, 0.8 M": (GPTConfig.llama, dict(n_layer=4, n_head=4, n_embd=128)),
    "GPT-2, 3 M": (GPTConfig.gpt2, dict(n_layer=4, n_head=4, n_embd=256)),
    "Llama, 10 M": (GPTConfig.llama, dict(n_layer=6, n_head=6, n_embd=384)),
}
QUICK = {"Llama, tiny": (GPTConfig.llama, dict(n_layer=1, n_head=2, n_embd=16))}
BATCHES, PROMPTS = (1, 16), (16, 512)  # rows; tokens


def run(settings: Settings) -> Section:
    """Several models, at two batch sizes and two lengths of the prompt."""
    n_new = settings.pick(4, 64)
    section = Section("generate", "Generation")
    for name, (family, sizes) in (QUICK if settings.quick else SIZES).items():
        model = make_model(family, sizes, block_size=settings.pick(64, 1024))
        theirs = to_transformers(model).eval()
        for rows in settings.pick((1, 2), BATCHES):
            for length in settings.pick((4,), PROMPTS):
                what = f"{name}, batch {rows}, prompt {length}"
                section.comparisons.append(compare(model, theirs, rows, length, n_new, what, settings))
    if not settings.quick:
        section.comparisons.append(gpt2_small(settings))
    section.tables.append(by_length(settings))
    section.notes.append(
        f"{n_new} new tokens, the most likely one each time, float32, with a cache. Both sides hold the same random "
        "weights and give the same tokens. The time includes reading the prompt. The last column is the ratio of a "
        "side that would do nothing but the matrix products, each at the best rate measured here."
    )
    return section


def make_model(family: Any, sizes: dict[str, int], block_size: int) -> GPT:
    """Random weights, spread so widely that no two tokens are nearly equally likely."""
    model = make_ours(family(vocab_size=1024, block_size=block_size, d_ff=None, **sizes)).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.mul_(2.0)
    return model


def compare(model: GPT, theirs: Any, rows: int, length: int, n_new: int, what: str, settings: Settings) -> Comparison:
    """Both sides continue the same prompts."""
    ids = torch.randint(model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(1))
    expect_same(f"tokens of {what}", our_tokens(model, ids, n_new), their_tokens(theirs, ids, n_new))
    seconds = take_turns(
        {"ours": lambda: our_tokens(model, ids, n_new), "theirs": lambda: their_tokens(theirs, ids, n_new)},
        settings.n_rounds(1, 3),
        settings,
        f"generate, {what}",
    )
    found = Comparison(what, "transformers", seconds["ours"], seconds["theirs"], rows * n_new, "tokens/s", GOAL)
    found.extra = {
        "ratio at the floor": f"{statistics.median(seconds['theirs']) / floor(model, ids, n_new, settings):.1f}"
    }
    return found


def floor(model: GPT, ids: torch.Tensor, n_new: int, settings: Settings) -> float:
    """Seconds that the matrix products alone would take, at the best rate for each; all else is free.

    A new token's products cost at least as much as reading the weights once, however few rows share them.
    """
    rows, length = ids.shape
    rate = matrix_rate(settings, torch.float32, n=settings.pick(64, 1024))
    prompt = rows * length * flops_per_token(model.config, length, backward=False) / rate
    token = rows * flops_per_token(model.config, length + n_new // 2, backward=False) / rate
    return prompt + n_new * max(token, reading_seconds(settings, matrix_params(model.config)))


def our_tokens(model: GPT, ids: torch.Tensor, n_new: int) -> list[list[int]]:
    """-> the new tokens of each row."""
    return torch.stack(list(generate(model, ids, n_new, temperature=0)), dim=1).tolist()


def their_tokens(model: Any, ids: torch.Tensor, n_new: int) -> list[list[int]]:
    """-> the new tokens of each row."""
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=n_new,
        min_new_tokens=n_new,
        pad_token_id=0,
    )
    return out[:, ids.shape[1] :].tolist()


def gpt2_small(settings: Settings) -> Comparison:
    """GPT-2's own smallest shape."""
    model = make_ours(GPTConfig.gpt2(block_size=128)).eval()
    theirs = to_transformers(model).eval()
    found = compare(model, theirs, 1, 16, 16, "GPT-2, 124 M, batch 1, prompt 16", settings)
    found.goal = None  # to read the weights takes nearly all the time, on either side
    return found


def by_length(settings: Settings) -> Table:
    """Milliseconds for one more token behind so many, with and without the cache."""
    family, sizes = next(iter((QUICK if settings.quick else SIZES).values()))
    block = settings.pick(32, 1024)
    model = make_model(family, sizes, block)
    name = next(iter(QUICK if settings.quick else SIZES))
    table = Table(f"{name}, batch 1: milliseconds for the next token", ["tokens before it", "cache", "no cache"], [])
    for length in bar(settings.pick((8, 16), (16, 128, 256, 512, 960)), settings, "generate, by length"):
        ids = torch.randint(model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(1))
        row: list[Any] = [length]
        for cached, n in ((True, settings.pick(2, 32)), (False, settings.pick(2, 8))):
            steps = generate(model, ids, n, temperature=0, use_cache=cached)
            next(steps)  # reads the prompt
            began, seconds = settings.clock(), []
            for _ in steps:
                now = settings.clock()
                seconds.append(now - began)
                began = now
            row.append(round(1e3 * statistics.median(seconds), 2))
        table.rows.append(row)
    return table
