"""Checkpoints: what goes in comes out; what is damaged is named."""

from __future__ import annotations

import json

import pytest
import torch

from llmfs.checkpoint import CheckpointError, list_checkpoints, load_checkpoint, save_checkpoint
from llmfs.config import GPTConfig
from llmfs.gpt import GPT
from llmfs.tokenizer import CharTokenizer


@pytest.fixture
def saved(tmp_path):
    model = GPT(GPTConfig(vocab_size=11, block_size=8, n_layer=1, n_embd=16, n_head=2, tie_weights=True)).eval()
    tokenizer = CharTokenizer.train("hello world")
    return model, save_checkpoint(tmp_path / "run", model, step=7, tokenizer=tokenizer, train_state={"a": [1, 2.5]})


def test_round_trip(saved):
    model, path = saved
    loaded = load_checkpoint(path.parent)
    assert loaded.path == path and loaded.step == 7 and loaded.train_state() == {"a": [1, 2.5]}
    assert loaded.model.config == model.config and loaded.tokenizer.encode("hello") == CharTokenizer.train(
        "hello world"
    ).encode("hello")
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(loaded.model(ids), model(ids))
    assert loaded.model.lm_head.weight is loaded.model.embed.weight


def test_a_tied_head_is_stored_once(saved):
    from safetensors import safe_open

    with safe_open(saved[1] / "model.safetensors", "pt") as weights:
        assert "embed.weight" in weights.keys() and "lm_head.weight" not in weights.keys()


def test_old_checkpoints_go_and_partial_ones_never_count(saved):
    model, path = saved
    (path.parent / ".partial-00000009-1").mkdir()
    (path.parent / ".partial-00000009-1" / "config.json").write_text("{}")
    assert load_checkpoint(path.parent).step == 7
    for step in (8, 9, 10):
        save_checkpoint(path.parent, model, step=step, keep=2)
    assert [p.name for p in list_checkpoints(path.parent)] == ["step-00000009", "step-00000010"]
    assert not list(path.parent.glob(".partial-*"))
    assert load_checkpoint(path.parent).tokenizer is None


def test_a_failed_write_leaves_the_old_one(saved, monkeypatch):
    model, path = saved

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llmfs.checkpoint.save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path.parent, model, step=8)
    assert load_checkpoint(path.parent).step == 7 and not list(path.parent.glob(".partial-*"))


def edit(path, **changes):
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "damage, message",
    [
        (
            lambda p: (p / "model.safetensors").write_bytes((p / "model.safetensors").read_bytes()[:-9]),
            "model.safetensors cannot be read",
        ),
        (lambda p: (p / "model.safetensors").write_bytes(b""), "model.safetensors cannot be read"),
        (lambda p: (p / "model.safetensors").unlink(), "model.safetensors cannot be read"),
        (lambda p: (p / "config.json").write_text("{"), "config.json is not a checkpoint's config"),
        (lambda p: edit(p / "config.json", format=99), "format 99"),
        (lambda p: edit(p / "config.json", model="bert"), "kind 'bert'"),
        (lambda p: edit(p / "config.json", config={"vocab_size": 11}), "missing setting block_size"),
        (
            lambda p: edit(
                p / "config.json", config={"vocab_size": 11, "block_size": 8, "n_layer": 1, "n_embd": 32, "n_head": 2}
            ),
            "lacks lm_head.weight",
        ),
        (
            lambda p: edit(
                p / "config.json",
                config={
                    "vocab_size": 11,
                    "block_size": 8,
                    "n_layer": 1,
                    "n_embd": 32,
                    "n_head": 2,
                    "tie_weights": True,
                },
            ),
            "has shape",
        ),
    ],
)
def test_damage_is_named(saved, damage, message):
    damage(saved[1])
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved[1])


def test_a_damaged_train_state_is_named_and_never_run(saved):
    import pickle

    class Hostile:
        def __reduce__(self):
            return (exec, ("raise SystemExit('this ran')",))

    state = saved[1] / "train_state.pt"
    state.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(CheckpointError, match="train_state.pt is damaged"):
        load_checkpoint(saved[1]).train_state()
    state.unlink()
    with pytest.raises(CheckpointError, match="not trained on"):
        load_checkpoint(saved[1]).train_state()


def test_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        load_checkpoint(tmp_path)
