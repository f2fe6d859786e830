"""The command line as a user meets it: it trains, writes and measures; a mistake is one line and exit code 2."""

from __future__ import annotations

import re

import pytest

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
        ("train {text} --out {tmp}/x --preset tiny --device tpu", "cannot be used here"),
        ("generate {tmp} --prompt hello", "no checkpoint in"),
        ("generate {run} --prompt 日本", "日"),
        ("generate {run} --top-p 2", "top_p is 2.0"),
        ("generate {run} --tokens 0", "at least 1"),
        ("evaluate {run} {tmp}/nowhere", "neither a file"),
        ("tokenizer decode {tmp}/none.json 1 2", "none.json"),
        ("tokenizer train {text} --vocab-size 3 --out {tmp}/t.json", "3"),
        ("data get nosuch", "neither a file"),
    ],
)
def test_a_mistake_is_one_clear_line(arguments, message, text_file, run_dir, tmp_path, capsys):
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
    )
    assert main(arguments.format(**names).split()) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("llmfs:")]
    assert len(error) == 1 and re.search(message, error[0]), error


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
