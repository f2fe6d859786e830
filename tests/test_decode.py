"""The step for one token against the plain forward: every kind of model, the same logits and the same cache."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from test_gpt import randomize
from torch import nn

from llmfs.attention import KVCache
from llmfs.config import GPTConfig
from llmfs.decode import Decoder, is_plain
from llmfs.gpt import GPT
from llmfs.sample import _read, generate, pad_left
from llmfs.sft import apply_lora

V, BLOCK, C, N_HEAD = 29, 20, 32, 4
KINDS = [
    dict(pos=pos, norm=norm, norm_position=place, mlp=mlp, bias=bias)
    for pos, norm, place, mlp, bias in itertools.product(
        ("none", "learned", "sinusoidal", "rope"),
        ("layernorm", "rmsnorm"),
        ("pre", "post"),
        ("gelu", "swiglu"),
        (False, True),
    )
]
MORE = [
    dict(n_kv_head=2),
    dict(n_kv_head=1, qk_norm=True),
    dict(qk_norm=True, bias=True, tie_weights=True),
    dict(n_kv_head=2, pos="learned", qk_norm=True, norm_position="post"),
    dict(tie_weights=True, dropout=0.5),
]


def make(dtype: torch.dtype = torch.float64, **settings) -> GPT:
    config = GPTConfig(**{**dict(vocab_size=V, block_size=BLOCK, n_layer=2, n_head=N_HEAD, n_embd=C), **settings})
    return randomize(GPT(config), 1).to(dtype)


def some_ids(B: int, T: int) -> torch.Tensor:
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(B))


def expect_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = 1e-12 if expected.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found, expected, atol=tolerance * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("settings", KINDS + MORE, ids=lambda s: "-".join(str(v) for v in s.values()))
@torch.no_grad()
def test_logits_and_cache_equal_the_plain_forwards(settings, dtype, copied):
    """A prompt in two pieces, then token by token, on caches of their own."""
    model = make(dtype, **settings)
    decoder = Decoder(model, copy=copied)
    for B in (1, 3):
        ids = some_ids(B, 12)
        plain, fast = KVCache(model.config, B, dtype=dtype), KVCache(model.config, B, 12, dtype=dtype)
        expect_equal(decoder.prefill(ids[:, :4], fast)[:, 0], model(ids[:, :4], plain)[:, -1])
        expect_equal(decoder.prefill(ids[:, 4:7], fast)[:, 0], model(ids[:, 4:7], plain)[:, -1])
        for t in range(7, 12):
            expect_equal(decoder(ids[:, t], fast), model(ids[:, t : t + 1], plain)[:, 0])
        assert fast.length == plain.length == 12
        expect_equal(fast.k, plain.k[:, :, :, :12])
        expect_equal(fast.v, plain.v[:, :, :, :12])


@pytest.mark.parametrize("pos", ["rope", "learned", "sinusoidal", "none"])
@torch.no_grad()
def test_padded_rows_stand_where_they_would_alone(pos):
    model = make(pos=pos, n_kv_head=2)
    ids, real = pad_left([[3, 1, 4, 1, 5, 9], [2, 6], [5, 3, 5, 8]])
    caches = [KVCache(model.config, 3, dtype=torch.float64) for _ in range(2)]
    decoder = Decoder(model)
    expect_equal(_read(model, ids, caches[0], real, decoder)[:, -1], _read(model, ids, caches[1], real)[:, -1])
    ids, real = torch.cat((ids, some_ids(3, 1)), 1), torch.cat((real, real[:, -1:]), 1)
    expect_equal(_read(model, ids, caches[0], real, decoder), _read(model, ids, caches[1], real))


@torch.no_grad()
def test_a_reordered_and_a_shortened_cache_go_on():
    model = make()
    ids, cache, rows = some_ids(3, 9), KVCache(model.config, 3, dtype=torch.float64), torch.tensor([2, 2, 0])
    decoder = Decoder(model)
    model(ids, cache)
    cache.reorder(rows)
    decoder(ids[:, 0], cache)
    cache.truncate(6)
    expect_equal(decoder(ids[:, 1], cache), model(torch.cat((ids[rows, :6], ids[:, 1:2]), 1))[:, -1])


def test_a_full_cache_is_refused():
    model = make()
    for cache in (KVCache(model.config, 1, 4), KVCache(model.config, 1, 99)):
        cache.length = min(cache.size, BLOCK)
        with pytest.raises(ValueError, match="tokens are all that fit"):
            Decoder(model)(torch.tensor([1]), cache)


def test_only_plain_models_are_decoded_this_way():
    model = make()
    assert is_plain(model)
    hooked, trained, patched, wrapped, mixed = (copy.deepcopy(model) for _ in range(5))
    hooked.blocks[1].mlp.register_forward_hook(lambda module, inputs, output: 2 * output)
    trained.blocks[0].drop.train()
    patched.blocks[0].attn.forward = lambda x, *args: x
    apply_lora(wrapped, rank=2, alpha=2)
    mixed.lm_head.float()
    assert not any(map(is_plain, (hooked, trained, patched, wrapped, mixed, nn.Linear(2, 2), make().train())))
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_plain(model)


@pytest.mark.parametrize("n", [8, 50])  # few tokens, and so many that the weights are copied
def test_generation_takes_the_step_and_sees_new_weights(n, monkeypatch):
    """The same greedy tokens as without a cache; no single token read by the forward. Then new weights."""
    model, ids, reads = make(n_kv_head=2), some_ids(2, 3), []
    forward = GPT.forward

    def read(self, ids, *args, **more):
        reads.append(ids.shape[1])
        return forward(self, ids, *args, **more)

    monkeypatch.setattr(GPT, "forward", read)
    texts = []
    for seed in (1, 2):
        randomize(model, seed)
        reads.clear()
        texts.append(torch.stack(list(generate(model, ids, n, temperature=0)), 1).tolist())
        assert min(reads) > 1
        assert texts[-1] == torch.stack(list(generate(model, ids, n, temperature=0, use_cache=False)), 1).tolist()
    assert texts[0] != texts[1]


def test_a_hooked_model_generates_by_its_forward():
    model, calls = make(), []
    model.blocks[0].attn.register_forward_pre_hook(lambda *_: calls.append(1))
    list(generate(model, some_ids(1, 3), 5))
    assert len(calls) == 5
