"""Every benchmark runs, and refuses to time two sides that do different work. Speed itself is not tested."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import __main__ as command_line
from benchmarks import book, bpe_train, encode, generation, measure, page, rnn, training
from benchmarks.measure import Comparison, DifferentWork, Section, Settings
from llmfs.config import GPTConfig
from llmfs.tokenizer import BPETokenizer

QUICK = Settings(quick=True, rounds=1)
SHAPE = training.QUICK["tiny"]


@pytest.fixture(autouse=True)
def own_settings(monkeypatch):
    """The tests' own threads stay as they are."""
    monkeypatch.setattr(measure, "use_threads", lambda n: None)


@pytest.mark.parametrize("name", command_line.MEASURES)
def test_each_command_runs_and_its_results_make_a_page(name, tmp_path, capsys):
    assert command_line.main([name, "--quick", "--rounds", "1", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / f"{name}.json").read_text("utf8"))
    assert {"machine", "versions", "settings", "seconds"} <= results.keys() and list(results["sections"]) == [name]
    assert command_line.main(["page", str(tmp_path), "--out", str(tmp_path / "page.md")]) == 0
    text = (tmp_path / "page.md").read_text("utf8")
    assert text.startswith("# Benchmarks\n") and f"## {results['sections'][name]['title']}" in text
    assert results["machine"]["processor"] in text and results["versions"]["torch"] in text


def test_all_writes_one_file(tmp_path, monkeypatch):
    found = Section("book", "The book")
    monkeypatch.setattr(command_line, "IN_ALL", ["book"])
    monkeypatch.setattr(book, "run", lambda settings, **options: found)
    assert command_line.main(["all", "--out", str(tmp_path)]) == 0
    assert list(json.loads((tmp_path / "results.json").read_text("utf8"))["sections"]) == ["book"]


