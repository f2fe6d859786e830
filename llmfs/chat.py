"""A conversation with a model in the terminal."""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch

from llmfs import tales
from llmfs.checkpoint import load_checkpoint, save_checkpoint
from llmfs.gpt import GPT
from llmfs.recipes import MODEL_CODE, RECIPES, Book, book_model, kept
from llmfs.rlhf import RolloutConfig, exact_reward, render_prompt, train_grpo
from llmfs.sample import generate
from llmfs.sft import (
    CHAT_TOKENS,
    SFT_SEED,
    STOP,
    Message,
    chat_batches,
    chat_loss,
    extend_vocabulary,
    pick_questions,
    render_chat,
    story_question,
    tale_chats,
)
from llmfs.tokenizer import BPETokenizer, Tokenizer
from llmfs.train import TrainConfig, train

HELP = """\
/reset            forget the conversation so far
/temperature X    0: always the likeliest token; 1: as learned
/save FILE        add the conversation to a file of JSON lines, which `llmfs sft --data` reads
/help             this list
/quit             end (so does Ctrl-D)
Ctrl-C stops an answer. A line that ends with \\ goes on in the next one."""


@dataclass(frozen=True)
class ChatRecipe:
    """How the book's chat model is made from the book's model."""

    train: TrainConfig
    n_tales: int = 6000
    requests: float = 0.25  # share of conversations that begin with the wish for a tale
    rows: int = 4  # rows a step, as long as the block


CHAT = ChatRecipe(TrainConfig(steps=250, lr=3e-3, matrix_lr=0.005, warmup_steps=5))
CODE = (*MODEL_CODE, "sft", "chat.train_chat")  # what determines the weights of the chat model


def book_chat_model(recipe: ChatRecipe = CHAT, *, progress: bool = True) -> tuple[GPT, BPETokenizer]:
    """The book's model, fine-tuned to answer questions about tales and to tell them. Made once, in a minute or two."""
    base = book_model(progress=progress)
    settings = {"recipe": dataclasses.asdict(recipe), "base": dataclasses.asdict(RECIPES["small"])}
    folder = kept("chat", settings, CODE, lambda folder: train_chat(base, recipe, folder, progress=progress))
    checkpoint = load_checkpoint(folder)
    return checkpoint.model, checkpoint.tokenizer  # type: ignore[return-value]


def train_chat(base: Book, recipe: ChatRecipe, folder: Path, *, progress: bool = True) -> None:
    """Carry out a recipe: the checkpoint in folder."""
    generator = torch.Generator().manual_seed(recipe.train.seed)
    model, tokenizer = extend_vocabulary(base.model, base.tokenizer, generator=generator)
    seq_len = model.config.block_size
    chats = tale_chats(tokenizer, tales.stories(recipe.n_tales, SFT_SEED), seq_len, requests=recipe.requests)
    batches = chat_batches([render_chat(tokenizer, chat) for chat in chats], recipe.rows, seq_len)
    train(model, batches, recipe.train, loss_fn=chat_loss, run_dir=folder, tokenizer=tokenizer, progress=progress)


@dataclass(frozen=True)
class AlignRecipe:
    """How the book's aligned model is made: SFT on a few right answers, then GRPO on questions."""

    few: TrainConfig  # of the SFT
    train: TrainConfig  # of the GRPO
    rollout: RolloutConfig
    labels: int = 1  # right answers of each kind for the SFT
    rows: int = 4  # rows a step of the SFT, as long as the block
    per_kind: int = 150  # questions of each kind to practice on
    longest: int = 112  # tokens of story and question; longer ones are left out, for speed


PRACTICE_SEED = SFT_SEED + 1  # of the tales to practice on
ALIGNED = AlignRecipe(
    few=TrainConfig(steps=60, optimizer="adamw", lr=1e-3, warmup_steps=5),
    train=TrainConfig(steps=80, optimizer="adamw", lr=3e-4, warmup_steps=3),
    rollout=RolloutConfig(max_tokens=6),
)
FEW_CODE = (*MODEL_CODE, "sft", "chat.train_few")
ALIGN_CODE = (*FEW_CODE, "rlhf", "sample", "chat.align_few")


def book_few_model(recipe: AlignRecipe = ALIGNED, *, progress: bool = True) -> tuple[GPT, BPETokenizer]:
    """The book's model, fine-tuned on one right answer of each kind: where `book_aligned_model` begins. Made once."""
    base = book_model(progress=progress)
    few = {name: value for name, value in dataclasses.asdict(recipe).items() if name in ("few", "labels", "rows")}
    settings = {"recipe": few, "base": dataclasses.asdict(RECIPES["small"])}
    folder = kept("few", settings, FEW_CODE, lambda folder: train_few(base, recipe, folder, progress=progress))
    checkpoint = load_checkpoint(folder)
    return checkpoint.model, checkpoint.tokenizer  # type: ignore[return-value]


