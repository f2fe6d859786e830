"""Checkpoints: a folder that is written whole or not at all, and holds nothing that could run code.

A run's folder holds one folder a checkpoint, `step-00000500` and so on, each with

    config.json               the model's kind and its config, and the SHA-256 of every file
    model.safetensors         the weights, each once: a tied head is not stored again
    tokenizer.json            the tokenizer, where there is one
    train_state.json          where training is to go on: optimizers, history and settings,
    train_state.safetensors   and the tensors among them
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llmfs.config import ConfigError, GPTConfig
from llmfs.gpt import GPT
from llmfs.rnn import RNNLM, RNNConfig, Seq2SeqAttention, Seq2SeqConfig
from llmfs.tokenizer import Tokenizer, load_tokenizer

FORMAT = 1  # of config.json; raised when an older reader could no longer understand it
STEP = re.compile(r"step-(\d{8,})")
TABLE_BYTES = 2**30  # what tables of positions may take, which no file holds; or 4 times the weights, if that is more

MODELS: dict[str, tuple[type[Any], Callable[[dict[str, Any]], Any]]] = {
    "gpt": (GPT, GPTConfig.from_dict),
    "rnn": (RNNLM, RNNConfig.from_dict),
    "seq2seq": (Seq2SeqAttention, Seq2SeqConfig.from_dict),
}


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or of another kind; the message names the file."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint's folder held."""

    model: Any
    tokenizer: Tokenizer | None
    step: int  # optimizer steps done
    path: Path
    sha256: dict[str, str] = field(default_factory=dict)  # by the file's name

    def train_state(self) -> dict[str, Any]:
        """Optimizers, history and settings. Raises `CheckpointError` where none were saved or they are damaged."""
        path = self.path / "train_state.json"
        if not path.is_file():
            raise CheckpointError(f"{path} is not there: this checkpoint can be used, but not trained on")
        tensors_path = path.with_suffix(".safetensors")
        for file in (path, tensors_path):
            _check_file(file, self.sha256)
        try:
            state: dict[str, Any] = _unpack(json.loads(path.read_bytes()), load_file(tensors_path))
        except (OSError, SafetensorError, RecursionError, *_WRONG_JSON) as error:
            raise CheckpointError(f"{path} is damaged ({error!r:.200}); use an older checkpoint") from error
        return state


