"""Supervised fine-tuning: from a model that continues text to one that answers.

A conversation becomes one row of ids. Each message stands between a token that says who speaks and `<|end|>`, with a
space before its text, as words have one everywhere else::

    <|endoftext|><|user|> What is Mira?<|end|><|assistant|> Mouse<|end|>

Only the assistant's words and the `<|end|>` behind them are targets: the model learns to answer, not to ask.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfs.evaluate import IGNORE, cross_entropy_sum, evaluating
from llmfs.gpt import GPT
from llmfs.sample import generate, pad_left
from llmfs.tales import QUESTION_KINDS, Question, Tale
from llmfs.tokenizer import BPETokenizer, Tokenizer

SYSTEM, USER, ASSISTANT, STOP = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
CHAT_TOKENS = (SYSTEM, USER, ASSISTANT, STOP)
BEGIN = "<|endoftext|>"  # stands before every text that the model was trained on, so also before a conversation
SFT_SEED = 3  # of the tales to ask about; a model of the tales is trained on those of seed 1, measured on seed 2's
HEADERS = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}


class Message(TypedDict):
    """One turn of a conversation."""

    role: str  # "system", "user" or "assistant"
    content: str


class Preference(TypedDict):
    """A prompt and two answers to it, of which people liked one better."""

    messages: list[Message]
    chosen: str
    rejected: str


Rendered = tuple[list[int], list[bool]]  # ids, and which of them the model must learn to write
ChatBatch = tuple[Tensor, Tensor, Tensor, Tensor]  # ids, targets, mask, positions; see `pack`


# --- the template --------------------------------------------------------------------------------------


def extend_vocabulary(
    model: GPT,
    tokenizer: BPETokenizer,
    special_tokens: Sequence[str] = CHAT_TOKENS,
    *,
    generator: torch.Generator | None = None,
) -> tuple[GPT, BPETokenizer]:
    """-> a new model and a new tokenizer that know these special tokens too; the old ones stay as they are.

    A new token's rows in the embedding table and in the head begin at the mean of the old rows, with a little noise
    that tells them apart (Hewitt 2021). The old rows are copied, so the logits of the old tokens do not change.
    Tokens that the tokenizer has already are left alone. Raises ValueError for a tokenizer of another model.
    """
    known = tokenizer.special_tokens
    added = [token for token in special_tokens if token not in known]
    wider = BPETokenizer(tokenizer.merges, pattern=tokenizer.pattern, special_tokens=[*known, *added])
    n_old = tokenizer.vocab_size
    if n_old > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {n_old} tokens, but the model knows {model.config.vocab_size}: they do not belong "
            "together"
        )
    extended = GPT(model.config.replace(vocab_size=max(model.config.vocab_size, wider.vocab_size)))
    weights = model.state_dict()
    with torch.no_grad():
        for name, new in extended.state_dict().items():
            old = weights[name].cpu()
            if new.shape == old.shape:
                new.copy_(old)
            else:  # a table: (V, C)
                new[: len(old)] = old
            if name in ("embed.weight", "lm_head.weight") and added:
                rows = old[:n_old]
                noise = torch.randn(len(added), rows.shape[1], generator=generator) * rows.std(0) * 0.1
                new[n_old : n_old + len(added)] = rows.mean(0) + noise
    return extended.to(next(model.parameters()).device).train(model.training), wider


def render_chat(tokenizer: Tokenizer, messages: Sequence[Message], *, reply: bool = False) -> Rendered:
    """messages -> the conversation's ids (N,), and for each whether the model must learn to write it (N,).

    True stands at the assistant's words and at the `<|end|>` behind them. reply: add the header of an answer at the
    end, for the model to go on from; the last message is then the user's, otherwise the assistant's.

    What a message says is encoded with no special token recognized: a user who types `<|assistant|>` sends those
    letters and no more. Raises ValueError, with the number of the message, for an unknown role, roles out of order
    (at most one system message, at the front, then user and assistant in turn) and an empty text.
    """
    check_messages(messages, reply=reply)
    special = tokenizer.special_tokens
    if missing := [token for token in CHAT_TOKENS if token not in special]:
        raise ValueError(f"the tokenizer has no {missing[0]}: give it the chat tokens with extend_vocabulary")
    ids = [special[BEGIN]] if BEGIN in special else []
    learn = [False] * len(ids)
    for message in messages:
        words = [*tokenizer.encode(" " + message["content"]), special[STOP]]
        ids += [special[HEADERS[message["role"]]], *words]
        learn += [False] + [message["role"] == "assistant"] * len(words)
    if reply:
        ids.append(special[ASSISTANT])
        learn.append(False)
    return ids, learn


def check_messages(messages: Sequence[Message], *, reply: bool = False) -> None:
    """Raises ValueError, with the number of the message, for a conversation that `render_chat` cannot render."""
    if not messages:
        raise ValueError("the conversation has no message")
    expected: tuple[str, ...] = ("system", "user")
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise ValueError(f'message {number} is {message!r:.60}; expected {{"role": …, "content": …}}')
        role, content = message["role"], message["content"]
        if not isinstance(role, str) or role not in HEADERS:
            raise ValueError(f"message {number} has the role {role!r}; expected system, user or assistant")
        if role not in expected:
            raise ValueError(f"message {number} is from {role}; expected {' or '.join(expected)} here")
        if not isinstance(content, str) or not content.strip():
            raise ValueError(f"message {number} says {content!r}; expected a text that is not empty")
        expected = ("assistant",) if role == "user" else ("user",)
    last = "user" if reply else "assistant"
    if messages[-1]["role"] != last:
        raise ValueError(f"message {len(messages)}, the last, is from {messages[-1]['role']}; expected {last}")


# --- batches and loss ----------------------------------------------------------------------------------


def pack(rendered: Iterable[Rendered], seq_len: int, rows: int | None = None) -> ChatBatch:
    """Lay conversations side by side into rows of seq_len -> (ids, targets, mask, positions).

    ids (B, T) int64, filled up with 0. targets (B, T) int64: the next id where it is to be learned, else `IGNORE`;
    they are shifted here, once. mask (B, 1, T, T) bool: a token attends to its own conversation alone. positions
    (B, T) int64 begin at 0 in each conversation. So each conversation gives the logits that it gives alone.

    rows: how many there are; packing ends with the first conversation that fits into none. None: as many as are
    needed. Raises ValueError for a conversation that no row can hold.
    """
    layout = _first_fit(rendered, seq_len, rows)
    shape = (len(layout), seq_len)
    ids, positions, owner = (torch.zeros(shape, dtype=torch.int64) for _ in range(3))
    targets = torch.full(shape, IGNORE)
    for b, row in enumerate(layout):
        start = 0
        for number, (chat, learn) in enumerate(row, start=1):
            end = start + len(chat) - 1
            all_ids = torch.tensor(chat)
            ids[b, start:end] = all_ids[:-1]
            targets[b, start:end] = all_ids[1:].where(torch.tensor(learn[1:]), IGNORE)
            positions[b, start:end] = torch.arange(end - start)
            owner[b, start:end] = number  # 0 is left to the padding
            start = end
    mask = (owner[:, :, None] == owner[:, None, :]).tril()  # (B, T, T)
    return ids, targets, mask[:, None], positions


def _first_fit(rendered: Iterable[Rendered], seq_len: int, rows: int | None) -> list[list[Rendered]]:
    """Put each conversation into the first row that has room for it."""
    layout: list[list[Rendered]] = [[] for _ in range(rows or 0)]
    room = [seq_len] * len(layout)
    for number, chat in enumerate(rendered, start=1):
        _check_length(number, chat, seq_len)
        n = len(chat[0]) - 1  # the last id is only ever a target
        row = next((k for k, left in enumerate(room) if left >= n), None)
        if row is None and rows is not None:
            break
        if row is None:
            row = len(layout)
            layout.append([])
            room.append(seq_len)
        layout[row].append(chat)
        room[row] -= n
    return layout


def _check_length(number: int, chat: Rendered, seq_len: int) -> None:
    if len(chat[0]) - 1 > seq_len:
        raise ValueError(
            f"conversation {number} has {len(chat[0])} tokens, but a row holds {seq_len + 1}: "
            "shorten it or leave it out"
        )


def chat_batches(
    rendered: Sequence[Rendered], rows: int, seq_len: int, *, seed: int = 0
) -> Callable[[int, int], ChatBatch]:
    """-> batches(step, micro) for `llmfs.train.train`: the conversations in an order drawn from (seed, step, micro).

    Raises ValueError where there is none, one is longer than a row, or one has nothing to learn.
    """
    if not rendered or rows < 1:
        raise ValueError(f"{len(rendered)} conversations in {rows} rows: there must be at least one of both")
    for number, chat in enumerate(rendered, start=1):
        _check_length(number, chat, seq_len)
        if not any(chat[1][1:]):
            raise ValueError(f"conversation {number} holds no answer to learn from")

    def batches(step: int, micro: int) -> ChatBatch:
        generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, step, micro]))
        return pack((rendered[k] for k in generator.permutation(len(rendered))), seq_len, rows)

    return batches


def chat_loss(model: nn.Module, batch: ChatBatch) -> tuple[Tensor, int]:
    """-> the sum of the cross-entropies over the tokens of the answers, in nats (a scalar), and how many those are."""
    ids, targets, mask, positions = batch
    learn = targets != IGNORE  # (B, T); an answer is a small part of its row
    return cross_entropy_sum(model(ids, mask=mask, positions=positions, at=learn), targets[learn])


@torch.no_grad()
def answer_loss(model: GPT, rendered: Sequence[Rendered], *, rows: int = 4) -> float:
    """The loss over all tokens of the answers, in nats per token, with dropout off."""
    seq_len, device = model.config.block_size, next(model.parameters()).device
    ids, targets, mask, positions = (part.split(rows) for part in pack(rendered, seq_len))
    total, count = 0.0, 0
    with evaluating(model):
        for batch in zip(ids, targets, mask, positions, strict=True):
            loss, n = chat_loss(model, tuple(part.to(device) for part in batch))
            total, count = total + loss.item(), count + n
    return total / count


# --- LoRA ----------------------------------------------------------------------------------------------


class LoRALinear(nn.Module):
    """A frozen linear layer plus a learned change of low rank: W x + (alpha / rank) B A x (Hu et al. 2021).

    A (rank, in) begins at random and B (out, rank) at zero, so that training starts from the very layer that was
    there. (..., in) -> (..., out). Raises ValueError for a rank that such a matrix cannot have.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if not 1 <= rank <= min(base.in_features, base.out_features):
            raise ValueError(
                f"rank is {rank}; a change of a {base.out_features} x {base.in_features} matrix has a rank from 1 to "
                f"{min(base.in_features, base.out_features)}"
            )
        self.base, self.scale = base, alpha / rank
        weight = base.weight
        a = torch.randn(rank, base.in_features, generator=generator) / math.sqrt(base.in_features)
        self.A = nn.Parameter(a.to(weight))  # (rank, in)
        self.B = nn.Parameter(weight.new_zeros(base.out_features, rank))  # (out, rank)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        return self.base(x) + self.scale * ((x @ self.A.T) @ self.B.T)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The plain layer that gives the same: W + (alpha / rank) B A."""
        self.base.weight += self.scale * (self.B @ self.A)
        return self.base


