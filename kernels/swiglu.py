"""The gated activation of a SwiGLU feed-forward layer.

    y = silu(gate) * up        silu(g) = g * sigmoid(g)

(arXiv 2002.05202, section 2). Axes: F feed-forward channels, any axes in front. Bytes that must
move: gate, up and y once each; backwards gate, up, grad_y and both gradients.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from videoar.kernels.dispatch import select
from videoar.kernels.jit import jit, pdl_options, tl, wait_then_release
from videoar.kernels.rows import as_rows, check_devices, check_dtype
from videoar.kernels.swiglu_cpp import swiglu_cpp, swiglu_cpp_grad
from videoar.kernels.variant import Variant

# Eight elements a thread: one load of 16 bytes from each input in bfloat16.
TILE = 1024
NUM_WARPS = 4


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (arXiv 2002.05202, section 2).

    Args:
        gate: `[..., F]`, floating. On a GPU: float32, float16 or bfloat16; copied if F is strided
            or the leading axes do not merge into one. Two halves of one tensor are read in place.
        up: of the shape and dtype of `gate`.

    Returns:
        The shape and dtype of `gate`.

    Raises:
        ValueError: a shape or dtype that does not fit, naming the argument.
    """
    if gate.dim() < 1 or not gate.is_floating_point():
        raise ValueError(f"gate: expected floating [..., F], got {gate.dtype} {list(gate.shape)}")
    if up.shape != gate.shape or up.dtype != gate.dtype:
        raise ValueError(
            f"up: expected {gate.dtype} {list(gate.shape)}, got {up.dtype} {list(up.shape)}"
        )
    return select("swiglu", gate, _SWIGLU, up=up)(gate, up)


def swiglu_ref(gate: Tensor, up: Tensor) -> Tensor:
    """Plain PyTorch twin of `swiglu`; the sigmoid is float32 inside for every dtype."""
    return silu(gate) * up


@jit
def _forward_kernel(
    gate_ptr,
    up_ptr,
    y_ptr,
    rows,
    width,
    stride_gm,
    stride_um,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
    PDL: tl.constexpr = False,
):
    """y = round(silu(gate)) * up, as the reference rounds; y is contiguous.

    Bytes: 3 elements a channel.
    """
    if PDL:
        wait_then_release()
    blocks_f = tl.cdiv(width, BLOCK_F)
    pid = tl.program_id(0).to(tl.int64)
    offs_m = pid // blocks_f * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    offs_f = pid % blocks_f * BLOCK_F + tl.arange(0, BLOCK_F)[None, :]
    mask = (offs_m < rows) & (offs_f < width)
    gate = tl.load(gate_ptr + offs_m * stride_gm + offs_f, mask, other=0.0)
    up = tl.load(up_ptr + offs_m * stride_um + offs_f, mask, other=0.0).to(tl.float32)
    wide = gate.to(tl.float32)
    activated = (wide * tl.sigmoid(wide)).to(gate.dtype).to(tl.float32)
    tl.store(y_ptr + offs_m * width + offs_f, (activated * up).to(gate.dtype), mask)