def book_aligned_model(recipe: AlignRecipe = ALIGNED, *, progress: bool = True) -> tuple[GPT, BPETokenizer]:
    """`book_few_model` after GRPO, rewarded for right answers to other questions. Made once, in about a minute."""
    model, tokenizer = book_few_model(recipe, progress=progress)
    settings = {"recipe": dataclasses.asdict(recipe), "base": dataclasses.asdict(RECIPES["small"])}

    def make(folder: Path) -> None:
        align_few(model, tokenizer, recipe, progress=progress)
        save_checkpoint(folder, model, step=recipe.train.steps, tokenizer=tokenizer)

    checkpoint = load_checkpoint(kept("aligned", settings, ALIGN_CODE, make))
    return checkpoint.model, checkpoint.tokenizer  # type: ignore[return-value]


def train_few(base: Book, recipe: AlignRecipe, folder: Path, *, progress: bool = True) -> None:
    """Carry out the first part of a recipe: the checkpoint in folder."""
    generator = torch.Generator().manual_seed(recipe.few.seed)
    model, tokenizer = extend_vocabulary(base.model, base.tokenizer, generator=generator)
    asked = pick_questions(tales.stories(12_000, SFT_SEED), recipe.labels)
    rendered = [render_chat(tokenizer, story_question(tale, question)) for tale, question in asked]
    batches = chat_batches(rendered, recipe.rows, model.config.block_size)
    train(model, batches, recipe.few, loss_fn=chat_loss, run_dir=folder, tokenizer=tokenizer, progress=progress)


def align_few(model: GPT, tokenizer: BPETokenizer, recipe: AlignRecipe, *, progress: bool = True) -> None:
    """Carry out the second part: GRPO with `exact_reward`, which changes the model in place."""
    asked = pick_questions(tales.stories(12_000, PRACTICE_SEED), recipe.per_kind)
    prompts = [render_prompt(tokenizer, story_question(tale, question)) for tale, question in asked]
    prompts = [prompt for prompt in prompts if len(prompt.ids) <= recipe.longest]
    stop = tokenizer.special_tokens[STOP]
    train_grpo(model, prompts, exact_reward, recipe.train, recipe.rollout, stop=stop, progress=progress)


