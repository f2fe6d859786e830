"""Experiments: what is compared is what is said, intervals are Student's, and each runs by one command."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

from llmfs import experiments, recipes
from llmfs.cli import main
from llmfs.data import split
from llmfs.experiments import ABLATED, ABLATIONS, Result, Row, ablated, interval, rememberers, same_cost
from llmfs.gpt import GPT
from llmfs.scale import flops_per_token
from llmfs.tokenizer import CharTokenizer, WordTokenizer


@pytest.fixture
def few_stories(monkeypatch):
    """Fewer tales for the experiments on tales, so that a test takes a second."""
    stories = experiments.stories_in_words(200, 8)
    monkeypatch.setattr(experiments, "stories_in_words", lambda: stories)
    return stories


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("The cat sat on the mat. The dog ran to the cat, and the cat ran home. " * 400)
    return path


# --- intervals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, t", [(2, 12.706), (3, 4.303), (10, 2.262), (11, 2.228), (21, 2.086), (61, 2.000)])
def test_the_interval_is_student_s(n, t):
    values = [float(k) for k in range(n)]
    mean, half = interval(values)
    deviation = torch.tensor(values).std().item()
    assert mean == (n - 1) / 2 and half == pytest.approx(t * deviation / math.sqrt(n), rel=2e-3)


def test_one_value_has_no_interval():
    mean, half = interval([2.5])
    assert mean == 2.5 and math.isnan(half)


def test_a_difference_is_taken_seed_by_seed():
    """What a seed does to both rows cancels, so the interval is narrower than that of either."""
    rows = [Row("a", {}, {"loss": [1.0, 5.0, 9.0]}), Row("b", {}, {"loss": [0.9, 4.9, 8.9]})]
    result = Result("t", (0, 1, 2), rows)
    mean, half = result.difference("a", "b", "loss")
    assert mean == pytest.approx(0.1) and half < 1e-9 and result.interval("a", "loss")[1] > 5
    with pytest.raises(ValueError, match="no row is called 'c'; there are a, b"):
        result.row("c")


def test_the_table_shows_every_column_and_every_row():
    rows = [
        Row("whole", {"parameters": 12345}, {"loss": [1.0, 2.0]}, sample="once"),
        Row("part", {"parameters": 10}, {"loss": [2.0, 3.0], "more": [0.5, 0.5]}),
    ]
    text = Result("A title.", (0, 1), rows, ["a note"]).to_markdown()
    assert "| | parameters | loss | more |" in text and "| whole | 12,345 | 1.500 ± 6.353 |  |" in text
    assert "A title." in text and "a note" in text and "once" in text


# --- what is compared ------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab_size, n_embd", [(215, 60), (400, 60), (50, 32), (1000, 120)])
def test_those_who_are_asked_to_remember_are_of_one_size(vocab_size, n_embd):
    made = rememberers(vocab_size, n_embd)
    sizes = [make(torch.Generator().manual_seed(0)).n_params() for make in made.values()]
    assert max(sizes) < 1.04 * min(sizes) and len(set(sizes)) > 1


def test_depth_is_traded_for_width_at_equal_cost():
    base = experiments.SMALL.replace(vocab_size=300)
    budget = flops_per_token(base, experiments.SEQ_LEN)
    for depth in (1, 2, 4, 8):
        config = same_cost(base, depth)
        assert config.n_layer == depth
        assert flops_per_token(config, experiments.SEQ_LEN) == pytest.approx(budget, rel=0.1)
    assert same_cost(base, 2) == base


def test_each_ablation_takes_out_its_part_and_no_other():
    ids = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(0))
    whole = ablated("whole", 50, seed=3)
    plain = GPT(ABLATED.replace(vocab_size=50), generator=torch.Generator().manual_seed(3))
    assert torch.equal(whole(ids), plain(ids))
    for name in ABLATIONS:
        model = ablated(name, 50, seed=3)
        names = {n for n, _ in model.named_parameters()}
        assert model(ids).isfinite().all()
        assert name == "whole" or not torch.allclose(model(ids), whole(ids), atol=1e-4)
        assert any("mlp." in n for n in names) == (name != "no MLP")
        assert any("norm" in n for n in names) == (name != "no norm")
    shuffled = ids[:, torch.tensor([3, 1, 0, 2, *range(4, 12)])]

    def moved(name):  # in a first layer without positions, only the set of what was read counts
        model = ablated(name, 50, seed=3)
        return [
            (block.attn(model.embed(x), model.rope_at(torch.arange(12))))[:, -1]
            for block, x in ((model.blocks[0], ids), (model.blocks[0], shuffled))
        ]

    torch.testing.assert_close(*moved("no positions"), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(*moved("whole"), atol=1e-5)
    with pytest.raises(ValueError, match="no ablation is called 'no hope'"):
        ablated("no hope", 50)


def test_without_residual_nothing_is_added():
    """With every matrix that writes set to zero, a residual block passes its input on; this one passes nothing."""
    whole, bare = ablated("whole", 50), ablated("no residual", 50)
    x = torch.randn(1, 5, ABLATED.n_embd, generator=torch.Generator().manual_seed(0))
    for model, expected in ((whole, x), (bare, torch.zeros_like(x))):
        block = model.blocks[0]
        with torch.no_grad():
            block.attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
            assert torch.equal(block(x, model.rope_at(torch.arange(5))), expected)


# --- measured as said ------------------------------------------------------------------------------------


def test_a_run_is_repeated_by_its_seed(few_stories):
    first, again = (
        experiments.ablations(steps=2, seeds=(0, 1), names=["whole", "no MLP"], progress=False) for _ in "ab"
    )
    for name in ("whole", "no MLP"):
        assert first.values(name, "loss") == again.values(name, "loss")
        assert first.values(name, "loss")[0] != first.values(name, "loss")[1]
    assert first.values("whole", "above whole") == [0, 0]
    with pytest.raises(ValueError, match="each of them once"):
        experiments.ablations(steps=1, seeds=(1, 1), progress=False)


def test_remember_measures_all_four_by_distance(few_stories):
    result = experiments.remember(steps=2, seeds=(0,), progress=False)
    assert [row.name for row in result.rows] == list(rememberers(9))
    for row in result.rows:
        assert row.values["loss"][0] > few_stories.floor and 0 <= row.values["facts"][0] <= 1
        assert {"1-5", "6-10"} <= row.values.keys()


def test_a_sweep_sees_as_many_tokens_in_every_batch_size(few_stories):
    result = experiments.sweep(steps=4, seeds=(0,), parts=["batch"], batches=(12, 24, 48), progress=False)
    assert [row.facts["steps"] for row in result.rows] == [8, 4, 2]
    with pytest.raises(ValueError, match="no part of the sweep is called 'luck'"):
        experiments.sweep(parts=["luck"], progress=False)


def test_a_run_that_diverges_is_an_answer(few_stories):
    result = experiments.sweep(steps=4, seeds=(0, 1), parts=["rate"], rates=(0.01, 1e6), progress=False)
    assert result.interval("rate 0.01", "loss")[0] < 10 and result.values("rate 1e+06", "loss") == [math.inf] * 2
    assert "| inf |" in result.to_markdown() and "Infinity" not in json.dumps(result.to_dict())


@pytest.mark.parametrize("kind", ["char-rnn", "gpt"])
def test_the_score_is_that_of_the_command_evaluate(kind, text_file, tmp_path):
    """The held-out loss that training reports, and `text_loss` of the same model on the same text."""
    texts = [text_file.read_text()]
    recipe = recipes.TEXT_MODELS[kind].presets["tiny"]
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, steps=2))
    tokenizer = experiments.make_tokenizer("char", texts)
    score = experiments.train_and_score(kind, recipe, texts, tokenizer, seed=1)
    _, held_out = split(texts, 0.1)
    n_tokens, n_chars = len(held_out[0]) + 1, len(held_out[0])  # the end is a token, too
    loss, bits = recipes.text_loss(score.model, tokenizer, held_out)
    assert score.bits == pytest.approx(bits) and score.nats == pytest.approx(loss * n_tokens / n_chars)


def test_unknown_words_are_charged_for_their_letters():
    """The letters a and b and the end of a word, by hand: "ab" once in 1 + 2 + 3 counts."""
    learn, held_out = ["ab"], ["ab ba"]
    tokenizer = WordTokenizer.train(learn)
    # learn's words: "ab" and the space, whose name is empty but for its end: a, b once; the end once (count 0 words add 0)
    nats = experiments.spelling_nats(tokenizer, learn, held_out)
    counts = {"a": 1 + 1, "b": 1 + 1, "": 1 + 1}
    assert nats == pytest.approx(-sum(math.log(counts[letter] / 6) for letter in ("b", "a", "")))
    assert experiments.spelling_nats(WordTokenizer.train(learn + held_out), learn, held_out) == 0
    assert experiments.spelling_nats(CharTokenizer.train(learn), learn, held_out) == 0


def test_the_floor_of_the_tales_is_that_of_the_grammar():
    from llmfs import tales

    stories = list(tales.stories(40, 0))
    everywhere = -sum(tale.logp for tale in stories) / sum(len(tale.text) for tale in stories)
    assert experiments.tales_floor(40) == pytest.approx(everywhere, rel=0.3)


# --- the command -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ablations", "sweep", "remember"])
def test_one_command_each(name, few_stories, tmp_path, capsys):
    out = tmp_path / "table.json"
    more = ["--part", "shape"] if name == "sweep" else []
    assert main(["experiment", name, "--steps", "1", "--seeds", "2", "--device", "cpu", "--out", str(out), *more]) == 0
    assert "±" in capsys.readouterr().out
    assert json.loads(out.read_text())["tales"]["seeds"] == [0, 1]


def test_models_and_bits_take_any_text(text_file, tmp_path, capsys):
    out = tmp_path / "table.md"
    common = ["--seeds", "1", "--device", "cpu", "--out", str(out)]
    assert main(["experiment", "models", str(text_file), "--preset", "tiny", "--steps", "2", *common]) == 0
    table = out.read_text()
    assert all(f"| {kind} |" in table for kind in ("gpt", "mini-transformer", "char-rnn", "word-rnn", "lstm-attention"))
    assert "nats per character" in table and "±" not in table and "lowest" not in table
    assert main(["experiment", "bits", str(text_file), "--steps", "2", *common]) == 0
    assert all(f"| {kind} |" in out.read_text() for kind in ("characters", "words", "BPE"))
    capsys.readouterr()


def test_the_floor_stands_below_the_tales(capsys):
    more = ["--preset", "tiny", "--steps", "1", "--seeds", "1", "--model", "char-rnn", "--device", "cpu"]
    assert main(["experiment", "models", "tales:60", *more]) == 0
    assert f"{experiments.tales_floor(60):.3f} nats per character" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["remember", "--seeds", "0"], "--seeds 0 must be at least 1"),
        (["remember", "--steps", "0"], "--steps 0"),
        (["bits", "--out", "table.pdf"], "expected a .md or .json file"),
        (["bits", "--out", "no/such/folder/table.md"], "in a folder that exists"),
        (["models", "tales:20", "--model", "oracle"], "no model is called 'oracle'"),
        (["bits", "no-such-corpus"], "no-such-corpus"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_trained(arguments, message, capsys):
    assert main(["experiment", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
