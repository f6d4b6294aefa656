"""Cross-entropy of every bit, from two logits a bit.

    delta = logit_1 - logit_0        loss = softplus(-delta) if bit else softplus(delta)

which equals the two-class cross-entropy -log softmax(logit_0, logit_1)[bit] (the bitwise
classifier of arXiv 2412.04431; arXiv 2601.05966, Eq. 5). The difference and the loss are float32.
Axes: C model width, d bits a token, any axes in front. Bytes that must move: logits and bits once
forwards; both again and the gradient of the logits backwards. There is no float32 copy of the
logits.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, softplus

from videoar.kernels.bitwise_cross_entropy_cpp import bitwise_cross_entropy_cpp
from videoar.kernels.dispatch import select
from videoar.kernels.jit import jit, tl
from videoar.kernels.rows import as_rows, check_devices, check_dtype
from videoar.kernels.variant import Variant

REDUCTIONS = ("mean", "none")
# Bits of a program: eight a thread, sixteen logits.
TILE = 1024
NUM_WARPS = 4


def bitwise_cross_entropy(
    x: Tensor,
    bits: Tensor,
    weight: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Mean cross-entropy of the bits, in nats a bit.

    Args:
        x: hidden states `[..., C]` when `weight` is given, else logits `[..., 2d]`; floating. The
            logits of bit j are elements 2j (bit 0) and 2j + 1 (bit 1).
        bits: bool or uint8 `[..., d]`, targets.
        weight: output head `[2d, C]`, or None.
        mask: bool `[...]`, True where a token counts; None: everywhere.
        reduction: "mean" over the bits of the tokens that count (0 if there are none), or "none".

    Returns:
        float32 scalar, or float32 `[..., d]` with 0 at the tokens that do not count. (float64 for
        float64 inputs.)

    Raises:
        ValueError: a shape or dtype that does not fit, naming the argument.
    """
    _check(x, bits, weight, mask, reduction)
    others = {"bits": bits, "weight": weight, "mask": mask}
    implementation = select("bitwise_cross_entropy", x, _BITWISE_CROSS_ENTROPY, **others)
    return implementation(x, bits, weight, mask=mask, reduction=reduction)


