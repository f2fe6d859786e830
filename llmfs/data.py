"""Token files and batches: from documents to the (x, y) that a model is trained and measured on.

A text that is to be trained on is one long array of ids, in which each document stands between two
`<|endoftext|>` tokens. A batch is a pure function of (seed, step, rank): a run that is resumed sees what it
would have seen, and nothing about the data need be saved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors
from torch import Tensor

from llmfs.tokenizer import Tokenizer, atomic_file

Tokens = npt.NDArray[np.unsignedinteger[Any]]  # uint16 or uint32
Positions = npt.NDArray[np.int64]
S = TypeVar("S", str, Tokens)

END_OF_TEXT = "<|endoftext|>"
IGNORE_INDEX = -100  # a target that does not count: what PyTorch's cross-entropy ignores

_FORMAT = "llmfs-tokens-1"
_DTYPES = {"U16": np.uint16, "U32": np.uint32}  # safetensors' names


class DataError(ValueError):
    """Tokens that cannot be used; the message says what was found and what was expected."""


def token_dtype(vocab_size: int) -> type[np.uint16 | np.uint32]:
    """The smallest type that holds every id: two bytes per token up to 65,536 ids, then four."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def encode_documents(tokenizer: Tokenizer, texts: Iterable[str], *, progress: bool = False) -> Tokens:
    """documents -> ids (N,), uint16 or uint32.

    If the tokenizer has the special token `<|endoftext|>`, one stands before the first document and one after
    each, so that every document lies between two. Without it the documents follow each other directly.
    Special tokens inside a document are encoded as plain text.
    """
    if isinstance(texts, str):
        texts = [texts]
    if progress:
        from tqdm.auto import tqdm

        texts = tqdm(texts, desc="encoding", unit=" texts")
    dtype = token_dtype(tokenizer.vocab_size)
    eot = tokenizer.special_tokens.get(END_OF_TEXT)
    end = [] if eot is None else [eot]
    parts = [np.array(end, dtype)]
    parts += [np.array(tokenizer.encode(text) + end, dtype) for text in texts]
    return np.concatenate(parts)


def document_starts(tokens: Tokens, eot_id: int) -> Positions:
    """Where each document begins: the positions of the end-of-text tokens before them, ascending (D,).

    A row that begins there holds what a model is given when it is to write from nothing: the end-of-text
    token alone, with the document's first token to predict. The last end-of-text token begins no document.
    """
    return np.flatnonzero(tokens[:-1] == eot_id)


# --- files -----------------------------------------------------------------------------------------------


def save_tokens(path: str | Path, tokens: Tokens, fingerprint: str) -> None:
    """Write ids (N,) as a safetensors file, with their SHA-256 and the fingerprint of the tokenizer that made them.

    The file appears whole or not at all. Raises DataError for anything but a row of uint16 or uint32.
    """
    if tokens.ndim != 1 or tokens.size == 0 or tokens.dtype not in _DTYPES.values():
        raise DataError(
            f"a token file holds a row of uint16 or uint32; got {tokens.dtype} of shape {tokens.shape}"
        )
    ids = np.ascontiguousarray(tokens)
    metadata = {"format": _FORMAT, "tokenizer": fingerprint, "sha256": hashlib.sha256(ids.data).hexdigest()}
    with atomic_file(path) as file:
        file.write(to_safetensors({"tokens": ids}, metadata))


