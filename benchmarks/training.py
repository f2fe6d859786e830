"""Training against transformers' GPT-2 and Llama with `torch.optim.AdamW`: the same weights, batches and rates.

The two models take turns, a step each: `llmfs.train.train` trains ours, and lets theirs take a step in its place for
evaluations, which count in no one's time.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from itertools import product
from typing import Any, Literal, get_args

import torch
from torch import nn

from benchmarks.measure import Comparison, Section, Settings, Table, bar, expect_near, matrix_rate
from llmfs.config import GPTConfig
from llmfs.corpus import CorpusError, load_texts
from llmfs.data import Tokens, encode_documents, get_batch
from llmfs.gpt import GPT
from llmfs.pretrained import save_pretrained
from llmfs.scale import flops_per_token
from llmfs.tokenizer import CharTokenizer
from llmfs.train import TrainConfig, train

Precision = Literal["float32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
WARMUP = 2  # steps that are not counted
GOAL = 1.3  # times the tokens per second
SIZES: dict[str, dict[str, int]] = {  # and the rows and tokens of a batch
    "0.8 M": dict(n_layer=4, n_head=4, n_embd=128, rows=16, length=128),
    "3 M": dict(n_layer=4, n_head=4, n_embd=256, rows=16, length=128),
    "10 M": dict(n_layer=6, n_head=6, n_embd=384, rows=8, length=256),
}
QUICK = {"tiny": dict(n_layer=1, n_head=2, n_embd=16, rows=2, length=8)}
FAMILIES = {"GPT-2": GPTConfig.gpt2, "Llama": GPTConfig.llama}
RATE = 1e-4  # low: with a high one, first steps without a warm-up drive equal models apart in bf16
TOLERANCE = {"float32": 1e-3, "bf16": 3e-2}  # nats that the losses of a step may lie apart


def run(settings: Settings) -> Section:
    """Both families at three sizes, two precisions, and compiled; on a GPU, GPT-2 with 124 M parameters too."""
    section = Section("train", "Training")
    tokens, vocab_size, what = characters()
    rounds = settings.n_rounds(2, 8)
    rates = {
        "float32": matrix_rate(settings, torch.float32, n=settings.pick(64, 1024)),
        "bf16": matrix_rate(settings, torch.bfloat16, n=settings.pick(64, 1024)),
    }
    columns = ["model", "steps", "loss, nats per character", "llmfs, s", "rival, s"]
    curve = Table("Seconds to the same loss", columns, [])
    variants: list[tuple[Precision, bool]] = [(precision, False) for precision in PRECISIONS]
    if not settings.quick and shutil.which(os.environ.get("CXX", "g++")):
        variants.append(("float32", True))
    for size, shape in (QUICK if settings.quick else SIZES).items():
        for (precision, compiled), family in product(variants, FAMILIES):
            config = make_config(family, vocab_size, shape)
            rows, length = shape["rows"], shape["length"]
            name = f"{family}, {size}, {precision}" + ", both compiled" * compiled
            theirs: Any = torch.compile(reference(config)) if compiled else reference(config)
            plan = make_plan(rounds, precision, compiled)
            ours, others, losses = side_by_side(config, theirs, tokens, (rows, length), plan, settings, name)
            goal = None if compiled else GOAL
            found = Comparison(name, "transformers", ours, others, rows * length / 1e3, "k tokens/s", goal)
            least = flops_per_token(config, length) * rows * length / rates[precision]  # seconds
            found.extra = {
                "share of the matrix rate": f"{least / statistics.median(ours):.0%}",
                "ratio at that rate": f"{statistics.median(others) / least:.2f}",
            }
            section.comparisons.append(found)
            curve.rows.append([name, len(losses), round(losses[-1], 3), sum(ours), sum(others)])
    section.notes += [
        f"Text: {what}. One batch is 2,048 characters. Both sides start from the same weights, take the same batches "
        f"and rates (AdamW at {RATE:g}, gradients clipped at 1), and their losses agree at every step "
        f"(float32: to {TOLERANCE['float32']:g}; bf16: to {TOLERANCE['bf16']:g} nats).",
        "bf16: torch.autocast on both sides. The best matrix product measured here: "
        + ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {precision}" for precision, rate in rates.items())
        + ". The share is of the operations that the model needs (6 N + 12 L H hd T for a token) at that rate, and the "
        "last column is the ratio that a side would reach which did nothing but these products. Compiled: by "
        "`torch.compile`, as with `llmfs train --compile`; compiling itself is left out.",
    ]
    section.tables.append(curve)
    section.tables.append(on_gpu(settings))
    return section


def characters() -> tuple[Tokens, int, str]:
    """-> ids, how many there are, and what they are."""
    try:
        name, found = "Tiny Shakespeare", load_texts("tiny-shakespeare")
    except CorpusError:
        name, found = "the book's tales", load_texts("tales", n=1_000)
    tokenizer = CharTokenizer.train(found)
    return encode_documents(tokenizer, found), tokenizer.vocab_size, f"{name}, character by character"


def make_config(family: str, vocab_size: int, shape: dict[str, int]) -> GPTConfig:
    """A small model of this family."""
    sizes = {name: shape[name] for name in ("n_layer", "n_head", "n_embd")}
    return FAMILIES[family](vocab_size=vocab_size, block_size=shape["length"], d_ff=None, **sizes)


def make_ours(config: GPTConfig) -> GPT:
    """The model of a comparison; always the same weights."""
    return GPT(config, generator=torch.Generator().manual_seed(0))


def reference(config: GPTConfig) -> nn.Module:
    """transformers' model with the weights of `make_ours`."""
    return to_transformers(make_ours(config))