class NewRows(nn.Module):
    """A frozen table, the embedding or the head, and a learned change of a few tokens' rows, zero at first.

    A token that pretraining did not know must learn its rows: no LoRA inside the blocks can make up for them.
    """

    def __init__(self, base: nn.Embedding | nn.Linear, tokens: Tensor, change: nn.Parameter) -> None:
        super().__init__()
        self.base, self.tokens, self.change = base, tokens, change  # (V, C), (N,), (N, C)

    @property
    def weight(self) -> Tensor:
        """The table with the change in it, (V, C)."""
        return self.base.weight.index_add(0, self.tokens, self.change)

    def forward(self, x: Tensor) -> Tensor:
        """What the table would give: ids (B, T) -> (B, T, C), or (B, T, C) -> (B, T, V)."""
        return F.embedding(x, self.weight) if isinstance(self.base, nn.Embedding) else F.linear(x, self.weight)

    @torch.no_grad()
    def merged(self) -> nn.Embedding | nn.Linear:
        """The plain table that gives the same."""
        self.base.weight.index_add_(0, self.tokens, self.change)
        self.change.zero_()  # a tied table is merged under both of its names, but changed once
        return self.base


def apply_lora(
    model: GPT,
    rank: int,
    alpha: float,
    *,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    tokens: Sequence[int] = (),
    generator: torch.Generator | None = None,
) -> list[LoRALinear]:
    """Freeze the model and put a `LoRALinear` in place of each of these layers of every block -> those, in order.

    targets: any of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj. tokens: ids whose rows in the
    embedding and the head learn too; give those that `extend_vocabulary` has added. The model is changed in place and
    gives the same logits as before. Raises ValueError for a rank or a target that the blocks do not have.
    """
    if lora_parameters(model):
        raise ValueError("the model has a LoRA already: merge it first, with merge_lora")
    found = [
        (parent, name, layer)
        for parent in model.blocks.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, nn.Linear)
    ]
    names = sorted({name for _, name, _ in found})
    if not targets or not set(targets) <= set(names):
        raise ValueError(f"targets are {list(targets)}; expected some of {', '.join(names)}")
    if bad := [token for token in tokens if not 0 <= token < model.config.vocab_size]:
        raise ValueError(f"there is no token {bad[0]}: ids are 0 to {model.config.vocab_size - 1}")
    adapters = [
        (parent, name, LoRALinear(layer, rank, alpha, generator)) for parent, name, layer in found if name in targets
    ]
    model.requires_grad_(False)
    for parent, name, adapter in adapters:
        setattr(parent, name, adapter)
    if tokens:
        _learn_rows(model, tokens)
    return [adapter for _, _, adapter in adapters]


