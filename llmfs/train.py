"""One training loop for everything: pretraining, fine-tuning, one process or several."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import threading
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

from llmfs.checkpoint import CheckpointError, load_checkpoint, save_checkpoint, stored_weights
from llmfs.evaluate import evaluating, next_token_loss
from llmfs.optim import (
    AdamW,
    Muon,
    clip_grad_norm_,
    cosine_lr,
    gather,
    is_sharded,
    multiplies_bf16,
    shard_like,
    split_params,
)
from llmfs.tokenizer import Tokenizer

LossFn = Callable[[nn.Module, Any], tuple[Tensor, int]]  # -> sum over the targets in nats, number of targets
Batches = Callable[[int, int], Any]  # (step, micro-batch) -> a batch; pure, so that a resumed run sees the same


HIGHEST_RATE = 1e6  # of learning rates; with a higher one a weight is soon no number, or no float32


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and what to try."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults suit a small model on a few megabytes of text.

    Raises ValueError for settings with which nothing would be learned.
    """

    steps: int  # optimizer steps in all
    optimizer: Literal["muon", "adamw"] = "muon"  # muon: Muon for the matrices, AdamW for the rest
    lr: float = 5e-3  # peak learning rate of AdamW
    matrix_lr: float = 0.02  # peak learning rate of Muon
    warmup_steps: int = 0  # optimizer steps of linear warm-up
    constant: float = 0.3  # fraction of the steps at the peak, before the cosine to zero
    vector_final: float = 0.0  # share of their peak at which the rates of norms and biases end; the others' end at 0
    weight_decay: float = 0.0  # of matrices and tables; norms and biases are never decayed
    betas: tuple[float, float] = (0.9, 0.99)  # AdamW's memory of the gradient, and of its square
    clip_norm: float = 1.0  # largest norm of all gradients together; 0: no clipping
    accumulate: int = 1  # micro-batches a step, in all processes together
    # Of the forward pass; weights stay float32. auto: bf16 where the device has instructions for it.
    precision: Literal["auto", "float32", "bf16"] = "float32"
    shard: bool = False  # with several processes: each holds a part of every weight (FSDP), in place of a copy (DDP)
    compile: bool = False  # fuse the model's operations by `torch.compile`, which on a CPU needs a C++ compiler
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
        if not (0 < self.lr <= HIGHEST_RATE and 0 < self.matrix_lr <= HIGHEST_RATE):
            raise ValueError(
                f"lr {self.lr} and matrix_lr {self.matrix_lr} must be positive and at most {HIGHEST_RATE:,.0f}: "
                "nothing would be learned"
            )
        if self.optimizer not in ("muon", "adamw") or self.precision not in ("auto", "float32", "bf16"):
            raise ValueError(f"unknown optimizer {self.optimizer!r} or precision {self.precision!r}")
        if not (
            0 <= self.constant <= 1 and 0 <= self.vector_final <= 1 and min(self.clip_norm, self.weight_decay) >= 0
        ):
            raise ValueError("constant and vector_final must be in [0, 1], clip_norm and weight_decay at least 0")


