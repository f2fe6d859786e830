"""AdamW and Muon written out, the learning rate's schedule, and gradient clipping."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class AdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay (Kingma & Ba 2015; Loshchilov & Hutter 2019), as `torch.optim.AdamW`.

    Each number moves by its own gradient's running mean, divided by the root of the running mean square.
    Raises ValueError for a rate, beta or decay out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        if not lr >= 0 or not eps >= 0 or not weight_decay >= 0:
            raise ValueError(f"lr {lr}, eps {eps} and weight_decay {weight_decay} must not be negative")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas {betas} must be in [0, 1)")
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient, once."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, self.state[p], group)

    @staticmethod
    def _move(p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """One parameter of any shape, in place."""
        lr, (beta1, beta2) = group["lr"], group["betas"]
        if not state:
            state["step"] = 0
            state["mean"], state["mean_square"] = torch.zeros_like(p), torch.zeros_like(p)
        state["step"] += 1
        mean, mean_square, t = state["mean"], state["mean_square"], state["step"]

        p.mul_(1 - lr * group["weight_decay"])  # decay the weight itself: it must not pass through the moments
        mean.lerp_(p.grad, 1 - beta1)  # β₁ m + (1 - β₁) g
        mean_square.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)  # β₂ v + (1 - β₂) g²
        # Both began at zero and are too small at first; dividing by 1 - βᵗ makes up for it.
        denominator = (mean_square.sqrt() / math.sqrt(1 - beta2**t)).add_(group["eps"])
        p.addcdiv_(mean, denominator, value=-lr / (1 - beta1**t))


class Muon(torch.optim.Optimizer):
    """For matrices: the momentum, made orthogonal, is the step (Jordan et al. 2024).

    Every direction in the matrix moves equally far, however small its gradient, so lr is the length of the step
    in each direction. Only for 2-D weights inside the model; tables, heads and norms want AdamW. Raises ValueError for
    a tensor of another shape, and for a rate or momentum out of range.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        if not lr >= 0 or not weight_decay >= 0 or not 0 <= momentum < 1:
            raise ValueError(
                f"lr {lr} and weight_decay {weight_decay} must not be negative, and momentum {momentum} "
                "must be in [0, 1)"
            )
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
        for p in (p for group in self.param_groups for p in group["params"]):
            if p.dim() != 2:
                raise ValueError(f"Muon moves matrices, not a tensor of shape {tuple(p.shape)}; give that to AdamW")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient, once."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for matrices in by_shape.values():  # of one shape, so that one batched product serves them all
                self._move(matrices, group)

    def _move(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        """Matrices (rows, columns) of one shape, in place."""
        ahead = []
        for p in matrices:
            assert p.grad is not None
            momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
            momentum.lerp_(p.grad, 1 - group["momentum"])
            ahead.append(p.grad.lerp(momentum, group["momentum"]))  # Nesterov: where the momentum is about to be
        rows, columns = matrices[0].shape
        # A tall matrix gets a longer step, so that its outputs move as far as those of a square one.
        scale = group["lr"] * math.sqrt(max(1.0, rows / columns))
        # The whole matrix is needed for this, also where each process holds some of its rows.
        steps = orthogonalize(torch.stack([gather(step) for step in ahead])).to(matrices[0].dtype)
        for p, step in zip(matrices, steps):
            p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(shard_like(step, p), alpha=scale)


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring every singular value near 1, keeping directions: (..., rows, columns) -> the same shape.

    Newton-Schulz: an odd polynomial of the matrix is that polynomial of its singular values, and this one
    drives them from anywhere between 0.002 and 1 to about 0.7 to 1.2 in five rounds. The rough result is enough, so
    that it is computed, and returned, in bfloat16 where that is faster.
    """
    a, b, c = 3.4445, -4.7750, 2.0315  # Jordan's coefficients: steep at zero, so that small values grow fast
    x = matrices.bfloat16() if multiplies_bf16(matrices.device) else matrices.float()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    wide = x if x.shape[-2] <= x.shape[-1] else x.mT  # the product below is then the smaller of the two
    for _ in range(steps):
        gram = wide @ wide.mT
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide if x.shape[-2] <= x.shape[-1] else wide.mT


@functools.cache
def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for products of bfloat16. Without them they take longer than in float32."""
    if device.type == "cpu":
        known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # since torch 2.12
        return bool(known.get("avx512_bf16") or known.get("amx_bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def cosine_lr(
    step: int, *, peak: float, total_steps: int, warmup_steps: int = 0, constant: float = 0.0, final: float = 0.0
) -> float:
    """The learning rate of a step, counted from 0: up in a line, flat, then down half a cosine to `final` x peak.

    constant: the fraction of all steps that stays at the peak after the warm-up (0: the plain cosine of
    Loshchilov & Hutter 2017). From `total_steps` on the rate stays at its end.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    start = min(warmup_steps + constant * total_steps, total_steps)
    if step < start:
        return peak
    progress = min(1.0, (step - start) / max(1.0, total_steps - start))
    return peak * (final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2)


@torch.no_grad()
def clip_grad_norm_(params: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scale all gradients together so that their joint L2 norm is at most max_norm (Pascanu et al. 2013).

    -> the norm before the cut, a float (it may be inf or nan, and then nothing was scaled).
    """
    grads = [p.grad for p in params if p.grad is not None]
    if not grads:
        return 0.0
    # Of whole gradients: parts would add up in another order, and Muon, which rounds to bfloat16, makes much of a
    # last bit. So a run in several processes is that in one.
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gather(g).float()) for g in grads])).item()
    if math.isfinite(norm) and norm > max_norm:
        for g in grads:
            g.mul_(max_norm / (norm + 1e-6))
    return norm


def split_params(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """-> (matrices, tables, vectors): the weights inside the blocks; embeddings and output head; all 1-D ones.

    Muon moves the matrices. Weight decay is for matrices and tables: shrinking a norm's gain or a bias helps nobody.
    Parameters that do not require gradients are left out.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head = getattr(model, "lm_head", None)
    if isinstance(head, nn.Linear):
        tables.add(id(head.weight))
    learned = [p for p in model.parameters() if p.requires_grad]
    return (
        [p for p in learned if p.dim() >= 2 and id(p) not in tables],
        [p for p in learned if id(p) in tables],
        [p for p in learned if p.dim() < 2 and id(p) not in tables],
    )


def is_sharded(value: object) -> bool:
    """Whether this is a tensor of which each process holds a part (a `DTensor`)."""
    return hasattr(value, "full_tensor")  # to import the class takes a second


def gather(tensor: Tensor) -> Tensor:
    """The whole of a tensor of which each process holds a part; any other tensor as it is.

    Every process must call this at the same point, since the parts are exchanged.
    """
    whole: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return whole


def shard_like(whole: Tensor, like: Tensor) -> Tensor:
    """Share out a whole tensor, which every process has, as `like` is, of the same shape: the inverse of `gather`."""
    if not is_sharded(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]
