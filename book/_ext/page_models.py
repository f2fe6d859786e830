"""Put the book's own models into its pages: scripts that a page can load from disk, without a network.

At the end of a build each model that a widget of the book asks for is written to ``_static/models/NAME.js``, once the
lessons have made it. Such a file is one call, ``LLMFS.provide("NAME", {…})``. It holds the model's config, its
tokenizer and its weights: of each matrix the whole numbers of eight bits and the scales of its rows
(``llmfs.quantize``), as base64. The scripts in ``_static/js`` compute with them.

A file is written anew when the package, the pinned packages or this extension has changed; its first line holds a key
of them. What it is made of is kept by ``llmfs.recipes``, so that nothing is trained twice.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sphinx.application import Sphinx
from sphinx.util import logging
from widgets import models_in_use

if TYPE_CHECKING:
    from torch import Tensor

    from llmfs.gpt import GPT
    from llmfs.tokenizer import BPETokenizer

LOGGER = logging.getLogger(__name__)
FOLDER = "_static/models"
# The settings that model.js computes.
NEEDED: dict[str, tuple[Any, ...]] = {
    "pos": ("rope", "none"),
    "norm": ("rmsnorm",),
    "norm_position": ("pre",),
    "mlp": ("swiglu",),
    "bias": (False,),
}


def tokenizer_data(tokenizer: BPETokenizer) -> dict[str, Any]:
    """What ``new LLMFS.BPETokenizer`` takes."""
    return {
        "pattern": tokenizer.pattern,
        "merges": tokenizer.merges,
        "special_tokens": sorted(tokenizer.special_tokens, key=tokenizer.special_tokens.__getitem__),
    }


def model_data(model: GPT) -> dict[str, Any]:
    """What ``new LLMFS.GPT`` takes. Raises ValueError for a config that the script does not know."""
    from llmfs.checkpoint import stored_weights

    config = model.config.to_dict()
    for field, known in NEEDED.items():
        if config[field] not in known:
            raise ValueError(f"model.js knows {field} {' or '.join(map(str, known))}, not {config[field]}")
    return {"config": config, "tensors": {name: _packed(tensor) for name, tensor in stored_weights(model).items()}}


def _packed(tensor: Tensor) -> dict[str, Any]:
    from llmfs.quantize import quantize_rows

    shape = list(tensor.shape)
    if tensor.dim() != 2:
        return {"shape": shape, "float32": _base64(tensor.float())}
    numbers, scales = quantize_rows(tensor)
    return {"shape": shape, "int8": _base64(numbers), "scales": _base64(scales)}


def _base64(tensor: Tensor) -> str:
    array = tensor.contiguous().numpy()
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<"))).decode("ascii")


def script(name: str, data: dict[str, Any], key: str = "") -> str:
    """The file that hands a model to the page, one line for each tensor."""
    content = json.dumps(data, separators=(",", ":")).replace('},"', '},\n"')
    return f"/* Made by book/_ext/page_models.py. Key {key}. */\nLLMFS.provide({json.dumps(name)}, {content});\n"


def _tokenizer() -> dict[str, Any]:
    from llmfs.recipes import book_tokenizer

    return {"tokenizer": tokenizer_data(book_tokenizer())}


def _book() -> dict[str, Any]:
    from llmfs.recipes import book_model

    book = book_model()
    return {"tokenizer": tokenizer_data(book.tokenizer), "model": model_data(book.model)}


def _chat() -> dict[str, Any]:
    from llmfs.chat import book_chat_model

    model, tokenizer = book_chat_model()
    return {"tokenizer": tokenizer_data(tokenizer), "model": model_data(model)}


def _few() -> dict[str, Any]:
    from llmfs.chat import book_few_model

    model, tokenizer = book_few_model()
    return {"tokenizer": tokenizer_data(tokenizer), "model": model_data(model)}


def _aligned() -> dict[str, Any]:
    from llmfs.chat import book_aligned_model

    model, tokenizer = book_aligned_model()
    return {"tokenizer": tokenizer_data(tokenizer), "model": model_data(model)}


# What a page can load, and how it is made where it is not kept yet.
MODELS: dict[str, Callable[[], dict[str, Any]]] = {
    "tokenizer": _tokenizer,
    "book": _book,
    "chat": _chat,
    "few": _few,
    "aligned": _aligned,
}


def _export(app: Sphinx, exception: Exception | None) -> None:
    names = sorted(models_in_use(app.env))
    if exception is not None or app.builder.format != "html" or not names:
        return
    key = _key(Path(app.srcdir))
    for name in names:
        path = Path(app.outdir) / FOLDER / f"{name}.js"
        if path.is_file() and f"Key {key}." in _first_line(path):
            continue
        LOGGER.info("page models: writing %s", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(script(name, MODELS[name](), key), "utf8")
        LOGGER.info("page models: %s has %.2f MB", path.name, path.stat().st_size / 1e6)


def _key(root: Path) -> str:
    """A hash of all that may change what is exported."""
    total = hashlib.sha256()
    for path in [*sorted((root / "llmfs").glob("*.py")), root / "requirements.txt", Path(__file__)]:
        total.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()[:16]


def _first_line(path: Path) -> str:
    with path.open(encoding="utf8") as file:
        return file.readline()


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("build-finished", _export)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
