"""The optimizers against torch's own, and the schedule by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from llmfs import optim
from llmfs.config import GPTConfig
from llmfs.gpt import GPT
from llmfs.optim import AdamW, Muon, clip_grad_norm_, cosine_lr, orthogonalize, split_params


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(7, 16), nn.Tanh(), nn.Linear(16, 3))


@pytest.mark.parametrize(
    "settings",
    [dict(lr=1e-2), dict(lr=3e-3, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3), dict(lr=1e-1, weight_decay=0.0)],
)
def test_adamw_equals_torch_over_fifty_steps(settings):
    ours, theirs = network(0), network(0)
    a, b = (
        AdamW(ours.parameters(), **settings),
        torch.optim.AdamW(theirs.parameters(), **{"weight_decay": 0.01, **settings}),
    )
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        x, y = torch.randn(5, 7, generator=generator), torch.randn(5, 3, generator=generator)
        for model, optimizer in ((ours, a), (theirs, b)):
            optimizer.zero_grad()
            (model(x) - y).pow(2).mean().backward()
            optimizer.step()
    for p, q in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5)


def test_adamw_first_step_by_hand():
    """At step one mean / sqrt(mean square) is the gradient's sign, so every number moves by lr."""
    p = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    p.grad = torch.tensor([0.001, -40.0, 3.0])
    AdamW([p], lr=0.1, weight_decay=0.0).step()
    torch.testing.assert_close(p.detach(), torch.tensor([0.9, -1.9, 0.4]), atol=1e-5, rtol=0)


def test_weight_decay_does_not_pass_through_the_moments():
    """With a zero gradient the weight shrinks by lr * decay and by nothing else; L2 inside Adam would move it by lr."""
    p = nn.Parameter(torch.tensor([2.0]))
    p.grad = torch.zeros(1)
    AdamW([p], lr=0.1, weight_decay=0.5).step()
    assert p.item() == pytest.approx(2.0 * (1 - 0.05))


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8)])
def test_orthogonalize_keeps_directions_and_levels_lengths(shape, bf16, monkeypatch):
    monkeypatch.setattr(optim, "multiplies_bf16", lambda device: bf16)
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    out = orthogonalize(x).float()
    assert out.shape == x.shape
    # Random square matrices have singular values near zero, which five rounds only begin to raise.
    values = torch.linalg.svdvals(out)
    assert values.max() < 1.3 and values.median() > 0.65
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    assert nn.functional.cosine_similarity(out.flatten(1), (u @ v).flatten(1)).min() > 0.9


def test_muon_moves_all_directions_alike():
    """A gradient with one huge direction and a small one: both move by about lr."""
    p = nn.Parameter(torch.zeros(4, 4))
    p.grad = torch.diag(torch.tensor([100.0, 1.0, 1.0, 1.0]))
    Muon([p], lr=0.1).step()
    moved = -p.detach().diagonal()
    assert moved.min() > 0.05 and moved.max() < 0.13


def test_muon_lowers_a_loss_and_refuses_vectors():
    model = nn.Linear(8, 8, bias=False)
    target = torch.randn(8, 8, generator=torch.Generator().manual_seed(2)) * 0.3
    optimizer = Muon(model.parameters(), lr=0.02)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = (model.weight - target).pow(2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]
    with pytest.raises(ValueError, match="give that to AdamW"):
        Muon([nn.Parameter(torch.zeros(3))])


def test_cosine_schedule_by_hand():
    rate = [cosine_lr(step, peak=2.0, total_steps=12, warmup_steps=2) for step in range(13)]
    assert rate[:3] == [1.0, 2.0, 2.0]
    assert rate[7] == pytest.approx(1.0) and rate[12] == pytest.approx(0.0)
    assert all(a >= b for a, b in zip(rate[2:], rate[3:]))
    flat = [cosine_lr(step, peak=1.0, total_steps=10, constant=0.5) for step in range(11)]
    assert flat[:6] == [1.0] * 6 and flat[10] == pytest.approx(0.0)
    assert cosine_lr(10**9, peak=1.0, total_steps=10, final=0.1) == pytest.approx(0.1)


def test_clipping_equals_torch_and_leaves_bad_gradients_alone():
    ours, theirs = network(3), network(3)
    for model in (ours, theirs):
        model(torch.full((2, 7), 9.0)).pow(2).sum().backward()
    norm = clip_grad_norm_(ours.parameters(), 0.5)
    assert norm == pytest.approx(nn.utils.clip_grad_norm_(theirs.parameters(), 0.5).item())
    for p, q in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(p.grad, q.grad)
    p = nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([math.nan, 1.0])
    assert math.isnan(clip_grad_norm_([p], 1.0)) and p.grad[1] == 1.0
    assert clip_grad_norm_([nn.Parameter(torch.zeros(2))], 1.0) == 0.0


@pytest.mark.parametrize("tied", [False, True])
def test_split_params_takes_each_once(tied):
    model = GPT(
        GPTConfig(
            vocab_size=20, block_size=8, n_layer=2, n_embd=16, n_head=2, tie_weights=tied, qk_norm=True, pos="learned"
        )
    )
    matrices, tables, vectors = split_params(model)
    assert len(matrices) == 2 * 7 and len(tables) == (2 if tied else 3)
    assert all(p.dim() == 1 for p in vectors)
    assert len({id(p) for p in matrices + tables + vectors}) == len(list(model.parameters()))
    model.embed.weight.requires_grad_(False)
    assert not any(p is model.embed.weight for group in split_params(model) for p in group)
