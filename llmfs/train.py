"""One training loop for everything: pretraining, fine-tuning, one process or several."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from llmfs.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from llmfs.evaluate import evaluating, next_token_loss
from llmfs.optim import AdamW, Muon, clip_grad_norm_, cosine_lr, split_params
from llmfs.tokenizer import Tokenizer

LossFn = Callable[[nn.Module, Any], tuple[Tensor, int]]  # -> sum over the targets in nats, number of targets
Batches = Callable[[int, int], Any]  # (step, micro-batch) -> a batch; pure, so that a resumed run sees the same


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and what to try."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults suit a small model on a few megabytes of text."""

    steps: int  # optimizer steps in all
    optimizer: Literal["muon", "adamw"] = "muon"  # muon: Muon for the matrices, AdamW for the rest
    lr: float = 5e-3  # peak learning rate of AdamW
    matrix_lr: float = 0.02  # peak learning rate of Muon
    warmup_steps: int = 0  # optimizer steps of linear warm-up
    constant: float = 0.3  # fraction of the steps at the peak, before the cosine to zero
    weight_decay: float = 0.0  # of matrices and tables; norms and biases are never decayed
    betas: tuple[float, float] = (0.9, 0.99)  # AdamW's memory of the gradient, and of its square
    clip_norm: float = 1.0  # largest norm of all gradients together; 0: no clipping
    accumulate: int = 1  # micro-batches a step, in all processes together
    precision: Literal["float32", "bf16"] = "float32"  # bf16: autocast in the forward pass; weights stay float32
    seed: int = 0  # of dropout
    eval_every: int = 0  # optimizer steps between evaluations; 0: never
    save_every: int = 0  # optimizer steps between checkpoints; 0: at the end alone
    keep: int = 2  # how many checkpoints stay

    def __post_init__(self) -> None:
        """Refuse, before the first step, what could not work."""
        for name, low in (
            ("steps", 1),
            ("accumulate", 1),
            ("keep", 1),
            ("warmup_steps", 0),
            ("eval_every", 0),
            ("save_every", 0),
        ):
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {low}")
        if not (0 < self.lr < math.inf and 0 < self.matrix_lr < math.inf):
            raise ValueError(f"lr {self.lr} and matrix_lr {self.matrix_lr} must be positive: nothing would be learned")
        if self.optimizer not in ("muon", "adamw") or self.precision not in ("float32", "bf16"):
            raise ValueError(f"unknown optimizer {self.optimizer!r} or precision {self.precision!r}")
        if not 0 <= self.constant <= 1 or self.clip_norm < 0 or self.weight_decay < 0:
            raise ValueError("constant must be in [0, 1], clip_norm and weight_decay at least 0")


@dataclass
class History:
    """What happened, one entry a step, and one an evaluation."""

    loss: list[float] = field(default_factory=list)  # nats a token, before the step's update
    lr: list[float] = field(default_factory=list)  # of AdamW
    grad_norm: list[float] = field(default_factory=list)  # before clipping
    tokens: list[int] = field(default_factory=list)  # targets seen so far
    seconds: list[float] = field(default_factory=list)  # spent in steps so far, evaluations left out
    evals: list[dict[str, Any]] = field(default_factory=list)  # {"step": …} and what `evaluate` returned


def train(
    model: nn.Module,
    batches: Batches,
    config: TrainConfig,
    *,
    loss_fn: LossFn = next_token_loss,
    evaluate: Callable[[nn.Module], dict[str, Any]] | None = None,
    run_dir: str | Path | None = None,
    tokenizer: Tokenizer | None = None,
    resume: bool = False,
    progress: bool = True,
) -> History:
    """Train `model` in place -> what happened.

    batches(step, micro) gives a batch, on any device; loss_fn(model, batch) its loss as a sum and a count, so that
    the step's gradient is that of the mean over all its targets. evaluate(model) -> a dict for `History.evals`.
    run_dir: where checkpoints go; resume: go on from the newest one there, bit for bit as if never interrupted.
    Under `torchrun` the micro-batches of a step are shared out among the processes, and only the first one writes.

    Raises ValueError for settings that cannot work, `CheckpointError` for a damaged checkpoint and `TrainingError`
    where the loss stops being a number.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if config.accumulate % world:
        raise ValueError(
            f"{config.accumulate} micro-batches a step cannot be shared by {world} processes; "
            f"make accumulate a multiple of {world}"
        )
    device = next(model.parameters()).device
    optimizers = make_optimizers(model, config)
    history, start = History(), 0
    if resume and run_dir is not None:
        history, start = _resume(run_dir, model, optimizers, config)
    wrapped = DistributedDataParallel(model) if world > 1 else model
    wrapped.train()

    def save(step: int) -> None:
        if run_dir is not None and rank == 0:
            state = {
                "train": dataclasses.asdict(config),
                "history": dataclasses.asdict(history),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            }
            save_checkpoint(run_dir, model, step=step, tokenizer=tokenizer, train_state=state, keep=config.keep)

    # Dropout draws from torch's global generator: use it inside, and leave it as it was.
    with torch.random.fork_rng(), _progress_bar(config, start, progress and rank == 0) as bar:
        for step in range(start, config.steps):
            began = time.perf_counter()
            scale = cosine_lr(
                step, peak=1.0, total_steps=config.steps, warmup_steps=config.warmup_steps, constant=config.constant
            )
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = scale * group["peak_lr"]
            loss, count = _gradients(wrapped, batches, config, step, loss_fn, device, rank, world)
            norm = clip_grad_norm_(model.parameters(), config.clip_norm or math.inf)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise TrainingError(_diverged(step, loss, norm, scale * config.lr, run_dir))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            _record(history, loss, scale * config.lr, norm, count, time.perf_counter() - began)
            bar.update()
            bar.set_postfix_str(f"loss {loss:.3f}, {_tokens_per_second(history)}", refresh=False)
            done = step + 1
            if evaluate is not None and config.eval_every and (done % config.eval_every == 0 or done == config.steps):
                with evaluating(model):
                    history.evals.append({"step": done, **evaluate(model)})
            if done == config.steps or (config.save_every and done % config.save_every == 0):
                save(done)
    model.eval()
    return history


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices if the config says so, and AdamW for the rest; each group knows its peak rate."""
    matrices, tables, vectors = split_params(model)
    decayed = tables if config.optimizer == "muon" else matrices + tables
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay, "peak_lr": config.lr},
        {"params": vectors, "weight_decay": 0.0, "peak_lr": config.lr},
    ]
    optimizers: list[torch.optim.Optimizer] = []
    if any(group["params"] for group in groups):
        optimizers.append(AdamW([group for group in groups if group["params"]], betas=config.betas))
    if config.optimizer == "muon" and matrices:
        group = {"params": matrices, "weight_decay": config.weight_decay, "peak_lr": config.matrix_lr}
        optimizers.append(Muon([group]))
    if not optimizers:
        raise ValueError("the model has no parameter that requires a gradient: nothing to train")
    return optimizers