def load_tokens(
    path: str | Path, *, vocab_size: int | None = None, fingerprint: str | None = None
) -> Tokens:
    """The ids (N,) of a file that `save_tokens` wrote, read-only, mapped into memory and read when used.

    Raises DataError for a file that is damaged or of another kind (this reads it once); for one made by a tokenizer
    with another fingerprint; and for an id that is not below vocab_size.
    """
    path = Path(path)
    try:
        dtype, n, made_by, sha256 = _read_header(path)
    except (SafetensorError, KeyError) as error:
        raise DataError(f"{path} is not a token file, or it is damaged: {error}") from error
    if fingerprint is not None and made_by != fingerprint:
        raise DataError(f"{path} was made by tokenizer {made_by}, not by {fingerprint}; encode again")
    offset = path.stat().st_size - n * dtype.itemsize  # the ids are the only tensor, and so the file's end
    tokens: Tokens = np.memmap(path, dtype, mode="r", offset=offset, shape=(n,))
    if sha256 is not None and hashlib.sha256(tokens.data).hexdigest() != sha256:
        raise DataError(f"{path} is damaged: its ids are not those that were written; encode again")
    if vocab_size is not None and (largest := int(tokens.max())) >= vocab_size:
        raise DataError(f"{path} holds the id {largest}; the vocabulary has {vocab_size}, from 0")
    return tokens


def _read_header(path: Path) -> tuple[np.dtype[Any], int, str, str | None]:
    """The ids' type, how many they are, the fingerprint of their tokenizer, and their SHA-256 (older files: none)."""
    with safe_open(path, framework="numpy") as file:  # compares the header with the length of the file
        metadata = file.metadata() or {}
        if metadata.get("format") != _FORMAT or list(file.keys()) != ["tokens"]:
            raise DataError(f"{path} is not a token file: format {metadata.get('format')!r}")
        ids = file.get_slice("tokens")
        shape = ids.get_shape()
        if ids.get_dtype() not in _DTYPES or len(shape) != 1 or shape[0] == 0:
            raise DataError(f"{path} is not a token file: {ids.get_dtype()} of shape {shape}")
        return np.dtype(_DTYPES[ids.get_dtype()]), shape[0], metadata["tokenizer"], metadata.get("sha256")


# --- a held-out set --------------------------------------------------------------------------------------


def split(documents: Sequence[str], fraction: float, *, seed: int = 0) -> tuple[list[str], list[str]]:
    """documents -> (training documents, held-out documents).

    Whole documents are held out, drawn at random, and copies of one text go to the same side: nothing that is
    measured on was trained on. Both sides keep the order. A single document is cut by `split_text` instead. Raises
    DataError for a fraction outside (0, 1), and where there are no two different documents.
    """
    if isinstance(documents, str):
        raise DataError("split takes a list of documents; for one long text use split_text")
    _check_fraction(fraction)
    if len(documents) == 1:
        train, held_out = split_text(documents[0], fraction)
        return [train], [held_out]
    distinct = list(dict.fromkeys(documents))
    if len(distinct) < 2:
        raise DataError(f"{len(distinct)} distinct documents cannot be split in two")
    n_held_out = min(max(1, round(fraction * len(distinct))), len(distinct) - 1)
    chosen = np.random.default_rng(seed).permutation(len(distinct))[:n_held_out]
    held_out_texts = {distinct[k] for k in chosen}
    return (
        [text for text in documents if text not in held_out_texts],
        [text for text in documents if text in held_out_texts],
    )


def split_text(text: S, fraction: float) -> tuple[S, S]:
    """One long text, or its ids (N,) -> (first part, last part); the last `fraction` is held out.

    A text is cut at the next end of a line. Not at random: what lies between two training parts of a text
    that continues would be half known. Raises DataError for a fraction outside (0, 1) and a text too short to cut.
    """
    _check_fraction(fraction)
    cut = len(text) - max(1, round(fraction * len(text)))
    if isinstance(text, str) and (line_end := text.find("\n", cut)) >= 0 and line_end + 1 < len(text):
        cut = line_end + 1
    if cut < 1:
        raise DataError(f"a text of length {len(text)} is too short to be split")
    return text[:cut], text[cut:]


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise DataError(f"the fraction to hold out is {fraction}; expected a number between 0 and 1")


# --- batches ---------------------------------------------------------------------------------------------


