"""GroupNorm of each frame by itself, with SiLU behind it.

    n = (x - mean) / sqrt(var + eps) * weight + bias        y = n * sigmoid(n)

(arXiv 1803.08494, Eq. 1; no statistics over time, arXiv 2601.05966, section 3). Axes: T frames, H,
W, C channels, which lie side by side. Mean and variance are those of a frame's H W cells and the
C / G channels of a group. Everything is float32 inside, and only y is rounded. Bytes that must
move: x twice, unless a frame stays in the cache, and y once.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from videoar.kernels.dispatch import refuse_recording, select
from videoar.kernels.group_norm_silu_cpp import group_norm_silu_cpp
from videoar.kernels.jit import jit, pdl_options, tl, triton, wait_then_release
from videoar.kernels.rows import check_devices, check_dtype
from videoar.kernels.variant import Variant

TILE = 4096
NUM_WARPS = 4
# Tiles one after the other in a program of the sums, whose bytes are then a 32nd of bf16 input.
TILES_OF_SUMS = 4


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    *,
    eps: float = 1e-6,
    out: Tensor | None = None,
) -> Tensor:
    """silu(group_norm(x)), frame by frame.

    Args:
        x: `[T,H,W,C]`, floating. The kernels read frames at any distance and copy x where the axes
            of a frame are strided. On a GPU: float32, float16 or bfloat16.
        weight: `[C]`, floating.
        bias: as `weight`.
        groups: G, a divisor of C.
        eps: added to the variance.
        out: None, or where y goes: of the shape and dtype of `x`, each frame contiguous; may be
            `x` itself.

    Returns:
        y, in the shape and dtype of `x`; `out` if it was given.

    Raises:
        ValueError: a shape, dtype or stride that does not fit, or on a GPU a gradient to be
            recorded, naming the argument.
    """
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(f"x: expected floating [T,H,W,C], got {x.dtype} {list(x.shape)}")
    channels = x.shape[3]
    if not isinstance(groups, int) or groups < 1 or channels % groups:
        raise ValueError(f"groups: expected a divisor of {channels} channels, got {groups!r}")
    for name, t in {"weight": weight, "bias": bias}.items():
        if tuple(t.shape) != (channels,) or not t.is_floating_point():
            raise ValueError(
                f"{name}: expected floating [{channels}], got {t.dtype} {list(t.shape)}"
            )
    if out is not None:
        _check_out(out, x)
    serve = select("group_norm_silu", x, _GROUP_NORM_SILU, weight=weight, bias=bias, out=out)
    return serve(x, weight, bias, groups, eps=eps, out=out)


def group_norm_silu_ref(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, *, eps: float, out: Tensor | None
) -> Tensor:
    """Plain PyTorch twin of `group_norm_silu`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    x_TCHW = x.to(wide).movedim(3, 1)
    n = F.group_norm(x_TCHW, groups, weight.to(wide), bias.to(wide), eps)
    y = F.silu(n).movedim(1, 3).to(x.dtype)
    return y.contiguous() if out is None else out.copy_(y)