def bitwise_cross_entropy_ref(
    x: Tensor,
    bits: Tensor,
    weight: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Plain PyTorch twin of `bitwise_cross_entropy`."""
    logits = x if weight is None else linear(x, weight.to(x.dtype))
    pairs = logits.to(torch.promote_types(logits.dtype, torch.float32)).unflatten(-1, (-1, 2))
    delta = pairs[..., 1] - pairs[..., 0]
    loss = softplus(torch.where(bits.bool(), -delta, delta))
    if mask is not None:
        loss = loss.masked_fill(~mask[..., None], 0)
    if reduction == "none":
        return loss
    # No token is a mean of 0, not 0 / 0.
    if mask is None:
        return loss.sum() / max(loss.numel(), 1)
    return loss.sum() / (mask.sum() * bits.shape[-1]).clamp(min=1)


@jit
def _load_tile(
    x_ptr,
    bits_ptr,
    mask_ptr,
    rows,
    d,
    stride_xm,
    stride_bm,
    HAS_MASK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The program's rows, bits and logits, which exist, which count, the sign of z and z itself.

    Tokens that do not count are read too: a mask from memory would split the wide loads.
    """
    blocks_d = tl.cdiv(d, BLOCK_D)
    pid = tl.program_id(0).to(tl.int64)
    offs_m = pid // blocks_d * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    offs_d = pid % blocks_d * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    exists = (offs_m < rows) & (offs_d < d)
    counts = exists
    if HAS_MASK:
        counts &= tl.load(mask_ptr + offs_m, offs_m < rows, other=0) != 0
    # As one run of logits, so that loads are 16 bytes wide; the pairs are split in registers.
    offs_x = pid % blocks_d * (2 * BLOCK_D) + tl.arange(0, 2 * BLOCK_D)[None, :]
    mask_x = (offs_m < rows) & (offs_x < 2 * d)
    logits = tl.load(x_ptr + offs_m * stride_xm + offs_x, mask_x, other=0.0).to(tl.float32)
    zero, one = tl.split(tl.reshape(logits, (BLOCK_M, BLOCK_D, 2)))
    bits = tl.load(bits_ptr + offs_m * stride_bm + offs_d, exists, other=0)
    sign = tl.where(bits != 0, -1.0, 1.0)
    return offs_m, offs_d, offs_x, exists, counts, sign, (one - zero) * sign


@jit
def _forward_kernel(
    x_ptr,
    bits_ptr,
    mask_ptr,
    loss_ptr,
    rows,
    d,
    stride_xm,
    stride_bm,
    HAS_MASK: tl.constexpr,
    MEAN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """loss = max(z, 0) + log(1 + e^-|z|), z = -delta if bit else delta; for MEAN the program's sum.

    Bytes a bit: two logits, one bit, and 4 for the loss unless MEAN.
    """
    offs_m, offs_d, _, exists, counts, _, z = _load_tile(
        x_ptr, bits_ptr, mask_ptr, rows, d, stride_xm, stride_bm, HAS_MASK, BLOCK_M, BLOCK_D
    )
    small = tl.exp(-tl.abs(z))
    # log(1 + small) without the cancellation of 1 + small: its rounding error is divided out.
    rounded = 1 + small
    excess = tl.where(rounded == 1, 1.0, rounded - 1)
    log1p = tl.where(rounded == 1, small, tl.log(rounded) * (small / excess))
    loss = tl.where(counts, tl.maximum(z, 0.0) + log1p, 0.0)
    if MEAN:
        tl.store(loss_ptr + tl.program_id(0), tl.sum(loss))
    else:
        tl.store(loss_ptr + offs_m * d + offs_d, loss, exists)


@jit
def _backward_kernel(
    x_ptr,
    bits_ptr,
    mask_ptr,
    grad_ptr,
    grad_x_ptr,
    rows,
    d,
    stride_xm,
    stride_bm,
    stride_gm,
    HAS_MASK: tl.constexpr,
    MEAN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """grad_logit_1 = grad (sigmoid(delta) - bit), grad_logit_0 = -grad_logit_1; both contiguous.

    For MEAN grad is one number, already divided by the count. Bytes a bit: two logits, one bit, two
    gradients, and 4 for grad unless MEAN.
    """
    offs_m, offs_d, offs_x, exists, counts, sign, z = _load_tile(
        x_ptr, bits_ptr, mask_ptr, rows, d, stride_xm, stride_bm, HAS_MASK, BLOCK_M, BLOCK_D
    )
    if MEAN:
        grad = tl.load(grad_ptr)
    else:
        grad = tl.load(grad_ptr + offs_m * stride_gm + offs_d, exists, other=0.0)
    grad = tl.where(counts, grad * sign * tl.sigmoid(z), 0.0)
    grad_x = tl.reshape(tl.join(-grad, grad), (BLOCK_M, 2 * BLOCK_D))
    mask_x = (offs_m < rows) & (offs_x < 2 * d)
    grad_x = grad_x.to(grad_x_ptr.dtype.element_ty)
    tl.store(grad_x_ptr + offs_m * (2 * d) + offs_x, grad_x, mask_x)


def _tiles(rows: int, d: int) -> tuple[int, int, int]:
    """BLOCK_M, BLOCK_D and programs: 1,024 bits a program, short tokens in groups."""
    BLOCK_D = min(max(16, 1 << (d - 1).bit_length()), TILE)
    BLOCK_M = TILE // BLOCK_D
    return BLOCK_M, BLOCK_D, -(-rows // BLOCK_M) * -(-d // BLOCK_D)


class _BitwiseCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bits, mask, mean):
        x_MD, bits_MD = as_rows(x), as_rows(bits).view(torch.uint8)
        mask_M = bits_MD if mask is None else mask.contiguous().view(torch.uint8)
        (rows, d), HAS_MASK = bits_MD.shape, mask is not None
        # Empty inputs have no programs, so a mean is 0 / 1.
        BLOCK_M, BLOCK_D, programs = _tiles(rows, d) if bits.numel() else (1, 1, 0)
        shape = (programs,) if mean else bits.shape
        loss = torch.empty(shape, dtype=torch.float32, device=x.device)
        if programs:
            strides, flags = (x_MD.stride(0), bits_MD.stride(0)), (HAS_MASK, mean)
            tensors = x_MD, bits_MD, mask_M, loss
            _forward_kernel[(programs,)](
                *tensors, rows, d, *strides, *flags, BLOCK_M, BLOCK_D, num_warps=NUM_WARPS
            )
        count = None
        if mean:
            if HAS_MASK:
                count = (mask.sum() * d).clamp(min=1)
            else:
                count = torch.full((), max(rows * d, 1), device=x.device)
            loss = loss.sum() / count
        ctx.save_for_backward(x, bits, mask, count)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, bits, mask, count = ctx.saved_tensors
        grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        if not grad_x.numel():
            return grad_x, None, None, None
        mean = count is not None
        x_MD, bits_MD = as_rows(x), as_rows(bits).view(torch.uint8)
        mask_M = bits_MD if mask is None else mask.contiguous().view(torch.uint8)
        grad = (grad / count).reshape(1, 1) if mean else as_rows(grad)
        BLOCK_M, BLOCK_D, programs = _tiles(*bits_MD.shape)
        strides, flags = [t.stride(0) for t in (x_MD, bits_MD, grad)], (mask is not None, mean)
        tensors = x_MD, bits_MD, mask_M, grad, grad_x
        _backward_kernel[(programs,)](
            *tensors, *bits_MD.shape, *strides, *flags, BLOCK_M, BLOCK_D, num_warps=NUM_WARPS
        )
        return grad_x, None, None, None


def _bitwise_cross_entropy_triton(
    x: Tensor,
    bits: Tensor,
    weight: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    check_dtype("x", x)
    logits = x if weight is None else linear(x, weight.to(x.dtype))
    return _BitwiseCrossEntropy.apply(logits, bits, mask, reduction == "mean")


_BITWISE_CROSS_ENTROPY = {
    "reference": bitwise_cross_entropy_ref,
    "cpp": bitwise_cross_entropy_cpp,
    "cpp_grad": bitwise_cross_entropy_cpp,
    "triton": _bitwise_cross_entropy_triton,
}


def aot_variants() -> list[Variant]:
    """Mean over the tokens of a batch with 48 bits each, as training calls it."""
    BLOCK_M, BLOCK_D, _ = _tiles(4096, 48)
    pointers = {"x_ptr": "*bf16", "bits_ptr": "*u8"}
    sizes = {"rows": "i32", "d": "i32", "stride_xm": "i32", "stride_bm": "i32"}
    constexprs = {"MEAN": True, "BLOCK_M": BLOCK_M, "BLOCK_D": BLOCK_D}
    variants = []
    for HAS_MASK in (True, False):
        suffix = "-mask" if HAS_MASK else ""
        masked = pointers | {"mask_ptr": "*u8"}
        divisible = (*masked, "d", "stride_xm", "stride_bm")
        variants += [
            Variant(
                name=f"bitwise_cross_entropy_forward{suffix}",
                kernel=_forward_kernel,
                signature=masked | {"loss_ptr": "*fp32"} | sizes,
                constexprs=constexprs | {"HAS_MASK": HAS_MASK},
                divisible=(*divisible, "loss_ptr"),
                num_warps=NUM_WARPS,
            ),
            Variant(
                name=f"bitwise_cross_entropy_backward{suffix}",
                kernel=_backward_kernel,
                signature=masked | {"grad_ptr": "*fp32", "grad_x_ptr": "*bf16"} | sizes,
                constexprs=constexprs | {"HAS_MASK": HAS_MASK, "stride_gm": 1},
                divisible=(*divisible, "grad_ptr", "grad_x_ptr"),
                num_warps=NUM_WARPS,
                vector_bytes=16,
            ),
        ]
    return variants


def _check(
    x: Tensor, bits: Tensor, weight: Tensor | None, mask: Tensor | None, reduction: str
) -> None:
    if x.dim() < 1 or not x.is_floating_point():
        raise ValueError(f"x: expected floating [..., C], got {x.dtype} {list(x.shape)}")
    fits = weight is None or (weight.dim() == 2 and weight.shape[1] == x.shape[-1])
    if not fits or (weight is not None and not weight.is_floating_point()):
        raise ValueError(
            f"weight: expected floating [2d, {x.shape[-1]}], "
            f"got {weight.dtype} {list(weight.shape)}"
        )
    classes = x.shape[-1] if weight is None else weight.shape[0]
    if classes % 2:
        name = "x" if weight is None else "weight"
        raise ValueError(f"{name}: expected two logits a bit, got {classes} logits")
    expected = (*x.shape[:-1], classes // 2)
    if tuple(bits.shape) != expected or bits.dtype not in (torch.bool, torch.uint8):
        raise ValueError(
            f"bits: expected bool or uint8 {list(expected)}, got {bits.dtype} {list(bits.shape)}"
        )
    if mask is not None and (mask.shape != x.shape[:-1] or mask.dtype != torch.bool):
        raise ValueError(
            f"mask: expected bool {list(x.shape[:-1])}, got {mask.dtype} {list(mask.shape)}"
        )
    check_devices(x=x, bits=bits, weight=weight, mask=mask)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {REDUCTIONS}, got {reduction!r}")
