"""The loss, equal to torch's in value and gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llmfs.evaluate import IGNORE, cross_entropy_sum


@pytest.mark.parametrize("vocab_size", [7, 2**18])  # one chunk; a few rows a chunk
def test_cross_entropy_and_its_gradient_are_those_of_torch(vocab_size):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, vocab_size, generator=generator).mul(4).requires_grad_()
    targets = torch.randint(vocab_size, (3, 5), generator=generator)
    targets[0, 1] = targets[2, 4] = IGNORE
    loss, count = cross_entropy_sum(logits, targets)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")
    assert count == 13
    torch.testing.assert_close(loss, expected)
    (ours,) = torch.autograd.grad(3 * loss, logits)
    (theirs,) = torch.autograd.grad(3 * expected, logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_cross_entropy_of_bf16_logits_is_computed_in_float32():
    logits = torch.randn(4, 100, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    targets = torch.arange(4)
    loss, _ = cross_entropy_sum(logits[None], targets[None])
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), targets, reduction="sum"))
    loss.backward()
    assert logits.grad.dtype == torch.bfloat16


def test_where_every_target_is_ignored_there_is_no_loss_and_no_gradient():
    logits = torch.randn(1, 2, 5, requires_grad=True)
    loss, count = cross_entropy_sum(logits, torch.full((1, 2), IGNORE))
    loss.backward()
    assert (loss.item(), count) == (0.0, 0) and not logits.grad.any()
