"""Every kind of model trains, writes and is measured through the same commands."""

from __future__ import annotations

import pytest

from llmfs.cli import main

MODELS = ("gpt", "mini-transformer", "char-rnn", "word-rnn", "lstm-attention")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("The cat sat on the mat. The dog ran to the cat, and the cat ran home. " * 200)
    return path


@pytest.mark.parametrize("model", MODELS)
def test_five_models_one_interface(model, text, tmp_path, capsys):
    run = str(tmp_path / "run")
    settings = [
        "--preset",
        "tiny",
        "--vocab-size",
        "300",
        "--steps",
        "6",
        "--eval-every",
        "3",
        "--seq-len",
        "16",
        "--device",
        "cpu",
    ]
    assert main(["train", str(text), "--model", model, "--out", run, *settings]) == 0
    assert "bits per byte" in capsys.readouterr().out
    assert main(["generate", run, "--tokens", "30", "--seed", "1", "--device", "cpu"]) == 0
    assert main(["evaluate", run, str(text), "--device", "cpu"]) == 0
    assert main(["train", str(text), "--model", model, "--out", run, *settings, "--resume"]) == 0


def test_the_cell_is_chosen_and_kept(text, tmp_path):
    from llmfs.checkpoint import load_checkpoint

    run = tmp_path / "run"
    main(
        [
            "train",
            str(text),
            "--model",
            "char-rnn",
            "--cell",
            "gru",
            "--out",
            str(run),
            "--preset",
            "tiny",
            "--steps",
            "2",
            "--seq-len",
            "8",
        ]
    )
    assert load_checkpoint(run).model.config.cell == "gru"


def test_what_a_model_does_not_have_is_named(text, tmp_path, capsys):
    assert (
        main(
            [
                "train",
                str(text),
                "--model",
                "char-rnn",
                "--n-head",
                "2",
                "--out",
                str(tmp_path / "a"),
                "--preset",
                "tiny",
            ]
        )
        == 2
    )
    assert "unknown setting n_head" in capsys.readouterr().err
    assert main(["train", str(text), "--cell", "gru", "--out", str(tmp_path / "b"), "--preset", "tiny"]) == 2
    assert "cell" in capsys.readouterr().err
