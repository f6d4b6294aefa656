"""The C++ kernels of `rms_norm`, forward and backward (csrc/rms_norm.h)."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from videoar.kernels.cpp import _C, DTYPE_CODES, address, rows_of


def rms_norm_cpp(
    x: Tensor, weight: Tensor, residual: Tensor | None = None, *, eps: float = 1e-6
) -> Tensor | tuple[Tensor, Tensor]:
    """As `rms_norm`, for checked arguments of a dtype in `DTYPE_CODES`."""
    y = x.new_empty(x.shape)
    s = None if residual is None else x.new_empty(x.shape)
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


def rms_norm_cpp_grad(
    x: Tensor, weight: Tensor, residual: Tensor | None = None, *, eps: float = 1e-6
) -> Tensor | tuple[Tensor, Tensor]:
    """As `rms_norm_cpp`, recorded by autograd."""
    y, s = _RMSNorm.apply(x, weight, residual, eps)
    return y if residual is None else (y, s)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, residual, eps):
        result = rms_norm_cpp(x, weight, residual, eps=eps)
        y, s = (result, None) if residual is None else result
        ctx.save_for_backward(x if s is None else s, weight)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        return y, s

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y, grad_s):
        s, weight = ctx.saved_tensors
        grad_x, grad_weight = grad_s, None
        if grad_y is not None:
            wanted = ctx.needs_input_grad[1]
            grad_x, grad_weight = _backward(s, weight, grad_y, grad_s, ctx.eps, wanted)
        return grad_x, grad_weight, grad_x if ctx.needs_input_grad[2] else None, None


def _backward(
    s: Tensor,
    weight: Tensor,
    grad_y: Tensor,
    grad_s: Tensor | None,
    eps: float,
    weight_grad: bool,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of s (with what came through s itself) and of the weight."""
    grad_x = s.new_empty(s.shape)
    grad_weight = weight.new_empty(weight.shape, dtype=torch.float32) if weight_grad else None
    s_MC, rows, stride_s = rows_of(s)
    y_MC, _, stride_y = rows_of(grad_y)
    through_MC, _, stride_through = (None, 0, 0) if grad_s is None else rows_of(grad_s)
    dense = weight.contiguous()
    _C.rms_norm_backward(
        address(s_MC),
        address(dense),
        address(y_MC),
        address(through_MC),
        address(grad_x),
        address(grad_weight),
        rows,
        s.shape[-1],
        stride_s,
        stride_y,
        stride_through,
        eps,
        DTYPE_CODES[s.dtype],
        DTYPE_CODES[weight.dtype],
    )
    return grad_x, grad_weight.to(weight.dtype) if weight_grad else None
