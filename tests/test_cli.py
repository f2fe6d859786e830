"""The command line as a user meets it: it trains, writes and measures; a mistake is one line and exit code 2."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

from llmfs import sft
from llmfs.checkpoint import load_checkpoint
from llmfs.cli import build_parser, main

TEXT = "The owl sat on the mill. The fox ran to the river and saw the owl.\n" * 60


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "owl.txt"
    path.write_text(TEXT)
    return path


QUICK = [
    "--preset",
    "tiny",
    "--block-size",
    "32",
    "--steps",
    "30",
    "--eval-every",
    "15",
    "--save-every",
    "10",
    "--device",
    "cpu",
]


@pytest.fixture(scope="module")
def run_dir(text_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "owl"
    assert main(["train", str(text_file), "--out", str(folder), "--tokenizer", "char", *QUICK]) == 0
    return folder


def test_generate_is_reproducible_and_stays_in_the_alphabet(run_dir, capsys):
    def text(*more: str) -> str:
        assert main(["generate", str(run_dir), "--prompt", "The ", "--tokens", "40", *more]) == 0
        return capsys.readouterr().out

    assert text("--seed", "1") == text("--seed", "1") != text("--seed", "2")
    assert text("--seed", "1").startswith("The ") and set(text("--seed", "1")) <= set(TEXT)
    assert len(text("--temperature", "0")) == len("The ") + 40 + 1
    one_beam = text("--beams", "1", "--tokens", "20")
    assert one_beam == text("--temperature", "0", "--tokens", "20")
    assert one_beam != "The " and len(text("--beams", "3", "--tokens", "20")) <= len("The ") + 20 + 1


def test_evaluate_reports_the_units(run_dir, text_file, capsys):
    assert main(["evaluate", str(run_dir), str(text_file)]) == 0
    loss, perplexity, bits = map(float, re.findall(r"\d+\.\d+", capsys.readouterr().out))
    assert loss < 3.2 and perplexity == pytest.approx(2.718281828**loss, rel=0.01)
    assert bits == pytest.approx(loss / 0.6931, rel=0.01)  # a character a byte


def test_resume_goes_on_where_it_stopped(text_file, tmp_path, capsys):
    command = ["train", str(text_file), "--tokenizer", "char", *QUICK, "--out"]
    assert main([*command, str(tmp_path / "a")]) == 0
    assert main([*command, str(tmp_path / "a")]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "a"), "--resume"]) == 0  # at its end already: nothing left to do
    assert main([*command, str(tmp_path / "b"), "--resume"]) == 2
    assert "nothing to resume" in capsys.readouterr().err


def test_train_on_tales_knows_the_floor(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LLMFS_CACHE", str(tmp_path / "cache"))
    assert (
        main(
            ["train", "tales", "--preset", "tiny", "--steps", "4", "--eval-every", "4", "--out", str(tmp_path / "run")]
        )
        == 0
    )
    assert "the lowest possible: 0." in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "run"), "tales", "--tales", "10"]) == 0
    report = capsys.readouterr().out
    assert "recall by kind" in report and "are in the language" in report
    command = ["sft", "--model", str(tmp_path / "run"), "--out", str(tmp_path / "sft"), "--stories", "40"]
    assert main([*command, "--steps", "2", "--lora", "2", "--measure", "2", "--device", "cpu"]) == 0
    report = capsys.readouterr().out
    assert "trained 2 steps" in report and "held-out loss, nats per token of an answer" in report
    assert re.search(r"whereabouts +\d+\.\d% of 2 ", report) and re.search(r"all .* of 24 ", report)


def test_tokenizer_round_trip(text_file, tmp_path, capsys):
    path = str(tmp_path / "t.json")
    assert main(["tokenizer", "train", str(text_file), "--vocab-size", "300", "--out", path]) == 0
    capsys.readouterr()
    assert main(["tokenizer", "encode", path, "The owl — süß 🦉"]) == 0
    ids = capsys.readouterr().out.split()
    assert main(["tokenizer", "decode", path, *ids]) == 0
    assert capsys.readouterr().out == "The owl — süß 🦉\n"


def test_data_list_and_get(text_file, tmp_path, capsys):
    assert main(["data", "list"]) == 0
    assert "tiny-shakespeare" in capsys.readouterr().out
    assert main(["data", "get", "tales:5", "--out", str(tmp_path / "tales.txt")]) == 0
    assert "5 documents" in capsys.readouterr().out and (tmp_path / "tales.txt").stat().st_size > 100


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    """A file of twelve conversations."""
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    pairs = [("Where was the owl?", "on the mill"), ("Who ran?", "the fox"), ("Where to?", "to the river")] * 4
    lines = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in pairs]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture(scope="module")
def bpe_run(text_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "bpe"
    command = ["train", str(text_file), "--out", str(folder), "--vocab-size", "280", *QUICK, "--block-size", "64"]
    assert main(command) == 0
    return folder


@pytest.fixture(scope="module")
def chat_run(bpe_run, chats, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "chat"
    command = ["sft", "--model", str(bpe_run), "--data", str(chats), "--out", str(folder), "--device", "cpu"]
    assert main([*command, "--steps", "150", "--lr", "5e-3", "--matrix-lr", "0.02"]) == 0
    return folder


def test_what_a_file_of_conversations_says_is_text(bpe_run, tmp_path, monkeypatch):
    """Every special token as the words of every speaker: what is trained on has the template's alone."""
    tokens = [*sft.CHAT_TOKENS, "<|endoftext|>"]
    chats = [
        [{"role": role, "content": token + role[0]} for role in ("system", "user", "assistant")]
        for token in tokens
    ]
    (tmp_path / "chats.jsonl").write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))
    seen = []

    def recorded(rendered, *rest, **settings):
        seen.extend(rendered)
        return chat_batches(rendered, *rest, **settings)

    chat_batches = sft.chat_batches
    monkeypatch.setattr(sft, "chat_batches", recorded)
    command = ["sft", "--model", str(bpe_run), "--data", str(tmp_path / "chats.jsonl"), "--out", str(tmp_path / "x")]
    assert main([*command, "--steps", "1", "--device", "cpu"]) == 0
    tokenizer = load_checkpoint(tmp_path / "x").tokenizer
    special = tokenizer.special_tokens
    template = ["<|endoftext|>", *(t for header in sft.HEADERS.values() for t in (header, sft.STOP))]
    assert len(seen) == len(tokens)
    for (ids, learn), token in zip(seen, tokens):
        assert [id for id in ids if id in special.values()] == [special[t] for t in template]
        assert tokenizer.decode(ids).count(token) == 3 + template.count(token)
        assert [id for id, wanted in zip(ids, learn) if wanted] == [
            *tokenizer.encode(f" {token}a"),
            special[sft.STOP],
        ]


