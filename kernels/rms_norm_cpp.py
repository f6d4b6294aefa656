"""The C++ kernel of `rms_norm` (csrc/rms_norm.h)."""

import torch
from torch import Tensor

from videoar.kernels.cpp import _C, DTYPE_CODES, address, rows_of


def rms_norm_cpp(
    x: Tensor, weight: Tensor, residual: Tensor | None = None, *, eps: float = 1e-6
) -> Tensor | tuple[Tensor, Tensor]:
    """As `rms_norm`, for checked arguments of a dtype in `DTYPE_CODES`."""
    y = torch.empty(x.shape, dtype=x.dtype)
    s = None if residual is None else torch.empty(x.shape, dtype=x.dtype)
    x_MC, rows, stride_x = rows_of(x)
    r_MC, _, stride_r = (None, 0, 0) if residual is None else rows_of(residual)
    weight = weight.contiguous()
    _C.rms_norm(
        address(x_MC),
        address(r_MC),
        address(weight),
        address(y),
        address(s),
        rows,
        x.shape[-1],
        stride_x,
        stride_r,
        eps,
        DTYPE_CODES[x.dtype],
        DTYPE_CODES[weight.dtype],
    )
    return y if residual is None else (y, s)