def save_checkpoint(
    run_dir: str | Path,
    model: nn.Module,
    *,
    step: int = 0,
    tokenizer: Tokenizer | None = None,
    train_state: dict[str, Any] | None = None,
    keep: int = 2,
    weights: dict[str, Tensor] | None = None,
) -> Path:
    """Write run_dir/step-NNNNNNNN -> its path. Afterwards only the newest `keep` checkpoints are left.

    Everything is written and flushed under a temporary name first: a rename then makes it appear at once. Raises
    `CheckpointError` for a model of another kind, and where something cannot be written, as on a full disk; the older
    checkpoints are then as they were.
    weights: what to store, name -> tensor of the shape that the model's has; None: what `stored_weights` gives. Of a
    model that several processes share out, each holds a part, and whoever saves it has brought them together.
    """
    kind = next((name for name, (cls, _) in MODELS.items() if plain_type(model) is cls), None)
    if kind is None:
        raise CheckpointError(f"cannot save a {type(model).__name__}; models that can be saved: {', '.join(MODELS)}")
    run_dir = Path(run_dir)
    final, partial = run_dir / f"step-{step:08d}", run_dir / f".partial-{step:08d}-{os.getpid()}"
    content = {"format": FORMAT, "model": kind, "step": step, "config": model.config.to_dict()}  # type: ignore[union-attr, operator]
    try:
        for left in run_dir.glob(".partial-*"):  # by a run that was killed while it wrote or deleted
            shutil.rmtree(left)
        partial.mkdir(parents=True)
        save_file(stored_weights(model) if weights is None else weights, partial / "model.safetensors")
        if tokenizer is not None:
            tokenizer.save(partial / "tokenizer.json")
        if train_state is not None:
            _save_state(train_state, partial / "train_state.json")
        content["files"] = {path.name: _file_sha256(path) for path in sorted(partial.iterdir())}
        content["sha256"] = _sha256(content)
        (partial / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        for path in (*partial.iterdir(), partial):
            _flush(path)
        if final.exists():  # the same step again: its content is the same, so losing the old one loses nothing
            _remove(final)
        os.replace(partial, final)
        _flush(run_dir)
        for old in list_checkpoints(run_dir)[:-keep]:
            _remove(old)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{final} could not be written ({error}); {_what_is_left(run_dir)}. Make room, then resume"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def load_checkpoint(path: str | Path, *, device: torch.device | str = "cpu") -> Checkpoint:
    """Load one checkpoint's folder, or the newest one of a run's folder.

    Raises `CheckpointError` where there is none, or a file is damaged or does not fit the model, and `TokenizerError`
    for a tokenizer that cannot be used. No memory is taken for a size before a file has shown that it is real.
    """
    folder = Path(path)
    if not (folder / "config.json").is_file():
        found = list_checkpoints(folder)
        if not found:
            raise CheckpointError(
                f"no checkpoint in {folder}: expected a folder that holds config.json, or step-… folders"
            )
        folder = found[-1]
    kind, step, config, sha256 = _read_config(folder / "config.json")
    weights_path, tokenizer_path = folder / "model.safetensors", folder / "tokenizer.json"
    _check_file(weights_path, sha256)
    try:
        weights = load_file(weights_path, device=str(device))
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{weights_path} cannot be read: {error}") from error
    model = _build(kind, config, weights, weights_path, device)
    tokenizer = None
    if tokenizer_path.is_file() or tokenizer_path.name in sha256:
        _check_file(tokenizer_path, sha256)
        tokenizer = load_tokenizer(tokenizer_path)
        if tokenizer.vocab_size > config.vocab_size:
            raise CheckpointError(
                f"{tokenizer_path} has {tokenizer.vocab_size} tokens, but the model in {weights_path} "
                f"knows {config.vocab_size}: they do not belong together"
            )
    return Checkpoint(model, tokenizer, step, folder, sha256)


def list_checkpoints(run_dir: str | Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    run_dir = Path(run_dir)
    found = [p for p in run_dir.glob("step-*") if STEP.fullmatch(p.name) and p.is_dir()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def stored_weights(model: nn.Module) -> dict[str, Tensor]:
    """Name -> weight, of the model's shapes, each tensor once: two names of one tensor keep the first."""
    seen: set[int] = set()
    weights = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            weights[name] = tensor.detach().contiguous()
    return weights


def plain_type(model: nn.Module) -> type[nn.Module]:
    """The model's class. PyTorch's `fully_shard` derives another from it; then the one from before."""
    cls = type(model)
    return cls.__bases__[-1] if cls.__bases__[0].__name__ == "FSDPModule" else cls


_WRONG_JSON = (ValueError, KeyError, TypeError, IndexError, AttributeError)  # what reading another's JSON may raise


def _read_config(path: Path) -> tuple[str, int, Any, dict[str, str]]:
    """-> the model's kind, its step, its config, and the SHA-256 of each file (none, where an older version wrote)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version, kind, step, fields = (content[key] for key in ("format", "model", "step", "config"))
        sha256, own = content.get("files", {}), content.pop("sha256", None)
        found = _sha256(content)
    except (OSError, RecursionError, *_WRONG_JSON) as error:
        raise CheckpointError(f"{path} is not a checkpoint's config ({error!r:.200})") from error
    if version != FORMAT:
        raise CheckpointError(f"{path} has format {version!r:.20}; this version of llmfs reads format {FORMAT}")
    if own is not None and own != found:
        raise CheckpointError(f"{path} is damaged: it is not what was written (its SHA-256 differs)")
    if not isinstance(kind, str) or kind not in MODELS:
        raise CheckpointError(f"{path} is a model of kind {kind!r:.60}; known kinds: {', '.join(MODELS)}")
    if not isinstance(step, int) or not 0 <= step < 10**12 or not isinstance(fields, dict):
        raise CheckpointError(f"{path}: step must be a whole number of at least 0 and config a table")
    if not isinstance(sha256, dict):
        raise CheckpointError(f"{path}: files must be a table")
    try:
        return kind, step, MODELS[kind][1](fields), sha256
    except (ConfigError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _build(kind: str, config: Any, weights: dict[str, Tensor], path: Path, device: torch.device | str) -> Any:
    """The model with these weights, its shapes checked before any memory is taken for it."""
    layers = getattr(config, "n_layer", 1)
    if layers > len(weights):  # before so many are made, even without memory
        raise CheckpointError(f"{path} holds {len(weights)} weights; config.json asks for {layers} layers")
    try:
        with torch.device("meta"):
            skeleton = MODELS[kind][0](config)
    except (RuntimeError, OverflowError, TypeError) as error:
        raise CheckpointError(f"{path.parent / 'config.json'} asks for impossible sizes: {error!s:.200}") from error
    _check_shapes(stored_weights(skeleton), weights, path)
    tables, stored = (sum(t.nbytes for t in tensors) for tensors in (skeleton.buffers(), weights.values()))
    if tables > max(TABLE_BYTES, 4 * stored):
        raise CheckpointError(
            f"{path.parent / 'config.json'} asks for position tables of {tables:,} bytes, beside weights of {stored:,}"
        )
    model = MODELS[kind][0](config).to(device)
    model.load_state_dict(weights, strict=False)
    model.eval()
    return model


def _check_shapes(expected: dict[str, Tensor], weights: dict[str, Tensor], path: Path) -> None:
    """Raises `CheckpointError` unless these are the weights that the model has."""
    if missing := sorted(expected.keys() - weights.keys()):
        raise CheckpointError(f"{path} lacks {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else ""))
    if extra := sorted(weights.keys() - expected.keys()):
        raise CheckpointError(f"{path} has {extra[0]}, which the model in config.json does not have")
    for name, tensor in expected.items():
        if weights[name].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(weights[name].shape)}, but config.json asks for {tuple(tensor.shape)}"
            )
        if not weights[name].is_floating_point():
            raise CheckpointError(f"{path}: {name} holds {weights[name].dtype}; expected floating-point numbers")


# --- the training state: JSON, and safetensors for the tensors in it --------------------------------------


def _save_state(state: dict[str, Any], path: Path) -> None:
    """Write path, and beside it the tensors."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_pack(state, tensors), default=lambda number: number.item())  # NumPy's numbers, to plain ones
    path.write_text(text, encoding="utf-8")
    save_file(tensors, path.with_suffix(".safetensors"))


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A nested value as JSON: a tensor goes into `tensors` and leaves its name; a dict's keys may be numbers."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"items": [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        items = [_pack(item, tensors) for item in value]
        return items if isinstance(value, list) else {"tuple": items}
    return value


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `_pack`."""
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        if "tuple" in value:
            return tuple(_unpack(item, tensors) for item in value["tuple"])
        return {key: _unpack(item, tensors) for key, item in value["items"]}
    return [_unpack(item, tensors) for item in value] if isinstance(value, list) else value


# --- files ------------------------------------------------------------------------------------------------


def _sha256(content: dict[str, Any]) -> str:
    """Of a JSON object, however it is laid out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_file(path: Path, sha256: dict[str, str]) -> None:
    """Raises `CheckpointError` where the file is not the one that was written. Older versions wrote no SHA-256."""
    try:
        damaged = path.name in sha256 and _file_sha256(path) != sha256[path.name]
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if damaged:
        raise CheckpointError(
            f"{path} cannot be read: it is damaged, for its SHA-256 is not the one in config.json; "
            "use an older checkpoint"
        )


def _what_is_left(run_dir: Path) -> str:
    found = list_checkpoints(run_dir)
    return f"the last good checkpoint is {found[-1]}" if found else "there is no checkpoint yet"


def _remove(folder: Path) -> None:
    """Under another name first: a process that is killed meanwhile leaves no part of a checkpoint behind."""
    gone = folder.with_name(f".partial-{folder.name}-{os.getpid()}")
    os.replace(folder, gone)
    shutil.rmtree(gone)


def _flush(path: Path) -> None:
    """Wait until the system has written the file, or the folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
