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
    width = x.shape[-1]
    if x.is_contiguous():
        return x, x.numel() // max(width, 1), width
    if x.dim() == 1:
        return x.contiguous(), 1, width
    x_MC = x.reshape(-1, width) if width else x.contiguous()
    x_MC = x_MC if x_MC.stride(-1) == 1 else x_MC.contiguous()
    return x_MC, x_MC.shape[0], x_MC.stride(0)
