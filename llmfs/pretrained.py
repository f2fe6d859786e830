"""Weights in the Hugging Face format, in and out: GPT-2, Llama and Qwen 3.

A model in that format is a folder with `config.json` and `model.safetensors`. A large one lies in several shards, and
`model.safetensors.index.json` says what is where. GPT-2's tokenizer lies beside it, in `vocab.json` and `merges.txt`.

Two tables, `gpt2_layout` and `llama_layout`, say where each of our weights lies among theirs. Everything else reads
them, forward for loading and backward for saving.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llmfs.config import ConfigError, GPTConfig
from llmfs.gpt import GPT
from llmfs.tokenizer import GPT2_PATTERN, PRINTED, BPETokenizer

GPT2_NAMES = ("gpt2", "openai-community/gpt2")  # what LLMFS_GPT2 stands for
TOKENIZER_FILES = (("merges.txt", "vocab.json"), ("vocab.bpe", "encoder.json"))  # Hugging Face's names, OpenAI's names
TABLE_BYTES = 2**30  # what tables of positions may take, which no file holds
# Tensors that some files hold and no model needs: masks and rotary tables, which are computed.
COMPUTED = re.compile(r"transformer\.h\.\d+\.attn\.(masked_)?bias|model\.(layers\.\d+\.self_attn\.)?rotary_emb.*")


class PretrainedError(ValueError):
    """Weights that cannot be had or do not fit; the message names the file, and says what was expected."""


# --- in ------------------------------------------------------------------------------------------------


def from_gpt2(path_or_name: str | Path) -> GPT:
    """A GPT-2 from a folder in the Hugging Face format, in float32 and ready to use; dropout is off.

    A name in place of a folder, such as "gpt2", stands for the folder that the environment variable LLMFS_GPT2 names;
    other names, and that one where the variable is not set, are downloaded if `huggingface_hub` is installed.

    Raises `PretrainedError` where a file is missing or damaged, a weight is missing, left over or of another shape, or
    the config asks for something that `GPT` does not have.
    """
    folder = find_folder(path_or_name)
    fields, where = _read_config(folder)
    _expect(where, fields, "model_type", "gpt2")
    _expect(where, fields, "activation_function", "gelu_new", "gelu_pytorch_tanh")
    _expect(where, fields, "scale_attn_weights", True)
    for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        _expect(where, fields, name, False)
    sizes = dict(vocab_size="vocab_size", block_size="n_positions", n_layer="n_layer", n_head="n_head", n_embd="n_embd")
    config = _make_config(
        where,
        GPTConfig.gpt2,
        {ours: _needed(where, fields, theirs) for ours, theirs in sizes.items()},
        d_ff=fields.get("n_inner"),
        norm_eps=fields.get("layer_norm_epsilon", 1e-5),
        tie_weights=fields.get("tie_word_embeddings", True),
    )
    return _load(folder, config, gpt2_layout, "transformer.")


def from_llama(path_or_name: str | Path) -> GPT:
    """A Llama, or a Qwen 3, from a folder in the Hugging Face format, in float32 and ready to use.

    A name in place of a folder is downloaded if `huggingface_hub` is installed. Raises `PretrainedError` as `from_gpt2`
    does; among what `GPT` does not have are scaled rotary positions, biases, and heads of another size than C / H.
    """
    folder = find_folder(path_or_name)
    fields, where = _read_config(folder)
    _expect(where, fields, "model_type", "llama", "qwen3")
    _expect(where, fields, "hidden_act", "silu")
    for name in ("attention_bias", "mlp_bias", "use_sliding_window"):
        _expect(where, fields, name, False)
    sizes = dict(
        vocab_size="vocab_size",
        block_size="max_position_embeddings",
        n_layer="num_hidden_layers",
        n_head="num_attention_heads",
        n_embd="hidden_size",
        d_ff="intermediate_size",
    )
    config = _make_config(
        where,
        GPTConfig.llama,
        {ours: _needed(where, fields, theirs) for ours, theirs in sizes.items()},
        n_kv_head=fields.get("num_key_value_heads"),
        norm_eps=fields.get("rms_norm_eps", 1e-6),
        rope_theta=_rope_theta(where, fields),
        tie_weights=fields.get("tie_word_embeddings", False),
        qk_norm=fields["model_type"] == "qwen3",
    )
    default = 128 if fields["model_type"] == "qwen3" else None  # of transformers, where the file does not say
    if (head_size := fields.get("head_dim", default)) not in (None, config.head_size):
        raise PretrainedError(
            f"{where}: head_dim is {head_size}; GPT has only heads of size hidden_size / num_attention_heads = "
            f"{config.head_size}"
        )
    return _load(folder, config, llama_layout, "model.")


def gpt2_tokenizer(path_or_name: str | Path) -> BPETokenizer:
    """The tokenizer that lies in a GPT-2's folder, as `vocab.json` and `merges.txt`; see `from_gpt2` for names.

    Raises PretrainedError where they are not there.
    """
    folder = find_folder(path_or_name)
    for merges, vocab in TOKENIZER_FILES:
        if (folder / merges).is_file() and (folder / vocab).is_file():
            return BPETokenizer.from_gpt2_files(folder / merges, folder / vocab)
    raise PretrainedError(f"{folder} holds no tokenizer of GPT-2: expected merges.txt and vocab.json")


def find_folder(path_or_name: str | Path) -> Path:
    """The folder of a model: the given one, the one that LLMFS_GPT2 names for "gpt2", or a downloaded one.

    Raises PretrainedError where there is none.
    """
    folder, name = Path(path_or_name).expanduser(), str(path_or_name)
    if folder.is_dir():
        return folder
    if name in GPT2_NAMES and (given := os.environ.get("LLMFS_GPT2")):
        if not Path(given).expanduser().is_dir():
            raise PretrainedError(f"LLMFS_GPT2 is {given!r}, which is no folder; expected one with GPT-2's files")
        return Path(given).expanduser()
    if isinstance(path_or_name, Path) or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise PretrainedError(f"there is no folder {folder}: expected one with config.json and model.safetensors")
    return _download(name)


def _download(name: str) -> Path:
    """The folder where `huggingface_hub` keeps the model of this name."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise PretrainedError(
            f"there is no folder {name!r}; to download a model by its name, install huggingface_hub, or for GPT-2 name "
            "a folder that holds it in LLMFS_GPT2"
        ) from error
    wanted = ["config.json", "model*.safetensors", "model.safetensors.index.json", "vocab.json", "merges.txt"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # no network, no such model, no permission: a dozen kinds
        raise PretrainedError(f"there is no folder {name!r}, and the model could not be downloaded: {error}") from error


# --- out -----------------------------------------------------------------------------------------------


def save_pretrained(model: GPT, folder: str | Path, tokenizer: BPETokenizer | None = None) -> Path:
    """Write a model in the Hugging Face format, for `transformers` and whatever else reads it -> the folder.

    A model of GPT-2's shape is written as one, and with it its tokenizer; one of Llama's shape as a Llama, or with
    QK-norm as a Qwen 3. Raises `PretrainedError` for other shapes and for a LoRA that is not merged.
    """
    folder, config = Path(folder), model.config
    if _shape(config) == _shape(GPTConfig.gpt2()) and not config.qk_norm and config.kv_heads == config.n_head:
        fields, layout = _gpt2_fields(config), gpt2_layout(config)
    elif _shape(config) == _shape(GPTConfig.llama()):
        fields, layout = _llama_fields(config), llama_layout(config)
    else:
        raise PretrainedError(f"only the shapes of GPT-2 and Llama have a place in the format; this is {config}")
    weights = model.state_dict()
    if lacking := sorted(layout.keys() - weights.keys()):
        raise PretrainedError(f"the model has no {lacking[0]}; merge a LoRA first, with merge_lora")
    if tokenizer is not None:
        if fields["model_type"] != "gpt2" or tokenizer.pattern != GPT2_PATTERN:
            raise PretrainedError("only GPT-2's kind of tokenizer, with its pattern, can be written, beside a GPT-2")
        if tokenizer.vocab_size > config.vocab_size:
            raise PretrainedError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model {config.vocab_size}")
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        _save_tokenizer(tokenizer, folder)
    save_file(_pack(weights, layout), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    return folder


def _shape(config: GPTConfig) -> tuple[Any, ...]:
    """What tells GPT-2's architecture from Llama's, sizes aside."""
    return config.pos, config.norm, config.norm_position, config.mlp, config.bias


def _gpt2_fields(config: GPTConfig) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "n_inner": config.ff_size,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_weights,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "attn_pdrop": 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _llama_fields(config: GPTConfig) -> dict[str, Any]:
    kind = "Qwen3" if config.qk_norm else "Llama"
    return {
        "model_type": kind.lower(),
        "architectures": [f"{kind}ForCausalLM"],
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.block_size,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "hidden_size": config.n_embd,
        "intermediate_size": config.ff_size,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        # What versions 4 and 5 of transformers read.
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": False,
        "tie_word_embeddings": config.tie_weights,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _save_tokenizer(tokenizer: BPETokenizer, folder: Path) -> None:
    """vocab.json and merges.txt, in which each byte is printed as a character of its own, and what is special."""
    halves = [PRINTED[id] for id in range(256)]
    lines = ["#version: 0.2"]
    for a, b in tokenizer.merges:
        lines.append(f"{halves[a]} {halves[b]}")
        halves.append(halves[a] + halves[b])
    ids = {token: id for id, token in enumerate([*halves, *tokenizer.special_tokens])}
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    plain = dict(lstrip=False, rstrip=False, single_word=False, normalized=False, special=True)
    special = {str(id): {"content": token, **plain} for token, id in tokenizer.special_tokens.items()}
    config = {"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")


# --- where things lie ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where one of our weights lies among theirs."""

    name: str
    turned: bool = False  # kept (in, out), by GPT-2's Conv1D; nn.Linear keeps (out, in)
    third: int | None = None  # 0, 1 or 2: q, k and v lie side by side in one tensor

    def take(self, theirs: Tensor) -> Tensor:
        """Their tensor -> our weight, of the same shape, or turned about where theirs is stored (in, out)."""
        part = theirs if self.third is None else theirs.chunk(3, dim=-1)[self.third]  # (C, 3C) -> (C, C)
        return part.T if self.turned else part  # (in, out) -> (out, in)

    def their_shape(self, ours: torch.Size) -> tuple[int, ...]:
        """The shape that their tensor has where our weight has this one."""
        *first, last = reversed(ours) if self.turned else ours
        return (*first, last if self.third is None else 3 * last)


Layout = dict[str, Place]  # by the name of our weight


def gpt2_layout(config: GPTConfig) -> Layout:
    """GPT-2 (Radford et al. 2019) in the names of `transformers`: matrices turned, q, k and v fused."""
    layout = {"embed.weight": Place("transformer.wte.weight"), "pos_embed.weight": Place("transformer.wpe.weight")}
    for kind in ("weight", "bias"):
        turned = kind == "weight"
        for i in range(config.n_layer):
            ours, theirs = f"blocks.{i}", f"transformer.h.{i}"
            for third, name in enumerate(("q_proj", "k_proj", "v_proj")):
                layout[f"{ours}.attn.{name}.{kind}"] = Place(f"{theirs}.attn.c_attn.{kind}", turned, third)
            layout[f"{ours}.attn.o_proj.{kind}"] = Place(f"{theirs}.attn.c_proj.{kind}", turned)
            layout[f"{ours}.mlp.up_proj.{kind}"] = Place(f"{theirs}.mlp.c_fc.{kind}", turned)
            layout[f"{ours}.mlp.down_proj.{kind}"] = Place(f"{theirs}.mlp.c_proj.{kind}", turned)
            layout[f"{ours}.attn_norm.{kind}"] = Place(f"{theirs}.ln_1.{kind}")
            layout[f"{ours}.mlp_norm.{kind}"] = Place(f"{theirs}.ln_2.{kind}")
        layout[f"final_norm.{kind}"] = Place(f"transformer.ln_f.{kind}")
    if not config.tie_weights:
        layout["lm_head.weight"] = Place("lm_head.weight")
    return layout


def llama_layout(config: GPTConfig) -> Layout:
    """Llama (Touvron et al. 2023) in the names of `transformers`: other names, and nothing to turn."""
    layout = {"embed.weight": Place("model.embed_tokens.weight"), "final_norm.weight": Place("model.norm.weight")}
    for i in range(config.n_layer):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        layout[f"{ours}.attn_norm.weight"] = Place(f"{theirs}.input_layernorm.weight")
        layout[f"{ours}.mlp_norm.weight"] = Place(f"{theirs}.post_attention_layernorm.weight")
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            layout[f"{ours}.attn.{name}.weight"] = Place(f"{theirs}.self_attn.{name}.weight")
        for name in ("gate_proj", "up_proj", "down_proj"):
            layout[f"{ours}.mlp.{name}.weight"] = Place(f"{theirs}.mlp.{name}.weight")
        if config.qk_norm:
            layout[f"{ours}.attn.q_gain"] = Place(f"{theirs}.self_attn.q_norm.weight")
            layout[f"{ours}.attn.k_gain"] = Place(f"{theirs}.self_attn.k_norm.weight")
    if not config.tie_weights:
        layout["lm_head.weight"] = Place("lm_head.weight")
    return layout


def _pack(weights: dict[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Our weights -> theirs: the layout read backward."""
    parts: dict[str, list[Tensor]] = {}
    for ours, place in layout.items():  # the layouts list q, k and v in that order
        parts.setdefault(place.name, []).append(weights[ours].T if place.turned else weights[ours])
    return {name: torch.cat(found, dim=-1).contiguous().cpu() for name, found in parts.items()}


# --- reading -------------------------------------------------------------------------------------------


def _read_config(folder: Path) -> tuple[dict[str, Any], Path]:
    """-> the fields of config.json, and its path."""
    path = folder / "config.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PretrainedError(f"{folder} holds no config.json: expected a folder in the Hugging Face format") from error
    except (OSError, ValueError, RecursionError) as error:
        raise PretrainedError(f"{path} cannot be read: {error}") from error
    if not isinstance(fields, dict):
        raise PretrainedError(f"{path} is not a table of settings")
    if fields.get("quantization_config") is not None:
        raise PretrainedError(f"{path}: the weights are quantized; GPT takes float weights, so get the original ones")
    return fields, path


def _needed(where: Path, fields: dict[str, Any], name: str) -> Any:
    if name not in fields:
        raise PretrainedError(f"{where} does not say {name}")
    return fields[name]


def _expect(where: Path, fields: dict[str, Any], name: str, *allowed: Any) -> None:
    """Refuse what `GPT` does not have. A field that is missing or empty means the default, which it has."""
    value = fields.get(name)
    if value not in allowed and (value is not None or name == "model_type"):
        expected = " or ".join(map(repr, allowed))
        raise PretrainedError(f"{where}: {name} is {value!r}, which GPT does not have; expected {expected}")


def _rope_theta(where: Path, fields: dict[str, Any]) -> float:
    """The base of the rotary wavelengths; it stands in one of two places, by the version that wrote the file."""
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default" or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise PretrainedError(f"{where}: rotary positions of the kind {rope} are scaled or partial; GPT has plain ones")
    theta: float = rope.get("rope_theta", fields.get("rope_theta", 10000.0))
    return theta


def _make_config(where: Path, family: Any, sizes: dict[str, Any], **settings: Any) -> GPTConfig:
    try:
        config: GPTConfig = family(**sizes, **settings)
    except (ConfigError, TypeError) as error:
        raise PretrainedError(f"{where}: {error}") from error
    return config


@torch.no_grad()
def _load(folder: Path, config: GPTConfig, make_layout: Callable[[GPTConfig], Layout], prefix: str) -> GPT:
    """The model with the weights of this folder, checked before any memory is taken for it."""
    with ExitStack() as stack:
        files = _open_weights(folder, stack)
        # A model without its head is saved with shorter names.
        if not any(name.startswith(prefix) for name in files):
            files = {name if name.startswith("lm_head.") else prefix + name: found for name, found in files.items()}
        if config.n_layer > len(files):  # before a name is made for each weight of each layer
            raise PretrainedError(f"{folder} holds {len(files)} weights; config.json asks for {config.n_layer} layers")
        layout = make_layout(config)
        _check_weights(folder, config, layout, files)

        def read(name: str) -> Tensor:
            file, key = files[name]
            tensor: Tensor = file.get_tensor(key)
            if not tensor.is_floating_point():
                raise PretrainedError(f"{folder}: {name} holds {tensor.dtype}; expected float weights")
            return tensor

        model = GPT(config).eval()
        weights = model.state_dict()
        for ours, place in layout.items():
            weights[ours].copy_(place.take(read(place.name)))
        if config.tie_weights and "lm_head.weight" in files:
            head = read("lm_head.weight").to(model.lm_head.weight)
            if not torch.equal(head, model.lm_head.weight):
                raise PretrainedError(f"{folder}: config.json says that the head is the token table, but they differ")
    return model


def _open_weights(folder: Path, stack: ExitStack) -> dict[str, tuple[Any, str]]:
    """Tensor name -> (open file, name in it), over all shards."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        paths, promised = [single], set()
    elif index.is_file():
        try:
            places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            promised, shards = set(places), sorted(set(places.values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise PretrainedError(f"{index} cannot be read: {error!r}") from error
        if strange := [shard for shard in shards if Path(str(shard)).name != shard]:
            raise PretrainedError(f"{index} names {strange[0]!r}, which is not a file of this folder")
        paths = [folder / shard for shard in shards]
    else:
        pickled = ": pytorch_model.bin can run code when it is loaded, and is not read" * any(folder.glob("*.bin"))
        raise PretrainedError(f"{folder} holds no model.safetensors{pickled}")
    found: dict[str, tuple[Any, str]] = {}
    for path in paths:
        try:
            file = stack.enter_context(safe_open(path, framework="pt"))
        except (OSError, SafetensorError) as error:
            hint = "; it is a pointer of Git LFS, not the weights: run `git lfs pull`" if _is_pointer(path) else ""
            raise PretrainedError(f"{path} cannot be read: {error}{hint}") from error
        found |= {name: (file, name) for name in file.keys()}  # noqa: SIM118
    if lacking := sorted(promised - found.keys()):
        raise PretrainedError(f"{index} promises {lacking[0]}, but no shard holds it")
    return found


def _is_pointer(path: Path) -> bool:
    """Is this what Git leaves in place of a large file that was not fetched?"""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(24) == b"version https://git-lfs."


def _check_weights(folder: Path, config: GPTConfig, layout: Layout, files: dict[str, tuple[Any, str]]) -> None:
    """Every weight there, of the right shape, and none left over."""
    needed = {place.name for place in layout.values()}
    if lacking := sorted(needed - files.keys()):
        more = f" and {len(lacking) - 1} more" if lacking[1:] else ""
        raise PretrainedError(f"the weights in {folder} lack {lacking[0]}{more}")
    extra = sorted(name for name in files.keys() - needed - {"lm_head.weight"} if not COMPUTED.fullmatch(name))
    if extra:
        more = f" and {len(extra) - 1} more" if extra[1:] else ""
        raise PretrainedError(f"{folder} holds {extra[0]}{more}, for which GPT has no place")
    try:
        with torch.device("meta"):
            skeleton = GPT(config)
    except (RuntimeError, OverflowError, TypeError) as error:
        raise PretrainedError(f"{folder / 'config.json'} asks for impossible sizes: {error!s:.200}") from error
    if (tables := sum(table.nbytes for table in skeleton.buffers())) > TABLE_BYTES:
        raise PretrainedError(f"{folder / 'config.json'} asks for position tables of {tables:,} bytes")
    expected = skeleton.state_dict()
    for ours, place in layout.items():
        file, key = files[place.name]
        shape, wanted = tuple(file.get_slice(key).get_shape()), place.their_shape(expected[ours].shape)
        if shape != wanted:
            raise PretrainedError(f"{folder}: {place.name} has shape {shape}, but config.json asks for {wanted}")
