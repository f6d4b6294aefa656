"""Root-mean-square normalisation, with the residual addition in front of it.

    s = x + residual        y = s / sqrt(mean_C(s^2) + eps) * weight

Axes: C channels, any axes in front. The normalised value is rounded to the dtype of x before it is
multiplied by weight, as LLaMA (arXiv 2302.13971) and Qwen3 (arXiv 2505.09388) do; statistics are
float32. Bytes that must move: x (and residual) once, y (and s) once.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from videoar.kernels.dispatch import select
from videoar.kernels.jit import jit, pdl_options, tl, triton, wait_then_release
from videoar.kernels.rms_norm_cpp import rms_norm_cpp, rms_norm_cpp_grad
from videoar.kernels.rows import as_rows, check_devices, check_dtype
from videoar.kernels.variant import Variant

# A row lives in the registers of one program; the backward of a wider one would spill.
MAX_WIDTH = 8192
# An H200 holds 528 programs of 1,536 or 2,048 channels at a time and 264 of 2,560: this is one wave
# or two, and the partial sums stay a few percent of the bytes.
MAX_PARTIALS = 512


def rms_norm(
    x: Tensor, weight: Tensor, residual: Tensor | None = None, *, eps: float = 1e-6
) -> Tensor | tuple[Tensor, Tensor]:
    """Normalise the last axis of `x`, or of `x + residual` (arXiv 1910.07467, Eq. 4).

    Args:
        x: `[..., C]`, floating. On a GPU: float32, float16 or bfloat16, C at most 8192; copied if
            C is strided or the leading axes do not merge into one.
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
    if tuple(weight.shape) != (x.shape[-1],) or not weight.is_floating_point():
        raise ValueError(
            f"weight: expected floating [{x.shape[-1]}], got {weight.dtype} {list(weight.shape)}"
        )
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ValueError(
            f"residual: expected {x.dtype} {list(x.shape)}, "
            f"got {residual.dtype} {list(residual.shape)}"
        )
    implementation = select("rms_norm", x, _RMS_NORM, weight=weight, residual=residual)
    return implementation(x, weight, residual, eps=eps)


def rms_norm_ref(
    x: Tensor, weight: Tensor, residual: Tensor | None = None, *, eps: float = 1e-6
) -> Tensor | tuple[Tensor, Tensor]:
    """Plain PyTorch twin of `rms_norm`."""
    s = x if residual is None else x + residual
    wide = s.to(torch.promote_types(s.dtype, torch.float32))
    normalised = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    y = (normalised.to(s.dtype) * weight).to(s.dtype)
    return y if residual is None else (y, s)


@jit
def _forward_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    y_ptr,
    s_ptr,
    rows,
    stride_xm,
    stride_rm,
    eps,
    C: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PDL: tl.constexpr = False,
):
    """y = round(s / sqrt(mean(s^2) + eps)) * weight, s = x + residual; y and s are contiguous.

    Bytes: 2 elements read or written a channel, 4 with the residual; weight comes from L2.
    """
    if PDL:
        wait_then_release()
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    offs_c = tl.arange(0, BLOCK_C)[None, :]
    mask = (offs_m < rows) & (offs_c < C)
    s = tl.load(x_ptr + offs_m * stride_xm + offs_c, mask, other=0.0)
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptr + offs_m * stride_rm + offs_c, mask, other=0.0)
        s = (s.to(tl.float32) + residual.to(tl.float32)).to(s.dtype)
        tl.store(s_ptr + offs_m * C + offs_c, s, mask)
    wide = s.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 1) / C + eps)
    normalised = (wide * scale[:, None]).to(s.dtype).to(tl.float32)
    weight = tl.load(weight_ptr + offs_c, offs_c < C, other=0.0).to(tl.float32)
    tl.store(y_ptr + offs_m * C + offs_c, (normalised * weight).to(s.dtype), mask)


