"""The C++ kernel of `swiglu` (csrc/swiglu.h)."""

import torch
from torch import Tensor

from videoar.kernels.cpp import _C, DTYPE_CODES, rows_of


def swiglu_cpp(gate: Tensor, up: Tensor) -> Tensor:
    """As `swiglu`, for checked arguments of a dtype in `DTYPE_CODES`."""
    y = torch.empty(gate.shape, dtype=gate.dtype)
    gate_MF, rows, stride_g = rows_of(gate)
    up_MF, _, stride_u = rows_of(up)
    _C.swiglu(
        gate_MF.data_ptr(),
        up_MF.data_ptr(),
        y.data_ptr(),
        rows,
        gate.shape[-1],
        stride_g,
        stride_u,
        DTYPE_CODES[gate.dtype],
    )
    return y
