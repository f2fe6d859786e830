"""The loop: true token means, exact resumption, clear refusals."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys

import pytest
import torch
import torch._inductor.config
import training_run
from torch import nn

from llmfs.checkpoint import CheckpointError, list_checkpoints, load_checkpoint, save_checkpoint
from llmfs.config import GPTConfig
from llmfs.evaluate import bits_per_byte, evaluate, next_token_loss, perplexity
from llmfs.gpt import GPT
from llmfs.train import TrainConfig, TrainingError, train

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


@pytest.mark.parametrize("bf16", [False, True])
def test_auto_is_bf16_where_the_device_has_instructions_for_it(monkeypatch, bf16):
    monkeypatch.setattr("llmfs.train.multiplies_bf16", lambda device: bf16)
    losses = {
        precision: train(
            model(), training_run.batches, TrainConfig(steps=3, accumulate=2, precision=precision), progress=False
        ).loss
        for precision in ("auto", "bf16", "float32")
    }
    assert losses["auto"] == losses["bf16" if bf16 else "float32"] and losses["bf16"] != losses["float32"]


def test_at_the_end_norms_still_move_and_matrices_do_not():
    moved = {}
    for steps in (19, 20):  # one schedule; the last step is left out in the first
        net, config = model(), TrainConfig(steps=20, constant=0.0, vector_final=0.5)
        if steps == 19:
            with pytest.raises(KeyboardInterrupt):
                train(net, _until(19), config, progress=False)
        else:
            train(net, training_run.batches, config, progress=False)
        moved[steps] = {name: p.detach().clone() for name, p in net.named_parameters()}
    for name, before in moved[19].items():
        step = (moved[20][name] - before).abs().max().item()
        expected = (1e-3, 5e-3) if before.dim() == 1 else (0.0, 5e-4)
        assert expected[0] < step < expected[1], name


def _until(last):
    def batches(step, micro):
        if step == last:
            raise KeyboardInterrupt
        return training_run.batches(step, micro)

    return batches


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


needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")) is None,
    reason="torch.compile needs a C++ compiler",
)


def equal_batches(step: int, micro: int) -> tuple[torch.Tensor, torch.Tensor]:
    """With batches of unequal size a model is compiled again and again."""
    ids, targets = training_run.batches(step, micro)
    return ids[:2], targets[:2]


@needs_compiler
def test_compiled_it_learns_the_same_and_resumes_bit_for_bit(tmp_path):
    config = TrainConfig(steps=6, accumulate=2, save_every=3)
    plain, compiled, resumed = (model() for _ in range(3))
    expected = train(plain, equal_batches, config, progress=False)
    config = dataclasses.replace(config, compile=True)
    history = train(compiled, equal_batches, config, run_dir=tmp_path, progress=False)
    assert history.loss == pytest.approx(expected.loss, rel=1e-5) and history.loss[-1] < history.loss[0]
    shutil.rmtree(list_checkpoints(tmp_path)[-1])
    again = train(resumed, equal_batches, config, run_dir=tmp_path, resume=True, progress=False)
    assert again.loss == history.loss
    for name, p in compiled.state_dict().items():  # the names are the plain model's, too
        assert torch.equal(p, resumed.state_dict()[name]) and torch.allclose(p, plain.state_dict()[name], atol=1e-4)
    with pytest.raises(CheckpointError, match="another compile"):
        train(plain, equal_batches, dataclasses.replace(config, compile=False), run_dir=tmp_path, resume=True)


def test_without_a_compiler_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing is there that was compiled before
    torch._dynamo.reset()
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, str(tmp_path / "g++"))}),
        pytest.raises(TrainingError, match=r"step 0: the model could not be compiled: .*needs a C\+\+ compiler"),
    ):
        train(model(), equal_batches, TrainConfig(steps=1, compile=True), progress=False)


def test_a_setting_newer_than_the_checkpoint_was_at_its_default(tmp_path):
    config = TrainConfig(steps=4, save_every=2)
    train(model(), equal_batches, config, run_dir=tmp_path, progress=False)
    shutil.rmtree(list_checkpoints(tmp_path)[-1])
    older = load_checkpoint(tmp_path)
    state = older.train_state()
    assert state["train"].pop("compile") is False  # as it was before there was such a setting
    save_checkpoint(tmp_path, older.model, step=older.step, train_state=state)
    assert len(train(model(), equal_batches, config, run_dir=tmp_path, resume=True, progress=False).loss) == 4


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


@pytest.mark.parametrize("place", [0, 1], ids=["ids", "targets"])
def test_an_id_beyond_the_vocabulary_is_refused(place):
    def batches(step, micro):
        batch = [part.clone() for part in training_run.batches(step, micro)]
        batch[place][0, 0] = 29 if step == 1 else 28
        return tuple(batch)

    with pytest.raises(ValueError, match=r"step 1: the batch holds the id 29, but the model's vocabulary ends at 28"):
        train(model(), batches, TrainConfig(steps=3), progress=False)


def test_weights_that_are_no_numbers_are_never_saved(tmp_path):
    """The step before the loss shows it has ruined the weights: the last checkpoint is the one before."""
    ruined = model()

    def batches(step, micro):
        return training_run.batches(step, micro)

    def watch(m):
        with torch.no_grad():
            m.embed.weight[3, 4] = float("inf")
        return {}

    config = TrainConfig(steps=9, save_every=2, eval_every=4)
    with pytest.raises(TrainingError, match=r"step 4: a weight is no number.*learning rate 0.00497.*step-00000002"):
        train(ruined, batches, config, run_dir=tmp_path, evaluate=watch, progress=False)
    assert load_checkpoint(tmp_path).step == 2


def test_an_infinite_loss_without_checkpoints(tmp_path):
    def infinite(m, batch):
        loss, n = next_token_loss(m, batch)
        return loss * float("inf"), n

    with pytest.raises(TrainingError, match=r"step 0: the loss is inf.*no checkpoint was being kept"):
        train(model(), training_run.batches, TrainConfig(steps=2), loss_fn=infinite, progress=False)
    with pytest.raises(TrainingError, match=r"step 0: the loss is inf.*there is no checkpoint in"):
        train(model(), training_run.batches, TrainConfig(steps=2), loss_fn=infinite, run_dir=tmp_path, progress=False)