@jit
def _backward_kernel(
    s_ptr,
    weight_ptr,
    grad_y_ptr,
    grad_s_ptr,
    grad_x_ptr,
    partial_ptr,
    rows,
    rows_per_program,
    stride_sm,
    stride_ym,
    stride_gm,
    eps,
    C: tl.constexpr,
    HAS_GRAD_S: tl.constexpr,
    WEIGHT_GRAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """With n = s / rms(s) and g = grad_y * weight:

        grad_x = (g - n mean(g n)) / rms(s) + grad_s        partial[program] = sum_rows(grad_y n)

    The scale is computed again from s, which must be read anyway. Bytes: 3 elements a channel, 4
    with grad_s, and 4 C bytes a program. grad_x and partial are contiguous.
    """
    first = tl.program_id(0) * rows_per_program
    last = tl.minimum(first + rows_per_program, rows)
    offs_c = tl.arange(0, BLOCK_C)[None, :]
    mask_c = offs_c < C
    weight = tl.load(weight_ptr + offs_c, mask_c, other=0.0).to(tl.float32)
    partial = tl.zeros([1, BLOCK_C], tl.float32)
    for start in range(first, last, BLOCK_M):
        offs_m = start + tl.arange(0, BLOCK_M)[:, None].to(tl.int64)
        mask = (offs_m < last) & mask_c
        s = tl.load(s_ptr + offs_m * stride_sm + offs_c, mask, other=0.0)
        grad = tl.load(grad_y_ptr + offs_m * stride_ym + offs_c, mask, other=0.0).to(tl.float32)
        wide = s.to(tl.float32)
        scale = tl.rsqrt(tl.sum(wide * wide, 1) / C + eps)[:, None]
        normalised = wide * scale
        if WEIGHT_GRAD:
            rounded = normalised.to(s.dtype).to(tl.float32)
            partial += tl.sum(grad * rounded, 0)[None, :]
        grad *= weight
        mean = (tl.sum(grad * normalised, 1) / C)[:, None]
        grad = (grad - normalised * mean) * scale
        if HAS_GRAD_S:
            grad += tl.load(grad_s_ptr + offs_m * stride_gm + offs_c, mask, other=0.0)
        tl.store(grad_x_ptr + offs_m * C + offs_c, grad.to(s.dtype), mask)
    if WEIGHT_GRAD:
        offs_p = tl.program_id(0).to(tl.int64) * C + offs_c
        tl.store(partial_ptr + offs_p, partial, mask_c)


def _tiles(rows: int, width: int) -> tuple[int, int, int]:
    """BLOCK_M, BLOCK_C and warps: whole rows, 16 channels a thread, narrow rows in groups."""
    BLOCK_C = max(16, 1 << (width - 1).bit_length())
    BLOCK_M = min(max(1, 1024 // BLOCK_C), 1 << max(0, rows - 1).bit_length())
    return BLOCK_M, BLOCK_C, min(max(BLOCK_M * BLOCK_C // 512, 1), 16)


def _backward_tiles(rows: int, width: int) -> tuple[int, int, int, int]:
    """BLOCK_M, BLOCK_C, warps (8 channels a thread) and rows of a program, a multiple of BLOCK_M.

    Of the shape alone, so that the order of the sums is the same on every device.
    """
    BLOCK_M, BLOCK_C, _ = _tiles(rows, width)
    blocks = -(-rows // BLOCK_M)
    rows_per_program = -(-blocks // MAX_PARTIALS) * BLOCK_M
    return BLOCK_M, BLOCK_C, min(max(BLOCK_M * BLOCK_C // 256, 1), 16), rows_per_program


def _launch_forward(
    x: Tensor, weight: Tensor, residual: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """y and s (x itself without a residual)."""
    x_MC, y = as_rows(x), torch.empty(x.shape, dtype=x.dtype, device=x.device)
    r_MC = x_MC if residual is None else as_rows(residual)
    s = x if residual is None else torch.empty_like(y)
    rows, C = x_MC.shape
    if y.numel():
        BLOCK_M, BLOCK_C, num_warps = _tiles(rows, C)
        strides, constexprs = (x_MC.stride(0), r_MC.stride(0)), (C, residual is not None)
        _forward_kernel[(triton.cdiv(rows, BLOCK_M),)](
            *(x_MC, r_MC, weight, y, s, rows, *strides, eps),
            *(*constexprs, BLOCK_M, BLOCK_C),
            num_warps=num_warps,
            **pdl_options(x.device),
        )
    return y, s


def _launch_backward(
    s: Tensor,
    weight: Tensor,
    grad_y: Tensor,
    grad_s: Tensor | None,
    eps: float,
    weight_grad: bool,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of s (with what came through s itself) and of the weight."""
    s_MC, grad_y_MC = as_rows(s), as_rows(grad_y)
    grad_s_MC = s_MC if grad_s is None else as_rows(grad_s)
    grad_x = torch.empty(s.shape, dtype=s.dtype, device=s.device)
    rows, C = s_MC.shape
    if not grad_x.numel():
        return grad_x, torch.zeros_like(weight) if weight_grad else None
    BLOCK_M, BLOCK_C, num_warps, rows_per_program = _backward_tiles(rows, C)
    programs = triton.cdiv(rows, rows_per_program)
    # Without a gradient of the weight the kernel never touches it.
    partial = torch.empty((programs if weight_grad else 0, C), dtype=torch.float32, device=s.device)
    strides = s_MC.stride(0), grad_y_MC.stride(0), grad_s_MC.stride(0)
    constexprs = C, grad_s is not None, weight_grad
    _backward_kernel[(programs,)](
        *(s_MC, weight, grad_y_MC, grad_s_MC, grad_x, partial),
        *(rows, rows_per_program, *strides, eps),
        *(*constexprs, BLOCK_M, BLOCK_C),
        num_warps=num_warps,
    )
    return grad_x, partial.sum(0).to(weight.dtype) if weight_grad else None


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, residual, eps):
        weight = weight.contiguous()
        y, s = _launch_forward(x, weight, residual, eps)
        ctx.save_for_backward(s, weight)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        return y, None if residual is None else s

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y, grad_s):
        s, weight = ctx.saved_tensors
        grad_x, grad_weight = grad_s, None
        if grad_y is not None:
            grad_x, grad_weight = _launch_backward(
                s, weight, grad_y, grad_s, ctx.eps, ctx.needs_input_grad[1]
            )
        return grad_x, grad_weight, grad_x if ctx.needs_input_grad[2] else None, None


def _rms_norm_triton(
    x: Tensor, weight: Tensor, residual: Tensor | None = None, *, eps: float = 1e-6
) -> Tensor | tuple[Tensor, Tensor]:
    check_devices(x=x, weight=weight, residual=residual)
    check_dtype("x", x)
    check_dtype("weight", weight)
    if x.shape[-1] > MAX_WIDTH:
        raise ValueError(f"x: the Triton kernel takes C up to {MAX_WIDTH}, got {x.shape[-1]}")
    y, s = _RMSNorm.apply(x, weight, residual, eps)
    return y if residual is None else (y, s)


_RMS_NORM = {
    "reference": rms_norm_ref,
    "cpp": rms_norm_cpp,
    "cpp_grad": rms_norm_cpp_grad,
    "triton": _rms_norm_triton,
}


def aot_variants() -> list[Variant]:
    """The training form, which has every branch, at the widths of videoar-4b, -l and -xl."""
    ptrs = ("x_ptr", "residual_ptr", "weight_ptr", "y_ptr", "s_ptr")
    back_ptrs = ("s_ptr", "weight_ptr", "grad_y_ptr", "grad_s_ptr", "grad_x_ptr")
    strides = ("stride_xm", "stride_rm")
    back_strides = ("stride_sm", "stride_ym", "stride_gm")
    sizes = {"rows": "i32", "eps": "fp32"}
    forward = dict.fromkeys(ptrs, "*bf16") | dict.fromkeys(strides, "i32") | sizes
    backward = dict.fromkeys(back_ptrs, "*bf16") | dict.fromkeys(back_strides, "i32") | sizes
    variants = []
    for preset, C in (("4b", 2560), ("l", 1536), ("xl", 2048)):
        BLOCK_M, BLOCK_C, num_warps = _tiles(4096, C)
        tiles = {"C": C, "BLOCK_M": BLOCK_M, "BLOCK_C": BLOCK_C}
        back_warps = _backward_tiles(4096, C)[2]
        variants += [
            Variant(
                name=f"rms_norm_forward-{preset}",
                kernel=_forward_kernel,
                signature=forward,
                constexprs=tiles | {"HAS_RESIDUAL": True},
                divisible=ptrs + strides,
                num_warps=num_warps,
                vector_bytes=16,
            ),
            Variant(
                name=f"rms_norm_backward-{preset}",
                kernel=_backward_kernel,
                signature=backward | {"partial_ptr": "*fp32", "rows_per_program": "i32"},
                constexprs=tiles | {"HAS_GRAD_S": True, "WEIGHT_GRAD": True},
                divisible=(*back_ptrs, "partial_ptr", *back_strides),
                num_warps=back_warps,
                vector_bytes=16,
            ),
        ]
    return variants