def _learn_rows(model: GPT, tokens: Sequence[int]) -> None:
    """Put a `NewRows` in place of both tables; tied ones share the change."""
    weight = model.embed.weight
    ids = torch.tensor(sorted(set(tokens)), device=weight.device)
    change = [nn.Parameter(weight.new_zeros(len(ids), weight.shape[1])) for _ in range(2)]
    tied = model.lm_head.weight is weight
    setattr(model, "embed", NewRows(model.embed, ids, change[0]))  # noqa: B010  (another type than was declared)
    setattr(model, "lm_head", NewRows(model.lm_head, ids, change[0 if tied else 1]))  # noqa: B010


def merge_lora(model: GPT) -> None:
    """Add each LoRA's change to the weights it stands beside; what is left is a plain model that can learn again."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoRALinear | NewRows):
                setattr(parent, name, child.merged())
    model.requires_grad_(True)


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that `apply_lora` adds: A and B of each layer, and the changes of rows; each once."""
    found = []
    for module in model.modules():
        if isinstance(module, LoRALinear):
            found += [module.A, module.B]
        elif isinstance(module, NewRows):
            found.append(module.change)
    return list({id(p): p for p in found}.values())


# --- files ---------------------------------------------------------------------------------------------


def read_conversations(path: str | Path) -> list[list[Message]]:
    """The conversations of a file of JSON lines, {"messages": [{"role": …, "content": …}, …]} in each.

    Raises ValueError, with the file and the number of the line, for a line that is no such conversation.
    """
    conversations = []
    for where, record in _json_lines(path, {"messages"}):
        _check_record(where, record["messages"], reply=False)
        conversations.append(record["messages"])
    return conversations


