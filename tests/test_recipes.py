"""Recipes: made once, kept under a key of all that determines them, and what they measure is true."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from llmfs import recipes, tales
from llmfs.config import GPTConfig
from llmfs.evaluate import measure_recalls
from llmfs.gpt import GPT
from llmfs.recipes import RECIPES, book_model, book_tokenizer, kept, tales_loss, write_tales
from llmfs.tokenizer import CharTokenizer


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMFS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def test_a_kept_result_is_made_once_and_anew_when_its_settings_change(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMFS_CACHE", str(tmp_path))
    made = []

    def make(folder):
        made.append(folder)
        (folder / "result").write_text(str(len(made)))

    first = kept("thing", {"a": 1}, ["config"], make)
    assert kept("thing", {"a": 1}, ["config"], make) == first and len(made) == 1
    second = kept("thing", {"a": 2}, ["config"], make)
    assert second != first and (second / "result").read_text() == "2"
    assert kept("thing", {"a": 1}, ["config", "tales"], make) not in (first, second)


def test_a_failed_recipe_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMFS_CACHE", str(tmp_path))

    def fails(folder):
        (folder / "half").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError):
        kept("thing", {}, [], fails)
    assert not [path for path in (tmp_path / "recipes").iterdir() if path.suffix != ".lock"]


def test_code_digest_sees_code_and_not_words(tmp_path, monkeypatch):
    source = '"""Doc."""\ndef f(x):\n    """What."""\n    return x + 1  # why\n'
    digests = []
    for text in (
        source,
        source.replace("What.", "Else."),
        source.replace("# why", "# because"),
        source.replace("1", "2"),
    ):
        (tmp_path / "thing.py").write_text(text)
        monkeypatch.setattr(recipes, "__file__", str(tmp_path / "recipes.py"))
        recipes.code_digest.cache_clear()
        digests.append(recipes.code_digest("thing"))
    recipes.code_digest.cache_clear()
    assert digests[0] == digests[1] == digests[2] != digests[3]


def test_the_book_s_tokenizer_makes_most_words_one_token(cache):
    tokenizer = book_tokenizer(progress=False)
    stories = recipes.held_out_tales(50)
    n_tokens = sum(len(tokenizer.encode(tale.text)) for tale in stories)
    assert n_tokens < 1.1 * sum(len(tales.split_words(tale.text)) for tale in stories)
    assert all(tokenizer.decode(tokenizer.encode(tale.text)) == tale.text for tale in stories)


def test_tiny_book_model_is_kept_with_its_history(cache):
    book = book_model("tiny", progress=False)
    assert len(book.history.loss) == RECIPES["tiny"].train.steps and book.history.evals[-1]["loss"] < 4.5
    again = book_model("tiny", progress=False)
    assert all(torch.equal(p, q) for p, q in zip(book.model.parameters(), again.model.parameters(), strict=True))
    assert dataclasses.asdict(again.history) == dataclasses.asdict(book.history)
    texts = write_tales(book.model, book.tokenizer, 3, seed=4)
    assert len(texts) == 3 and texts == write_tales(book.model, book.tokenizer, 3, seed=4)
    with pytest.raises(ValueError, match="no recipe is called 'huge'"):
        book_model("huge")


def test_the_book_s_models_have_the_promised_size():
    for name, limit in (("small", 1_500_000), ("large", 8_000_000)):
        config = GPTConfig(vocab_size=RECIPES[name].vocab_size, **RECIPES[name].model)
        with torch.device("meta"):
            assert GPT(config).n_params() <= limit


def test_the_floor_is_that_of_the_stories(cache):
    """A model that gives every token the same probability has a loss of ln V, and the floor is what the grammar says."""
    tokenizer, stories = book_tokenizer(progress=False), recipes.held_out_tales(20)
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, block_size=256, n_layer=1, n_embd=16, n_head=2))
    with torch.no_grad():
        model.lm_head.weight.zero_()
    loss, floor = tales_loss(model, tokenizer, stories)
    n_tokens = sum(len(tokenizer.encode(tale.text)) + 1 for tale in stories)
    assert loss == pytest.approx(math.log(tokenizer.vocab_size), abs=1e-4)
    assert floor == pytest.approx(-sum(tale.logp for tale in stories) / n_tokens)


def test_recalls_are_measured_at_their_own_token():
    """A model that knows the text by heart recalls everything; one that knows nothing, next to nothing."""
    stories = recipes.held_out_tales(5)
    tokenizer = CharTokenizer.train([tale.text for tale in stories], special_tokens=["<|endoftext|>"])
    end = tokenizer.special_tokens["<|endoftext|>"]

    class ByHeart(torch.nn.Module):
        def __init__(self, shift):
            super().__init__()
            self.p, self.shift = torch.nn.Parameter(torch.zeros(1)), shift

        def forward(self, ids):
            text = tokenizer.decode(ids[0, 1:])
            whole = next(tale.text for tale in stories if tale.text.startswith(text))
            targets = tokenizer.encode(whole)[: ids.shape[1]]
            logits = torch.zeros(1, ids.shape[1], tokenizer.vocab_size)
            logits[0, range(len(targets)), torch.tensor(targets)] = 1.0
            return logits.roll(self.shift, dims=1)

    right = measure_recalls(ByHeart(0), tokenizer, stories, end_id=end)
    assert len(right) == sum(len(tale.recalls) for tale in stories) and all(hit.correct for hit in right)
    shifted = measure_recalls(ByHeart(1), tokenizer, stories, end_id=end)
    assert sum(hit.correct for hit in shifted) < 0.3 * len(shifted)
