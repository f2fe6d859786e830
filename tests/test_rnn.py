"""Recurrent networks: the cells equal torch's, the models fit the package's functions, and attention looks right."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from llmfs.checkpoint import load_checkpoint, save_checkpoint
from llmfs.config import ConfigError
from llmfs.evaluate import cross_entropy_sum, evaluate
from llmfs.rnn import (
    ONE_STEP,
    PARTS,
    RNNLM,
    STEPS,
    AdditiveAttention,
    RNNConfig,
    Seq2SeqAttention,
    Seq2SeqConfig,
    Weights,
    translate,
    written_out,
)
from llmfs.sample import beam_search, generate
from llmfs.tokenizer import CharTokenizer
from llmfs.train import TrainConfig, train

CELLS = ("rnn", "lstm", "gru")
MODULES = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
close = torch.testing.assert_close


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomize(module, seed=0):
    """Every parameter anew, so that biases and the head are really tested."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.4)
    return module


# --- cells against torch ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
def test_one_step_is_torchs_cell(cell):
    theirs = randomize(ONE_STEP[cell](5, 7))
    x, state = normal(1, 3, 5), tuple(normal(s, 3, 7) for s in range(2 if cell == "lstm" else 1))
    ours = STEPS[cell](x, state, Weights(*theirs.parameters()))
    expected = theirs(x, state if cell == "lstm" else state[0])
    close(ours, expected if cell == "lstm" else (expected,), atol=1e-6, rtol=0)
    assert theirs.weight_ih.shape[0] == PARTS[cell] * 7


@pytest.mark.parametrize(
    "cell, layers, both, B, given", [*itertools.product(CELLS, (1, 3), (False, True), (1, 3), (False, True))]
)
def test_written_out_is_torchs_module(cell, layers, both, B, given):
    """Outputs, states and all gradients, to 1e-5."""
    module = randomize(MODULES[cell](5, 6, layers, batch_first=True, bidirectional=both))
    x = normal(1, B, 9, 5).requires_grad_()
    n_states = layers * (2 if both else 1)
    state = tuple(normal(2 + k, n_states, B, 6).requires_grad_() for k in range(2 if cell == "lstm" else 1))
    results = []
    for ours in (True, False):
        if ours:
            out, end = written_out(module, x, state if given else None)
        else:
            out, end = module(x, (state if cell == "lstm" else state[0]) if given else None)
            end = end if cell == "lstm" else (end,)
        loss = (out * normal(7, *out.shape)).sum() + sum((e * normal(8, *e.shape)).sum() for e in end)
        asked = [x, *module.parameters(), *(state if given else ())]
        results.append((out, end, torch.autograd.grad(loss, asked)))
    (out, end, grads), (their_out, their_end, their_grads) = results
    close(out, their_out, atol=1e-5, rtol=1e-5)
    close(end, tuple(their_end), atol=1e-5, rtol=1e-5)
    for grad, theirs in zip(grads, their_grads):
        close(grad, theirs, atol=1e-5 * theirs.abs().max().clamp(min=1).item(), rtol=1e-5)


def test_an_lstm_step_by_hand():
    """All weights 0: gates of one half, candidate 0. So half the memory stays, and half of its tanh is shown."""
    zeros = Weights(torch.zeros(4, 1), torch.zeros(4, 1), torch.zeros(4), torch.zeros(4))
    h, c = STEPS["lstm"](torch.ones(1, 1), (torch.ones(1, 1), torch.full((1, 1), 2.0)), zeros)
    assert c.item() == 1.0 and h.item() == pytest.approx(0.5 * torch.tensor(1.0).tanh().item())


def test_a_gru_with_its_gate_closed_keeps_its_state():
    shut = Weights(torch.zeros(3, 1), torch.zeros(3, 1), torch.tensor([0.0, 50.0, 0.0]), torch.zeros(3))
    assert STEPS["gru"](torch.ones(1, 1), (torch.tensor([[0.7]]),), shut)[0].item() == pytest.approx(0.7)


