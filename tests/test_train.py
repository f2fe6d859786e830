"""The loop: true token means, exact resumption, clear refusals."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import training_run
from torch import nn

from llmfs.checkpoint import CheckpointError, list_checkpoints, load_checkpoint
from llmfs.config import GPTConfig
from llmfs.evaluate import bits_per_byte, evaluate, next_token_loss, perplexity
from llmfs.gpt import GPT
from llmfs.train import TrainConfig, TrainingError, train

SCRIPT = Path(training_run.__file__)
PLAIN = GPTConfig(vocab_size=29, block_size=16, n_layer=2, n_embd=32, n_head=2)


def model(seed: int = 0, config: GPTConfig = PLAIN) -> GPT:
    return GPT(config, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_loss_falls(optimizer):
    history = train(
        model(), training_run.batches, TrainConfig(steps=60, accumulate=2, optimizer=optimizer), progress=False
    )
    assert history.loss[0] == pytest.approx(3.4, abs=0.2) and history.loss[-1] < 3.0
    assert len(history.loss) == len(history.seconds) == 60 and history.tokens[-1] == 60 * 5 * 12


def test_accumulation_is_the_mean_over_all_targets():
    """Micro-batches of 2 and 3 rows give the same first step as one batch of 5 rows: the token mean, not a mean of means."""
    config = TrainConfig(steps=3, optimizer="adamw")
    in_two, in_one = model(), model()
    a = train(in_two, training_run.batches, dataclasses.replace(config, accumulate=2), progress=False)

    def joined(step, _):
        parts = [training_run.batches(step, micro) for micro in (0, 1)]
        return tuple(torch.cat(pair) for pair in zip(*parts))

    b = train(in_one, joined, config, progress=False)
    assert a.loss == pytest.approx(b.loss, rel=1e-6) and a.grad_norm == pytest.approx(b.grad_norm, rel=1e-5)
    mean = sum(next_token_loss(model(), training_run.batches(0, m))[0].item() for m in (0, 1)) / (5 * 12)
    assert a.loss[0] == pytest.approx(mean, rel=1e-6)


def test_training_leaves_the_global_generator_alone():
    dropping = model(config=training_run.CONFIG)
    before = torch.get_rng_state()
    train(dropping, training_run.batches, TrainConfig(steps=2), progress=False)
    assert torch.equal(before, torch.get_rng_state())


def run(folder: Path, mode: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder), mode], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process: subprocess.Popen) -> None:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out.decode()


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    """kill -9 after some checkpoint, resume: losses, evaluations and weights are those of a run never killed."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(run(whole, "start"))
    process = run(killed, "start")
    deadline = time.time() + 120
    while not list_checkpoints(killed) and process.poll() is None and time.time() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list_checkpoints(killed), "the run was killed before its first checkpoint"
    assert load_checkpoint(killed).step < 24, "the run ended before it could be killed"
    finish(run(killed, "resume"))
    a, b = (json.loads((folder / "history.json").read_text()) for folder in (whole, killed))
    assert a == b
    for name, p in load_checkpoint(whole).model.state_dict().items():
        assert torch.equal(p, load_checkpoint(killed).model.state_dict()[name]), name
    assert len(list_checkpoints(killed)) == 2  # old ones are gone


def test_two_processes_give_the_losses_of_one(tmp_path):
    """torchrun with two processes shares the micro-batches: the same losses to 1e-6."""
    config = dataclasses.replace(training_run.TRAIN, precision="float32", save_every=0)
    alone = train(model(), training_run.batches, config, progress=False)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "--standalone",
            str(SCRIPT),
            str(tmp_path),
            "torchrun",
        ],
        env=env,
        capture_output=True,
        timeout=300,
    )
    assert out.returncode == 0, out.stderr.decode()
    assert json.loads((tmp_path / "history.json").read_text())["loss"] == pytest.approx(alone.loss, rel=1e-6)


def test_resume_refuses_other_settings(tmp_path):
    config = TrainConfig(steps=3)
    train(model(), training_run.batches, config, run_dir=tmp_path, progress=False)
    with pytest.raises(CheckpointError, match="another lr"):
        train(
            model(),
            training_run.batches,
            dataclasses.replace(config, lr=1.0),
            run_dir=tmp_path,
            resume=True,
            progress=False,
        )
    with pytest.raises(CheckpointError, match="another config"):
        train(
            model(config=PLAIN.replace(n_layer=1)),
            training_run.batches,
            config,
            run_dir=tmp_path,
            resume=True,
            progress=False,
        )


def test_nan_stops_with_step_rate_and_checkpoint(tmp_path):
    def poisoned(m: nn.Module, batch):
        loss, n = next_token_loss(m, batch)
        return loss * (float("nan") if poisoned.calls >= 4 else 1.0), n

    poisoned.calls = 0

    def batches(step, micro):
        poisoned.calls = step
        return training_run.batches(step, micro)

    with pytest.raises(TrainingError, match=r"step 4: the loss is nan.*learning rate 0.00449.*step-00000004"):
        train(model(), batches, TrainConfig(steps=9, save_every=2), loss_fn=poisoned, run_dir=tmp_path, progress=False)
    assert all(p.isfinite().all() for p in load_checkpoint(tmp_path).model.parameters())


@pytest.mark.parametrize(
    "settings",
    [
        dict(steps=0),
        dict(lr=0.0),
        dict(lr=float("nan")),
        dict(accumulate=0),
        dict(optimizer="sgd"),
        dict(precision="fp8"),
        dict(constant=2.0),
    ],
)
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(ValueError):
        TrainConfig(**{"steps": 5, **settings})


def test_a_step_without_targets_is_refused():
    with pytest.raises(TrainingError, match="no target"):
        train(
            model(),
            lambda *_: (torch.zeros(1, 4, dtype=torch.long), torch.full((1, 4), -100)),
            TrainConfig(steps=1),
            progress=False,
        )
    frozen = model()
    frozen.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        train(frozen, training_run.batches, TrainConfig(steps=1), progress=False)


def test_evaluate_counts_tokens_not_batches():
    a, b = training_run.batches(0, 0), training_run.batches(0, 1)
    b[1][0, :5] = -100
    m = model()
    sums = [next_token_loss(m, batch) for batch in (a, b)]
    assert evaluate(m, [a, b]) == pytest.approx(sum(s.item() for s, _ in sums) / sum(n for _, n in sums))
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate(m, [])


def test_units():
    assert perplexity(0.0) == 1.0 and perplexity(1.0986122886681098) == pytest.approx(3.0)
    assert bits_per_byte(0.6931471805599453, n_tokens=10, n_bytes=40) == pytest.approx(0.25)
    with pytest.raises(ValueError):
        bits_per_byte(1.0, 0, 5)
