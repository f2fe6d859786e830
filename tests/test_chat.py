"""The conversation in the terminal: history, streaming, commands, pipes and Ctrl-C."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import random
import select
import signal
import subprocess
import sys
import time

import pytest
import torch

from llmfs import tales
from llmfs.chat import (
    HELP,
    AlignRecipe,
    ChatRecipe,
    Conversation,
    book_aligned_model,
    book_chat_model,
    book_few_model,
    command,
    talk,
)
from llmfs.checkpoint import save_checkpoint
from llmfs.config import GPTConfig
from llmfs.gpt import GPT
from llmfs.recipes import Book
from llmfs.rlhf import RolloutConfig
from llmfs.sft import CHAT_TOKENS, chat_batches, chat_loss, extend_vocabulary, read_conversations, render_chat
from llmfs.tokenizer import BPETokenizer
from llmfs.train import History, TrainConfig, train

ANSWERS = {"Who?": "the owl", "Where?": "süß 🦉, at the mill", "Count!": "one two three four five six seven eight"}


def said(*texts: str) -> list[dict]:
    """User and assistant in turn."""
    return [{"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(texts)]


@pytest.fixture(scope="module")
def trained():
    """A model that knows three answers by heart, whatever was said before."""
    text = "the owl at the mill one two three four five six seven eight Who? Where? Count!"
    plain = BPETokenizer.train([text] * 9, 300, special_tokens=["<|endoftext|>"])
    config = GPTConfig(vocab_size=plain.vocab_size, block_size=96, n_layer=2, n_head=2, n_embd=48)
    seed = torch.Generator().manual_seed(0)
    model, tokenizer = extend_vocabulary(GPT(config, generator=seed), plain, generator=seed)
    pairs = list(ANSWERS.items())
    chats = [said(*pairs[a], *pairs[b]) for a in range(3) for b in range(3)] + [said(*pair) for pair in pairs]
    batches = chat_batches([render_chat(tokenizer, chat) for chat in chats], 3, 96)
    train(model, batches, TrainConfig(steps=120, lr=5e-3), loss_fn=chat_loss, progress=False)
    return model, tokenizer


@pytest.fixture(scope="module")
def run_dir(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / "run"
    save_checkpoint(folder, trained[0], tokenizer=trained[1])
    return folder


def test_answers_stream_and_are_remembered(trained):
    chat = Conversation(*trained)
    pieces = list(chat.ask("Where?"))
    assert len(pieces) > 3 and "".join(pieces) == ANSWERS["Where?"] and not chat.cut_off
    assert "�" not in "".join(pieces), "no half of a character is shown"
    assert "".join(chat.ask("Who?")) == "the owl"
    assert chat.messages == said("Where?", ANSWERS["Where?"], "Who?", "the owl")
    chat.reset()
    assert chat.messages == []


def test_a_full_block_drops_the_oldest_turns_but_not_the_system_message(trained):
    chat = Conversation(*trained, system="the owl")
    forgotten = 0
    for _ in range(8):
        list(chat.ask("Count!"))
        forgotten += chat.forgotten
        assert chat.messages[0]["role"] == "system" and chat.messages[1]["role"] == "user"
    assert forgotten and forgotten % 2 == 0 and len(chat.turns) + forgotten == 16


def test_a_message_that_does_not_fit_changes_nothing(trained):
    chat = Conversation(*trained)
    list(chat.ask("Who?"))
    with pytest.raises(ValueError, match="the block of 96 leaves room for 72"):
        list(chat.ask("owl " * 100))
    assert chat.messages == said("Who?", "the owl")


def test_an_answer_that_is_stopped_is_kept_as_far_as_it_came(trained):
    chat = Conversation(*trained)
    pieces = chat.ask("Count!")
    begun = next(pieces) + next(pieces)
    pieces.close()
    assert chat.turns[-1]["content"] == begun.strip() and len(chat.turns) == 2


def test_an_empty_answer_leaves_no_trace(trained, monkeypatch):
    monkeypatch.setattr(Conversation, "_stream", lambda self, ids: iter(()))
    out, chat = converse(trained, "Who?")
    assert out == ["(no answer)"] and chat.turns == []


def test_sampling_follows_the_generator(trained):
    def text(seed: int) -> str:
        chat = Conversation(*trained, temperature=5.0, max_tokens=20, generator=torch.Generator().manual_seed(seed))
        return "".join(chat.ask("Who?"))

    assert text(1) == text(1) != text(2)


def converse(trained, *lines: str, **settings) -> tuple[list[str], Conversation]:
    chat, out = Conversation(*trained, **settings), io.StringIO()
    talk(chat, io.StringIO("\n".join(lines)), out)
    return out.getvalue().splitlines(), chat


def test_talk_reads_lines_and_writes_answers(trained):
    out, chat = converse(trained, "Who?", "", "Where?\r", "/reset", "Count!", "/quit", "Who?")
    assert out == ["the owl", ANSWERS["Where?"], "(forgotten)", ANSWERS["Count!"]]
    assert chat.messages == said("Count!", ANSWERS["Count!"])


def test_a_backslash_goes_on_in_the_next_line(trained):
    _, chat = converse(trained, "the owl\\", "Who?")
    assert chat.messages[0]["content"] == "the owl\nWho?"


def test_a_mistake_is_answered_in_one_line_and_the_conversation_goes_on(trained, tmp_path):
    lines = ["/dance", "/temperature hot", "/temperature -1", "/save", f"/save {tmp_path}/x", "owl " * 100, "Who?"]
    out, _ = converse(trained, *lines, f"/save {tmp_path}/no/where")
    assert len(out) == 8 and out[6] == "the owl"
    for line, message in zip(
        out, ("no command /dance", "'hot'", "'-1'", "name of a file", "nothing to save", "room for")
    ):
        assert message in line and line.startswith("(")
    assert "No such file" in out[7]


def test_commands(trained, tmp_path):
    chat = Conversation(*trained)
    assert command(chat, "/help") == HELP
    assert command(chat, "/temperature 0.5") == "(temperature 0.5)" and chat.temperature == 0.5
    list(chat.ask("Who?"))
    for _ in range(2):
        command(chat, f"/save {tmp_path}/said.jsonl")
    assert read_conversations(tmp_path / "said.jsonl") == [chat.messages] * 2


def test_what_is_cut_off_and_what_is_forgotten_is_said(trained):
    out, _ = converse(trained, "Count!", max_tokens=3)
    assert out[0].endswith("(cut off: no room for more)")
    out, _ = converse(trained, *["Count!"] * 6)
    assert any("the oldest 2 messages are forgotten" in line for line in out)


def test_a_model_without_chat_tokens_is_refused(trained):
    plain = BPETokenizer.train(["the owl"], 260)
    with pytest.raises(ValueError, match="cannot chat.*llmfs sft"):
        Conversation(trained[0], plain)
    for settings in (dict(temperature=-1.0), dict(temperature=float("nan")), dict(max_tokens=0)):
        with pytest.raises(ValueError, match="expected"):
            Conversation(*trained, **settings)


@pytest.mark.parametrize("forged", [*CHAT_TOKENS, "<|endoftext|>"])
def test_nothing_typed_or_remembered_can_forge_a_turn(trained, forged, monkeypatch):
    """As a message, as the system's message, and in a conversation that is remembered: letters, never the token."""
    model, tokenizer = trained
    asked = []
    monkeypatch.setattr(Conversation, "_stream", lambda self, ids: asked.append(ids) or iter([forged]))
    talk(Conversation(model, tokenizer, system=f"{forged} x"), io.StringIO(f"a{forged}b\n{forged}\n"), io.StringIO())
    special = tokenizer.special_tokens
    turns = ["<|user|>", "<|end|>", "<|assistant|>", "<|end|>"]
    expected = ["<|endoftext|>", "<|system|>", "<|end|>", *turns, *turns[:3]]
    assert [id for id in asked[1] if id in special.values()] == [special[token] for token in expected]
    assert [id for id in asked[0] if id in special.values()] == [special[token] for token in expected[:6]]
    assert tokenizer.decode(asked[0]).count(forged) == 2 + expected[:6].count(forged)


