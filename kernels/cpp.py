"""What every binding of a C++ kernel needs: addresses and dtype codes.

torch is imported before the extension, so that both share one OpenMP runtime.
"""

import torch
from torch import Tensor

from videoar import _C

# The codes of csrc/dtype.h.
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1}

__all__ = ["DTYPE_CODES", "_C", "address", "rows_of"]


def address(x: Tensor | None) -> int:
    """Where the elements of `x` are; 0 for None."""
    return 0 if x is None else x.data_ptr()


def rows_of(x: Tensor) -> tuple[Tensor, int, int]:
    """`x` seen as `[rows, C]` with contiguous C: the tensor, rows, elements between two rows.

    The tensor is `x` itself where its leading axes merge into one and its last axis is contiguous,
    otherwise a copy.
    """
    shape, strides = x.shape, x.stride()
    width = shape[-1]
    if x.is_contiguous():
        return x, x.numel() // max(width, 1), width
    merged = len(shape) > 1 and strides[-1] == 1
    for i in range(len(shape) - 2):
        merged = merged and strides[i] == shape[i + 1] * strides[i + 1]
    if merged:
        return x, x.numel() // width, strides[-2]
    x_MC = x.reshape(-1, width).contiguous()
    return x_MC, x_MC.shape[0], width