@dataclass
class History:
    """What happened, one entry a step, and one an evaluation."""

    loss: list[float] = field(default_factory=list)  # nats per token, before the step's update
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
    SIGTERM, with which a system ends what must make room, lets the step end and saves before the process dies of it.

    Under `torchrun` the micro-batches of a step are shared out among the processes, and only the first one writes. With
    config.shard each process keeps its part of every weight: so does the model, afterwards, but a checkpoint is whole
    and loads with any number of processes.

    Raises ValueError for settings that cannot work, `CheckpointError` for a damaged checkpoint or one that cannot be
    written, and `TrainingError` where the loss stops being a number.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if config.accumulate % world:
        raise ValueError(
            f"{config.accumulate} micro-batches a step cannot be shared by {world} processes; "
            f"make accumulate a multiple of {world}"
        )
    device = next(model.parameters()).device
    history, start, states = History(), 0, None
    if resume and run_dir is not None:
        history, start, states = _resume(run_dir, model, config)
    wrapped: Any = spread(model, shard=config.shard) if world > 1 else model
    if config.compile:
        wrapped = torch.compile(wrapped)  # in its first step; the model that is saved and evaluated stays as it is
    optimizers = make_optimizers(model, config)
    if states is not None:
        _load_states(optimizers, states)
    wrapped.train()

    def save(step: int) -> None:
        if run_dir is None:
            return
        if not all(bool(gather(p).isfinite().all()) for p in model.parameters()):  # it may only show in the next loss
            what = f"a weight is no number, after a loss of {history.loss[-1]:.4g}"
            raise TrainingError(_diverged(step, what, history.lr[-1], run_dir))
        # Every process gives its part of what is shared out; the first one writes.
        weights = gathered(stored_weights(model))
        state = {
            "train": dataclasses.asdict(config),
            "history": dataclasses.asdict(history),
            "optimizers": [gathered(optimizer.state_dict()) for optimizer in optimizers],
        }
        if rank == 0:
            save_checkpoint(
                run_dir, model, step=step, tokenizer=tokenizer, train_state=state, keep=config.keep, weights=weights
            )

    # Dropout draws from torch's global generator: use it inside, and leave it as it was.
    stop, known_ids = _Stop(wanted=run_dir is not None), _checked(batches, model)
    bar_shown = _progress_bar(config, start, progress and rank == 0)
    with stop, _explained(history, run_dir), torch.random.fork_rng(), bar_shown as bar:
        for step in range(start, config.steps):
            began = time.perf_counter()
            scale = _set_rates(optimizers, config, step)
            loss, count = _gradients(wrapped, known_ids, config, step, loss_fn, device, rank, world)
            norm = clip_grad_norm_(model.parameters(), config.clip_norm or math.inf)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                what = f"the loss is {loss} and the gradient norm {norm}"
                raise TrainingError(_diverged(step, what, scale * config.lr, run_dir))
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
            ends = done == config.steps or stop.agreed(world, device)
            if ends or (config.save_every and done % config.save_every == 0):
                save(done)
            if ends:
                break
    model.eval()
    return history


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices if the config says so, and AdamW for the rest; each group knows its peak rate.

    Raises ValueError where no parameter requires a gradient.
    """
    matrices, tables, vectors = split_params(model)
    decayed = tables if config.optimizer == "muon" else matrices + tables
    # The gains decide how sharp the predictions are. On text that never repeats, the less noise the falling rate leaves
    # in the other weights, the sharper they should be: so the gains may keep moving. (Where it repeats, that overfits.)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay, "peak_lr": config.lr, "final": 0.0},
        {"params": vectors, "weight_decay": 0.0, "peak_lr": config.lr, "final": config.vector_final},
    ]
    optimizers: list[torch.optim.Optimizer] = []
    if any(group["params"] for group in groups):
        optimizers.append(AdamW([group for group in groups if group["params"]], betas=config.betas))
    if config.optimizer == "muon" and matrices:
        group = {"params": matrices, "weight_decay": config.weight_decay, "peak_lr": config.matrix_lr, "final": 0.0}
        optimizers.append(Muon([group]))
    if not optimizers:
        raise ValueError("the model has no parameter that requires a gradient: nothing to train")
    return optimizers


def _set_rates(optimizers: list[torch.optim.Optimizer], config: TrainConfig, step: int) -> float:
    """Give every group its learning rate for this step -> the share of the peak that AdamW's tables get."""

    def share(final: float) -> float:
        return cosine_lr(
            step,
            peak=1.0,
            total_steps=config.steps,
            warmup_steps=config.warmup_steps,
            constant=config.constant,
            final=final,
        )

    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = group["peak_lr"] * share(group["final"])
    return share(0.0)


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
    bf16 = config.precision == "bf16" or (config.precision == "auto" and multiplies_bf16(device))
    for micro in mine:
        # Dropout, like the batch, depends on nothing but (seed, step, micro-batch).
        torch.manual_seed(((config.seed * 1_000_003 + step) * 1_000_003 + micro) % 2**63)
        last = micro == mine[-1]
        sync = nullcontext() if last else getattr(model, "no_sync", nullcontext)()
        with sync:
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss, n = loss_fn(model, _to_device(batches(step, micro), device))
            loss.backward()
        total, count = total + loss.detach().double().cpu(), count + n
    if world > 1:
        both = torch.tensor([total, count], dtype=torch.float64, device=device)
        dist.all_reduce(both)
        total, count = both[0], int(both[1])
    if count == 0:
        raise TrainingError(f"step {step} holds no target to learn from: every one is masked")
    # The gradients so far are of the sum (and with several processes, divided by how many there are).
    for p in model.parameters():
        if p.grad is not None:
            p.grad.mul_(world / count)
    return total.item() / count, count


def spread(model: nn.Module, *, shard: bool) -> nn.Module:
    """The model as all processes train it together -> what to call in its place.

    Not shard: every process keeps a copy, and the gradients are averaged (DDP, Li et al. 2020).
    shard: every process keeps its part of each weight, gradient and optimizer state; the model itself is changed. A
    block's weights are brought together when it computes, then dropped (FSDP, Zhao et al. 2023).
    """
    if not shard:
        return DistributedDataParallel(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard  # takes a second to import

    mesh = init_device_mesh(next(model.parameters()).device.type, (dist.get_world_size(),))
    for block in getattr(model, "blocks", ()):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)  # what stands outside the blocks
    return model


def gathered(state: Any) -> Any:
    """Nested dicts and lists with each tensor whole; of those that were shared out, on the CPU."""
    if isinstance(state, dict):
        return {key: gathered(value) for key, value in state.items()}
    if isinstance(state, list):
        return [gathered(value) for value in state]
    return gather(state).cpu() if is_sharded(state) else state


