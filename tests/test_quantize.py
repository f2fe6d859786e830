"""Eight-bit weights: the rounding is the nearest one, and a quantized model is the same model with rounded matrices."""

from __future__ import annotations

import pytest
import torch

from llmfs.config import GPTConfig
from llmfs.gpt import GPT
from llmfs.quantize import dequantize_rows, quantize_rows, quantized

CONFIG = GPTConfig(vocab_size=50, block_size=16, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, qk_norm=True)


def random_model(**changes):
    generator = torch.Generator().manual_seed(0)
    model = GPT(CONFIG.replace(**changes), generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def test_worked_by_hand():
    weight = torch.tensor([[1.27, -0.5, 0.004], [0.0, 0.0, 0.0], [-254.0, 3.0, 1.5]])
    numbers, scales = quantize_rows(weight)
    assert numbers.tolist() == [[127, -50, 0], [0, 0, 0], [-127, 2, 1]]  # 1.5 and 0.75 steps: to the nearest, even
    assert numbers.dtype == torch.int8 and scales.dtype == torch.float32
    torch.testing.assert_close(scales, torch.tensor([0.01, 0.0, 2.0]))
    torch.testing.assert_close(dequantize_rows(numbers, scales)[2], torch.tensor([-254.0, 4.0, 2.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_no_weight_moves_by_more_than_half_a_step(dtype):
    weight = torch.randn(40, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    numbers, scales = quantize_rows(weight)
    assert numbers.shape == (40, 64) and scales.shape == (40,)
    assert (numbers.abs().amax(dim=1) == 127).all()
    error = (dequantize_rows(numbers, scales) - weight.float()).abs()
    assert (error <= scales[:, None] * 0.5 * (1 + 1e-4)).all()


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_the_reference_of_torch_gives_the_same_numbers():
    weight = torch.randn(24, 32, generator=torch.Generator().manual_seed(2))
    numbers, scales = quantize_rows(weight)
    zero_points = torch.zeros(24, dtype=torch.int64)
    reference = torch.quantize_per_channel(weight, scales.double(), zero_points, 0, torch.qint8)
    torch.testing.assert_close(numbers, reference.int_repr())
    torch.testing.assert_close(dequantize_rows(numbers, scales), reference.dequantize())


def test_quantizing_twice_changes_nothing():
    weight = torch.randn(24, 32, generator=torch.Generator().manual_seed(3))
    numbers, scales = quantize_rows(weight)
    again, scales_again = quantize_rows(dequantize_rows(numbers, scales))
    assert torch.equal(again, numbers)
    torch.testing.assert_close(scales_again, scales)


def test_tiny_and_huge_rows():
    weight = torch.tensor([[1e-44, 0.0], [3e38, -3e38]])
    numbers, scales = quantize_rows(weight)
    assert dequantize_rows(numbers, scales).isfinite().all()
    assert numbers[1].tolist() == [127, -127]


@pytest.mark.parametrize("changes", [{}, {"tie_weights": True}, {"bias": True, "pos": "learned", "norm": "layernorm"}])
def test_a_quantized_model_has_rounded_matrices_and_the_old_one_is_left_alone(changes):
    model = random_model(**changes)
    before = {name: p.clone() for name, p in model.named_parameters()}
    copy = quantized(model)
    for name, parameter in copy.named_parameters():
        original = before[name]
        assert torch.equal(model.get_parameter(name), original)
        expected = dequantize_rows(*quantize_rows(original)) if original.dim() == 2 else original
        assert torch.equal(parameter, expected), name
        assert parameter.dim() == 1 or not torch.equal(parameter, original), name
    if "tie_weights" in changes:
        assert copy.lm_head.weight is copy.embed.weight
    ids = torch.arange(12)[None]
    with torch.no_grad():
        difference = (copy(ids) - model(ids)).abs().max()
    assert 0 < difference < 0.2 * model(ids).std()


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"matrix of floats.*\(3,\)"):
        quantize_rows(torch.ones(3))
    with pytest.raises(ValueError, match="int64"):
        quantize_rows(torch.ones(3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="inf or nan"):
        quantize_rows(torch.tensor([[1.0, float("nan")]]))