def _gradients(
    model: nn.Module,
    batches: Batches,
    config: TrainConfig,
    step: int,
    loss_fn: LossFn,
    device: torch.device,
    rank: int,
    world: int,
) -> tuple[float, int]:
    """Leave the gradient of the step's mean loss in the parameters -> that loss, and its number of targets."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    mine = range(rank, config.accumulate, world)
    for micro in mine:
        # Dropout, like the batch, depends on nothing but (seed, step, micro-batch).
        torch.manual_seed(((config.seed * 1_000_003 + step) * 1_000_003 + micro) % 2**63)
        last = micro == mine[-1]
        sync = nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()
        with sync:
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                loss, n = loss_fn(model, _to_device(batches(step, micro), device))
            loss.backward()
        total, count = total + loss.detach().double().cpu(), count + n
    if world > 1:
        both = torch.tensor([total, count], dtype=torch.float64)
        dist.all_reduce(both)
        total, count = both[0], int(both[1])
    if count == 0:
        raise TrainingError(f"step {step} holds no target to learn from: every one is masked")
    # The gradients so far are of the sum (and DistributedDataParallel has divided them by the processes).
    for p in model.parameters():
        if p.grad is not None:
            p.grad.mul_(world / count)
    return total.item() / count, count


def _resume(
    run_dir: str | Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], config: TrainConfig
) -> tuple[History, int]:
    """Put model and optimizers into the state of the newest checkpoint -> the history so far, and the next step."""
    checkpoint = load_checkpoint(run_dir)
    state = checkpoint.train_state()
    if checkpoint.model.config != model.config:
        raise CheckpointError(f"the model in {checkpoint.path} has another config than the one to train on")
    before, now = state["train"], dataclasses.asdict(config)
    for name in ("save_every", "keep"):  # how often to save changes nothing that is learned
        now[name] = before[name]
    if changed := [name for name in now if now[name] != before[name]]:
        raise CheckpointError(
            f"{checkpoint.path} was trained with another {', '.join(changed)}; "
            "give the same settings, or start a new run"
        )
    model.load_state_dict(checkpoint.model.state_dict())
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return History(**state["history"]), checkpoint.step


def _record(history: History, loss: float, lr: float, norm: float, count: int, seconds: float) -> None:
    history.loss.append(loss)
    history.lr.append(lr)
    history.grad_norm.append(norm)
    history.tokens.append((history.tokens[-1] if history.tokens else 0) + count)
    history.seconds.append((history.seconds[-1] if history.seconds else 0.0) + seconds)


def _tokens_per_second(history: History, window: int = 20) -> str:
    """Over the last steps."""
    first = max(0, len(history.tokens) - 1 - window)
    tokens = history.tokens[-1] - (history.tokens[first] if first < len(history.tokens) - 1 else 0)
    seconds = history.seconds[-1] - (history.seconds[first] if first < len(history.seconds) - 1 else 0.0)
    return f"{tokens / max(seconds, 1e-9):,.0f} tokens/s"


def _diverged(step: int, loss: float, norm: float, lr: float, run_dir: str | Path | None) -> str:
    """What to say where the loss is no number any more."""
    where = "no checkpoint was being kept"
    if run_dir is not None:
        try:
            where = f"the last good checkpoint is {load_checkpoint(run_dir).path}"
        except CheckpointError:
            where = f"there is no checkpoint in {run_dir} yet"
    return (
        f"step {step}: the loss is {loss} and the gradient norm {norm}, at learning rate {lr:.3g}; {where}. "
        "Try a lower learning rate, a longer warm-up, or float32"
    )


def _to_device(batch: Any, device: torch.device) -> Any:
    """A batch is a tensor, or a tuple or dict of them."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: _to_device(value, device) for key, value in batch.items()}
    return tuple(_to_device(value, device) for value in batch)


@contextmanager
def _progress_bar(config: TrainConfig, start: int, show: bool) -> Iterator[Any]:
    with tqdm(
        total=config.steps, initial=start, desc="training", unit="step", disable=not show, mininterval=0.5
    ) as bar:
        yield bar
