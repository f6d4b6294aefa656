"""The Triton kernel of `bsq_quantize` for small grids: every resampling is a matrix product.

In units of 1/sqrt(d) the running reconstruction is A = sum_k U_k s_k, where s_k = 2 bits_k - 1 and
U_k [HW, n_k] brings scale k to the latent grid. With the matrices D_k of the averages, up to their
counts c_k, and R_k of the transformer's inputs

    y_k = (D_k x - D_k A / sqrt(d)) / c_k      bits_k = [y_k > 0] ^ flips
    inputs_k = R_k A / sqrt(d)                 A += U_k s_k

What decides about a bit is exact up to the sums: where both sides of the grid are powers of two up
to 8, bilinear weights are multiples of 1/256, so U_k and A, which is at most K, fit float16; D_k is
0 and 1; x is split into three bfloat16 parts. R_k has two float16 parts. A program has one frame
and up to 32 channels, which are columns, and keeps A in registers.

Bytes that must move are those of `bsq_quantize_triton`, plus the matrices, 64 KB for 8 x 8, which
stay in the caches. About 52,000 multiplications a map of 8 x 8 and 130 tokens.
"""

from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from videoar.kernels.jit import interpreted, jit, tl, triton
from videoar.kernels.resample_matrix import resample_matrix
from videoar.kernels.variant import Variant

Sizes = tuple[tuple[int, int], ...]


@jit
def store_bits(y, offs, mask, flips_ptr, targets_ptr, bits_ptr, scale_inputs_ptr):
    """[y > 0] ^ flips, with all that is written of it: targets, bits, and y where asked for."""
    bit = (y > 0).to(tl.uint8)
    tl.store(targets_ptr + offs, bit, mask=mask)
    if flips_ptr is not None:
        bit = bit ^ tl.load(flips_ptr + offs, mask=mask, other=0)
    tl.store(bits_ptr + offs, bit, mask=mask)
    if scale_inputs_ptr is not None:
        tl.store(scale_inputs_ptr + offs, y, mask=mask)
    return bit


@jit
def _inputs(matrix_ptrs, stride_matrix, seen):
    """R A of the rows of D at `matrix_ptrs`, whose two parts lie behind it."""
    value = tl.dot(tl.load(matrix_ptrs + stride_matrix), seen)
    return tl.dot(tl.load(matrix_ptrs + 2 * stride_matrix), seen, value)


