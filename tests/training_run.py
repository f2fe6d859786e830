"""A small training run in a process of its own, for tests that end it or start several of it.

python training_run.py DIR start|resume [SETTINGS], where SETTINGS is JSON: {"train": fields of TrainConfig, "model":
fields of GPTConfig, "pace": seconds to wait in a step, "full_disk": [step, bytes] from which step on no file may grow
larger}. `fork` is faster than a new interpreter, which takes seconds to import torch.
"""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import multiprocessing.connection
import os
import resource
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llmfs.config import GPTConfig
from llmfs.evaluate import evaluate
from llmfs.gpt import GPT
from llmfs.sample import generate
from llmfs.train import TrainConfig, train

CONFIG = GPTConfig(vocab_size=29, block_size=16, n_layer=2, n_embd=32, n_head=2, dropout=0.1)
TRAIN = TrainConfig(steps=24, accumulate=2, save_every=3, eval_every=8, precision="bf16", warmup_steps=4)


def batches(step: int, micro: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Counting in strides, modulo 29; batches of unequal size, pure in (step, micro)."""
    g = torch.Generator().manual_seed(1000 * step + micro)
    start, stride = torch.randint(0, 29, (2 + micro, 1), generator=g), torch.randint(1, 4, (2 + micro, 1), generator=g)
    ids = (start + stride * torch.arange(13)) % 29
    return ids[:, :-1].clone(), ids[:, 1:].clone()


def watch(model: GPT) -> dict[str, Any]:
    """A loss and a sample."""
    g = torch.Generator().manual_seed(7)
    sample = torch.stack(list(generate(model, torch.tensor([[1, 2]]), 8, generator=g)), dim=1).tolist()
    return {"loss": evaluate(model, [batches(999, 0)]), "sample": sample}


def main(run_dir: str | Path, resume: bool, settings: dict[str, Any]) -> None:
    """One process of the run, perhaps of several. What happened goes into run_dir/history.json."""
    torch.set_num_threads(1)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        dist.init_process_group("gloo", init_method=settings.get("init_method"), rank=rank, world_size=world)
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / f"rank-{rank}.pid").write_text(str(os.getpid()))

    def watched(step: int, micro: int) -> tuple[torch.Tensor, torch.Tensor]:
        (run_dir / "begun").touch()
        time.sleep(settings.get("pace", 0.0))
        first, limit = settings.get("full_disk", (10**9, 0))
        if step >= first:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        return batches(step, micro)

    history = train(
        GPT(CONFIG.replace(**settings.get("model", {})), generator=torch.Generator().manual_seed(0)),
        watched,
        dataclasses.replace(TRAIN, **settings.get("train", {})),
        run_dir=run_dir,
        resume=resume,
        progress=False,
        evaluate=watch,
    )
    if rank == 0:
        (run_dir / "history.json").write_text(json.dumps({"loss": history.loss, "evals": history.evals}))
    if dist.is_initialized():
        dist.destroy_process_group()


def torchrun(run_dir: Path, mode: str = "start", **settings: Any) -> subprocess.Popen[bytes]:
    """The run in two processes, started as a reader would."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(
        [*command, str(run_dir), mode, json.dumps(settings)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=env,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[bytes], *, timeout: float = 120) -> tuple[int, str]:
    """Wait -> the exit status and what was printed. After `timeout` seconds all its processes are killed."""
    try:
        out, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        raise
    return process.returncode, out.decode(errors="replace")


def fork(run_dir: Path, mode: str = "start", *, processes: int = 1, **settings: Any) -> list[BaseProcess]:
    """The run in children of a process that has imported everything. What they print goes to run_dir/rank-N.log."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training_run", "torch.distributed.fsdp"])
    run_dir.mkdir(parents=True, exist_ok=True)
    if processes > 1:
        store = run_dir / f"store-{time.monotonic_ns()}"
        settings["init_method"] = f"file://{store}"
    children: list[BaseProcess] = [
        context.Process(target=_child, args=(run_dir, mode == "resume", settings, rank, processes), daemon=True)
        for rank in range(processes)
    ]
    for rank, child in enumerate(children):
        (run_dir / f"rank-{rank}.log").touch()  # also for a child that is killed before it has begun
        child.start()
    return children


def _child(run_dir: Path, resume: bool, settings: dict[str, Any], rank: int, processes: int) -> None:
    log = os.open(run_dir / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if processes > 1:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(processes))
    try:
        main(run_dir, resume, settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)  # the log has room


def join(children: list[BaseProcess], *, timeout: float = 120, grace: float = math.inf) -> list[int | None]:
    """Wait -> the exit status of each, negative for a signal. After `timeout` seconds they are killed.

    grace: seconds that the others have when one has died, before they are killed, as torchrun does.
    """
    until = time.monotonic() + timeout
    while any(child.exitcode is None for child in children) and time.monotonic() < until:
        if any(child.exitcode for child in children):
            until = min(until, time.monotonic() + grace)
            grace = math.inf
        multiprocessing.connection.wait([child.sentinel for child in children if child.exitcode is None], timeout=0.1)
    late = [child for child in children if child.exitcode is None]
    for child in late:
        child.kill()
        child.join()
    assert not late or any(child.exitcode for child in children if child not in late), "they did not end in time"
    return [child.exitcode for child in children]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "resume", json.loads(sys.argv[3]) if len(sys.argv) > 3 else {})
