"""Counts from the config agree with the model itself, with PyTorch's counter and with memory that was taken."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llmfs import scale
from llmfs.attention import KVCache
from llmfs.config import GPTConfig
from llmfs.evaluate import next_token_loss
from llmfs.gpt import GPT
from llmfs.optim import AdamW, Muon

SMALL = GPTConfig(vocab_size=50, block_size=24, n_layer=2, n_head=4, n_embd=32, d_ff=48)
CONFIGS = {
    "plain": SMALL,
    "grouped": SMALL.replace(n_kv_head=2, qk_norm=True),
    "tied": SMALL.replace(tie_weights=True),
    "gpt2": GPTConfig.gpt2(vocab_size=60, block_size=24, n_layer=2, n_head=4, n_embd=32, d_ff=128),
    "post": SMALL.replace(norm_position="post", norm="layernorm", bias=True, mlp="gelu", pos="sinusoidal"),
    "no-bias layernorm": SMALL.replace(norm="layernorm", pos="none", n_kv_head=1),
    "swiglu with biases": SMALL.replace(bias=True),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_n_params(name):
    assert scale.n_params(CONFIGS[name]) == GPT(CONFIGS[name]).n_params()


def test_n_params_of_gpt2():
    assert scale.n_params(GPTConfig.gpt2()) == 124_439_808


@pytest.fixture
def written_out() -> Iterator[None]:
    """Attention in separate products: the counter does not see into the fused one."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.mark.usefixtures("written_out")
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("B, T", [(1, 5), (3, 24)])
def test_flops_are_those_that_torch_counts(name, B, T):
    model = GPT(CONFIGS[name])
    batch = (torch.zeros(B, T, dtype=torch.int64), torch.zeros(B, T, dtype=torch.int64))
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(batch[0])
    assert forward.get_total_flops() == B * T * scale.flops_per_token(CONFIGS[name], T, backward=False)
    with FlopCounterMode(display=False) as both:
        next_token_loss(model, batch)[0].backward()
    assert both.get_total_flops() == B * T * scale.flops_per_token(CONFIGS[name], T)


@pytest.mark.usefixtures("written_out")
def test_flops_of_a_token_behind_a_cache():
    model, cache = GPT(SMALL), KVCache(SMALL, 2)
    with torch.no_grad():
        model(torch.zeros(2, 9, dtype=torch.int64), cache)
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(2, 1, dtype=torch.int64), cache)
    assert counter.get_total_flops() == 2 * scale.flops_per_token(SMALL, 10, backward=False)


def test_six_n_and_attention():
    """The form that papers use."""
    C, L, T = SMALL.n_embd, SMALL.n_layer, 24
    assert scale.flops_per_token(SMALL, T) == 6 * scale.matrix_params(SMALL) + 12 * L * C * T


@pytest.mark.parametrize("name", ["plain", "grouped", "gpt2"])
def test_kv_cache_bytes(name):
    config = CONFIGS[name]
    assert scale.kv_cache_bytes(config, 3, 10, itemsize=4) == KVCache(config, 3, 10).nbytes


def test_training_bytes_are_those_that_are_held():
    for name, make in (("adamw", AdamW), ("muon", Muon), ("sgd", torch.optim.SGD)):
        weight = torch.nn.Parameter(torch.ones(8, 8))
        optimizer = make([weight], lr=0.1)
        weight.square().sum().backward()
        optimizer.step()
        moments = [t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t) and t.numel() > 1]
        held = weight.nbytes + weight.grad.nbytes + sum(t.nbytes for t in moments)
        assert held == weight.numel() * scale.training_bytes_per_param(name)


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(ValueError, match="length is 0"):
        scale.flops_per_token(SMALL, 0)
    with pytest.raises(ValueError, match="lion.*adamw"):
        scale.training_bytes_per_param("lion")
    with pytest.raises(ValueError, match="negative"):
        scale.kv_cache_bytes(SMALL, -1, 3)