@jit
def _quantize_scale(
    total,
    x,
    rows,
    matrix_ptr,
    stride_matrix,
    count_ptr,
    token_ptr,
    flips_ptr,
    targets_ptr,
    bits_ptr,
    inputs_ptr,
    scale_inputs_ptr,
    offs_d,
    mask_d,
    num_bits,
    code,
    told,
    CELLS: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """A [HW, C] behind a scale whose tokens are rows of the tables; see the file's head."""
    cells = tl.arange(0, CELLS)
    matrix_ptrs = matrix_ptr + rows[:, None] * CELLS + cells[None, :]
    average = tl.load(matrix_ptrs)
    if SPLIT:
        high = x.to(tl.bfloat16)
        rest = x - high.to(tl.float32)
        middle = rest.to(tl.bfloat16)
        low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
        y = tl.dot(average.to(tl.bfloat16), high)
        y = tl.dot(average.to(tl.bfloat16), middle, y)
        y = tl.dot(average.to(tl.bfloat16), low, y)
    else:
        y = tl.dot(average.to(tl.float32), x, input_precision="ieee")
    seen = total.to(tl.float16)
    y = (y - code * tl.dot(average, seen)) / tl.load(count_ptr + rows)[:, None]
    token = tl.load(token_ptr + rows)
    mask = (token >= 0)[:, None] & mask_d[None, :]
    offs = token[:, None] * num_bits + offs_d[None, :]
    bit = store_bits(y, offs, mask, flips_ptr, targets_ptr, bits_ptr, scale_inputs_ptr)
    if inputs_ptr is not None:
        value = _inputs(matrix_ptrs, stride_matrix, seen)
        tl.store(inputs_ptr + offs, value * code, mask=mask & told)
    up = tl.load(matrix_ptr + 3 * stride_matrix + rows[None, :] * CELLS + cells[:, None])
    return tl.dot(up, tl.where(bit != 0, 1.0, -1.0).to(tl.float16), total)


@jit
def bsq_quantize_dot_kernel(
    x_ptr,
    matrix_ptr,
    count_ptr,
    token_ptr,
    flips_ptr,
    targets_ptr,
    bits_ptr,
    out_ptr,
    inputs_ptr,
    scale_inputs_ptr,
    stride_matrix,
    num_tokens,
    num_bits,
    num_frames,
    code,
    stride_xb,
    stride_xd,
    stride_xt,
    stride_xn,
    STARTS: tl.constexpr,
    LENGTHS: tl.constexpr,
    CELLS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """All scales of one frame and BLOCK_D channels; formulas at the file's head."""
    blocks_d = tl.cdiv(num_bits, BLOCK_D)
    index = tl.program_id(0) // blocks_d
    m, frame = index.to(tl.int64), index % num_frames
    first_d = (tl.program_id(0) % blocks_d) * BLOCK_D
    offs_d, cells = tl.arange(0, BLOCK_D), tl.arange(0, CELLS)
    mask_d = offs_d < num_bits - first_d
    x_ptr += (index // num_frames).to(tl.int64) * stride_xb + frame.to(tl.int64) * stride_xt
    x_ptr += first_d.to(tl.int64) * stride_xd
    offs_x = (offs_d * stride_xd)[:, None] + (cells * stride_xn)[None, :]
    x = tl.trans(tl.load(x_ptr + offs_x, mask=mask_d[:, None], other=0.0).to(tl.float32))
    first_bit = m * num_tokens * num_bits + first_d
    targets_ptr += first_bit
    bits_ptr += first_bit
    if flips_ptr is not None:
        flips_ptr += first_bit
    if inputs_ptr is not None:
        inputs_ptr += first_bit
    if scale_inputs_ptr is not None:
        scale_inputs_ptr += first_bit

    total = tl.zeros((CELLS, BLOCK_D), dtype=tl.float32)
    for k in tl.static_range(len(STARTS)):
        rows = STARTS[k] + tl.arange(0, LENGTHS[k])
        total = _quantize_scale(
            total, x, rows, matrix_ptr, stride_matrix, count_ptr, token_ptr, flips_ptr,
            targets_ptr, bits_ptr, inputs_ptr, scale_inputs_ptr, offs_d, mask_d, num_bits, code,
            (k > 0) | (frame == 0), CELLS, SPLIT,
        )  # fmt: skip

    # The last scale is the latent grid itself.
    known = total * code
    offs = (num_tokens - CELLS + cells)[:, None] * num_bits + offs_d[None, :]
    mask = tl.broadcast_to(mask_d[None, :], (CELLS, BLOCK_D))
    if inputs_ptr is not None:
        tl.store(inputs_ptr + offs, known, mask=mask)
    y = x - known
    bit = store_bits(y, offs, mask, flips_ptr, targets_ptr, bits_ptr, scale_inputs_ptr)
    total += tl.where(bit != 0, 1.0, -1.0)
    out_ptr += (m * num_bits + first_d) * CELLS
    cells_out = offs_d[None, :] * CELLS + cells[:, None]
    tl.store(out_ptr + cells_out, (total * code).to(out_ptr.dtype.element_ty), mask=mask)
    if inputs_ptr is not None:
        # The next frame's first scale starts from this frame; the last frame has none to start.
        rows = tl.arange(0, LENGTHS[0])
        matrix_ptrs = matrix_ptr + rows[:, None] * CELLS + cells[None, :]
        value = _inputs(matrix_ptrs, stride_matrix, total.to(tl.float16))
        token = tl.load(token_ptr + rows)
        mask = (token >= 0)[:, None] & mask_d[None, :] & (frame + 1 < num_frames)
        offs = (num_tokens + token)[:, None] * num_bits + offs_d[None, :]
        tl.store(inputs_ptr + offs, value * code, mask=mask)


def serves(sizes: Sizes) -> bool:
    """Whether the products are exact for these scales, and worth a matrix instruction."""
    height, width = sizes[-1]
    powers = all(side in (1, 2, 4, 8) for side in (height, width))
    return powers and height * width >= 16 and 2 <= len(sizes) <= 8


def _rows(sizes: Sizes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """First row of the tables and number of rows, for all scales but the last."""
    lengths = tuple(max(16, triton.next_power_of_2(h * w)) for h, w in sizes[:-1])
    return (0, *accumulate(lengths[:-1])), lengths


@lru_cache(maxsize=64)
def _tables(sizes: Sizes, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """float16 [4, T, HW]: D, R in two parts, U transposed; counts [T]; tokens [T], -1: none."""
    height, width = sizes[-1]
    starts, lengths = _rows(sizes)
    with torch.inference_mode(False):
        matrices = torch.zeros(4, sum(lengths), height * width, dtype=torch.float64, device="cpu")
        counts = torch.ones(sum(lengths), dtype=torch.float64, device="cpu")
        tokens = torch.full((sum(lengths),), -1, dtype=torch.int32, device="cpu")
        token = 0

        def both(h: int, w: int, mode: str, up: bool = False) -> Tensor:
            sides = ((h, height), (w, width)) if up else ((height, h), (width, w))
            one, other = (resample_matrix(*side, mode).double() for side in sides)
            return torch.kron(one.contiguous(), other.contiguous())

        for (h, w), row in zip(sizes[:-1], starts, strict=True):
            here = slice(row, row + h * w)
            average = both(h, w, "area")
            counts[here] = (average != 0).sum(1)
            matrices[0, here] = average != 0
            inputs = both(h, w, "bilinear")
            matrices[1, here] = inputs.half().double()
            matrices[2, here] = inputs - matrices[1, here]
            matrices[3, here] = both(h, w, "bilinear", up=True).T
            tokens[here] = torch.arange(token, token + h * w, device="cpu")
            token += h * w
        return matrices.half().to(device), counts.float().to(device), tokens.to(device)


def bsq_quantize_dot_tiles(dim: int) -> tuple[int, int]:
    """Columns of a program, 16 for a matrix instruction or 32, and warps; 64 columns spill."""
    return (16 if dim <= 16 else 32), 4


def launch_dot(
    x: Tensor,
    flips: Tensor | None,
    sizes: Sizes,
    targets: Tensor,
    bits: Tensor,
    out: Tensor,
    inputs: Tensor | None,
    scale_inputs: Tensor | None,
) -> None:
    """Quantise `[B,d,T,H,W]` where `serves(sizes)`, into tensors as `_launch` makes them."""
    batch, dim, frames, _, width = x.shape
    if x.stride(3) != width * x.stride(4):
        x = x.contiguous()
    matrices, counts, tokens = _tables(sizes, x.device)
    starts, lengths = _rows(sizes)
    block_d, num_warps = bsq_quantize_dot_tiles(dim)
    bsq_quantize_dot_kernel[(batch * frames * triton.cdiv(dim, block_d),)](
        x,
        matrices,
        counts,
        tokens,
        flips,
        targets,
        bits,
        out,
        inputs,
        scale_inputs,
        matrices.stride(0),
        sum(h * w for h, w in sizes),
        dim,
        frames,
        dim**-0.5,
        *x.stride()[:3],
        x.stride(4),
        STARTS=starts,
        LENGTHS=lengths,
        CELLS=x.shape[3] * width,
        BLOCK_D=block_d,
        SPLIT=not interpreted(),
        num_warps=num_warps,
        num_stages=1,
    )


def aot_variants() -> list[Variant]:
    """The scales of `videoar-l`, error correction with inputs, float32 as training calls it."""
    starts, lengths = _rows(tuple((side, side) for side in (1, 2, 3, 4, 6, 8)))
    block_d, num_warps = bsq_quantize_dot_tiles(48)
    pointers = {
        **dict.fromkeys(("x_ptr", "count_ptr", "out_ptr", "inputs_ptr"), "*fp32"),
        **dict.fromkeys(("flips_ptr", "targets_ptr", "bits_ptr"), "*u8"),
        "matrix_ptr": "*fp16",
        "token_ptr": "*i32",
        "scale_inputs_ptr": "*fp32",
    }
    strides = ("stride_matrix", "stride_xb", "stride_xd", "stride_xt")
    integers = dict.fromkeys(("num_tokens", "num_bits", "num_frames", *strides), "i32")
    return [
        Variant(
            name="bsq_quantize_dot",
            kernel=bsq_quantize_dot_kernel,
            signature=pointers | integers | {"code": "fp32"},
            constexprs={
                "stride_xn": 1,
                "STARTS": starts,
                "LENGTHS": lengths,
                "CELLS": 64,
                "BLOCK_D": block_d,
                "SPLIT": True,
            },
            divisible=(*pointers, "num_bits", *strides),
            num_warps=num_warps,
            num_stages=1,
            expects_mma=True,
        )
    ]