def test_what_went_wrong_is_one_line(tmp_path, monkeypatch, capsys):
    def differ(settings):
        raise DifferentWork("ids of prose: the results differ, so there is nothing to compare")

    monkeypatch.setattr(encode, "run", differ)
    assert command_line.main(["encode", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "error: ids of prose: the results differ, so there is nothing to compare\n"
    assert not list(tmp_path.iterdir())
    assert command_line.main(["encode", "--out", str(tmp_path), "--cpu-clock", "--threads", "2"]) == 1
    assert command_line.main(["page", str(tmp_path)]) == 1
    (tmp_path / "other.json").write_text("[]")
    assert command_line.main(["page", str(tmp_path)]) == 1
    assert "other.json holds no results" in capsys.readouterr().err


# --- other work is not timed -----------------------------------------------------------------------------


def test_training_bpe_refuses_other_merges(tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_text("low lower lowest " * 20)
    monkeypatch.setattr(bpe_train, "train_theirs", bpe_train.train_ours)
    same = bpe_train.measure_here("tokenizers", path, 260, True)
    assert same["merges"] == bpe_train.measure_here("llmfs", path, 260, True)["merges"]
    monkeypatch.setattr(bpe_train, "in_new_process", lambda side, *_: {"merges": side, "seconds": 1.0, "peak_mb": 1.0})
    with pytest.raises(DifferentWork, match="4 merges of 1 MB"):
        bpe_train.compare(path, 4, True, QUICK, 1)


def test_encoding_refuses_other_ranks():
    ours, other = (BPETokenizer.train("low lower lowest " * 5, 256 + n) for n in (2, 4))
    with pytest.raises(DifferentWork, match="ids of prose"):
        encode.compare(ours, "prose", "lower lowest", 1, QUICK, theirs=other.to_tiktoken())


def test_training_refuses_other_weights():
    tokens, V, _ = training.characters()
    config = training.make_config("GPT-2", V, SHAPE)
    other = training.reference(config)
    with torch.no_grad():
        other.transformer.wte.weight[:, 0] += 1.0
    with pytest.raises(DifferentWork, match=r"losses of x: the results differ by up to \d"):
        training.side_by_side(config, other, tokens, (2, 8), training.make_plan(1, "float32"), QUICK, "x")


def test_generation_refuses_other_weights():
    _, sizes = generation.QUICK["Llama, tiny"]
    model = generation.make_model(GPTConfig.llama, sizes, 32)
    other = training.to_transformers(generation.make_model(GPTConfig.llama, sizes | {"n_layer": 2}, 32))
    with pytest.raises(DifferentWork, match="tokens of x"):
        generation.compare(model, other, 2, 4, 4, "x", QUICK)


def test_cells_refuse_another_output(monkeypatch):
    written_out = rnn.written_out
    monkeypatch.setattr(rnn, "written_out", lambda module, x: (written_out(module, x)[0] + 1e-3, None))
    with pytest.raises(DifferentWork, match="outputs of x"):
        rnn.compare("gru", 8, 2, 4, "x", QUICK)


def test_numbers_that_are_no_numbers_are_not_near():
    with pytest.raises(DifferentWork):
        measure.expect_near("losses", [float("nan")], [1.0], 1e-3)
    assert measure.expect_near("losses", [1.0, 2.0], [1.0, 2.25], 0.5) == 0.25


# --- arithmetic ------------------------------------------------------------------------------------------


def test_a_ratio_is_that_of_the_medians():
    each = Comparison("x", "y", ours=[1.0, 2.0, 4.0], theirs=[3.0, 8.0, 4.0], amount=10.0, unit="MB/s")
    assert each.ratio == 4.0 / 2.0 and each.spread == (1.0, 4.0)
    assert each.shown(each.ours) == 10.0 / 2.0


def test_each_side_takes_as_many_turns():
    turns = []
    sides = {"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}
    seconds = measure.take_turns(sides, 3, QUICK, "x")
    assert turns == ["a", "b"] * 4 and [len(found) for found in seconds.values()] == [3, 3]  # one to warm up


def test_a_table_in_markdown():
    assert page.markdown(["a", "b"], [["x", 1234], ["y", 0.5]]).splitlines() == [
        "| a | b |",
        "| --- | --: |",
        "| x | 1,234 |",
        "| y | 0.500 |",
    ]


def test_a_goal_is_met_or_missed():
    fast, slow = (Comparison(name, "y", [1.0], [s], goal=1.3) for name, s in (("fast", 2.0), ("slow", 1.2)))
    section = Section("train", "Training", comparisons=[fast, slow])
    assert page.goal_rows(section) == [["Training", "y", "1.20 to 2.00", "at least 1.3", "1 of 2"]]
    table = page.comparison_table(section.comparisons)
    assert "1.3: met" in table and "1.3: missed" in table
    assert Section.from_dict(section.to_dict()) == section


# --- the book --------------------------------------------------------------------------------------------


def test_seconds_of_lessons(tmp_path):
    junit = tmp_path / "junit.xml"
    junit.write_text(
        '<testsuites><testsuite><testcase classname="lessons" name="L01_Tokens" file="lessons/L01_Tokens.md" time="2.5"/>'
        '<testcase classname="tests.test_gpt" name="test_L01_x" time="9"/></testsuite></testsuites>'
    )
    assert book.junit_seconds(junit) == {"L01_Tokens": 2.5}
    times = {"iopub.status.busy": "2026-01-01T00:00:01Z", "iopub.status.idle": "2026-01-01T00:00:02.500000Z"}
    cells = [{"metadata": {"execution": times}}, {"metadata": {}}, {"metadata": {"execution": times}}]
    (tmp_path / "L02_Vectors.ipynb").write_text(json.dumps({"cells": cells}))
    assert book.notebook_seconds(tmp_path) == {"L02_Vectors": 3.0}


def test_weight_of_pages(tmp_path):
    (tmp_path / "_static").mkdir()
    (tmp_path / "_static" / "book.css").write_bytes(b"x" * 2_000)
    (tmp_path / "plot.png").write_bytes(b"x" * 4_000)
    (tmp_path / "index.html").write_text('<img alt="" src="plot.png">' + " " * 973)
    rows = book.weights(tmp_path).rows
    assert rows[0][:2] == ["index.html", 1] and rows[0][3] == 4
    assert [row[:2] for row in rows[1:]] == [["shared by all (_static)", 2], ["the whole site", 7]]