def read_preferences(path: str | Path) -> list[Preference]:
    """The preferences of a file of JSON lines, {"messages": [… the user's is the last], "chosen": …, "rejected": …}.

    Raises ValueError, with the file and the number of the line, for a line that is no such preference.
    """
    preferences = []
    for where, record in _json_lines(path, {"messages", "chosen", "rejected"}):
        _check_record(where, record["messages"], reply=True)
        for name in ("chosen", "rejected"):
            if not isinstance(record[name], str) or not record[name].strip():
                raise ValueError(f"{where}: {name} is {record[name]!r:.60}; expected a text that is not empty")
        if record["chosen"] == record["rejected"]:
            raise ValueError(f"{where}: chosen and rejected are the same text, so there is no preference")
        preferences.append(Preference(**record))  # type: ignore[typeddict-item]
    return preferences


def _json_lines(path: str | Path, keys: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """ "file, line 3" and the object of each line that is not blank."""
    n = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where, n = f"{path}, line {number}", n + 1
            try:
                record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where} is not JSON in UTF-8: {error}") from error
            if not isinstance(record, dict) or set(record) != keys:
                found = sorted(record) if isinstance(record, dict) else type(record).__name__
                raise ValueError(f"{where}: expected an object with the keys {sorted(keys)}, found {found}")
            yield where, record
    if not n:
        raise ValueError(f"{path} is empty: expected one JSON object a line")


