"""Runs that are killed, stopped, interrupted or without disk space, at random moments: nothing is lost or changed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import training_run

from llmfs.checkpoint import CheckpointError, list_checkpoints, load_checkpoint
from llmfs.gpt import GPT

KINDS = [
    {},  # bf16, dropout, two micro-batches, Muon
    {"train": {"optimizer": "adamw", "save_every": 1, "keep": 1, "weight_decay": 0.1}, "model": {"qk_norm": True}},
    {"train": {"precision": "float32", "accumulate": 1, "save_every": 2}, "model": {"tie_weights": True}},
    {"train": {"accumulate": 4, "save_every": 5, "keep": 3, "vector_final": 0.5}, "model": {"norm": "layernorm"}},
]
FAULTS = ["kill", "term", "interrupt", "disk"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, float]]:
    """For each kind a run that nothing disturbed, and the seconds that it took."""
    runs = []
    for number, kind in enumerate(KINDS):
        folder, began = tmp_path_factory.mktemp("whole") / str(number), time.monotonic()
        assert training_run.join(training_run.fork(folder, **kind)) == [0], (folder / "rank-0.log").read_text()
        runs.append((folder, time.monotonic() - began))
    return runs


def history(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "history.json").read_text())


def assert_same(a: Path, b: Path) -> None:
    """Losses, evaluations, samples and weights, bit for bit."""
    assert history(a) == history(b)
    weights, others = (load_checkpoint(folder).model.state_dict() for folder in (a, b))
    assert weights.keys() == others.keys()
    for name, p in weights.items():
        assert torch.equal(p, others[name]), name


def send(child: BaseProcess, number: int) -> None:
    """A signal for a process that may have come to its end by now."""
    assert child.pid is not None
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, number)


def disturb(folder: Path, fault: str, rng: random.Random, seconds: float, kind: dict[str, Any]) -> None:
    """Start or resume the run, let the fault happen, and check what is left."""
    mode = "resume" if list_checkpoints(folder) else "start"
    before = load_checkpoint(folder).step if mode == "resume" else 0
    extra = {"full_disk": [rng.randrange(24), rng.randrange(60_000)]} if fault == "disk" else {}
    (child,) = training_run.fork(folder, mode, **kind, **extra)
    if fault != "disk":
        time.sleep(rng.uniform(0.0, seconds))
        send(child, {"kill": signal.SIGKILL, "term": signal.SIGTERM, "interrupt": signal.SIGINT}[fault])
    (status,) = training_run.join([child])
    log = (folder / "rank-0.log").read_text()
    expected = {"kill": {-9}, "term": {-15}, "interrupt": {1, -2}, "disk": {1}}[fault] | {0}
    assert status in expected, log
    if fault == "disk" and status == 1:
        assert re.search(r"CheckpointError: .*step-\d+ could not be written", log), log
    for checkpoint in list_checkpoints(folder):  # not one of them is half there
        load_checkpoint(checkpoint).train_state()
    if list_checkpoints(folder):
        assert load_checkpoint(folder).step >= before
        assert len(list_checkpoints(folder)) <= kind.get("train", {}).get("keep", 2) + (fault != "term")


def survive(seed: int, folder: Path, whole: list[tuple[Path, float]], n_faults: int) -> None:
    rng = random.Random(seed)
    number = seed % len(KINDS)
    expected, seconds = whole[number]
    for k in range(n_faults):
        disturb(folder, FAULTS[(seed // len(KINDS) + k) % len(FAULTS)], rng, seconds, KINDS[number])
    mode = "resume" if list_checkpoints(folder) else "start"
    status = training_run.join(training_run.fork(folder, mode, **KINDS[number]))
    assert status == [0], (folder / "rank-0.log").read_text()
    assert_same(expected, folder)
    assert len(list_checkpoints(folder)) == KINDS[number].get("train", {}).get("keep", 2)
    assert not list(folder.glob(".partial-*"))


@pytest.mark.parametrize("seed", [1, 4, 10, 15])  # each kind of run, and each fault
def test_a_disturbed_run_is_the_whole_run(seed: int, tmp_path: Path, whole: list[tuple[Path, float]]) -> None:
    survive(seed, tmp_path / "run", whole, n_faults=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(16, 80))
def test_a_run_disturbed_again_and_again_is_the_whole_run(
    seed: int, tmp_path: Path, whole: list[tuple[Path, float]]
) -> None:
    survive(seed, tmp_path / "run", whole, n_faults=1 + seed % 3)


def wait_for(condition: Callable[[], Any], is_running: Callable[[], bool], *, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert is_running() and time.monotonic() < until, "it did not happen"
        time.sleep(0.005)


def test_sigterm_saves_the_step_that_was_under_way(tmp_path: Path, whole: list[tuple[Path, float]]) -> None:
    never = {"train": {"save_every": 0}}
    (child,) = training_run.fork(tmp_path, pace=0.05, **never)
    wait_for((tmp_path / "begun").exists, child.is_alive)
    os.kill(child.pid, signal.SIGTERM)
    assert training_run.join([child]) == [-15]  # it dies of the signal, as whoever sent it expects
    assert 0 < load_checkpoint(tmp_path).step < 24
    assert training_run.join(training_run.fork(tmp_path, "resume", **never)) == [0]
    assert_same(whole[0][0], tmp_path)


# --- several processes -----------------------------------------------------------------------------------

PLAIN: dict[str, Any] = {"train": {"precision": "float32"}, "model": {"dropout": 0.0, "tie_weights": True}}
SHARDED: dict[str, Any] = {**PLAIN, "train": {"precision": "float32", "shard": True}}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    assert training_run.join(training_run.fork(folder, **PLAIN)) == [0]
    return folder


def assert_close(a: Path, b: Path) -> None:
    """Equal losses and weights, but for rounding."""
    assert history(b)["loss"] == pytest.approx(history(a)["loss"], rel=1e-6)
    others = load_checkpoint(b).model
    assert type(others) is GPT
    for name, p in load_checkpoint(a).model.state_dict().items():
        assert torch.allclose(p, others.state_dict()[name], atol=1e-6), name


@pytest.mark.parametrize("settings", [PLAIN, SHARDED], ids=["copies", "shards"])
def test_torchrun_gives_the_losses_of_one_process(settings: dict[str, Any], tmp_path: Path, alone: Path) -> None:
    status, out = training_run.finish(training_run.torchrun(tmp_path, **settings))
    assert status == 0, out
    assert_close(alone, tmp_path)


@pytest.mark.parametrize(
    ("first", "then", "processes"),
    [
        pytest.param(SHARDED, PLAIN, 1, id="shards-one"),
        pytest.param(PLAIN, SHARDED, 2, id="copies-shards"),
        pytest.param(SHARDED, PLAIN, 2, id="shards-copies", marks=pytest.mark.slow),
        pytest.param(PLAIN, PLAIN, 1, id="copies-one", marks=pytest.mark.slow),
    ],
)
def test_another_number_of_processes_goes_on(
    first: dict[str, Any], then: dict[str, Any], processes: int, tmp_path: Path, alone: Path
) -> None:
    short = {**first, "pace": 0.02}
    children = training_run.fork(tmp_path, processes=2, **short)
    wait_for(lambda: list_checkpoints(tmp_path), children[0].is_alive)
    for child in children:
        os.kill(child.pid, signal.SIGTERM)
    assert training_run.join(children) == [-15, -15], (tmp_path / "rank-0.log").read_text()
    assert 0 < load_checkpoint(tmp_path).step < 24
    status = training_run.join(training_run.fork(tmp_path, "resume", processes=processes, **then))
    assert status == [0] * processes, (tmp_path / "rank-0.log").read_text()
    assert_close(alone, tmp_path)


@pytest.mark.parametrize(
    "settings",
    [pytest.param(PLAIN, id="copies", marks=pytest.mark.slow), pytest.param(SHARDED, id="shards")],
)
def test_one_process_killed_brings_all_down_and_one_goes_on(
    settings: dict[str, Any], tmp_path: Path, alone: Path
) -> None:
    process = training_run.torchrun(tmp_path, pace=0.05, **settings)
    wait_for(lambda: list_checkpoints(tmp_path), lambda: process.poll() is None)
    os.kill(int((tmp_path / "rank-1.pid").read_text()), signal.SIGKILL)
    status, out = training_run.finish(process)
    assert status != 0
    assert re.search(r"step \d+: another process of this run has ended.*step-\d+. Resume from there", out), out
    for rank in (0, 1):
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / f"rank-{rank}.pid").read_text()), 0)
    assert training_run.join(training_run.fork(tmp_path, "resume", **PLAIN)) == [0]
    assert_close(alone, tmp_path)


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13),
    reason="older versions of torch (seen in 2.7) round a shard's numbers in another way than a whole tensor's",
)
def test_sharded_training_in_bf16_with_dropout_is_that_of_copies(tmp_path: Path) -> None:
    for name, shard in (("copies", False), ("shards", True)):
        children = training_run.fork(tmp_path / name, processes=2, train={"shard": shard})
        assert training_run.join(children) == [0, 0], (tmp_path / name / "rank-0.log").read_text()
    assert_same(tmp_path / "copies", tmp_path / "shards")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_several_processes_killed_at_random(seed: int, tmp_path: Path, alone: Path) -> None:
    """Any of the processes, at any moment; then another number of them."""
    rng = random.Random(seed)
    for _ in range(3):
        settings = rng.choice([PLAIN, SHARDED])
        mode = "resume" if list_checkpoints(tmp_path) else "start"
        children = training_run.fork(tmp_path, mode, processes=2, **settings)
        time.sleep(rng.uniform(0.0, 3.0))
        send(rng.choice(children), rng.choice([signal.SIGKILL, signal.SIGTERM]))
        training_run.join(children, grace=5)
        for checkpoint in list_checkpoints(tmp_path):
            load_checkpoint(checkpoint).train_state()
    mode = "resume" if list_checkpoints(tmp_path) else "start"
    assert training_run.join(training_run.fork(tmp_path, mode, **PLAIN)) == [0]
    assert_close(alone, tmp_path)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in two processes, in bf16 with dropout."""
    folder = tmp_path_factory.mktemp("pair")
    assert training_run.join(training_run.fork(folder, processes=2)) == [0, 0]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_two_processes_go_on_under_torchrun_bit_for_bit(seed: int, tmp_path: Path, pair: Path) -> None:
    """In bf16 with dropout, in copies or shards: one of them is ended at random, twice."""
    rng, settings = random.Random(seed), {"train": {"shard": bool(seed % 2)}}
    for number in (signal.SIGKILL, rng.choice([signal.SIGTERM, signal.SIGINT])):
        mode = "resume" if list_checkpoints(tmp_path) else "start"
        children = training_run.fork(tmp_path, mode, processes=2, **settings)
        time.sleep(rng.uniform(0.5, 4.0))
        send(rng.choice(children), number)
        training_run.join(children, grace=5)
        for checkpoint in list_checkpoints(tmp_path):
            load_checkpoint(checkpoint).train_state()
    mode = "resume" if list_checkpoints(tmp_path) else "start"
    status, out = training_run.finish(training_run.torchrun(tmp_path, mode, **settings))
    assert status == 0, out
    assert_same(pair, tmp_path)


