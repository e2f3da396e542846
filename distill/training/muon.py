"""Muon for the matrices of an encoder, AdamW for all else, as one optimiser.

Muon's momentum is orthogonalised before it is applied: every direction of the update gets the same length
(K. Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/). torch.optim.Muon is the same update, which
tests/test_muon.py holds, but orthogonalises in bfloat16 always, for which most CPUs have no units: on one of those an
update of a 6 x 256 encoder took 36 s, in float32 0.96 s.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from distill.training.precision import has_bf16_units

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MOST_AT_ONCE = 1 << 24
"""Weights that are orthogonalised together; a few copies of them are needed meanwhile."""
ADAMW_RMS = 0.2
"""The usual root mean square of AdamW's update over its learning rate. Muon's is scaled to it, so that learning rate
and weight decay carry over (Moonlight, https://arxiv.org/abs/2502.16982, section 2.2)."""


class MuonAdamW(torch.optim.AdamW):
    """AdamW, but the 2-D parameters of groups with `"muon": True` are updated by Muon, with Nesterov momentum.

    It is one optimiser so that schedule, clipping and GradScaler see one, and an update that is left out is left out
    as a whole: like AdamW's fused kernels it looks at `found_inf` on the device.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, dtype: torch.dtype, **options: Any) -> None:
        """
        Args:
            dtype: in which updates are orthogonalised.
            options: AdamW's.
        """
        super().__init__(groups, **options)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of all parameters that have gradients."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group.get("muon")]
        loss = super().step(closure)
        self.param_groups = groups
        for group in groups:
            if group.get("muon"):
                for matrices in _alike(group["params"]):
                    self._update(matrices, group["lr"], group["weight_decay"])
        return loss

    def _update(self, matrices: Sequence[Tensor], lr: float, weight_decay: float) -> None:
        """One update of matrices of one shape, which are orthogonalised together: that is faster than one by one."""
        for matrix in matrices:
            if "momentum_buffer" not in self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        gradients = torch.stack([matrix.grad for matrix in matrices if matrix.grad is not None])
        buffers = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        momenta = torch.stack(buffers).lerp_(gradients, 1 - MOMENTUM)
        directions = orthogonalise(gradients.lerp_(momenta, MOMENTUM), self.dtype)
        rate = lr * ADAMW_RMS * math.sqrt(max(matrices[0].shape))
        found_inf = getattr(self, "found_inf", None)
        for matrix, buffer, momentum, direction in zip(matrices, buffers, momenta, directions, strict=True):
            updated = torch.add(matrix * (1 - lr * weight_decay), direction, alpha=-rate)
            if found_inf is not None:
                momentum = torch.where(found_inf > 0, buffer, momentum)
                updated = torch.where(found_inf > 0, matrix, updated)
            buffer.copy_(momentum)
            matrix.copy_(updated)


def _alike(matrices: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Those that have gradients, by shape, not too many at once."""
    shapes: dict[torch.Size, list[Tensor]] = {}
    for matrix in matrices:
        if matrix.grad is not None:
            shapes.setdefault(matrix.shape, []).append(matrix)
    for shape, found in shapes.items():
        size = max(1, MOST_AT_ONCE // shape.numel())
        yield from (found[i : i + size] for i in range(0, len(found), size))


def orthogonalise(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """U S V^T as about U V^T: five Newton-Schulz iterations, which bring the singular values to 0.7 to 1.2.

    Args:
        matrices: [B, m, n], each of any scale.
    Returns: [B, m, n] in `dtype`, in which it was computed.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrices.size(1) > matrices.size(2)
    wide = (matrices.mT if is_tall else matrices).to(dtype)
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.mT if is_tall else wide


def muon_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """In which dtype to orthogonalise: bfloat16 where it is fast and the training is not in float32 (`dtype`)."""
    return torch.bfloat16 if dtype != torch.float32 and has_bf16_units(device) else torch.float32