@pytest.mark.parametrize("more", [["--seed", "1"], ["--lora", "4", "--lr", "2e-2", "--seed", "1"]])
def test_sft_is_reproducible_and_leaves_a_plain_model(bpe_run, chats, tmp_path, capsys, more):
    weights = []
    for name in ("a", "b"):
        command = ["sft", "--model", str(bpe_run), "--data", str(chats), "--out", str(tmp_path / name)]
        assert main([*command, "--steps", "15", "--device", "cpu", *more]) == 0
        assert "trained 15 steps" in (out := capsys.readouterr().out) and "held-out loss" in out
        weights.append((tmp_path / name / "step-00000015" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert main(["generate", str(tmp_path / "a"), "--tokens", "3", "--device", "cpu"]) == 0


def test_chat_answers_what_it_has_learned(chat_run, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Who ran?\n/reset\nWhere to?\n"))
    assert main(["chat", "--model", str(chat_run), "--temperature", "0", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == "the fox\n(forgotten)\nto the river\n"


def test_align_with_each_method(chat_run, chats, tmp_path, capsys):
    likes = tmp_path / "likes.jsonl"
    prompt = [{"role": "user", "content": "Who ran?"}]
    likes.write_text(json.dumps({"messages": prompt, "chosen": "the owl", "rejected": "the fox"}))
    for method, more in (
        ("dpo", ["--preferences", str(likes), "--lr", "1e-2"]),
        ("grpo", []),
        ("ppo", ["--preferences", str(likes)]),
    ):
        out = tmp_path / method
        command = ["align", "--method", method, "--model", str(chat_run), "--data", str(chats), "--out", str(out)]
        assert main([*command, "--steps", "12" if method == "dpo" else "2", "--device", "cpu", *more]) == 0
        assert f"{method}: trained" in capsys.readouterr().out and list(out.glob("step-*"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("train {tmp}/nowhere.txt --out {tmp}/x", "neither a file, a folder nor a corpus"),
        ("train {empty} --out {tmp}/x", "empty"),
        ("train {binary} --out {tmp}/x", "UTF-8|binary"),
        ("train {text} --out {tmp}/x --preset tiny --seq-len 4096", "more than the block size"),
        ("train {short} --out {tmp}/x --preset tiny", "too short|tokens"),
        ("train {text} --out {tmp}/x --preset tiny --tokenizer {text}", "not a tokenizer"),
        ("train {text} --out {tmp}/x --preset tiny --n-head 3", "does not divide"),
        ("train {text} --out {tmp}/x --preset tiny --lr 0", "must be positive"),
        ("train {text} --out {tmp}/x --preset tiny --lr nan", "must be positive"),
        ("train {text} --out {tmp}/x --preset tiny --matrix-lr inf", "must be positive"),
        ("train {text} --out {tmp}/x --preset tiny --lr 1e300", "at most 1,000,000"),
        ("train {text} --out {tmp}/x --preset tiny --steps 0", "steps is 0"),
        ("train {text} --out {tmp}/x --preset tiny --rows 0", "0 rows"),
        ("train {text} --out {tmp}/x --preset tiny --rows 100000", "a batch of 100000 rows .* larger than the text"),
        ("train {text} --out {tmp}/x --preset tiny --block-size 5000", "a block of 5000 tokens is longer than the text"),
        ("train {text} --out {tmp}/x --preset tiny --block-size 9000 --seq-len 9000", "longer than the text|the text has"),
        ("train {text} --out {tmp}/x --preset tiny --dropout nan", "dropout is nan"),
        ("train {text} --out {tmp}/x --preset tiny --vocab-size 0", "vocab_size is 0"),
        ("train {text} --out {tmp}/x --preset tiny --seed -1", "seed is -1"),
        ("train {text} --out {tmp}/x --preset tiny --seed 99999999999999999999", "--seed is 9999"),
        ("train tales --out {tmp}/x --preset tiny --rows 2001", "trains on 2000 tales"),
        ("evaluate {other} {text}", "tokens, but the model in .* knows"),
        ("train {text} --out {other} --preset tiny --resume", "has an id|tokens, but the model|another config"),
        ("tokenizer decode {bpe_tokenizer} 5 280", "280 is not in the vocabulary: ids are 0 to 279"),
        ("sft --out {tmp}/x --model {bpe} --data {chats} --lr nan", "must be positive"),
        ("sft --out {tmp}/x --model {bpe} --data {chats} --matrix-lr 0", "must be positive"),
        ("align --method dpo --out {tmp}/x --model {chat} --data {chats} --lr inf", "must be positive"),
        ("train {text} --out {tmp}/x --preset tiny --device tpu", "cannot be used here"),
        ("generate {tmp} --prompt hello", "no checkpoint in"),
        ("generate {run} --prompt 日本", "日"),
        ("generate {run} --top-p 2", "top_p is 2.0"),
        ("generate {run} --tokens 0", "at least 1"),
        ("generate {run} --beams 0 --tokens 5", "width is 0"),
        ("generate {run} --beams 2 --tokens 500", "do not fit a block"),
        ("evaluate {run} {tmp}/nowhere", "neither a file"),
        ("tokenizer decode {tmp}/none.json 1 2", "none.json"),
        ("tokenizer train {text} --vocab-size 3 --out {tmp}/t.json", "3"),
        ("data get nosuch", "neither a file"),
        ("sft --out {tmp}/x --model {tmp}", "no checkpoint in"),
        ("sft --out {bpe} --model {bpe} --data {chats}", "already holds a run"),
        ("sft --out {tmp}/x --model {bpe} --data {text}", "line 1 is not JSON"),
        ("sft --out {tmp}/x --model {bpe} --data {tmp}/none.jsonl", "none.jsonl"),
        ("sft --out {tmp}/x --model {bpe} --data {empty}", "is empty"),
        ("sft --out {tmp}/x --model {bpe} --data {long}", "conversation 1 has .* tokens, but a row holds 65"),
        ("sft --out {tmp}/x --model {bpe} --data {chats} --lora 1000", "rank is 1000"),
        ("sft --out {tmp}/x --model {bpe} --data {chats} --steps 0", "steps is 0"),
        ("sft --out {tmp}/x --model {bpe} --data {chats} --rows 0", "at least one"),
        ("sft --out {tmp}/x --model {bpe} --stories 0", "at least one|no tale"),
        ("sft --out {tmp}/x --model {run} --data {chats}", "expected a GPT with a bpe tokenizer"),
        ("align --method dpo --out {tmp}/x --model {bpe} --data {chats}", "extend_vocabulary|chat tokens"),
        (
            "align --method dpo --out {tmp}/x --model {chat} --data {chats} --preferences {chats}",
            "line 1: expected an obj",
        ),
        ("align --method grpo --out {tmp}/x --model {chat} --questions 0", "--questions is 0"),
        ("align --method grpo --out {chat} --model {chat}", "already holds a run"),
        ("chat --model {bpe}", "cannot chat"),
        ("chat --model {chat} --temperature -1", "temperature is -1"),
        ("chat --model {chat} --max-tokens 0", "expected at least 1"),
    ],
)
def test_a_mistake_is_one_clear_line(
    arguments, message, text_file, run_dir, bpe_run, chat_run, chats, tmp_path, capsys
):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("a b c")
    (tmp_path / "binary.txt").write_bytes(b"\x00\xff\xfe\x80" * 50)
    names = dict(
        tmp=tmp_path,
        empty=tmp_path / "empty.txt",
        short=tmp_path / "short.txt",
        binary=tmp_path / "binary.txt",
        text=text_file,
        run=run_dir,
        bpe=bpe_run,
        chat=chat_run,
        chats=chats,
        long=tmp_path / "long.jsonl",
        other=tmp_path / "other",
        bpe_tokenizer=next(bpe_run.glob("step-*")) / "tokenizer.json",
    )
    if "{other}" in arguments:  # a model with the tokenizer of another, which has more ids
        shutil.copytree(run_dir, names["other"])
        for saved in names["other"].glob("step-*"):
            shutil.copy(names["bpe_tokenizer"], saved / "tokenizer.json")
            content = json.loads((saved / "config.json").read_text())
            del content["sha256"], content["files"]  # which would betray it
            (saved / "config.json").write_text(json.dumps(content))
    names["long"].write_text(chats.read_text().replace("the fox", "the fox " * 50).splitlines()[1])
    assert main(arguments.format(**names).split()) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("llmfs:")]
    assert len(error) == 1 and re.search(message, error[0]), error


def test_a_loss_that_is_no_number_ends_the_run_in_one_line(text_file, tmp_path, capsys):
    command = ["train", str(text_file), "--out", str(tmp_path / "x"), "--tokenizer", "char", *QUICK]
    assert main([*command, "--lr", "1e6", "--matrix-lr", "1e6", "--save-every", "1"]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("llmfs:")]
    assert len(error) == 1 and re.search(r"step \d+: .*learning rate.*checkpoint.*Try a lower", error[0]), error


def test_too_little_memory_is_said_in_one_line(text_file, tmp_path, capsys):
    command = ["train", str(text_file), "--out", str(tmp_path / "x"), "--tokenizer", "char", *QUICK]
    assert main([*command, "--n-embd", "1000000000000"]) == 1
    assert "llmfs: error: there is not enough memory for this" in capsys.readouterr().err


def test_every_option_has_a_help_text():
    def parsers(parser):
        yield parser
        for action in parser._actions:
            if hasattr(action, "choices") and isinstance(action.choices, dict):
                for child in action.choices.values():
                    yield from parsers(child)

    for parser in parsers(build_parser()):
        for action in parser._actions:
            assert action.help or isinstance(action.choices, dict), (parser.prog, action.dest)


@pytest.mark.parametrize("more", [[], ["--shard"]])
def test_several_processes_train_what_one_would(text_file, tmp_path, more):
    """torchrun -m llmfs train: the losses of one process, told by the first alone."""
    command = [
        "train",
        str(text_file),
        "--tokenizer",
        "char",
        *QUICK,
        "--steps",
        "4",
        "--accumulate",
        "2",
        "--optimizer",
    ]
    command.append("adamw")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "llmfs"]
    outs = []
    for start, name in (([sys.executable, "-m", "llmfs"], "one"), (launch, "two")):
        run = [*start, *command, "--out", str(tmp_path / name), *(more if name == "two" else [])]
        done = subprocess.run(run, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        outs.append(re.sub(r" in \d+ s; ", "; ", done.stdout).replace(str(tmp_path / name), "RUN"))
    assert outs[0] == outs[1] and outs[0].count("trained 4 steps") == 1
    one, two = (load_checkpoint(tmp_path / name).model.state_dict() for name in ("one", "two"))
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)