def _load_states(optimizers: list[torch.optim.Optimizer], states: list[dict[str, Any]]) -> None:
    """Put the optimizers into the states of a checkpoint; of what is shared out, each process takes its part."""
    for optimizer, saved in zip(optimizers, states, strict=True):
        params = [p for group in optimizer.param_groups for p in group["params"]]
        parts = {
            k: {name: shard_like(x, params[k]) if isinstance(x, Tensor) else x for name, x in state.items()}
            for k, state in saved["state"].items()
        }
        optimizer.load_state_dict({**saved, "state": parts})


def _resume(run_dir: str | Path, model: nn.Module, config: TrainConfig) -> tuple[History, int, list[dict[str, Any]]]:
    """Give the model the weights of the newest checkpoint -> history so far, next step, states of the optimizers."""
    checkpoint = load_checkpoint(run_dir)
    state = checkpoint.train_state()
    if missing := {"train", "history", "optimizers"} - state.keys():
        raise CheckpointError(f"the training state in {checkpoint.path} lacks {', '.join(sorted(missing))}")
    if checkpoint.model.config != model.config:
        raise CheckpointError(f"the model in {checkpoint.path} has another config than the one to train on")
    before, now = state["train"], dataclasses.asdict(config)
    for name in ("save_every", "keep", "shard"):  # how often to save, and where, changes nothing that is learned
        now.pop(name)
    # A setting that the checkpoint does not know is newer than it, and was at its default.
    if changed := [name for name in now if now[name] != before.get(name, getattr(TrainConfig, name, None))]:
        raise CheckpointError(
            f"{checkpoint.path} was trained with another {', '.join(changed)}; "
            "give the same settings, or start a new run"
        )
    model.load_state_dict(checkpoint.model.state_dict())
    return History(**state["history"]), checkpoint.step, state["optimizers"]


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


def _diverged(step: int, what: str, lr: float, run_dir: str | Path | None) -> str:
    """What to say where something is no number any more."""
    return (
        f"step {step}: {what}, at learning rate {lr:.3g}; {_last_good(run_dir)}. "
        "Try a lower learning rate, a longer warm-up, or float32"
    )


def _last_good(run_dir: str | Path | None) -> str:
    if run_dir is None:
        return "no checkpoint was being kept"
    try:
        return f"the last good checkpoint is {load_checkpoint(run_dir).path}"
    except CheckpointError:
        return f"there is no checkpoint in {run_dir} yet"


@contextmanager
def _explained(history: History, run_dir: str | Path | None) -> Iterator[None]:
    """Say what torch's errors mean: nothing to compile with, or another process that has died."""
    try:
        yield
    except RuntimeError as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise TrainingError(
                f"step {len(history.loss)}: the model could not be compiled: {str(error).strip().splitlines()[0]}. "
                "On a CPU this needs a C++ compiler, such as g++, and Python's headers; or train without compile"
            ) from error
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise  # else one of several has died: the others notice when they wait for it
        raise TrainingError(
            f"step {len(history.loss)}: another process of this run has ended, or cannot be reached; "
            f"{_last_good(run_dir)}. Resume from there, with as many processes as you like"
        ) from error


def _checked(batches: Batches, model: nn.Module) -> Batches:
    """The batches, where ids and targets come first each time; one beyond the vocabulary is named before it is used."""
    n_ids: int = getattr(getattr(model, "config", None), "vocab_size", 2**63)

    def checked(step: int, micro: int) -> Any:
        batch = batches(step, micro)
        for ids in batch[:2] if isinstance(batch, tuple) else ():
            on_cpu = isinstance(ids, Tensor) and ids.dtype == torch.int64 and ids.device.type == "cpu"
            if on_cpu and ids.numel() and (largest := int(ids.max())) >= n_ids:
                raise ValueError(
                    f"step {step}: the batch holds the id {largest}, but the model's vocabulary ends at {n_ids - 1}; "
                    "use the tokenizer that the model was made for"
                )
        return batch

    return checked


class _Stop:
    """While this holds, SIGTERM only leaves a mark; the signal takes its course when it ends, after the last save."""

    def __init__(self, *, wanted: bool) -> None:
        self.asked = False
        self.wanted = wanted and threading.current_thread() is threading.main_thread()  # others may not set handlers

    def __enter__(self) -> None:
        if self.wanted:
            self.before = signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: Any) -> None:
        self.asked = True

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if not self.wanted:
            return
        if kind is not None:  # where one process has died, torchrun ends the others while they are about to say so
            signal.signal(signal.SIGTERM, self._soon)
            return
        signal.signal(signal.SIGTERM, self.before or signal.SIG_DFL)
        if self.asked:
            signal.raise_signal(signal.SIGTERM)

    def _soon(self, *_: Any) -> None:
        """After an error: the signal takes its course two seconds later, so that the error can be printed first."""
        signal.signal(signal.SIGTERM, self.before or signal.SIG_DFL)
        timer = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGTERM))
        timer.daemon = True
        timer.start()

    def agreed(self, world: int, device: torch.device) -> bool:
        """Whether to end after this step. All processes get the same answer, and so end together."""
        if world > 1:
            asked = torch.tensor(float(self.asked), device=device)
            dist.all_reduce(asked, dist.ReduceOp.MAX)
            self.asked = bool(asked)
        return self.asked


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
