"""The model against `transformers`: random weights, every parameter re-randomized, the same logits."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from llmfs.attention import KVCache, attend, causal_mask, scaled_dot_product_attention
from llmfs.config import ConfigError, GPTConfig
from llmfs.gpt import GPT, attention_maps, hidden_states
from llmfs.pretrained import from_gpt2, from_llama

V, BLOCK = 97, 24
SMALL = dict(vocab_size=V, block_size=BLOCK, n_layer=3, n_head=4, n_embd=32)


def randomize(model: nn.Module, seed: int) -> nn.Module:
    """Give every parameter, norms' gains and biases too, a value that no init has."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3 + (1.0 if p.dim() == 1 else 0.0))
    return model.eval()


def ids(B: int, T: int = 17, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(seed))


def through_a_folder(theirs: nn.Module, load: Callable[[Path], GPT]) -> GPT:
    """Our model with their weights, by way of the files that they save."""
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return load(Path(folder))


def hf_gpt2() -> tuple[GPT, nn.Module]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=V, n_positions=BLOCK, n_embd=32, n_layer=3, n_head=4, bos_token_id=None, eos_token_id=None
    )
    theirs = randomize(GPT2LMHeadModel(config), 1)
    return through_a_folder(theirs, from_gpt2), theirs


def hf_llama(cls_name: str, n_kv_head: int) -> tuple[GPT, nn.Module]:
    import transformers

    config = getattr(transformers, f"{cls_name}Config")(
        vocab_size=V,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=n_kv_head,
        head_dim=8,
        max_position_embeddings=BLOCK,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    theirs = randomize(getattr(transformers, f"{cls_name}ForCausalLM")(config), 2)
    return through_a_folder(theirs, from_llama), theirs


REFERENCES = {
    "gpt2": hf_gpt2,
    "llama": lambda: hf_llama("Llama", 4),
    "llama, grouped queries": lambda: hf_llama("Llama", 2),
    "qwen3: qk-norm, grouped queries": lambda: hf_llama("Qwen3", 2),
}


@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("name", REFERENCES)
@torch.no_grad()
def test_logits_equal_transformers(name, B):
    ours, theirs = REFERENCES[name]()
    assert sum(p.numel() for p in theirs.parameters()) == ours.n_params()
    expected = theirs(ids(B)).logits
    torch.testing.assert_close(ours(ids(B)), expected, atol=1e-5 * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("name", REFERENCES)
@torch.no_grad()
def test_cache_changes_nothing(name, B):
    """Prefill 7 tokens, then a chunk of 4, then one at a time: the same logits as the whole text in one pass."""
    ours, _ = REFERENCES[name]()
    whole = ours(ids(B))
    cache = KVCache(ours.config, B)
    parts = [ours(ids(B)[:, :7], cache), ours(ids(B)[:, 7:11], cache)]
    parts += [ours(ids(B)[:, t : t + 1], cache) for t in range(11, 17)]
    assert cache.length == 17
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5 * whole.abs().max().item(), rtol=0)


@pytest.mark.parametrize(
    "settings",
    [
        dict(pos="none"),
        dict(pos="learned"),
        dict(pos="sinusoidal"),
        dict(pos="rope"),
        dict(norm="layernorm", bias=True),
        dict(norm_position="post"),
        dict(mlp="gelu"),
        dict(tie_weights=True),
        dict(qk_norm=True, n_kv_head=1),
    ],
)
@torch.no_grad()
def test_every_setting_is_causal_and_cacheable(settings):
    model = randomize(GPT(GPTConfig(**SMALL, **settings)), 3)
    x = ids(2)
    logits = model(x)
    assert logits.shape == (2, 17, V)
    changed = x.clone()
    changed[:, 9] = (changed[:, 9] + 1) % V
    other = model(changed)
    torch.testing.assert_close(other[:, :9], logits[:, :9], atol=0, rtol=0)
    assert (other[:, 9:] - logits[:, 9:]).abs().amax() > 1e-3
    cache = KVCache(model.config, 2)
    parts = torch.cat([model(x[:, :5], cache), model(x[:, 5:], cache)], dim=1)
    torch.testing.assert_close(parts, logits, atol=2e-5 * logits.abs().max().item(), rtol=0)
    explicit = model(x, mask=causal_mask(17, 17))
    torch.testing.assert_close(explicit, logits, atol=2e-5 * logits.abs().max().item(), rtol=0)


@torch.no_grad()
def test_left_padding_with_mask_and_positions():
    """Rows of unequal length, padded on the left: what each row says is what it says alone."""
    model = randomize(GPT(GPTConfig(**SMALL, pos="rope")), 4)
    long, short = ids(1, 9, seed=5), ids(1, 5, seed=6)
    batch = torch.cat((long, torch.cat((torch.zeros(1, 4, dtype=torch.long), short), dim=1)))
    positions = torch.tensor([list(range(9)), [0] * 4 + list(range(5))])
    real = torch.tensor([[True] * 9, [False] * 4 + [True] * 5])
    mask = causal_mask(9, 9) & real[:, None, None, :]
    logits = model(batch, mask=mask, positions=positions)
    torch.testing.assert_close(logits[:1], model(long), atol=1e-4, rtol=0)
    torch.testing.assert_close(logits[1:, 4:], model(short), atol=1e-4, rtol=0)
    assert logits.isfinite().all()  # the padding's own rows may attend to nothing


@torch.no_grad()
def test_attention_maps_are_those_the_model_uses():
    model = randomize(GPT(GPTConfig(**SMALL, n_kv_head=2, qk_norm=True)), 5)
    x = ids(2)
    maps, states = attention_maps(model, x), hidden_states(model, x)
    assert maps.shape == (3, 2, 4, 17, 17) and states.shape == (4, 2, 17, 32)
    torch.testing.assert_close(maps.sum(-1), torch.ones(3, 2, 4, 17))
    assert maps.triu(1).abs().max() == 0
    # One layer by hand: the map times the values, merged and projected, is what the layer adds.
    block = model.blocks[1]
    normed = block.attn_norm(states[1])
    _, _, v = block.attn.project(normed, model.rope_at(torch.arange(17)))
    out = maps[1] @ block.attn.share_heads(v)
    by_hand = block.attn.o_proj(out.transpose(1, 2).reshape(2, 17, 32))
    torch.testing.assert_close(by_hand, block.attn(normed, model.rope_at(torch.arange(17))), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(model.lm_head(model.final_norm(states[-1])), model(x))


MASKS = {
    "causal": None,
    "one for all": torch.rand(7, 12, generator=torch.Generator().manual_seed(1)) < 0.5,
    "a row's own": torch.rand(2, 1, 7, 12, generator=torch.Generator().manual_seed(2)) < 0.5,
    "a head's own": torch.rand(2, 3, 7, 12, generator=torch.Generator().manual_seed(3)) < 0.5,
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize(("T", "S"), [(7, 12), (7, 7), (1, 12)])
def test_fast_attention_is_the_one_spelled_out(name, T, S):
    """With and without gradients; a query that may attend to nothing gets zeros, and gives no gradient."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, 3, n, 8, generator=generator, dtype=torch.float64, requires_grad=True) for n in (T, S, S)
    )
    mask = MASKS[name]
    if mask is not None:
        mask = mask[..., :T, :S].clone()
        mask[..., 0, :] = False
    expected, _ = scaled_dot_product_attention(q, k, v, causal_mask(T, S) if mask is None else mask)
    assert mask is None or not expected[:, :, 0].any()
    torch.testing.assert_close(attend(q, k, v, mask), expected)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            torch.testing.assert_close(attend(q, k, v, mask), expected.detach())
    weight = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    grads = [torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in (attend(q, k, v, mask), expected)]
    torch.testing.assert_close(*grads)


def test_logits_where_they_are_wanted():
    model, x = randomize(GPT(GPTConfig(**SMALL)), 6), ids(2)
    logits, some = model(x), x % 2 == 0  # (2, 17, V), (2, 17)
    rows = torch.tensor([[1], [0]])
    columns = torch.tensor([[3, 16, 3], [0, 1, 2]])
    for at in (some, (rows, columns), (slice(None), slice(-1, None))):
        torch.testing.assert_close(model(x, at=at), logits[at])


def test_gpt2_small_has_its_published_size():
    with torch.device("meta"):
        assert GPT(GPTConfig.gpt2()).n_params() == 124_439_808


def test_init_follows_the_generator_and_starts_near_ln_v():
    make = lambda seed: GPT(GPTConfig(**SMALL), generator=torch.Generator().manual_seed(seed))  # noqa: E731
    a, b, c = make(0), make(0), make(1)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert not torch.equal(a.embed.weight, c.embed.weight)
    loss = nn.functional.cross_entropy(a(ids(3)).flatten(0, 1), ids(3, seed=9).flatten())
    assert abs(loss.item() - torch.tensor(float(V)).log().item()) < 0.1


def test_dropout_acts_only_while_training():
    model = GPT(GPTConfig(**SMALL, dropout=0.3))
    x = ids(1)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


def test_too_long_is_refused():
    model = GPT(GPTConfig(**SMALL))
    with pytest.raises(ValueError, match="25 tokens, but block_size is 24"):
        model(ids(1, 25))
    cache = KVCache(model.config, 1, size=4)
    with pytest.raises(ValueError, match="the cache holds 4"):
        model(ids(1, 5), cache)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(n_head=3), "n_embd 32 does not divide into n_head 3"),
        (dict(n_kv_head=3), "not a multiple of n_kv_head 3"),
        (dict(n_embd=28, n_head=4), "even"),
        (dict(pos="alibi"), "expected one of"),
        (dict(vocab_size=0), "at least 1"),
        (dict(n_layer=10**12), "at most 10,000"),
        (dict(dropout=1.0), "probability"),
        (dict(bias=1), "True or False"),
        (dict(norm_eps=0.0), "positive"),
    ],
)
def test_config_refuses_what_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        GPTConfig(**{**SMALL, **settings})


def test_config_round_trip_and_replace():
    config = GPTConfig(**SMALL, qk_norm=True)
    assert GPTConfig.from_dict(config.to_dict()) == config
    wider = config.replace(n_embd=64, n_head=8)
    assert (wider.d_ff, wider.n_kv_head) == (176, 8)
    with pytest.raises(ConfigError, match="unknown setting n_layers"):
        GPTConfig.from_dict({**config.to_dict(), "n_layers": 3})
