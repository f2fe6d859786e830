"""Files with anything in them: each is read, or refused by an error that names it. Nothing crashes, hangs or swells."""

from __future__ import annotations

import ast
import json
import random
import re
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmfs import corpus, pretrained, sft
from llmfs.chat import Conversation, command
from llmfs.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from llmfs.config import GPTConfig
from llmfs.corpus import CorpusError
from llmfs.data import DataError, load_tokens, save_tokens
from llmfs.gpt import GPT
from llmfs.rnn import RNNLM, RNNConfig, Seq2SeqAttention, Seq2SeqConfig
from llmfs.tokenizer import PRINTED, BPETokenizer, CharTokenizer, TokenizerError, WordTokenizer, load_tokenizer

N = 110  # mutations a format: more than 2,000 in all
SECONDS, MEGABYTES = 5.0, 400  # of one file, and of all
TEXT = "Anna the owl gave Tom a red kite. It's his; he'll fly it at 10:30. "


@dataclass(frozen=True)
class Format:
    """A valid file, in a folder of its own, and what reads it."""

    make: Callable[[Path], str | Path]  # fills a folder -> the file to damage
    read: Callable[[Path], object]  # given that file
    errors: tuple[type[Exception], ...]


def bpe(specials: tuple[str, ...] = ("<|endoftext|>",)) -> BPETokenizer:
    return BPETokenizer.train(TEXT, 280, special_tokens=specials)


def save(tokenizer: Any, path: Path) -> Path:
    tokenizer.save(path)
    return path


def checkpoint(name: str, *, sums: bool = True, kind: str = "gpt") -> Callable[[Path], Path]:
    """A checkpoint, of which the file `name` is damaged. sums: with the SHA-256 of its files."""

    def make(folder: Path) -> Path:
        model: Any = {
            "gpt": lambda: GPT(GPTConfig(vocab_size=281, block_size=8, n_layer=1, n_embd=8, n_head=2)),
            "rnn": lambda: RNNLM(RNNConfig(vocab_size=281, block_size=8, n_layer=1, n_embd=8)),
            "seq2seq": lambda: Seq2SeqAttention(Seq2SeqConfig(vocab_size=281, n_embd=8)),
        }[kind]()
        state = {"history": {"loss": [1.5]}, "optimizers": [{"state": {0: {"mean": torch.ones(3)}}}], "train": {}}
        saved = save_checkpoint(folder / "run", model, step=7, tokenizer=bpe(), train_state=state)
        if not sums:
            content = json.loads((saved / "config.json").read_text())
            del content["sha256"], content["files"]
            (saved / "config.json").write_text(json.dumps(content))
        return saved / name

    return make


