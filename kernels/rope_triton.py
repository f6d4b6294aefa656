"""What the forward and backward kernels of `qk_norm_rope` share: angles, tiles, layouts."""

from functools import cache

import torch
from torch import Tensor

from videoar.kernels.jit import jit, tl, triton

# Pairs of channels in a tile: 8 for each of 128 threads, two 16-byte loads of bfloat16.
TILE_PAIRS = 1024


@jit
def cos_sin(
    position_ptr,
    stride_pa,
    frequency_ptr,
    mask_t,
    SECTION_T: tl.constexpr,
    SECTION_H: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Cosine and sine of position[axis(i)] * frequency_i, `[BLOCK_T, BLOCK_P]`.

    By polynomials of at most 1 ulp (those of Cephes), since the library's sine keeps a stack for
    huge angles. Quarter turns are taken off first, pi / 2 being split into three parts whose
    products with the number of quarters are exact up to 2^15 of them.
    """
    offs_p = tl.arange(0, BLOCK_P)
    # Read as a whole tile, that is, as the rows to be turned are: from a vector the compiler would
    # make a layout with 8 tokens a thread, each with its own positions and divisions.
    offs = tl.zeros((mask_t.shape[0], 1), tl.int32) + offs_p[None, :]
    frequency = tl.load(frequency_ptr + offs, mask=offs < PAIRS, other=0.0)
    time = tl.load(position_ptr, mask=mask_t, other=0).to(tl.float32)
    height = tl.load(position_ptr + stride_pa, mask=mask_t, other=0).to(tl.float32)
    width = tl.load(position_ptr + 2 * stride_pa, mask=mask_t, other=0).to(tl.float32)
    side = tl.where((offs_p < SECTION_T + SECTION_H)[None, :], height[:, None], width[:, None])
    position = tl.where((offs_p < SECTION_T)[None, :], time[:, None], side)
    angle = position * frequency
    quarters = tl.floor(angle * 0.6366197723675814 + 0.5)
    x = angle - quarters * 1.5703125
    x = x - quarters * 0.00048351287841796875
    x = x - quarters * 3.139164786504813e-07
    square = x * x
    sin = square * -1.9515295891e-4 + 8.3321608736e-3
    sin = x + x * square * (square * sin - 1.6666654611e-1)
    cos = square * 2.443315711809948e-5 - 1.388731625493765e-3
    cos = 1.0 - 0.5 * square + square * square * (square * cos + 4.166664568298827e-2)
    quadrant = quarters.to(tl.int32)
    swap = (quadrant & 1) != 0
    sin, cos = tl.where(swap, cos, sin), tl.where(swap, sin, cos)
    cos = tl.where(((quadrant + 1) & 2) != 0, -cos, cos)
    return cos, tl.where((quadrant & 2) != 0, -sin, sin)


@jit
def store_pairs(row, first, second, mask, PAIRS: tl.constexpr, BLOCK_P: tl.constexpr):
    """Both halves of the rows, in the dtype they are stored in."""
    ptrs = row[:, None] + tl.arange(0, BLOCK_P)[None, :]
    tl.store(ptrs, first.to(row.dtype.element_ty), mask=mask)
    tl.store(ptrs + PAIRS, second.to(row.dtype.element_ty), mask=mask)


def qk_norm_rope_tiles(tokens: int, width: int) -> tuple[int, int, int]:
    """Tokens and pairs of a tile, and warps, for `tokens` tokens of heads of `width`."""
    block_p = triton.next_power_of_2(width // 2)
    block_t = min(max(TILE_PAIRS // block_p, 1), triton.next_power_of_2(max(tokens, 1)))
    return block_t, block_p, min(max(block_t * block_p // 256, 1), 4)


# Kept for good: captured graphs read the table where it is.
@cache
def rope_frequencies(pairs: int, theta: float, device: torch.device) -> Tensor:
    """theta^(-i / pairs), float32, computed in float64 once."""
    # A table kept from inside inference mode could not be saved for a backward pass later.
    with torch.inference_mode(False):
        exponents = torch.arange(pairs, dtype=torch.float64, device="cpu") / pairs
        return (theta**-exponents).float().to(device)


def unit_stride(x: Tensor) -> Tensor:
    """x, copied if its last axis is strided."""
    return x if x.stride(-1) == 1 else x.contiguous()


def like_tokens(x_BHLD: Tensor) -> Tensor:
    """Empty, of the shape of x, laid out as `[B,L,H,D]`: what the projections read and write."""
    batch, heads, length, width = x_BHLD.shape
    return x_BHLD.new_empty(batch, length, heads, width).transpose(1, 2)


def position_strides(positions: Tensor) -> tuple[int, ...]:
    """Of the axes (row, token, axis); 0 for the row where all rows share their positions."""
    return positions.stride() if positions.dim() == 3 else (0, *positions.stride())