def _check_record(where: str, messages: Any, *, reply: bool) -> None:
    if not isinstance(messages, list):
        raise ValueError(f"{where}: messages is {messages!r:.60}; expected a list")
    try:
        check_messages(messages, reply=reply)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


# --- questions about tales -----------------------------------------------------------------------------


def story_question(tale: Tale, *questions: Question) -> list[Message]:
    """A conversation about a tale: the user tells it and asks, the assistant answers; then the next question."""
    messages: list[Message] = []
    for question in questions:
        text = question.text if messages else f"{tale.text}\n{question.text}"
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": question.answer}]
    return messages


def story_request(tale: Tale, *questions: Question) -> list[Message]:
    """A conversation that begins with the wish for a tale, about its hero if it has one; then come questions."""
    hero = next((question for question in tale.questions if question.kind == "animal"), None)
    name = "" if hero is None else hero.text.removeprefix("What is ").removesuffix("?")
    messages: list[Message] = [
        {"role": "user", "content": f"Tell me a story about {name} {hero.answer}." if hero else "Tell me a story."},
        {"role": "assistant", "content": tale.text},
    ]
    for question in questions:
        messages += [{"role": "user", "content": question.text}, {"role": "assistant", "content": question.answer}]
    return messages


def tale_chats(
    tokenizer: Tokenizer, stories: Iterable[Tale], seq_len: int, *, requests: float = 0.0, seed: int = 0
) -> list[list[Message]]:
    """A conversation about each tale, its questions in random order, as many of them as fit beside it.

    The order matters: were it the same in all, a late kind of question would always be asked behind the answers to
    the early ones, which may give it away. requests: the share of conversations that begin with the wish for the tale.
    A tale that leaves no room for a question is left out. seq_len: tokens of a row of `pack`.
    """
    rng = random.Random(seed)
    chats = []
    for tale in stories:
        make = story_request if rng.random() < requests else story_question
        questions = rng.sample(tale.questions, len(tale.questions))
        while questions and len(render_chat(tokenizer, make(tale, *questions))[0]) - 1 > seq_len:
            questions.pop()
        if questions:
            chats.append(make(tale, *questions))
    return chats


def pick_questions(
    stories: Iterable[Tale], per_kind: int, *, kinds: Collection[str] = QUESTION_KINDS, seed: int = 0
) -> list[tuple[Tale, Question]]:
    """per_kind questions of each of these kinds, sorted by kind, at most one from a tale.

    Reads no more tales than it needs. Raises ValueError where they do not hold enough.
    """
    rng = random.Random(seed)
    found: dict[str, list[tuple[Tale, Question]]] = {kind: [] for kind in kinds}
    for tale in stories:
        if all(len(asked) >= per_kind for asked in found.values()):
            break
        wanted = [q for q in tale.questions if q.kind in found and len(found[q.kind]) < per_kind]
        if wanted:
            question = rng.choice(wanted)
            found[question.kind].append((tale, question))
    if short := [f"{len(asked)} of kind {kind!r}" for kind, asked in found.items() if len(asked) < per_kind]:
        raise ValueError(f"these tales hold {', '.join(short)}; give more tales, or ask for fewer than {per_kind}")
    return [pair for asked in found.values() for pair in asked]


