"""The commands behind pretraining: `llmfs sft`, `llmfs align` and `llmfs chat`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmfs.cli_common import DEVICE_HELP, command, find_device, tokenizer_of

if TYPE_CHECKING:  # torch takes seconds to import: `llmfs --help` does without
    from llmfs.gpt import GPT
    from llmfs.sft import Message
    from llmfs.tokenizer import BPETokenizer

METHODS = ("dpo", "ppo", "grpo")
DATA_HELP = 'conversations to learn from: JSON lines, {"messages": [{"role": …, "content": …}, …]} in each; left out: '
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")  # every block has them
ALIGN_SEED = 4  # of the tales to ask about; see SFT_SEED


def add_commands(commands: Any) -> None:
    """Add `sft`, `align` and `chat`."""
    _add_sft(commands)
    _add_align(commands)
    _add_chat(commands)


# --- sft -----------------------------------------------------------------------------------------------


def _add_sft(commands: Any) -> None:
    sft = command(commands, "sft", run_sft, "fine-tune a model on conversations, so that it answers")
    sft.add_argument("--out", type=Path, required=True, help="the folder for the fine-tuned model")
    sft.add_argument("--model", type=Path, metavar="RUN", help="a run's folder; left out: the book's model")
    sft.add_argument("--data", type=Path, metavar="FILE", help=DATA_HELP + "questions about tales, and wishes for them")
    sft.add_argument("--stories", type=int, default=6000, metavar="N", help="tales to ask about, without --data")
    sft.add_argument("--lora", type=int, metavar="RANK", help="train a LoRA of this rank and merge it in the end")
    sft.add_argument("--lora-alpha", type=float, metavar="A", help="its change is scaled by A / RANK; left out: 2 RANK")
    _add_training(sft, steps=250, lr=3e-3, matrix_lr=0.005)
    sft.add_argument("--rows", type=int, default=4, metavar="N", help="rows a step, each as long as the model's block")


def _add_training(
    parser: argparse.ArgumentParser, steps: int | None, lr: float | None, matrix_lr: float | None
) -> None:
    own = "; left out: the method's own" if steps is None else ""
    parser.add_argument("--steps", type=int, default=steps, metavar="N", help="optimizer steps" + own)
    parser.add_argument("--lr", type=float, default=lr, help="AdamW's peak learning rate" + own)
    parser.add_argument("--matrix-lr", type=float, default=matrix_lr, help="Muon's peak learning rate" + own)
    parser.add_argument("--seed", type=int, default=0, help="of new weights and of the order of what is learned")
    parser.add_argument(
        "--measure", type=int, default=40, metavar="N", help="in the end ask N questions of each kind, without --data"
    )
    parser.add_argument("--device", default="auto", help=DEVICE_HELP)


def run_sft(args: argparse.Namespace) -> None:
    """`llmfs sft`."""
    import torch

    from llmfs import sft
    from llmfs.train import TrainConfig, train

    config = TrainConfig(steps=args.steps, lr=args.lr, matrix_lr=args.matrix_lr, warmup_steps=5, seed=args.seed)
    _refuse_a_run(args.out)
    chats = None if args.data is None else sft.read_conversations(args.data)
    generator = torch.Generator().manual_seed(args.seed)
    model, tokenizer = sft.extend_vocabulary(*_base(args.model, args.device), generator=generator)
    seq_len = model.config.block_size
    if chats is None:
        from llmfs import tales

        stories = tales.stories(args.stories, sft.SFT_SEED)
        chats = sft.tale_chats(tokenizer, stories, seq_len, requests=0.25, seed=args.seed)
    learn, held_out = hold_out(chats)
    batches = sft.chat_batches([sft.render_chat(tokenizer, chat) for chat in learn], args.rows, seq_len, seed=args.seed)
    if args.lora is not None:
        alpha = 2 * args.lora if args.lora_alpha is None else args.lora_alpha
        new = [tokenizer.special_tokens[token] for token in sft.CHAT_TOKENS]
        sft.apply_lora(model, args.lora, alpha, targets=LORA_TARGETS, tokens=new, generator=generator)
        config = dataclasses.replace(config, optimizer="adamw")
    history = train(model, batches, config, loss_fn=sft.chat_loss)
    if args.lora is not None:
        sft.merge_lora(model)
    report = f"trained {config.steps:,} steps on {history.tokens[-1]:,} tokens of answers"
    if held_out:
        loss = sft.answer_loss(model, [sft.render_chat(tokenizer, chat) for chat in held_out])
        report += f"; held-out loss, nats per token of an answer: {loss:.3f}"
    _save(args.out, model, tokenizer, config.steps, report)
    if args.data is None:
        _report_questions(model, tokenizer, args.measure)


def hold_out(chats: list[list[Message]]) -> tuple[list[list[Message]], list[list[Message]]]:
    """Conversations to learn from, and the last tenth of them, at most 100, to measure on; none of fewer than ten."""
    n = min(len(chats) // 10, 100)
    return chats[: len(chats) - n], chats[len(chats) - n :]


# --- align ---------------------------------------------------------------------------------------------


def _add_align(commands: Any) -> None:
    align = command(commands, "align", run_align, "train a model that answers on preferences or rewards")
    align.add_argument("--method", choices=METHODS, required=True, help="dpo and ppo: preferences; grpo: exact answers")
    align.add_argument(
        "--model", type=Path, metavar="RUN", help="the folder of a fine-tuned model; left out: the book's chat model"
    )
    align.add_argument("--out", type=Path, required=True, help="the folder for the new model")
    align.add_argument(
        "--data", type=Path, metavar="FILE", help=DATA_HELP + "questions about tales. The last answer is the right one"
    )
    align.add_argument(
        "--preferences",
        type=Path,
        metavar="FILE",
        help='for dpo and ppo: JSON lines, {"messages": […], "chosen": …, "rejected": …} in each; left out: a '
        "right and a wrong answer of the model itself to each question",
    )
    align.add_argument("--questions", type=int, default=1000, metavar="N", help="about tales, without --data")
    _add_training(align, steps=None, lr=None, matrix_lr=None)


def run_align(args: argparse.Namespace) -> None:
    """`llmfs align`."""
    from llmfs import sft
    from llmfs.rlhf import ALIGN, align

    given = {name: getattr(args, name) for name in ("steps", "lr", "matrix_lr") if getattr(args, name) is not None}
    config = dataclasses.replace(ALIGN, seed=args.seed, **given)
    _refuse_a_run(args.out)
    preferences = None if args.preferences is None else sft.read_preferences(args.preferences)
    conversations = _tale_questions(args.questions) if args.data is None else sft.read_conversations(args.data)
    model, tokenizer = _chat_model(args.model, args.device)
    history = align(model, tokenizer, args.method, conversations, preferences=preferences, config=config)
    _save(args.out, model, tokenizer, config.steps, f"{args.method}: trained {len(history.loss):,} steps")
    if args.data is None and args.preferences is None:
        _report_questions(model, tokenizer, args.measure)


def _tale_questions(n: int) -> list[list[Message]]:
    """One question about each of n tales."""
    import random

    from llmfs import tales
    from llmfs.sft import story_question

    if n < 1:
        raise ValueError(f"--questions is {n}; expected at least 1")
    rng = random.Random(0)
    return [story_question(tale, rng.choice(tale.questions)) for tale in tales.stories(n, ALIGN_SEED)]


# --- chat ----------------------------------------------------------------------------------------------


def _add_chat(commands: Any) -> None:
    chat = command(
        commands, "chat", run_chat, "talk with a fine-tuned model in the terminal; /help lists what it knows"
    )
    chat.add_argument("--model", type=Path, metavar="RUN", help="a run's folder; left out: the book's own")
    chat.add_argument("--system", metavar="TEXT", help="a message that stands before the conversation")
    chat.add_argument("--temperature", type=float, default=0.3, help="0: always the likeliest token; 1: as learned")
    chat.add_argument("--max-tokens", type=int, default=256, metavar="N", help="the longest answer, tokens")
    chat.add_argument("--seed", type=int, help="the same seed gives the same answers; left out: others each time")
    chat.add_argument("--device", default="auto", help=DEVICE_HELP)


def run_chat(args: argparse.Namespace) -> None:
    """`llmfs chat`."""
    import torch

    from llmfs.chat import Conversation, talk

    device = find_device(args.device)
    generator = torch.Generator(device)
    generator.seed() if args.seed is None else generator.manual_seed(args.seed)
    model, tokenizer = _chat_model(args.model, device)
    conversation = Conversation(
        model,
        tokenizer,
        system=args.system,
        temperature=args.temperature,
        max_tokens=args.max_tokens,
        generator=generator,
    )
    talk(conversation)


# --- shared --------------------------------------------------------------------------------------------


def _base(run_dir: Path | None, device: str) -> tuple[GPT, BPETokenizer]:
    """The model to start from, and its tokenizer."""
    from llmfs.checkpoint import load_checkpoint
    from llmfs.gpt import GPT
    from llmfs.recipes import book_model
    from llmfs.tokenizer import BPETokenizer

    device = find_device(device)
    if run_dir is None:
        book = book_model()
        return book.model.to(device), book.tokenizer
    checkpoint = load_checkpoint(run_dir, device=device)
    tokenizer = tokenizer_of(checkpoint)
    if not isinstance(checkpoint.model, GPT) or not isinstance(tokenizer, BPETokenizer):
        raise ValueError(
            f"{checkpoint.path} holds a {type(checkpoint.model).__name__} with a {tokenizer.kind} tokenizer; "
            "expected a GPT with a bpe tokenizer"
        )
    return checkpoint.model, tokenizer


def _chat_model(run_dir: Path | None, device: str) -> tuple[GPT, BPETokenizer]:
    """A model that answers, and its tokenizer."""
    from llmfs.chat import book_chat_model

    if run_dir is not None:
        return _base(run_dir, device)
    model, tokenizer = book_chat_model()
    return model.to(find_device(device)), tokenizer


def _refuse_a_run(out: Path) -> None:
    from llmfs.checkpoint import list_checkpoints

    if found := list_checkpoints(out):
        raise ValueError(f"{out} already holds a run ({found[-1].name}); give another --out")


def _save(out: Path, model: GPT, tokenizer: BPETokenizer, step: int, report: str) -> None:
    from llmfs.checkpoint import save_checkpoint

    save_checkpoint(out, model, step=step, tokenizer=tokenizer)
    print(f"{report}; saved in {out}")


def _report_questions(model: GPT, tokenizer: BPETokenizer, per_kind: int) -> None:
    """Print the share of right answers to questions about tales that no one has learned from."""
    if per_kind < 1:
        return
    from llmfs import tales
    from llmfs.recipes import HELD_OUT_SEED
    from llmfs.sft import ask_about_tales, pick_questions

    asked = pick_questions(tales.stories(10**6, HELD_OUT_SEED), per_kind)
    print("right answers about unseen tales, by kind of question")
    for kind, score in ask_about_tales(model, tokenizer, asked).items():
        print(f"  {kind:14} {score}")