def test_dropout_between_layers_is_torchs():
    module = randomize(nn.LSTM(4, 4, 2, batch_first=True, dropout=1 - 1e-9)).train()
    alone = nn.LSTM(4, 4, batch_first=True)
    alone.load_state_dict({k.replace("_l1", "_l0"): v for k, v in module.state_dict().items() if "_l1" in k})
    x = normal(0, 2, 5, 4)
    close(written_out(module, x)[0], alone(torch.zeros_like(x))[0])  # nothing reaches the second layer
    module.eval()
    close(written_out(module, x)[0], module(x)[0])


@pytest.mark.parametrize(
    "module",
    [
        nn.LSTM(3, 4, bias=False, batch_first=True),
        nn.LSTM(3, 4),
        nn.LSTM(3, 4, proj_size=2, batch_first=True),
        nn.RNN(3, 4, nonlinearity="relu", batch_first=True),
        nn.Linear(3, 4),
    ],
)
def test_what_is_not_written_out_is_refused(module):
    with pytest.raises(ValueError, match="written out|expected an nn.RNN"):
        written_out(module, torch.zeros(1, 2, 3))


# --- configs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(vocab_size=0), "vocab_size is 0"),
        (dict(n_layer=True), "n_layer is True"),
        (dict(n_layer=10**12), "at most 10,000"),
        (dict(cell="elman"), "cell is 'elman'; expected one of"),
        (dict(dropout=1.0), "dropout is 1.0"),
        (dict(attention=1), "attention is 1; expected True or False"),
    ],
)
def test_impossible_configs(change, message):
    with pytest.raises(ConfigError, match=message):
        RNNConfig(**{"vocab_size": 5, "block_size": 8, **change})


def test_configs_there_and_back():
    for config in (RNNConfig(5, 8, cell="gru", attention=True), Seq2SeqConfig(5, n_embd=12)):
        assert type(config).from_dict(config.to_dict()) == config
        assert config.replace(dropout=0.5).dropout == 0.5
    with pytest.raises(ConfigError, match="unknown setting n_head"):
        RNNConfig.from_dict({"vocab_size": 5, "block_size": 8, "n_head": 2})
    with pytest.raises(ConfigError, match="missing setting block_size"):
        RNNConfig.from_dict({"vocab_size": 5})
    with pytest.raises(ConfigError, match="pad_id 5 is no token"):
        Seq2SeqConfig(5, pad_id=5)


# --- the language model ----------------------------------------------------------------------------------

KINDS = [(cell, attention) for cell in CELLS for attention in (False, True)]


def make(cell="lstm", attention=False, seed=0, **changes):
    config = RNNConfig(**{"vocab_size": 11, "block_size": 16, "n_embd": 12, "n_layer": 2, **changes},
                       cell=cell, attention=attention)  # fmt: skip
    return RNNLM(config, generator=torch.Generator().manual_seed(seed)).eval()