@jit
def _pivot(frame_ptr, offs_c, mask_c, pixels, C: tl.constexpr):
    """Per channel, about where its values are: the median of three cells, for an outlier is none.

    Sums of distances from it: those from 0 would leave nothing of the variance around a far mean.
    """
    first = tl.load(frame_ptr + offs_c, mask_c, other=0.0).to(tl.float32)
    middle_ptr = frame_ptr + (pixels // 2).to(tl.int64) * C
    middle = tl.load(middle_ptr + offs_c, mask_c, other=0.0).to(tl.float32)
    last_ptr = frame_ptr + (pixels - 1).to(tl.int64) * C
    last = tl.load(last_ptr + offs_c, mask_c, other=0.0).to(tl.float32)
    low, high = tl.minimum(first, middle), tl.maximum(first, middle)
    return tl.maximum(low, tl.minimum(high, last))


@jit
def _sums_kernel(
    x_ptr,
    sums_ptr,
    pixels,
    chunks,
    stride_xt,
    C: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PDL: tl.constexpr = False,
):
    """Per channel, sums of d and d^2 over one chunk of a frame's cells: `[T, chunks, 2, C]`.

    d is the distance from the frame's pivot. Bytes: x once.
    """
    if PDL:
        wait_then_release()
    item = tl.program_id(0).to(tl.int64)
    offs_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = offs_c < C
    frame_ptr = x_ptr + item // chunks * stride_xt
    pivot = _pivot(frame_ptr, offs_c, mask_c, pixels, C)
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    first = item % chunks * (TILES * BLOCK_P)
    for tile in range(TILES):
        offs_p = first + tile * BLOCK_P + tl.arange(0, BLOCK_P)
        mask = (offs_p < pixels)[:, None] & mask_c[None, :]
        x = tl.load(frame_ptr + offs_p[:, None] * C + offs_c[None, :], mask, other=0.0)
        d = tl.where(mask, x.to(tl.float32) - pivot[None, :], 0.0)
        total += d
        squares += d * d
    out_ptr = sums_ptr + item * (2 * C) + offs_c
    tl.store(out_ptr, tl.sum(total, 0), mask_c)
    tl.store(out_ptr + C, tl.sum(squares, 0), mask_c)


@jit
def _affine_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    sums_ptr,
    affine_ptr,
    pixels,
    chunks,
    stride_xt,
    eps,
    C: tl.constexpr,
    MEMBERS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PDL: tl.constexpr = False,
):
    """Scale and shift `[T, 2, C]` of one frame's group, from the sums of its chunks.

    Around the group's mean m a channel with mean m_c has sum((x - m)^2) = M2_c + n (m_c - m)^2.
    """
    if PDL:
        wait_then_release()
    frame = tl.program_id(0).to(tl.int64)
    offs_m = tl.arange(0, BLOCK_M)
    mask_m = offs_m < MEMBERS
    offs_c = tl.program_id(1) * MEMBERS + offs_m
    pivot = _pivot(x_ptr + frame * stride_xt, offs_c, mask_m, pixels, C)
    total = tl.zeros((BLOCK_M,), tl.float32)
    squares = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, chunks, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K)
        mask = (offs_k < chunks)[:, None] & mask_m[None, :]
        ptrs = sums_ptr + (frame * chunks + offs_k[:, None]) * (2 * C) + offs_c[None, :]
        total += tl.sum(tl.load(ptrs, mask, other=0.0), 0)
        squares += tl.sum(tl.load(ptrs + C, mask, other=0.0), 0)
    offset = total / pixels
    mean = tl.sum(tl.where(mask_m, pivot + offset, 0.0), 0) / MEMBERS
    distance = tl.where(mask_m, pivot + offset - mean, 0.0)
    spread = tl.sum(squares - total * offset + pixels * distance * distance, 0)
    # A NaN must stay one, so that no maximum is taken: rounding alone makes the sum negative.
    variance = tl.where(spread < 0, 0.0, spread / (pixels * MEMBERS))
    scale = tl.load(weight_ptr + offs_c, mask_m, other=0.0).to(tl.float32) * tl.rsqrt(
        variance + eps
    )
    bias = tl.load(bias_ptr + offs_c, mask_m, other=0.0).to(tl.float32)
    out_ptr = affine_ptr + frame * (2 * C) + offs_c
    tl.store(out_ptr, scale, mask_m)
    tl.store(out_ptr + C, bias - mean * scale, mask_m)


@jit
def _apply_kernel(
    x_ptr,
    affine_ptr,
    y_ptr,
    pixels,
    blocks_p,
    stride_xt,
    stride_yt,
    C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PDL: tl.constexpr = False,
):
    """y = silu(x * scale + shift). Bytes: 2 elements a value."""
    if PDL:
        wait_then_release()
    item = tl.program_id(0).to(tl.int64)
    frame = item // blocks_p
    offs_p = item % blocks_p * BLOCK_P + tl.arange(0, BLOCK_P)
    offs_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = offs_c < C
    mask = (offs_p < pixels)[:, None] & mask_c[None, :]
    offs = offs_p[:, None] * C + offs_c[None, :]
    scale = tl.load(affine_ptr + frame * (2 * C) + offs_c, mask_c, other=0.0)
    shift = tl.load(affine_ptr + frame * (2 * C) + C + offs_c, mask_c, other=0.0)
    x = tl.load(x_ptr + frame * stride_xt + offs, mask, other=0.0)
    n = x.to(tl.float32) * scale[None, :] + shift[None, :]
    tl.store(y_ptr + frame * stride_yt + offs, (n * tl.sigmoid(n)).to(x.dtype), mask)


def _tiles(channels: int) -> tuple[int, int]:
    """BLOCK_P, BLOCK_C: rows of at most 128 channels, 32 values a thread."""
    BLOCK_C = min(max(16, 1 << (channels - 1).bit_length()), 128)
    return TILE // BLOCK_C, BLOCK_C