@jit
def _backward_kernel(
    gate_ptr,
    up_ptr,
    grad_ptr,
    grad_gate_ptr,
    grad_up_ptr,
    rows,
    width,
    stride_gm,
    stride_um,
    stride_ym,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """With p = sigmoid(gate), computed again from gate:

        grad_gate = grad up p (1 + gate (1 - p))        grad_up = grad gate p

    Bytes: 5 elements a channel. Both gradients are contiguous.
    """
    blocks_f = tl.cdiv(width, BLOCK_F)
    pid = tl.program_id(0).to(tl.int64)
    offs_m = pid // blocks_f * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    offs_f = pid % blocks_f * BLOCK_F + tl.arange(0, BLOCK_F)[None, :]
    mask = (offs_m < rows) & (offs_f < width)
    gate = tl.load(gate_ptr + offs_m * stride_gm + offs_f, mask, other=0.0)
    up = tl.load(up_ptr + offs_m * stride_um + offs_f, mask, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + offs_m * stride_ym + offs_f, mask, other=0.0).to(tl.float32)
    wide = gate.to(tl.float32)
    p = tl.sigmoid(wide)
    grad_gate = grad * up * p * (1 + wide * (1 - p))
    offs = offs_m * width + offs_f
    tl.store(grad_gate_ptr + offs, grad_gate.to(gate.dtype), mask)
    tl.store(grad_up_ptr + offs, (grad * wide * p).to(gate.dtype), mask)


def _tiles(rows: int, width: int) -> tuple[int, int, int]:
    """BLOCK_M, BLOCK_F and programs: 1,024 elements a program, narrow rows in groups."""
    BLOCK_F = min(max(16, 1 << (width - 1).bit_length()), TILE)
    BLOCK_M = TILE // BLOCK_F
    return BLOCK_M, BLOCK_F, -(-rows // BLOCK_M) * -(-width // BLOCK_F)


def _flat(*tensors: Tensor) -> list[Tensor]:
    """As rows; as one long row where all are contiguous, which leaves no partial tile in a row."""
    if all(t.is_contiguous() for t in tensors):
        return [t.view(1, -1) for t in tensors]
    return [as_rows(t) for t in tensors]


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        y = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
        if not y.numel():
            return y
        gate, up = _flat(gate, up)
        BLOCK_M, BLOCK_F, programs = _tiles(*gate.shape)
        _forward_kernel[(programs,)](
            gate,
            up,
            y,
            *gate.shape,
            gate.stride(0),
            up.stride(0),
            BLOCK_M,
            BLOCK_F,
            num_warps=NUM_WARPS,
            **pdl_options(y.device),
        )
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        gate, up = ctx.saved_tensors
        grad_gate = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
        grad_up = torch.empty_like(grad_gate)
        if not grad_up.numel():
            return grad_gate, grad_up
        gate, up, grad = _flat(gate, up, grad)
        BLOCK_M, BLOCK_F, programs = _tiles(*gate.shape)
        _backward_kernel[(programs,)](
            gate,
            up,
            grad,
            grad_gate,
            grad_up,
            *gate.shape,
            gate.stride(0),
            up.stride(0),
            grad.stride(0),
            BLOCK_M,
            BLOCK_F,
            num_warps=NUM_WARPS,
        )
        return grad_gate, grad_up


def _swiglu_triton(gate: Tensor, up: Tensor) -> Tensor:
    check_devices(gate=gate, up=up)
    check_dtype("gate", gate)
    return _SwiGLU.apply(gate, up)


_SWIGLU = {
    "reference": swiglu_ref,
    "cpp": swiglu_cpp,
    "cpp_grad": swiglu_cpp_grad,
    "triton": _swiglu_triton,
}


def aot_variants() -> list[Variant]:
    """Forward and backward at the presets' MLP widths; contiguous inputs are one long row."""
    BLOCK_M, BLOCK_F, _ = _tiles(1, 4096 * 11008)
    tiles = {"BLOCK_M": BLOCK_M, "BLOCK_F": BLOCK_F}
    forward = dict.fromkeys(("gate_ptr", "up_ptr", "y_ptr"), "*bf16")
    inputs = ("gate_ptr", "up_ptr", "grad_ptr")
    backward = dict.fromkeys((*inputs, "grad_gate_ptr", "grad_up_ptr"), "*bf16")
    sizes = {"width": "i32", "stride_gm": "i32", "stride_um": "i32"}
    return [
        Variant(
            name="swiglu_forward",
            kernel=_forward_kernel,
            signature=forward | sizes,
            constexprs={"rows": 1} | tiles,
            divisible=(*forward, *sizes),
            num_warps=NUM_WARPS,
            vector_bytes=16,
        ),
        Variant(
            name="swiglu_backward",
            kernel=_backward_kernel,
            signature=backward | sizes | {"stride_ym": "i32"},
            constexprs={"rows": 1} | tiles,
            divisible=(*backward, *sizes, "stride_ym"),
            num_warps=NUM_WARPS,
            vector_bytes=16,
        ),
    ]
