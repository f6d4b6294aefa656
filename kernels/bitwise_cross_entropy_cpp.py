"""The C++ kernels of `bitwise_cross_entropy` (csrc/bitwise_cross_entropy.h)."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from videoar.kernels.cpp import _C, DTYPE_CODES, address, rows_of


def bitwise_cross_entropy_cpp(
    x: Tensor,
    bits: Tensor,
    weight: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """As `bitwise_cross_entropy`, for checked arguments of a dtype in `DTYPE_CODES`."""
    logits = x if weight is None else linear(x, weight.to(x.dtype))
    return _BitwiseCrossEntropy.apply(logits, bits, mask, reduction == "mean")


class _BitwiseCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bits, mask, mean):
        bits = bits.view(torch.uint8)
        mask = None if mask is None else mask.contiguous().view(torch.uint8)
        ctx.save_for_backward(x, bits, mask)
        ctx.count = None
        loss = None if mean else x.new_empty(bits.shape, dtype=torch.float32)
        total = x.new_empty((), dtype=torch.float64) if mean else None
        tensors, arguments = _arguments(x, bits, mask)
        _C.bitwise_cross_entropy(*arguments, address(loss), address(total))
        del tensors
        if not mean:
            return loss
        tokens = bits.shape[:-1].numel() if mask is None else int(mask.sum())
        ctx.count = max(tokens * bits.shape[-1], 1)
        return (total / ctx.count).float()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, bits, mask = ctx.saved_tensors
        grad_x = x.new_empty(x.shape)
        if not grad_x.numel():
            return grad_x, None, None, None
        same, grad_MD, stride = 0.0, None, 0
        if ctx.count is None:
            grad_MD, _, stride = rows_of(grad)
        else:
            same = float(grad) / ctx.count
        tensors, arguments = _arguments(x, bits, mask)
        _C.bitwise_cross_entropy_backward(
            *arguments, address(grad_MD), stride, same, address(grad_x)
        )
        del tensors
        return grad_x, None, None, None


def _arguments(x: Tensor, bits: Tensor, mask: Tensor | None) -> tuple[tuple, tuple]:
    """Tensors to keep while their addresses are out, and the first arguments of the bindings."""
    x_MC, rows, stride_x = rows_of(x)
    bits_MD, _, stride_bits = rows_of(bits)
    addresses = address(x_MC), address(bits_MD), address(mask)
    sizes = rows, bits.shape[-1], stride_x, stride_bits
    return (x_MC, bits_MD, mask), (*addresses, *sizes, DTYPE_CODES[x.dtype])