# --- answers and how good they are ---------------------------------------------------------------------


def complete(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    *,
    stop: int,
    temperature: float = 1.0,
    group: int = 1,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """Continue prompts of unequal length together -> for each the new ids, at most max_tokens, `stop` included.

    group: how many continuations each prompt gets, side by side in the result; it is read once for all of them. Each
    row gets what it would get alone. Raises ValueError where a prompt and its answer do not fit into the block.
    """
    room = model.config.block_size - max_tokens
    for number, prompt in enumerate(prompts, start=1):
        if not 1 <= len(prompt) <= room:
            raise ValueError(
                f"prompt {number} has {len(prompt)} tokens; the block of {model.config.block_size} has room for 1 to "
                f"{room} beside {max_tokens} tokens of answer"
            )
    device = next(model.parameters()).device
    ids, real = (tensor.to(device) for tensor in pad_left(prompts))  # (P, T)
    with evaluating(model):
        written = generate(
            model, ids, max_tokens, generator=generator, temperature=temperature, stop={stop}, real=real, group=group
        )
        answers = torch.stack(list(written), dim=1).tolist()
    return [row[: row.index(stop) + 1] if stop in row else row for row in answers]


def length_batches(rows: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Where the rows stand, the shortest first, in pieces of `size`: like with like needs little padding."""
    order = sorted(range(len(rows)), key=lambda k: len(rows[k]))
    return (order[first : first + size] for first in range(0, len(order), size))


def answer(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[Message]],
    *,
    max_tokens: int = 32,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    batch_size: int = 64,
) -> list[str]:
    """The model's answer to each conversation (the user's message is the last), at most max_tokens tokens long."""
    stop = tokenizer.special_tokens.get(STOP, -1)
    rendered = [render_chat(tokenizer, messages, reply=True)[0] for messages in prompts]
    answers = [""] * len(rendered)
    for chosen in length_batches(rendered, batch_size):
        rows = complete(
            model,
            [rendered[k] for k in chosen],
            max_tokens,
            stop=stop,
            temperature=temperature,
            generator=generator,
        )
        for k, row in zip(chosen, rows, strict=True):
            answers[k] = tokenizer.decode(id for id in row if id != stop).strip()
    return answers


@dataclass(frozen=True)
class Score:
    """How many of n answers are right."""

    hits: int
    n: int

    @property
    def share(self) -> float:
        """The share that is right."""
        return self.hits / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the share."""
        return wilson_interval(self.hits, self.n)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.share:.1%} of {self.n:,} (95 % interval {low:.1%} to {high:.1%})"


def wilson_interval(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The interval that holds the true share with 95 % confidence, when `hits` of `n` came out right (Wilson 1927).

    Unlike share ± z √(share (1 - share) / n) it stays inside [0, 1] and is not empty at 0 and at n hits.
    Raises ValueError unless 0 <= hits <= n and n >= 1.
    """
    if not 0 <= hits <= n or n < 1:
        raise ValueError(f"{hits} hits of {n}: expected at least one answer, and no more hits than answers")
    share = hits / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)


def exact_match(answers: Sequence[str], questions: Sequence[Question]) -> dict[str, Score]:
    """Answers that are right to the letter, by kind of question, the kinds in the order they come, and "all" last."""
    marks: dict[str, list[bool]] = {}
    for given, question in zip(answers, questions, strict=True):
        marks.setdefault(question.kind, []).append(given == question.answer)
    marks["all"] = [mark for kind in list(marks) for mark in marks[kind]]
    return {kind: Score(sum(right), len(right)) for kind, right in marks.items() if right}


def ask_about_tales(
    model: GPT, tokenizer: Tokenizer, asked: Sequence[tuple[Tale, Question]], *, max_tokens: int = 12
) -> dict[str, Score]:
    """Put questions about tales to the model, each by itself, greedily answered -> `exact_match`."""
    prompts = [story_question(tale, question)[:-1] for tale, question in asked]
    return exact_match(answer(model, tokenizer, prompts, max_tokens=max_tokens), [question for _, question in asked])