def to_transformers(model: GPT) -> Any:
    """The same model, as transformers reads it from a file."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder)
        return AutoModelForCausalLM.from_pretrained(folder)


def make_plan(rounds: int, precision: Precision, compiled: bool = False) -> TrainConfig:
    """AdamW at one rate, with an evaluation after every step: there the other side takes its turn."""
    return TrainConfig(
        WARMUP + rounds, "adamw", lr=RATE, constant=1.0, precision=precision, eval_every=1, compile=compiled
    )


def side_by_side(
    config: GPTConfig,
    theirs: nn.Module,
    tokens: Tokens,
    batch_shape: tuple[int, int],
    plan: TrainConfig,
    settings: Settings,
    name: str,
) -> tuple[list[float], list[float], list[float]]:
    """-> our seconds and theirs, one for each step but the first two, and our losses of all steps."""
    clock = _Turns(settings)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.0)
    theirs.train()
    their_losses: list[float] = []
    progress = iter(bar(range(plan.steps), settings, f"train, {name}"))

    def batch(step: int, micro: int) -> tuple[torch.Tensor, torch.Tensor]:
        return get_batch(tokens, *batch_shape, seed=0, step=step, rank=micro)

    def their_turn(_: nn.Module) -> dict[str, Any]:
        clock.ours.append(clock.lap())
        x, y = batch(len(their_losses), 0)
        their_losses.append(their_step(theirs, optimizer, x, y, plan.precision))
        clock.theirs.append(clock.lap())
        next(progress, None)
        return {}

    history = train(make_ours(config), batch, plan, evaluate=their_turn, progress=False)
    next(progress, None)
    expect_near(f"losses of {name}", history.loss, their_losses, TOLERANCE[plan.precision])
    return clock.ours[WARMUP:], clock.theirs[WARMUP:], history.loss


class _Turns:
    """The seconds of two sides that take turns."""

    def __init__(self, settings: Settings) -> None:
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self._clock = settings.clock
        self._last = self._clock()

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = self._clock()
        seconds, self._last = now - self._last, now
        return seconds


def their_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor, precision: str
) -> float:
    """One step as it is usually written -> the loss."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
        loss = nn.functional.cross_entropy(model(x).logits.flatten(0, 1), y.flatten())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def on_gpu(settings: Settings, rows: int = 16, length: int = 1024) -> Table:
    """GPT-2 with 124 M parameters on a GPU: bf16, compiled; tokens/s, the share of the matrix rate, memory."""
    columns = ["side", "tokens/s", "share of the matrix rate", "peak memory, GB"]
    table = Table(f"GPT-2, 124 M parameters, {rows} × {length:,} tokens per step, bf16, compiled", columns, [])
    if not torch.cuda.is_available():
        table.rows.append(["llmfs", "not measured: no CUDA device", "", ""])
        return table
    config = GPTConfig.gpt2(block_size=length)
    best = matrix_rate(settings, torch.bfloat16, "cuda", 8192)
    x = torch.randint(config.vocab_size, (rows, length), device="cuda")
    for side in ("llmfs", "transformers"):
        model: Any = make_ours(config)
        model = (model if side == "llmfs" else to_transformers(model)).cuda().train()
        rate = _gpu_rate(model, x, steps=settings.n_rounds(2, 20))
        share = rate * flops_per_token(config, length) / best
        table.rows.append([side, round(rate), f"{share:.0%}", round(torch.cuda.max_memory_allocated() / 1e9, 1)])
        del model
    return table


def _gpu_rate(model: Any, x: torch.Tensor, steps: int) -> float:
    """Tokens a second; compiling and two further steps are left out."""
    torch.cuda.reset_peak_memory_stats()
    compiled = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    for step in range(2 + steps):
        if step == 2:
            torch.cuda.synchronize()
            began = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            out = compiled(x)
            logits: Any = getattr(out, "logits", out)
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), x[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.cuda.synchronize()
    return steps * x.numel() / (time.perf_counter() - began)
