"""The C++ kernels of `swiglu`, forward and backward (csrc/swiglu.h)."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from videoar.kernels.cpp import _C, DTYPE_CODES, rows_of


def swiglu_cpp(gate: Tensor, up: Tensor) -> Tensor:
    """As `swiglu`, for checked arguments of a dtype in `DTYPE_CODES`."""
    y = gate.new_empty(gate.shape)
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


def swiglu_cpp_grad(gate: Tensor, up: Tensor) -> Tensor:
    """As `swiglu_cpp`, recorded by autograd."""
    return _SwiGLU.apply(gate, up)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return swiglu_cpp(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        gate, up = ctx.saved_tensors
        grad_gate = gate.new_empty(gate.shape)
        grad_up = gate.new_empty(gate.shape)
        gate_MF, rows, stride_g = rows_of(gate)
        up_MF, _, stride_u = rows_of(up)
        grad_MF, _, stride_y = rows_of(grad)
        _C.swiglu_backward(
            gate_MF.data_ptr(),
            up_MF.data_ptr(),
            grad_MF.data_ptr(),
            grad_gate.data_ptr(),
            grad_up.data_ptr(),
            rows,
            gate.shape[-1],
            stride_g,
            stride_u,
            stride_y,
            DTYPE_CODES[gate.dtype],
        )
        return grad_gate, grad_up