def some_ids(B=3, T=10, seed=0):
    return torch.randint(11, (B, T), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("cell, attention", KINDS)
def test_both_paths_agree(cell, attention):
    model, ids = randomize(make(cell, attention)), some_ids()
    gradients = []
    for model.fused in (True, False):
        logits = model(ids)
        assert logits.shape == (3, 10, 11)
        gradients.append((logits, torch.autograd.grad((logits * normal(3, 3, 10, 11)).sum(), [*model.parameters()])))
    close(gradients[0], gradients[1], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("cell, attention", KINDS)
def test_a_text_in_pieces_is_the_text(cell, attention):
    model, ids = randomize(make(cell, attention)), some_ids()
    for model.fused in (True, False):
        state = model.new_state()
        pieces = [model(piece, state) for piece in ids.split([4, 1, 5], dim=1)]
        close(torch.cat(pieces, dim=1), model(ids), atol=1e-5, rtol=1e-5)
        assert state.length == 10 and not any(s.requires_grad for s in state.state)


@pytest.mark.parametrize("cell, attention", KINDS)
def test_nothing_looks_ahead(cell, attention):
    model, ids = randomize(make(cell, attention)), some_ids()
    before = model(ids)
    for t in range(1, 10):
        changed = ids.clone()
        changed[:, t:] = (changed[:, t:] + 1) % 11
        close(model(changed)[:, :t], before[:, :t], atol=1e-6, rtol=0)
    close(model(ids[1:2]), before[1:2], atol=1e-5, rtol=1e-5)  # rows do not see each other


@pytest.mark.parametrize("cell, attention", KINDS)
def test_generate_with_and_without_a_state(cell, attention):
    """Also past the block size, and in batches."""
    model, ids = randomize(make(cell, attention)), some_ids(2, 5)

    def write(use_cache):
        generator = torch.Generator().manual_seed(0)
        return torch.stack(list(generate(model, ids, 30, generator=generator, use_cache=use_cache)))

    assert torch.equal(write(True), write(False))


def test_beam_search_reorders_the_state():
    model, ids = randomize(make("lstm", True)), some_ids(2, 5)
    with_state, without = (beam_search(model, ids, 8, 3, use_cache=use_cache) for use_cache in (True, False))
    for ours, theirs in zip(itertools.chain(*with_state), itertools.chain(*without), strict=True):
        assert ours.ids == theirs.ids and ours.logp == pytest.approx(theirs.logp, abs=1e-4)


def test_a_state_goes_back_to_nothing_or_not_at_all():
    model, state = make("gru", True), make().new_state()
    model(some_ids(), state)
    assert state.nbytes == 4 * (2 * 3 * 12 + 3 * 10 * 12)
    with pytest.raises(ValueError, match="10 tokens cannot go back to 9"):
        state.truncate(9)
    state.truncate(10)
    assert state.length == 10
    state.truncate(0)
    close(model(some_ids(), state), model(some_ids()))


def test_padding_is_refused():
    with pytest.raises(ValueError, match="cannot skip padding"):
        next(generate(make(), some_ids(), 1, real=torch.ones(3, 10, dtype=torch.bool)))


def test_a_state_without_attention_does_not_grow():
    model, state = make("lstm"), make().new_state()
    model(some_ids(), state)
    size = state.nbytes
    model(some_ids(), state)
    assert state.nbytes == size == 4 * 2 * 2 * 3 * 12


def test_the_same_generator_gives_the_same_weights():
    a, b, c = make(seed=1), make(seed=1), make(seed=2)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert not any(torch.equal(p, q) for p, q in zip(a.rnn.parameters(), c.rnn.parameters()) if p.dim() == 2)


def test_what_the_weights_start_as():
    model = make("lstm", n_embd=64)
    for part in model.rnn.weight_hh_l0.split(64):
        close(part @ part.T, torch.eye(64), atol=1e-5, rtol=0)
    assert model.rnn.bias_ih_l1.split(64)[1].unique().tolist() == [1.0]  # the forget gate
    assert not model.rnn.bias_hh_l0.any() and model(some_ids()).std() < 0.1
    assert model.n_params() == 2 * 11 * 64 + 2 * (2 * 4 * 64 * 64 + 2 * 4 * 64)


@pytest.mark.parametrize("cell, attention", KINDS)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_train_and_evaluate(cell, attention, optimizer):
    """A text that repeats is learned to nearly nothing, by the package's own loop."""
    row = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8] * 2] * 2)
    batch = (row[:, :-1], row[:, 1:])
    model = make(cell, attention, n_layer=1)
    assert evaluate(model, [batch]) == pytest.approx(2.398, abs=0.1)  # ln 11
    config = TrainConfig(steps=60, lr=2e-2, optimizer=optimizer)
    train(model, lambda step, _: batch, config, progress=False)
    assert evaluate(model, [batch]) < 0.3


@pytest.mark.parametrize("cell, attention", KINDS)
def test_a_checkpoint_tells_what_it_is(cell, attention, tmp_path):
    model = randomize(make(cell, attention))
    save_checkpoint(tmp_path, model, tokenizer=CharTokenizer.train("abcde"))
    loaded = load_checkpoint(tmp_path).model
    assert type(loaded) is RNNLM and loaded.config == model.config
    assert torch.equal(loaded(some_ids()), model(some_ids()))


# --- sequence to sequence --------------------------------------------------------------------------------


def test_additive_attention_in_loops():
    attention = AdditiveAttention(3, 4, 5)
    query, values = normal(0, 2, 3), normal(1, 2, 6, 4)
    real = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    found, weights = attention(query, attention.k_proj(values), values, real)
    W, U, v = attention.q_proj.weight, attention.k_proj.weight, attention.score.weight[0]
    for b, n in ((0, 6), (1, 4)):
        scores = torch.stack([v @ torch.tanh(W @ query[b] + U @ values[b, s]) for s in range(n)])
        close(weights[b, :n], scores.softmax(0), atol=1e-6, rtol=1e-5)
        close(found[b], scores.softmax(0) @ values[b, :n], atol=1e-6, rtol=1e-5)
    assert not weights[1, 4:].any()