class Conversation:
    """What was said so far, and a model that goes on with it.

    temperature: of the sampling, 0 for the likeliest token. max_tokens: the longest answer. system: a message that
    stays at the front, whatever is forgotten. Raises ValueError for a tokenizer without the chat tokens, and for a
    number that makes no sense.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        *,
        system: str | None = None,
        temperature: float = 0.0,
        max_tokens: int = 256,
        generator: torch.Generator | None = None,
    ) -> None:
        if missing := [token for token in CHAT_TOKENS if token not in tokenizer.special_tokens]:
            raise ValueError(f"this model cannot chat: its tokenizer has no {missing[0]}; fine-tune it with llmfs sft")
        if max_tokens < 1:
            raise ValueError(f"an answer of {max_tokens} tokens is none; expected at least 1")
        self.model, self.tokenizer, self.generator = model, tokenizer, generator
        self.max_tokens = max_tokens
        self.temperature = temperature
        self.system: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self.turns: list[Message] = []
        self.forgotten = 0  # turns that the last question pushed out of the block
        self.cut_off = False  # whether the last answer ended for want of room

    @property
    def temperature(self) -> float:
        """0: always the likeliest token; 1: as learned."""
        return self._temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        if not 0 <= value < float("inf"):
            raise ValueError(f"temperature is {value}; expected 0 or more")
        self._temperature = value

    @property
    def messages(self) -> list[Message]:
        """Everything that the model still knows, the system's message first."""
        return [*self.system, *self.turns]

    def reset(self) -> None:
        """Forget every turn. The system's message stays."""
        self.turns = []

    def ask(self, text: str) -> Iterator[str]:
        """Say something -> the answer, piece by piece. What came of it is remembered even if no one reads on.

        Raises ValueError for a text that the block has no room for; the conversation is then as it was before.
        """
        ids = self._make_room({"role": "user", "content": text})
        said = ""
        try:
            for piece in self._stream(ids):
                said += piece
                yield piece
        finally:
            if said.strip():
                self.turns.append({"role": "assistant", "content": said.strip()})
            else:
                self.turns.pop()  # a question without an answer would break the order of turns

    def _make_room(self, question: Message) -> list[int]:
        """Add the question and drop the oldest turns until a quarter of the block is free -> the prompt's ids (N,)."""
        block = self.model.config.block_size
        kept = [*self.turns, question]
        limit = block - min(self.max_tokens, block // 4)
        while len(ids := render_chat(self.tokenizer, [*self.system, *kept], reply=True)[0]) > limit:
            if len(kept) == 1:
                raise ValueError(
                    f"with this message the prompt has {len(ids)} tokens; the block of {block} leaves room for "
                    f"{limit}: say it in fewer words"
                )
            kept = kept[2:]
        self.forgotten = len(self.turns) + 1 - len(kept)
        self.turns = kept
        return ids

    def _stream(self, ids: list[int]) -> Iterator[str]:
        """The text of the answer, in pieces of whole characters."""
        special = self.tokenizer.special_tokens
        device = next(self.model.parameters()).device
        n = min(self.max_tokens, self.model.config.block_size - len(ids))
        decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may be split between tokens
        begun, self.cut_off = False, True
        for token in generate(
            self.model,
            torch.tensor([ids], device=device),
            n,
            generator=self.generator,
            temperature=self.temperature,
            stop=set(special.values()),
        ):
            if int(token) in special.values():
                self.cut_off = False
                break
            piece = decoder.decode(self.tokenizer.token_bytes(int(token)))
            if not begun:
                piece = piece.removeprefix(" ")  # the template's
            if piece:
                begun = True
                yield piece
        if rest := decoder.decode(b"", final=True):
            yield rest


def talk(conversation: Conversation, lines: TextIO | None = None, out: TextIO | None = None) -> None:
    """Read messages, one a line, and write the answers as they come, until the end of the input or /quit.

    At a terminal there is a prompt and line editing; from a pipe there are the answers alone, one after the other.
    """
    lines, out = lines or sys.stdin, out or sys.stdout
    prompt = "> " if lines is sys.stdin and lines.isatty() else ""
    if prompt:
        with contextlib.suppress(ImportError):  # not on every system; input() then does without line editing
            import readline  # noqa: F401
        print("Ask, or type /help. Ctrl-D ends.", file=out)
    while True:
        try:
            text = _read_message(lines, prompt)
        except KeyboardInterrupt:
            if not prompt:
                raise
            print("\n(Ctrl-D or /quit ends)", file=out)
            continue
        if text is None or text.strip() == "/quit":
            if text is None and prompt:
                print(file=out)
            return
        try:
            if text.strip().startswith("/"):
                print(command(conversation, text.strip()), file=out, flush=True)
            elif text.strip():
                _answer(conversation, text.strip(), out)
        except (ValueError, OSError) as error:
            print(f"({' '.join(str(error).split())})", file=out, flush=True)


def _read_message(lines: TextIO, prompt: str) -> str | None:
    """The next message, several lines of it where each but the last ends with a backslash; None at the end."""
    parts: list[str] = []
    while True:
        try:
            line = input(". " if parts else prompt) if prompt else lines.readline()
        except EOFError:
            line = ""
        else:
            line = line if not prompt else line + "\n"
        if not line:
            return "\n".join(parts) if parts else None
        line = line.rstrip("\r\n")
        if not line.endswith("\\"):
            return "\n".join([*parts, line])
        parts.append(line[:-1])


def _answer(conversation: Conversation, text: str, out: TextIO) -> None:
    """Write the answer as it comes; Ctrl-C stops it."""
    pieces = conversation.ask(text)
    empty = True
    try:
        for piece in pieces:
            if empty and conversation.forgotten:
                print(f"(the block is full: the oldest {conversation.forgotten} messages are forgotten)", file=out)
            empty = False
            print(piece, end="", file=out, flush=True)
    except KeyboardInterrupt:
        pieces.close()  # type: ignore[attr-defined]
        print(" (stopped)", file=out, flush=True)
        return
    if empty:
        print("(no answer)", end="", file=out)
    print(" (cut off: no room for more)" if conversation.cut_off else "", file=out, flush=True)


def command(conversation: Conversation, line: str) -> str:
    """Carry out a line that begins with "/" -> what to tell the user. Raises ValueError for one that is wrong."""
    name, _, argument = line.partition(" ")
    argument = argument.strip()
    if name == "/help":
        return HELP
    if name == "/reset":
        conversation.reset()
        return "(forgotten)"
    if name == "/temperature":
        try:
            conversation.temperature = float(argument)
        except ValueError as error:
            raise ValueError(f"/temperature takes a number of 0 or more, not {argument!r}") from error
        return f"(temperature {conversation.temperature:g})"
    if name == "/save":
        return _save(conversation, argument)
    raise ValueError(f"there is no command {name}; /help lists them")


def _save(conversation: Conversation, name: str) -> str:
    if not name:
        raise ValueError("/save takes the name of a file")
    if not conversation.turns:
        raise ValueError("there is nothing to save yet")
    record = {"messages": conversation.messages}
    try:
        line = json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can only spell out
        line = json.dumps(record).encode()
    with open(Path(name).expanduser(), "ab") as file:
        file.write(line + b"\n")
    return f"(added to {name})"