# --- a disk that is really full ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_full_file_system(tmp_path: Path) -> None:
    """Where a small file system may be mounted: not a simulated limit but no space."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=400k none {disk} 2>/dev/null"):
        pytest.skip("a file system cannot be mounted here")
    try:
        children = training_run.fork(disk / "run", train={"keep": 9, "save_every": 1})
        assert training_run.join(children) == [1]
        found = list_checkpoints(disk / "run")
        assert found
        for checkpoint in found:
            load_checkpoint(checkpoint).train_state()
        assert os.system(f"mount -o remount,size=8m {disk}") == 0  # room again
        assert training_run.join(training_run.fork(disk / "run", "resume", train={"keep": 1, "save_every": 0})) == [0]
        assert load_checkpoint(disk / "run").step == 24
    finally:
        os.system(f"umount {disk}")


def test_no_checkpoint_is_said_to_be_none(tmp_path: Path) -> None:
    (child,) = training_run.fork(tmp_path, "resume")
    assert training_run.join([child]) == [1]
    assert "CheckpointError: no checkpoint in" in (tmp_path / "rank-0.log").read_text()
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path)


FAILING = """
import os, signal, sys, time
import training_run
from llmfs.gpt import GPT
from llmfs.train import train

try:
    train(GPT(training_run.CONFIG), lambda *_: 1 / 0, training_run.TRAIN, run_dir=sys.argv[1], progress=False)
except ZeroDivisionError:
    os.kill(os.getpid(), signal.SIGTERM)  # as torchrun ends a process whose neighbor has died
    print("said", flush=True)
    time.sleep(60)
"""


def test_after_an_error_sigterm_leaves_time_to_say_what_it_was(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (Path(__file__).parent, Path.cwd())))}
    ended = subprocess.run(
        [sys.executable, "-c", FAILING, tmp_path], env=environment, stdout=subprocess.PIPE, text=True, timeout=60
    )
    assert ended.stdout == "said\n" and ended.returncode == -signal.SIGTERM
