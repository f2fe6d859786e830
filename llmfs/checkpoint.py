"""Checkpoints: a folder that is written whole or not at all, and holds nothing that could run code.

A run's folder holds one folder a checkpoint, `step-00000500` and so on, each with

    config.json          the model's kind and its config
    model.safetensors    the weights, each once: a tied head is not stored again
    tokenizer.json       the tokenizer, where there is one
    train_state.pt       optimizers, history and settings, where training is to go on
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llmfs.config import ConfigError, GPTConfig
from llmfs.gpt import GPT
from llmfs.tokenizer import Tokenizer, load_tokenizer

FORMAT = 1  # of config.json; raised when an older reader could no longer understand it
STEP = re.compile(r"step-(\d{8})")

MODELS: dict[str, tuple[type[Any], Callable[[dict[str, Any]], Any]]] = {"gpt": (GPT, GPTConfig.from_dict)}


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or of another kind; the message names the file."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint's folder held."""

    model: Any
    tokenizer: Tokenizer | None
    step: int  # optimizer steps done
    path: Path

    def train_state(self) -> dict[str, Any]:
        """Optimizers, history and settings. Raises `CheckpointError` where none were saved or they are damaged."""
        path = self.path / "train_state.pt"
        if not path.is_file():
            raise CheckpointError(f"{path} is not there: this checkpoint can be used, but not trained on")
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises a dozen kinds, all of them meaning the same to the reader
            raise CheckpointError(f"{path} is damaged ({type(error).__name__}); use an older checkpoint") from error
        return state


def save_checkpoint(
    run_dir: str | Path,
    model: nn.Module,
    *,
    step: int = 0,
    tokenizer: Tokenizer | None = None,
    train_state: dict[str, Any] | None = None,
    keep: int = 2,
) -> Path:
    """Write run_dir/step-NNNNNNNN -> its path. Afterwards only the newest `keep` checkpoints are left.

    Everything is written and flushed under a temporary name first: a rename then makes it appear at once.
    """
    kind = next((name for name, (cls, _) in MODELS.items() if type(model) is cls), None)
    if kind is None:
        raise CheckpointError(f"cannot save a {type(model).__name__}; models that can be saved: {', '.join(MODELS)}")
    run_dir = Path(run_dir)
    final, partial = run_dir / f"step-{step:08d}", run_dir / f".partial-{step:08d}-{os.getpid()}"
    for left in run_dir.glob(".partial-*"):  # by a run that was killed while it wrote
        shutil.rmtree(left)
    partial.mkdir(parents=True)
    try:
        config = model.config.to_dict()  # type: ignore[union-attr, operator]
        text = json.dumps({"format": FORMAT, "model": kind, "step": step, "config": config}, indent=2)
        (partial / "config.json").write_text(text + "\n", encoding="utf-8")
        save_file(stored_weights(model), partial / "model.safetensors")
        if tokenizer is not None:
            tokenizer.save(partial / "tokenizer.json")
        if train_state is not None:
            torch.save(train_state, partial / "train_state.pt")
        for path in partial.iterdir():
            _flush(path)
        if final.exists():  # the same step again: its content is the same, so losing the old one loses nothing
            shutil.rmtree(final)
        os.replace(partial, final)
        _flush(run_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for old in list_checkpoints(run_dir)[:-keep]:
        shutil.rmtree(old)
    return final


def load_checkpoint(path: str | Path, *, device: torch.device | str = "cpu") -> Checkpoint:
    """Load one checkpoint's folder, or the newest one of a run's folder.

    Raises `CheckpointError` where there is none, or a file is damaged or does not fit the model.
    """
    folder = Path(path)
    if not (folder / "config.json").is_file():
        found = list_checkpoints(folder)
        if not found:
            raise CheckpointError(
                f"no checkpoint in {folder}: expected a folder that holds config.json, or step-… folders"
            )
        folder = found[-1]
    kind, step, config = _read_config(folder / "config.json")
    weights_path = folder / "model.safetensors"
    try:
        weights = load_file(weights_path, device=str(device))
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{weights_path} cannot be read: {error}") from error
    model = _build(kind, config, weights, weights_path, device)
    tokenizer_path = folder / "tokenizer.json"
    tokenizer = load_tokenizer(tokenizer_path) if tokenizer_path.is_file() else None
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{tokenizer_path} has {tokenizer.vocab_size} tokens, but the model in {weights_path} "
            f"knows {config.vocab_size}: they do not belong together"
        )
    return Checkpoint(model, tokenizer, step, folder)


def list_checkpoints(run_dir: str | Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    run_dir = Path(run_dir)
    return sorted(p for p in run_dir.glob("step-*") if STEP.fullmatch(p.name)) if run_dir.is_dir() else []


def stored_weights(model: nn.Module) -> dict[str, Tensor]:
    """Name -> weight, each tensor once: two names of one tensor keep the first."""
    seen: set[int] = set()
    weights = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            weights[name] = tensor.detach().contiguous()
    return weights


def _read_config(path: Path) -> tuple[str, int, Any]:
    """-> the model's kind, its step and its config."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version, kind, step, fields = (content[key] for key in ("format", "model", "step", "config"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a checkpoint's config ({error!r})") from error
    if version != FORMAT:
        raise CheckpointError(f"{path} has format {version!r}; this version of llmfs reads format {FORMAT}")
    if kind not in MODELS:
        raise CheckpointError(f"{path} is a model of kind {kind!r}; known kinds: {', '.join(MODELS)}")
    if not isinstance(step, int) or not isinstance(fields, dict):
        raise CheckpointError(f"{path}: step must be a number and config a table")
    try:
        return kind, step, MODELS[kind][1](fields)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _build(kind: str, config: Any, weights: dict[str, Tensor], path: Path, device: torch.device | str) -> Any:
    """The model with these weights, its shapes checked before any memory is taken for it."""
    with torch.device("meta"):
        expected = stored_weights(MODELS[kind][0](config))
    if missing := sorted(expected.keys() - weights.keys()):
        raise CheckpointError(f"{path} lacks {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else ""))
    if extra := sorted(weights.keys() - expected.keys()):
        raise CheckpointError(f"{path} has {extra[0]}, which the model in config.json does not have")
    for name, tensor in expected.items():
        if weights[name].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(weights[name].shape)}, but config.json asks for {tuple(tensor.shape)}"
            )
    model = MODELS[kind][0](config).to(device)
    model.load_state_dict(weights, strict=False)
    model.eval()
    return model


def _flush(path: Path) -> None:
    """Wait until the system has written the file, or the folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
