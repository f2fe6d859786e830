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
    with pytest.raises(CheckpointError, match="step-00000008 could not be written.*No space.*step-00000007. Make room"):
        save_checkpoint(path.parent, model, step=8)
    assert load_checkpoint(path.parent).step == 7 and not list(path.parent.glob(".partial-*"))


def edit(path, **changes):
    """Change a config.json that has no SHA-256 to betray it, as older versions wrote it."""
    content = json.loads(path.read_text())
    del content["sha256"], content["files"]
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


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "train_state.json", "train_state.safetensors"])
def test_one_wrong_bit_is_noticed(saved, name):
    path = saved[1] / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} cannot be read: it is damaged"):
        load_checkpoint(saved[1]).train_state()
    path.unlink()
    with pytest.raises(CheckpointError, match=name.partition(".")[0]):
        load_checkpoint(saved[1]).train_state()


def test_one_wrong_digit_in_the_config_is_noticed(saved):
    path = saved[1] / "config.json"
    path.write_text(path.read_text().replace('"rope_theta": 10000.0', '"rope_theta": 10001.0'))
    with pytest.raises(CheckpointError, match="config.json is damaged"):
        load_checkpoint(saved[1])
    path.write_text(json.dumps(json.loads(path.read_text().replace("10001.0", "10000.0"))))  # laid out in another way
    assert load_checkpoint(saved[1]).step == 7


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(n_layer=5_000), "asks for 5000 layers"),
        (dict(block_size=10**12), "position tables"),
        (dict(block_size=10**30), "impossible sizes"),
        (dict(n_embd=2**24, n_head=2**10), "has shape"),
        (dict(n_embd=2**62, n_head=2**20), "impossible sizes"),
        (dict(vocab_size=2**62), "impossible sizes|has shape"),
        (dict(d_ff=2**40), "has shape"),
        (dict(norm_eps=float("nan")), "norm_eps nan"),
        (dict(dropout="0.1"), "config.json"),
        (dict(unknown=1), "unknown setting unknown"),
    ],
)
def test_no_memory_is_taken_for_a_size_that_a_file_only_claims(saved, change, message):
    import resource

    path = saved[1] / "config.json"
    edit(path, config={**json.loads(path.read_text())["config"], **change})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved[1])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


def test_weights_are_floating_point_numbers(saved):
    from safetensors.torch import load_file, save_file

    edit(saved[1] / "config.json")
    path = saved[1] / "model.safetensors"
    save_file({name: tensor.int() for name, tensor in load_file(path).items()}, path)
    with pytest.raises(CheckpointError, match="holds torch.int32"):
        load_checkpoint(saved[1])


def test_a_train_state_comes_back_as_it_was(tmp_path, saved):
    import numpy as np

    state = {
        "tensors": {0: {"mean": torch.randn(3, 4).T, "step": 3}, 1: {"mean": torch.tensor(2.5)}},
        "betas": (0.9, [0.99, None, True]),
        "items": {"tensor": "a string", "tuple": float("inf"), "π": -0.1},
    }
    found = load_checkpoint(save_checkpoint(tmp_path, saved[0], train_state=state)).train_state()
    for number in (0, 1):
        assert torch.equal(state["tensors"][number].pop("mean"), found["tensors"][number].pop("mean"))
    assert found == state
    assert load_checkpoint(save_checkpoint(tmp_path, saved[0], train_state={"x": np.float32(0.5)})).train_state() == {
        "x": 0.5
    }


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"items": 5}', '{"tensor": "9"}', '{"items": [[[], 1]]}', "é"])
def test_a_hostile_train_state_is_named(saved, text):
    edit(saved[1] / "config.json")
    (saved[1] / "train_state.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match="train_state.json is damaged"):
        load_checkpoint(saved[1]).train_state()


def test_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        load_checkpoint(tmp_path)