def translator(cell="lstm", seed=0, **changes):
    config = Seq2SeqConfig(**{"vocab_size": 9, "n_embd": 16, **changes}, cell=cell)
    return Seq2SeqAttention(config, generator=torch.Generator().manual_seed(seed)).eval()


@pytest.mark.parametrize("cell", CELLS)
def test_a_padded_source_is_read_as_if_alone(cell):
    model = randomize(translator(cell))
    src, tgt = torch.tensor([[3, 4, 5, 6, 7], [8, 2, 3, 0, 0]]), torch.tensor([[1, 5, 6], [1, 2, 3]])
    logits, weights = model(src, tgt)
    assert logits.shape == (2, 3, 9) and weights.shape == (2, 3, 5)
    alone, alone_weights = model(src[1:, :3], tgt[1:])
    close(logits[1:], alone, atol=1e-5, rtol=1e-5)
    close(weights[1:, :, :3], alone_weights, atol=1e-6, rtol=1e-5)
    close(weights.sum(-1), torch.ones(2, 3))
    assert not weights[1, :, 3:].any()


@pytest.mark.parametrize("cell", CELLS)
def test_the_decoder_starts_from_both_directions(cell):
    """Each state of the encoder, h and an LSTM's c, is handed over: what came from the left and from the right."""
    model = randomize(translator(cell))
    src = torch.tensor([[3, 4, 5, 6], [7, 8, 3, 4]])
    _, state = model.encode(src)
    _, ends = written_out(model.encoder, model.embed(src))
    assert len(state) == len(ends) == len(model.bridges) == (2 if cell == "lstm" else 1)
    for first, end, bridge in zip(state, ends, model.bridges):
        both = torch.cat((end[0], end[1]), dim=1)  # (B, 2C)
        close(first, torch.tanh(both @ bridge.weight.T + bridge.bias), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("src", [[[1, 0, 2]], [[0, 1, 2]], [[0, 0, 0]]])
def test_padding_in_the_wrong_place(src):
    with pytest.raises(ValueError, match="padding"):
        translator()(torch.tensor(src), torch.tensor([[1]]))


def seq2seq_loss(model, batch):
    src, tgt, targets = batch
    return cross_entropy_sum(model(src, tgt)[0], targets)


@pytest.mark.parametrize("cell", CELLS)
def test_it_learns_to_reverse_and_shows_where_it_looked(cell, tmp_path):
    """Start 1, stop 2, letters 3 to 8; the map of a reversal is the other diagonal."""

    def batch(step, _=0):
        src = torch.randint(3, 9, (32, 5), generator=torch.Generator().manual_seed(step))
        edge = torch.ones(32, 1, dtype=torch.long)
        out = torch.cat((edge, src.flip(1), 2 * edge), dim=1)  # (B, 7)
        return src, out[:, :-1], out[:, 1:]

    model = translator(cell, n_embd=32)
    train(model, batch, TrainConfig(steps=150, lr=1e-2, optimizer="adamw"), loss_fn=seq2seq_loss, progress=False)
    src, _, targets = batch(10**6)
    ids, weights = translate(model, src, 6, start=1, stop=2)
    assert (ids == targets).all(dim=1).float().mean() > 0.9
    save_checkpoint(tmp_path, model)
    loaded = load_checkpoint(tmp_path).model
    assert type(loaded) is Seq2SeqAttention
    assert torch.equal(translate(loaded, src, 6, start=1, stop=2)[1], weights)


def test_translate_is_the_forward_pass_fed_with_its_own_words():
    model = randomize(translator("gru"))
    src = torch.tensor([[3, 4, 5], [6, 7, 0]])
    ids, weights = translate(model, src, 4, start=1, stop=8)
    fed = torch.cat((torch.ones(2, 1, dtype=torch.long), ids[:, :-1]), dim=1)
    logits, again = model(src, fed)
    ended = (fed == 8).cumsum(1) > 0
    assert ((logits.argmax(-1) == ids) | ended).all()
    close(weights, again, atol=1e-5, rtol=1e-5)
