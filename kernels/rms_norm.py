"""Root-mean-square normalisation, with the residual addition in front of it.

    s = x + residual        y = s / sqrt(mean_C(s^2) + eps) * weight

Axes: C channels, any axes in front. The normalised value is rounded to the dtype of x before it is
multiplied by weight, as LLaMA (arXiv 2302.13971) and Qwen3 (arXiv 2505.09388) do; statistics are
float32. Bytes that must move: x (and residual) once, y (and s) once.
"""

import torch
from torch import Tensor

from videoar.kernels.dispatch import select


def rms_norm(
    x: Tensor, weight: Tensor, residual: Tensor | None = None, *, eps: float = 1e-6
) -> Tensor | tuple[Tensor, Tensor]:
    """Normalise the last axis of `x`, or of `x + residual` (arXiv 1910.07467, Eq. 4).

    Args:
        x: `[..., C]`, floating.
        weight: `[C]`, floating.
        residual: None, or of the shape and dtype of `x`.
        eps: added to the mean square.

    Returns:
        y, in the shape and dtype of `x`. With a residual `(y, s)`, s being the sum, which is the
        residual of the next call.

    Raises:
        ValueError: a shape or dtype that does not fit, naming the argument.
    """
    if x.dim() < 1 or not x.is_floating_point():
        raise ValueError(f"x: expected floating [..., C], got {x.dtype} {list(x.shape)}")
    if tuple(weight.shape) != (x.shape[-1],):
        raise ValueError(f"weight: expected [{x.shape[-1]}], got {list(weight.shape)}")
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ValueError(
            f"residual: expected {x.dtype} {list(x.shape)}, "
            f"got {residual.dtype} {list(residual.shape)}"
        )
    return select("rms_norm", x, {"reference": rms_norm_ref})(x, weight, residual, eps=eps)


def rms_norm_ref(
    x: Tensor, weight: Tensor, residual: Tensor | None = None, *, eps: float = 1e-6
) -> Tensor | tuple[Tensor, Tensor]:
    """Plain PyTorch twin of `rms_norm`."""
    s = x if residual is None else x + residual
    wide = s.to(torch.promote_types(s.dtype, torch.float32))
    normalised = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    y = (normalised.to(s.dtype) * weight).to(s.dtype)
    return y if residual is None else (y, s)