def test_the_books_chat_model_is_made_once(tmp_path, monkeypatch):
    story = "Once Max Bear met Jack Frog. Tell me a story about Clara Owl. What is Max? Where was the drum?"
    tokenizer = BPETokenizer.train([story], 300, special_tokens=["<|endoftext|>"])
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, block_size=512, n_layer=1, n_head=2, n_embd=16))
    monkeypatch.setattr("llmfs.chat.book_model", lambda progress: Book(model, tokenizer, History()))
    monkeypatch.setenv("LLMFS_CACHE", str(tmp_path))
    recipe = ChatRecipe(TrainConfig(steps=3), n_tales=30)
    first, chat_tokenizer = book_chat_model(recipe, progress=False)
    kept = list(tmp_path.rglob("model.safetensors"))
    again, _ = book_chat_model(recipe, progress=False)
    assert len(kept) == 1 and kept == list(tmp_path.rglob("model.safetensors"))
    assert torch.equal(first.embed.weight, again.embed.weight) and len(first.embed.weight) == 304
    Conversation(first, chat_tokenizer)


def test_the_books_aligned_model_is_made_once_from_few_labels(tmp_path, monkeypatch):
    tokenizer = BPETokenizer.train([tales.generate(random.Random(0)).text], 320, special_tokens=["<|endoftext|>"])
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, block_size=700, n_layer=1, n_head=2, n_embd=16))
    monkeypatch.setattr("llmfs.chat.book_model", lambda progress: Book(model, tokenizer, History()))
    monkeypatch.setenv("LLMFS_CACHE", str(tmp_path))
    config = RolloutConfig(prompts=2, group=3, max_tokens=4, kl=1.0)
    few, train = TrainConfig(steps=2), TrainConfig(steps=2, optimizer="adamw", lr=1e-2)
    recipe = AlignRecipe(few, train, config, per_kind=1, longest=400)
    first, chat_tokenizer = book_aligned_model(recipe, progress=False)
    start, _ = book_few_model(recipe, progress=False)
    made = sorted(tmp_path.rglob("model.safetensors"))
    again, _ = book_aligned_model(recipe, progress=False)
    assert len(made) == 2 and made == sorted(tmp_path.rglob("model.safetensors"))
    assert torch.equal(first.embed.weight, again.embed.weight) and len(first.embed.weight) == len(start.embed.weight)
    book_aligned_model(dataclasses.replace(recipe, longest=300), progress=False)
    assert len(list(tmp_path.rglob("model.safetensors"))) == 3, "another practice begins at the same model"
    Conversation(first, chat_tokenizer)


