"""The C++ kernel of `bsq_quantize` (csrc/bsq_quantize.h)."""

import torch
from torch import Tensor

from videoar.kernels.cpp import _C, DTYPE_CODES, address


def bsq_quantize_cpp(
    x: Tensor,
    flips: Tensor | None,
    sizes: tuple[tuple[int, int], ...],
    return_inputs: bool,
    return_scale_inputs: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Reconstruction, targets, bits, inputs and per-scale y of `bsq_quantize`.

    For checked arguments, `x` of a dtype in `DTYPE_CODES`.
    """
    batch, dim, frames, height, width = x.shape
    num_tokens = sum(h * w for h, w in sizes)

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(batch, frames, *shape, dtype=dtype, device="cpu")

    total = empty(dim, height, width, dtype=x.dtype)
    targets = empty(num_tokens, dim, dtype=torch.bool)
    bits = empty(num_tokens, dim, dtype=torch.bool)
    inputs = empty(num_tokens, dim, dtype=x.dtype) if return_inputs else None
    y = empty(num_tokens, dim, dtype=torch.float32) if return_scale_inputs else None
    flips = None if flips is None else flips.contiguous()
    _C.bsq_quantize(
        address(x),
        address(flips),
        address(targets),
        address(bits),
        address(total),
        address(inputs),
        address(y),
        batch,
        frames,
        dim,
        dim**-0.5,
        *x.stride(),
        DTYPE_CODES[x.dtype],
        sizes,
    )
    return total.transpose(1, 2), targets, bits, inputs, y
