"""Token files and batches: every target once, y one step after x, the same batch for the same arguments."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from llmfs.data import (
    END_OF_TEXT,
    IGNORE_INDEX,
    DataError,
    document_starts,
    encode_documents,
    get_batch,
    load_tokens,
    save_tokens,
    sequential_batches,
    split,
    split_text,
    story_batches,
    token_dtype,
)
from llmfs.evaluate import IGNORE
from llmfs.tokenizer import BPETokenizer, CharTokenizer

TOKENS = np.arange(1000, dtype=np.uint16)  # each id is its own position


# --- documents -------------------------------------------------------------------------------------------


def test_each_document_stands_between_two_end_of_text_tokens() -> None:
    tokenizer = CharTokenizer.train("abc<|endoftx>", special_tokens=[END_OF_TEXT])
    eot = tokenizer.special_tokens[END_OF_TEXT]
    a, b, c = tokenizer.encode("abc")
    tokens = encode_documents(tokenizer, iter(["ab", "", "c"]))
    assert tokens.tolist() == [eot, a, b, eot, eot, c, eot]
    assert document_starts(tokens, eot).tolist() == [0, 3, 4]
    forged = encode_documents(tokenizer, [END_OF_TEXT])  # a document cannot end itself
    assert document_starts(forged, eot).tolist() == [0] and len(forged) == 2 + len(END_OF_TEXT)
    assert encode_documents(tokenizer, "ab").tolist() == [eot, a, b, eot]


def test_without_the_special_token_documents_follow_each_other() -> None:
    tokenizer = CharTokenizer.train("abc")
    assert encode_documents(tokenizer, ["ab", "c"], progress=True).tolist() == [0, 1, 2]


def test_the_vocabulary_chooses_the_type() -> None:
    assert encode_documents(CharTokenizer.train("ab"), ["ab"]).dtype == np.uint16
    large = CharTokenizer([chr(c) for c in range(65_537)])
    assert encode_documents(large, [chr(65_536)]).tolist() == [65_536]
    assert token_dtype(65_536) is np.uint16 and token_dtype(65_537) is np.uint32


# --- files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_tokens_come_back_from_a_file(dtype: type[np.uint16], tmp_path: Path) -> None:
    path = tmp_path / "tokens.safetensors"
    save_tokens(path, TOKENS.astype(dtype), "f00d")
    tokens = load_tokens(path, vocab_size=1000, fingerprint="f00d")
    assert tokens.dtype == dtype and np.array_equal(tokens, TOKENS)
    assert isinstance(tokens, np.memmap) and not tokens.flags.writeable
    assert [p.name for p in tmp_path.iterdir()] == ["tokens.safetensors"]
    x, _ = get_batch(tokens, 2, 8, seed=0, step=0)
    assert x.dtype == torch.int64


def test_the_files_that_others_read_are_the_same(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    save_tokens(tmp_path / "t", TOKENS[::2], "f00d")
    assert np.array_equal(load_file(tmp_path / "t")["tokens"], TOKENS[::2])


def test_a_file_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t"
    tokenizer = BPETokenizer.train("some text", 260)
    save_tokens(path, encode_documents(tokenizer, ["some text"]), tokenizer.fingerprint())
    load_tokens(path, vocab_size=260, fingerprint=tokenizer.fingerprint())
    with pytest.raises(DataError, match="encode again"):
        load_tokens(path, fingerprint=BPETokenizer([]).fingerprint())
    with pytest.raises(DataError, match=r"holds the id \d+; the vocabulary has 100"):
        load_tokens(path, vocab_size=100)


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "t"
    save_tokens(path, TOKENS, "f00d")
    whole = path.read_bytes()
    for content in (whole[:-1], whole + b"\0", whole[:100], b"", b"not safetensors at all"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="damaged"):
            load_tokens(path)
    metadata = {"format": "llmfs-tokens-1"}
    save_file({"weight": TOKENS}, path)
    with pytest.raises(DataError, match="not a token file"):
        load_tokens(path)
    for tensors in (
        {"weight": TOKENS},
        {"tokens": TOKENS, "more": TOKENS},
        {"tokens": TOKENS.astype(np.float32)},
        {"tokens": TOKENS.reshape(2, -1)},
        {"tokens": TOKENS[:0]},
    ):
        save_file(tensors, path, metadata)
        with pytest.raises(DataError, match="not a token file"):
            load_tokens(path)
    with pytest.raises(FileNotFoundError):
        load_tokens(tmp_path / "missing")


def test_one_wrong_id_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "t"
    save_tokens(path, TOKENS, "f00d")
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="t is damaged: its ids are not those that were written"):
        load_tokens(path)


def test_only_rows_of_ids_are_saved_and_a_failure_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t"
    save_tokens(path, TOKENS, "f00d")
    for wrong in (TOKENS.astype(np.int64), TOKENS.reshape(2, -1), TOKENS[:0]):
        with pytest.raises(DataError, match="a row of uint16 or uint32"):
            save_tokens(path, wrong, "f00d")  # type: ignore[arg-type]

    def full_disk(source: object, target: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_tokens(path, TOKENS[:5], "f00d")
    assert np.array_equal(load_tokens(path), TOKENS)
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


# --- splits ----------------------------------------------------------------------------------------------


def test_split_holds_out_whole_documents_and_leaks_none() -> None:
    documents = [f"story {k % 80}" for k in range(100)]  # 20 of them are copies
    train, held_out = split(documents, 0.25, seed=1)
    assert sorted(train + held_out) == sorted(documents)
    assert not set(train) & set(held_out)
    assert len(set(held_out)) == 20
    assert train == [text for text in documents if text in set(train)]  # in the order given
    assert (train, held_out) == split(documents, 0.25, seed=1) != split(documents, 0.25, seed=2)


def test_split_leaves_something_on_both_sides() -> None:
    assert [len(side) for side in split(["a", "b"], 0.01)] == [1, 1]
    assert [len(side) for side in split(["a", "b"], 0.99)] == [1, 1]
    with pytest.raises(DataError, match="1 distinct"):
        split(["a", "a"], 0.5)
    with pytest.raises(DataError, match="0 distinct"):
        split([], 0.5)
    with pytest.raises(DataError, match="split_text"):
        split("a long text", 0.5)
    for fraction in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(DataError, match="between 0 and 1"):
            split(["a", "b"], fraction)


def test_one_long_text_is_cut_at_the_end_of_a_line() -> None:
    text = "".join(f"line {k}\n" for k in range(100))
    (train,), (held_out,) = split([text], 0.1)
    assert train + held_out == text
    assert train.endswith("\n") and held_out.startswith("line")
    assert 0.05 < len(held_out) / len(text) <= 0.1
    assert split_text("abcdefghij", 0.2) == ("abcdefgh", "ij")
    first, last = split_text(TOKENS, 0.1)
    assert np.array_equal(np.concatenate([first, last]), TOKENS) and len(last) == 100
    with pytest.raises(DataError, match="too short"):
        split_text("a", 0.5)


# --- batches ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("B", [1, 3])
def test_y_is_x_one_step_later(B: int) -> None:
    x, y = get_batch(TOKENS, B, 7, seed=0, step=0)
    assert x.shape == y.shape == (B, 7)
    assert x.dtype == y.dtype == torch.int64
    assert torch.equal(x + 1, y) and torch.equal(x[:, 1:], y[:, :-1])


def test_a_batch_is_a_pure_function_of_its_arguments() -> None:
    def batch(seed: int, step: int, rank: int) -> list[list[int]]:
        return get_batch(TOKENS, 4, 8, seed=seed, step=step, rank=rank)[0].tolist()

    np.random.seed(0)
    before = np.random.get_state()[1].copy()  # type: ignore[index]
    all_arguments = [(seed, step, rank) for seed in (0, 1, 2**32) for step in (0, 1, 7) for rank in (0, 1, 7)]
    first = {arguments: batch(*arguments) for arguments in all_arguments}
    assert {arguments: batch(*arguments) for arguments in reversed(all_arguments)} == first
    assert len({str(rows) for rows in first.values()}) == len(all_arguments)
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[index]


def test_every_position_can_be_drawn() -> None:
    tokens = np.arange(10, dtype=np.uint16)
    begins = {int(x[0, 0]) for step in range(200) for x, _ in [get_batch(tokens, 1, 4, seed=0, step=step)]}
    assert begins == set(range(6))
    x, y = get_batch(tokens, 1, 9, seed=0, step=0)  # exactly T + 1 tokens
    assert x[:, 0].tolist() == [0] and y[:, -1].tolist() == [9]


def test_rows_begin_at_starts() -> None:
    starts = np.array([0, 100, 500, 991, 992, 999])
    begins = {
        begin
        for step in range(100)
        for begin in get_batch(TOKENS, 4, 8, seed=0, step=step, starts=starts)[0][:, 0].tolist()
    }
    assert begins == {0, 100, 500, 991}  # from 992 on fewer than 9 tokens remain
    with pytest.raises(DataError, match="no start is followed by the 9 tokens"):
        get_batch(TOKENS, 4, 8, seed=0, step=0, starts=starts[-2:])


def test_a_row_at_a_start_begins_with_the_end_of_text_token() -> None:
    tokenizer = CharTokenizer.train("abcdef", special_tokens=[END_OF_TEXT])
    eot = tokenizer.special_tokens[END_OF_TEXT]
    tokens = encode_documents(tokenizer, ["abc", "def"])
    x, y = get_batch(tokens, 8, 3, seed=0, step=0, starts=document_starts(tokens, eot))
    assert set(x[:, 0].tolist()) == {eot}
    assert set(y[:, 0].tolist()) == {0, 3}


def test_what_get_batch_refuses() -> None:
    with pytest.raises(DataError, match="1000 tokens; a row of 1000 and its targets need 1001"):
        get_batch(TOKENS, 1, 1000, seed=0, step=0)
    with pytest.raises(DataError, match="10 rows of 101 tokens is larger than the text of 1000"):
        get_batch(TOKENS, 10, 101, seed=0, step=0)
    with pytest.raises(DataError, match="at least 1"):
        get_batch(TOKENS, 0, 8, seed=0, step=0)
    with pytest.raises(DataError, match="negative"):
        get_batch(TOKENS, 1, 8, seed=0, step=-1)


@pytest.mark.parametrize("n", [2, 3, 9, 10, 11, 24, 25, 26, 50])
@pytest.mark.parametrize(("B", "T"), [(1, 1), (1, 8), (3, 4), (3, 8), (5, 100)])
def test_sequential_batches_give_every_target_once_and_in_order(n: int, B: int, T: int) -> None:
    targets: list[int] = []
    for x, y in sequential_batches(TOKENS[:n], B, T):
        assert x.shape == y.shape and x.shape[0] <= B and x.shape[1] == T
        assert x.dtype == y.dtype == torch.int64
        counted = y != IGNORE_INDEX
        assert torch.equal(x[counted] + 1, y[counted])
        assert x[~counted].sum() == 0
        assert counted.any(dim=1).all()  # no empty row
        targets += y[counted].tolist()
    assert targets == list(range(1, n))


def test_sequential_batches_need_two_tokens() -> None:
    with pytest.raises(DataError, match="1 tokens"):
        next(sequential_batches(TOKENS[:1], 1, 1))


def test_story_batches_fill_up_short_documents() -> None:
    documents = [[9, 1, 2, 9], [9, 9], np.array([9, 3, 9], np.uint16)]
    (x, y), (x2, y2) = story_batches(documents, 2)  # type: ignore[arg-type]
    assert x.tolist() == [[9, 1, 2], [9, 0, 0]]
    assert y.tolist() == [[1, 2, 9], [9, IGNORE_INDEX, IGNORE_INDEX]]
    assert (x2.tolist(), y2.tolist()) == ([[9, 3]], [[3, 9]])
    assert x.dtype == y.dtype == x2.dtype == y2.dtype == torch.int64
    with pytest.raises(DataError, match="document 1 has 1 tokens"):
        next(story_batches([[1, 2], [1]], 2))


def test_ignored_targets_are_those_that_the_loss_leaves_out() -> None:
    assert IGNORE_INDEX == IGNORE