def jsonl(*records: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "data.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    return make


def tokens(folder: Path) -> Path:
    save_tokens(folder / "tokens", np.arange(300, dtype=np.uint16), "f00d")
    return folder / "tokens"


def gpt2(name: str) -> Callable[[Path], Path]:
    """A tokenizer in the two files of GPT-2's release, of which `name` is damaged."""

    def make(folder: Path) -> Path:
        tokens, lines = list(PRINTED), ["#version: 0.2"]
        for a, b in bpe().merges:
            lines.append(f"{tokens[a]} {tokens[b]}")
            tokens.append(tokens[a] + tokens[b])
        (folder / "vocab.bpe").write_text("\n".join(lines) + "\n", encoding="utf-8")
        ids = {token: id for id, token in enumerate([*tokens, "<|endoftext|>"])}
        (folder / "encoder.json").write_text(json.dumps(ids))
        return folder / name

    return make


def read_gpt2(path: Path) -> object:
    return BPETokenizer.from_gpt2_files(path.parent / "vocab.bpe", path.parent / "encoder.json").encode(TEXT)


def published(name: str) -> Callable[[Path], Path]:
    """A model in the Hugging Face format, of which the file `name` is damaged."""

    def make(folder: Path) -> Path:
        model = GPT(GPTConfig.gpt2(vocab_size=60, block_size=8, n_layer=1, n_embd=8, n_head=2, d_ff=32))
        pretrained.save_pretrained(model, folder)
        return folder / name

    return make


def plain(folder: Path) -> Path:
    (folder / "a.txt").write_text(TEXT * 3 + "naïve 日本 🦉\n")
    return folder / "a.txt"


CHAT = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Mira."}]}
ASKED = {"messages": CHAT["messages"][:1], "chosen": "Mira.", "rejected": "Tom."}
OF_CHECKPOINT = (CheckpointError, TokenizerError)


def read_checkpoint(path: Path) -> object:
    found = load_checkpoint(path.parent)
    found.train_state()
    ids = torch.tensor([[1, 2, 3]])
    found.model(*[ids] * (2 if isinstance(found.model, Seq2SeqAttention) else 1))  # what was accepted can be used
    return found


FORMATS = {
    **{
        f"{name}{'' if sums else ', unsigned'}": Format(checkpoint(name, sums=sums), read_checkpoint, OF_CHECKPOINT)
        for name in (
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "train_state.json",
            "train_state.safetensors",
        )
        for sums in (True, False)
    },
    "recurrent": Format(checkpoint("config.json", sums=False, kind="rnn"), read_checkpoint, OF_CHECKPOINT),
    "char": Format(
        lambda folder: save(CharTokenizer.train(TEXT), folder / "t.json"), load_tokenizer, (TokenizerError,)
    ),
    "word": Format(
        lambda folder: save(WordTokenizer.train(TEXT), folder / "t.json"), load_tokenizer, (TokenizerError,)
    ),
    "bpe": Format(lambda folder: save(bpe(), folder / "t.json"), load_tokenizer, (TokenizerError,)),
    "gpt2 merges": Format(gpt2("vocab.bpe"), read_gpt2, (TokenizerError,)),
    "gpt2 ids": Format(gpt2("encoder.json"), read_gpt2, (TokenizerError,)),
    "seq2seq": Format(checkpoint("config.json", sums=False, kind="seq2seq"), read_checkpoint, OF_CHECKPOINT),
    "tokens": Format(tokens, lambda path: load_tokens(path, vocab_size=300), (DataError,)),
    "conversations": Format(jsonl(CHAT, CHAT), sft.read_conversations, (ValueError,)),
    "preferences": Format(jsonl(ASKED, ASKED), sft.read_preferences, (ValueError,)),
    "text": Format(plain, corpus.read_text, (CorpusError,)),
    "published config": Format(
        published("config.json"), lambda path: pretrained.from_gpt2(path.parent), (pretrained.PretrainedError,)
    ),
    "published weights": Format(
        published("model.safetensors"),
        lambda path: pretrained.from_gpt2(path.parent),
        (pretrained.PretrainedError,),
    ),
}

HOSTILE = [
    *(b"null", b"true", b"-1", b"0", b"1e999", b"NaN", b'"x"', b"{}", b"[]", b'"\\ud800"', b"1.5", b"[[0,1]]"),
    *(str(n).encode() for n in (2**31, 2**63, 2**64, 10**30)),
    b"1" * 5000,
    *(b"[" * 5000, b'{"a":' * 5000, b"[" * 900 + b"]" * 900),
]


def mutate(content: bytes, rng: random.Random) -> bytes:
    """A file with one to three things wrong."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        at, length = rng.randrange(len(data) + 1), rng.choice([1, 2, 8, 64, len(data)])
        match rng.randrange(9):
            case 0 | 1 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                del data[at:]
            case 3:
                del data[at : at + length]
            case 4:
                data[at:at] = rng.randbytes(rng.choice([1, 8, 300]))
            case 5:
                data[at:at] = data[at : at + length]
            case 6:
                data[:8] = rng.choice([0, 1, 2**20, 2**31, 2**62, 2**64 - 1]).to_bytes(8, "little")
            case _:  # a value of JSON, in a file of it or in the header of a safetensors file
                found = list(re.finditer(rb'-?\d+(?:\.\d+)?|"[^"]*"|true|false|null|\[[^\[\]]*\]', data[: 1 << 16]))
                if found:
                    value = rng.choice(found)
                    data[value.start() : value.end()] = rng.choice(HOSTILE)
    return bytes(data)


def memory() -> int:
    """The most that this process has held so far, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_read_or_named(name: str, tmp_path: Path) -> None:
    damage(name, tmp_path, N, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_many_more_damaged_files(name: str, tmp_path: Path) -> None:
    damage(name, tmp_path, 10 * N, seed=1)


def damage(name: str, tmp_path: Path, n: int, *, seed: int) -> None:
    rng, format = random.Random(f"{name} {seed}"), FORMATS[name]
    path = Path(format.make(tmp_path))
    content = path.read_bytes()
    format.read(path)
    before, refused = memory(), 0
    for _ in range(n):
        path.write_bytes(mutate(content, rng))
        began = time.monotonic()
        try:
            format.read(path)
        except format.errors as error:
            refused += 1
            assert path.name in str(error) or path.parent.name in str(error), f"it does not name the file: {error}"
            assert len(str(error)) < 2000, f"an error is to be read: {len(str(error))} characters"
        assert time.monotonic() - began < SECONDS
    assert memory() - before < MEGABYTES
    assert refused > n / 4  # the mutations do damage
    path.write_bytes(content)
    format.read(path)
    path.write_bytes(b"")
    with pytest.raises(format.errors):
        format.read(path)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_published_config_that_claims_huge_sizes(kind: str, tmp_path: Path) -> None:
    """No memory is taken, and no time, for a size that the weights do not have."""
    config: Any = getattr(GPTConfig, kind)(vocab_size=60, block_size=8, n_layer=1, n_embd=8, n_head=2, d_ff=32)
    read = getattr(pretrained, f"from_{kind}")
    path = tmp_path / "config.json"
    pretrained.save_pretrained(GPT(config), tmp_path)
    whole = json.loads(path.read_text())
    for name in [name for name, value in whole.items() if type(value) is int and not name.endswith("token_id")]:
        for size in (10**9, 10**12, 2**62, 10**30):
            path.write_text(json.dumps({**whole, name: size}))
            before, began = memory(), time.monotonic()
            with pytest.raises(pretrained.PretrainedError):
                read(tmp_path)
            assert memory() - before < MEGABYTES and time.monotonic() - began < SECONDS, (name, size)


@pytest.mark.parametrize("name", [name for name in FORMATS if name.endswith((".json", ".safetensors"))])
def test_no_damage_to_a_checkpoint_goes_unnoticed(name: str, tmp_path: Path) -> None:
    """With the SHA-256 of its files, what is read is what was written."""
    rng, format = random.Random(name), FORMATS[name]
    path = Path(format.make(tmp_path))
    content = path.read_bytes()
    whole = load_checkpoint(path.parent)
    for _ in range(50):
        damaged = mutate(content, rng)
        path.write_bytes(damaged)
        try:
            found = load_checkpoint(path.parent)
            state = found.train_state()
        except OF_CHECKPOINT:
            continue
        assert damaged == content or (name == "config.json" and json.loads(damaged) == json.loads(content))
        assert found.model.config == whole.model.config and state["history"] == {"loss": [1.5]}


def test_the_mutations_are_more_than_two_thousand() -> None:
    assert N * len(FORMATS) >= 2000


# --- what a user says --------------------------------------------------------------------------------------

PIECES = [*"ab é\n日\ud800\0\u202e\u0301", *sft.CHAT_TOKENS, "<|endoftext|>", "<|", "|>"]
TURNS = st.lists(st.lists(st.sampled_from(PIECES), min_size=1).map("".join), min_size=1, max_size=5)


@settings(deadline=None, max_examples=300)
@given(texts=TURNS)
def test_no_message_can_forge_a_turn(texts: list[str]) -> None:
    """Whatever is said: the marks of speakers are those of the template, and the words are the speaker's own."""
    tokenizer = bpe(("<|endoftext|>", *sft.CHAT_TOKENS))
    special = tokenizer.special_tokens
    texts = [text if text.strip() else "x" for text in texts]
    messages: list[Any] = [
        {"role": ("user", "assistant")[k % 2], "content": content} for k, content in enumerate(texts)
    ]
    ids, learn = sft.render_chat(tokenizer, messages, reply=len(texts) % 2 == 1)
    marks = [id for id in ids if id in special.values()]
    turns = [special[sft.HEADERS[m["role"]]] for m in messages]
    expected = [special["<|endoftext|>"], *(id for turn in turns for id in (turn, special[sft.STOP]))]
    assert marks == expected + [special[sft.ASSISTANT]] * (len(texts) % 2)
    where = [k for k, id in enumerate(ids) if id in special.values()]
    said = [tokenizer.decode(ids[a + 1 : b]) for a, b in zip(where[1::2], where[2::2])]
    assert said == [" " + text for text in texts]
    for message, a, b in zip(messages, where[1::2], where[2::2]):
        assert set(learn[a + 1 : b + 1]) == {message["role"] == "assistant"} and not learn[a]


@given(st.text(st.characters(exclude_categories=()), min_size=1))
@settings(deadline=None, max_examples=100)
def test_what_was_saved_is_read_again(text: str) -> None:
    """A conversation of any characters goes through a file of JSON lines."""
    text = text if text.strip() else "x"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chats.jsonl"
        talk = Conversation.__new__(Conversation)
        talk.system, talk.turns = [], [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
        command(talk, f"/save {path}")
        assert sft.read_conversations(path) == [talk.turns]


def test_weights_and_states_are_never_pickled() -> None:
    """Nothing in the package can run code that a file brings along."""
    package = Path(sft.__file__).parent
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):
                modules.append(node.module or "")
            loaders = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}
            assert not loaders & {name.partition(".")[0] for name in modules}, f"{path.name}:{node.lineno}"
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                given_as = {word.arg: ast.unparse(word.value) for word in node.keywords}
                where = f"{path.name}:{node.lineno}: {called}"
                if called == "torch.load":
                    assert given_as.get("weights_only") == "True", where
                if called in ("np.load", "numpy.load"):
                    assert given_as.get("allow_pickle", "False") == "False", where
                assert called not in ("eval", "exec", "compile", "__import__", "torch.save", "yaml.load"), where