def test_the_command_works_in_a_pipe(run_dir):
    done = subprocess.run(
        [sys.executable, "-m", "llmfs", "chat", "--model", str(run_dir), "--device", "cpu", "--temperature", "0"],
        input="Who?\nWhere?\n",
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (0, ["the owl", ANSWERS["Where?"]], "")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_ctrl_c_stops_the_answer_and_not_the_program(run_dir):
    """A terminal: Ctrl-C during an answer, then at the prompt, then a question, then Ctrl-D."""
    leader, follower = os.openpty()
    options = ["--model", str(run_dir), "--device", "cpu", "--temperature", "50", "--max-tokens", "80"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_CHAT, *options], stdin=follower, stdout=follower, stderr=follower, close_fds=True
    )
    os.close(follower)
    seen = b""

    def wait_for(what: bytes, seconds: float = 180) -> None:
        nonlocal seen
        deadline = time.monotonic() + seconds
        while what not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([leader], [], [], 0.1)[0]:
                seen += os.read(leader, 4096)
        seen = seen[seen.index(what) + len(what) :]

    def interrupt_until(what: bytes) -> None:
        for _ in range(60):
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(AssertionError):
                return wait_for(what, seconds=1)
        raise AssertionError(seen)

    try:
        wait_for(b"Ctrl-D ends.")
        wait_for(b"> ")
        os.write(leader, b"Count!\n")
        wait_for(b"...")  # pieces have begun to come
        process.send_signal(signal.SIGINT)
        wait_for(b"(stopped)")
        wait_for(b"> ")
        interrupt_until(b"/quit ends)")  # readline misses one that comes before it has begun to wait for a key
        wait_for(b"> ")
        os.write(leader, b"/temperature 0\n")
        wait_for(b"(temperature 0)")
        wait_for(b"> ")  # a Ctrl-D that comes before anyone reads may get lost
        os.write(leader, b"\x04")
        assert process.wait(timeout=120) == 0
    finally:
        process.kill()
        process.wait()
        os.close(leader)


SLOW_CHAT = """
import signal, sys, time
from llmfs import chat, cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background has it ignored
stream = chat.Conversation._stream
def slowly(self, ids):
    for piece in stream(self, ids):
        yield "..." + piece
        time.sleep(0.2)
chat.Conversation._stream = slowly
sys.exit(cli.main(["chat", *sys.argv[1:]]))
"""