def get_batch(
    tokens: Tokens, B: int, T: int, *, seed: int, step: int, rank: int = 0, starts: Positions | None = None
) -> tuple[Tensor, Tensor]:
    """B random rows of T ids, and for each id the one that follows: x (B, T), y (B, T), both int64.

    A pure function of its arguments: the positions come from a counter-based generator (Philox; Salmon et
    al., 2011, "Parallel Random Numbers: As Easy as 1, 2, 3"). Its key is the seed, its counter starts at
    (step, rank).

    starts: where rows may begin, ascending, such as `document_starts(tokens, eot_id)`; None: anywhere. Only
    those from which T + 1 ids remain are used. Raises DataError where there are none, and where the batch is
    larger than a text that may be cut anywhere.
    """
    _check_sizes(B, T)
    if min(seed, step, rank) < 0:
        raise DataError(f"seed {seed}, step {step} and rank {rank} must not be negative")
    last = len(tokens) - (T + 1)  # the last position at which a row can begin
    if last < 0:
        raise DataError(f"the text has {len(tokens)} tokens; a row of {T} and its targets need {T + 1}")
    if starts is None and len(tokens) < B * T:
        raise DataError(
            f"a batch of {B} rows of {T} tokens is larger than the text of {len(tokens)}: use fewer or shorter rows"
        )
    n_choices = last + 1 if starts is None else int(np.searchsorted(starts, last, side="right"))
    if n_choices == 0:
        raise DataError(f"no start is followed by the {T + 1} tokens that a row of {T} and its targets need")
    generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, step, rank]))
    begin = generator.integers(n_choices, size=B)
    if starts is not None:
        begin = starts[begin]
    rows = _to_tensor(tokens[begin[:, None] + np.arange(T + 1)])  # (B, T + 1)
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def sequential_batches(tokens: Tokens, B: int, T: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every token but the first as a target exactly once, in order: x (b, T), y (b, T), int64, b <= B.

    For evaluation. The text is cut into rows of T; where the last one is not full, x is filled with id 0 and
    y with IGNORE_INDEX. The last batch may have fewer rows. Raises DataError for a text of fewer than 2 tokens.
    """
    _check_sizes(B, T)
    n_targets = len(tokens) - 1
    if n_targets < 1:
        raise DataError(f"the text has {len(tokens)} tokens; at least 2 are needed, one to predict from")
    for begin in range(0, n_targets, B * T):
        end = min(begin + B * T, n_targets)
        n_rows = -(-(end - begin) // T)
        x = torch.zeros(n_rows * T, dtype=torch.int64)
        y = torch.full((n_rows * T,), IGNORE_INDEX)
        x[: end - begin] = _to_tensor(tokens[begin:end])
        y[: end - begin] = _to_tensor(tokens[begin + 1 : end + 1])
        yield x.view(n_rows, T), y.view(n_rows, T)


def story_batches(documents: Sequence[Sequence[int]], B: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Whole documents, one a row: x (b, T), y (b, T), int64, in the order given; b <= B, T the longest's.

    documents: the ids of each, with the end-of-text tokens around it that are to be read and predicted.
    Shorter ones are filled at the end, x with id 0 and y with IGNORE_INDEX. Raises DataError for a document of fewer
    than 2 tokens.
    """
    _check_sizes(B, 1)
    for k, document in enumerate(documents):
        if len(document) < 2:
            raise DataError(f"document {k} has {len(document)} tokens; at least 2 are needed")
    for first in range(0, len(documents), B):
        rows = [_to_tensor(np.asarray(document)) for document in documents[first : first + B]]
        x = torch.nn.utils.rnn.pad_sequence([row[:-1] for row in rows], True, 0)
        y = torch.nn.utils.rnn.pad_sequence([row[1:] for row in rows], True, IGNORE_INDEX)
        yield x, y


def _check_sizes(B: int, T: int) -> None:
    if B < 1 or T < 1:
        raise DataError(f"a batch of {B} rows of {T} tokens is empty; both must be at least 1")


def _to_tensor(ids: Tokens) -> Tensor:
    """ids as int64, copied: PyTorch cannot index with uint16."""
    return torch.from_numpy(ids.astype(np.int64))