def _affine_tiles(members: int) -> tuple[int, int]:
    """BLOCK_K, BLOCK_M: all channels of a group, 1,024 sums at a time."""
    BLOCK_M = max(1, 1 << (members - 1).bit_length())
    return max(1, 1024 // BLOCK_M), BLOCK_M


def _group_norm_silu_triton(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, *, eps: float, out: Tensor | None
) -> Tensor:
    check_devices(x=x, weight=weight, bias=bias, out=out)
    refuse_recording("group_norm_silu", x=x, weight=weight, bias=bias)
    for name, t in {"x": x, "weight": weight, "bias": bias}.items():
        check_dtype(name, t)
    if not x[:1].is_contiguous():
        x = x.contiguous()
    weight, bias = weight.contiguous(), bias.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    if not x.numel():
        return out
    frames, height, width, C = x.shape
    pixels = height * width
    BLOCK_P, BLOCK_C = _tiles(C)
    chunks, blocks_p = triton.cdiv(pixels, TILES_OF_SUMS * BLOCK_P), triton.cdiv(pixels, BLOCK_P)
    blocks_c = triton.cdiv(C, BLOCK_C)
    sums = torch.empty(frames, chunks, 2, C, dtype=torch.float32, device=x.device)
    affine = torch.empty(frames, 2, C, dtype=torch.float32, device=x.device)
    strides, options = (x.stride(0), out.stride(0)), pdl_options(x.device)
    _sums_kernel[(frames * chunks, blocks_c)](
        *(x, sums, pixels, chunks, strides[0], C, TILES_OF_SUMS, BLOCK_P, BLOCK_C),
        num_warps=NUM_WARPS,
        **options,
    )
    _affine_kernel[(frames, groups)](
        *(x, weight, bias, sums, affine, pixels, chunks, strides[0], eps),
        *(C, C // groups, *_affine_tiles(C // groups)),
        num_warps=NUM_WARPS,
        **options,
    )
    _apply_kernel[(frames * blocks_p, blocks_c)](
        *(x, affine, out, pixels, blocks_p, *strides, C, BLOCK_P, BLOCK_C),
        num_warps=NUM_WARPS,
        **options,
    )
    return out


_GROUP_NORM_SILU = {
    "reference": group_norm_silu_ref,
    "cpp": group_norm_silu_cpp,
    "triton": _group_norm_silu_triton,
}


def aot_variants() -> list[Variant]:
    """The three kernels at the fewest and the most channels of the tokenizer's maps."""
    variants = []
    for C in (128, 512):
        BLOCK_P, BLOCK_C = _tiles(C)
        tiles = {"C": C, "BLOCK_P": BLOCK_P, "BLOCK_C": BLOCK_C}
        members = C // 32
        BLOCK_K, BLOCK_M = _affine_tiles(members)
        sums = {"x_ptr": "*bf16", "sums_ptr": "*fp32", "pixels": "i32", "chunks": "i32"}
        affine = {"x_ptr": "*bf16", "weight_ptr": "*fp32", "bias_ptr": "*fp32"}
        affine |= {"sums_ptr": "*fp32", "affine_ptr": "*fp32", "pixels": "i32", "chunks": "i32"}
        apply = {"x_ptr": "*bf16", "affine_ptr": "*fp32", "y_ptr": "*bf16", "pixels": "i32"}
        strides = ("stride_xt", "stride_yt")
        variants += [
            Variant(
                name=f"group_norm_silu_sums-{C}",
                kernel=_sums_kernel,
                signature=sums | {"stride_xt": "i32"},
                constexprs=tiles | {"TILES": TILES_OF_SUMS},
                divisible=("x_ptr", "sums_ptr", "pixels", "stride_xt"),
                num_warps=NUM_WARPS,
            ),
            Variant(
                name=f"group_norm_silu_affine-{C}",
                kernel=_affine_kernel,
                signature=affine | {"stride_xt": "i32", "eps": "fp32"},
                constexprs={"C": C, "MEMBERS": members, "BLOCK_K": BLOCK_K, "BLOCK_M": BLOCK_M},
                num_warps=NUM_WARPS,
            ),
            Variant(
                name=f"group_norm_silu_apply-{C}",
                kernel=_apply_kernel,
                signature=apply | {"blocks_p": "i32"} | dict.fromkeys(strides, "i32"),
                constexprs=tiles,
                divisible=("x_ptr", "affine_ptr", "y_ptr", "pixels", *strides),
                num_warps=NUM_WARPS,
                vector_bytes=16,
            ),
        ]
    return variants


def _check_out(out: Tensor, x: Tensor) -> None:
    if out.shape != x.shape or out.dtype != x.dtype:
        raise ValueError(
            f"out: expected {x.dtype} {list(x.shape)}, got {out.dtype} {list(out.shape)}"
        )
    if not out[:1].is_contiguous():
        raise ValueError(f"out: expected contiguous frames, got strides {out.stride()}")
    if len(out) > 1 and out.stride(0) < out[0].numel():
        raise ValueError(f"out: frames overlap in memory, got strides {out.stride()}")
