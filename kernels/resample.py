"""Separable resampling of feature maps: area, bilinear and nearest, up and down.

    y[..., i, j] = sum_{p, q} A_h[i, p] x[..., p, q] A_w[j, q]

A_h and A_w are small matrices that depend on the two lengths only, so one rule serves every
grid. Their rows are bands: output i reads T_h neighbouring rows from the first that counts, and the
same holds for their transposes, so one kernel with two small tables is forward and adjoint of all
modes. `area` averages the source interval a target cell covers when shrinking (exact fractions),
`bilinear` is the align_corners=False form, both as in arXiv 2412.04431. Bytes that must move:
the input once, the output once.

Axes: M maps (all axes in front), H x W their grid, h x w the result's.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from videoar.kernels.dispatch import refuse_recording, select
from videoar.kernels.grids import is_grid
from videoar.kernels.jit import jit, tl, triton
from videoar.kernels.resample_cpp import resample_adjoint_cpp, resample_cpp
from videoar.kernels.resample_matrix import MODES, resample_matrix
from videoar.kernels.variant import Variant

# Maps of at most that many columns are resampled in registers.
MAX_COLUMNS = 128
# Rows that one launch counts, in 32 bits and up to the end of its last block.
MAX_ROWS = 2**31 - 2**13


@jit
def narrow_kernel(
    x_ptr,
    out_ptr,
    starts_h_ptr,
    weights_h_ptr,
    starts_w_ptr,
    weights_w_ptr,
    num_rows,
    height,
    height_out,
    stride_xm,
    stride_xh,
    stride_xw,
    WIDTH: tl.constexpr,
    WIDTH_OUT: tl.constexpr,
    TAPS_H: tl.constexpr,
    TAPS_W: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """out[m, i, j] = sum_b ww[j, b] sum_a wh[i, a] x[m, sh[i] + a, sw[j] + b].

    A program has rows of the result, those of all maps being one list. It sums whole rows of x,
    wide loads of neighbouring values, and takes the columns from registers: a row's values are all
    in one warp, so a gather is a shuffle for each 32 columns.
    """
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    offs_i, offs_j = tl.arange(0, BLOCK_I), tl.arange(0, BLOCK_J)
    mask_r, mask_j = rows < num_rows, offs_j < WIDTH_OUT
    m = rows // height_out
    i = rows - m * height_out
    start_h = tl.load(starts_h_ptr + i, mask=mask_r, other=0)
    x_row = x_ptr + m.to(tl.int64) * stride_xm
    part = tl.zeros((BLOCK_R, BLOCK_I), dtype=ACCUMULATE)
    for a in range(TAPS_H):
        weight = tl.load(weights_h_ptr + i * TAPS_H + a, mask=mask_r, other=0.0)
        # A band shorter than the table's width may end outside of the map.
        inside = mask_r & (start_h + a < height)
        x = tl.load(
            (x_row + (start_h + a).to(tl.int64) * stride_xh)[:, None]
            + (offs_i * stride_xw)[None, :],
            mask=inside[:, None] & (offs_i < WIDTH)[None, :],
            other=0.0,
        )
        part += weight[:, None].to(ACCUMULATE) * x.to(ACCUMULATE)
    start_w = tl.load(starts_w_ptr + offs_j, mask=mask_j, other=0)
    total = tl.zeros((BLOCK_R, BLOCK_J), dtype=ACCUMULATE)
    for b in range(TAPS_W):
        weight = tl.load(weights_w_ptr + offs_j * TAPS_W + b, mask=mask_j, other=0.0)
        column = tl.minimum(start_w + b, WIDTH - 1)
        taken = tl.gather(part, tl.broadcast_to(column[None, :], (BLOCK_R, BLOCK_J)), 1)
        total += weight[None, :].to(ACCUMULATE) * taken
    tl.store(
        out_ptr + rows.to(tl.int64)[:, None] * WIDTH_OUT + offs_j[None, :],
        total.to(out_ptr.dtype.element_ty),
        mask=mask_r[:, None] & mask_j[None, :],
    )


@jit
def wide_kernel(
    x_ptr,
    out_ptr,
    starts_h_ptr,
    weights_h_ptr,
    starts_w_ptr,
    weights_w_ptr,
    height,
    width,
    num_cells,
    width_out,
    cell_blocks,
    stride_xm,
    stride_xh,
    stride_xw,
    TAPS_H: tl.constexpr,
    TAPS_W: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """out[m, i, j] = sum_ab wh[i, a] ww[j, b] x[m, sh[i] + a, sw[j] + b], maps of any width.

    A program has a block of cells of one map. It reads T_h T_w values a cell, neighbours from
    cache; from memory x and out move once.
    """
    pid = tl.program_id(0)
    m = (pid // cell_blocks).to(tl.int64)
    offs_n = (pid % cell_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < num_cells
    i = offs_n // width_out
    j = offs_n % width_out
    start_h = tl.load(starts_h_ptr + i, mask=mask_n, other=0)
    start_w = tl.load(starts_w_ptr + j, mask=mask_n, other=0)
    total = tl.zeros((BLOCK_N,), dtype=ACCUMULATE)
    for a in range(TAPS_H):
        weight_h = tl.load(weights_h_ptr + i * TAPS_H + a, mask=mask_n, other=0.0)
        part = tl.zeros((BLOCK_N,), dtype=ACCUMULATE)
        for b in range(TAPS_W):
            weight_w = tl.load(weights_w_ptr + j * TAPS_W + b, mask=mask_n, other=0.0)
            # A band shorter than the table's width may end outside of the map.
            inside = mask_n & (start_h + a < height) & (start_w + b < width)
            offs = (start_h + a).to(tl.int64) * stride_xh + (start_w + b).to(tl.int64) * stride_xw
            x = tl.load(x_ptr + m * stride_xm + offs, mask=inside, other=0.0)
            part += weight_w.to(ACCUMULATE) * x.to(ACCUMULATE)
        total += weight_h.to(ACCUMULATE) * part
    tl.store(out_ptr + m * num_cells + offs_n, total.to(out_ptr.dtype.element_ty), mask=mask_n)


def narrow_tiles(num_rows: int, width: int, width_out: int, itemsize: int) -> tuple[int, int, int]:
    """BLOCK_R, BLOCK_I, BLOCK_J of `narrow_kernel` for that many rows of the result.

    16 values a thread of the wider side, for the shuffles to pay for the rest; 8 in float64, and
    where the device would not be full otherwise.
    """
    block_i, block_j = triton.next_power_of_2(width), triton.next_power_of_2(width_out)
    widest = max(block_i, block_j)
    values = 2048 if itemsize <= 4 and num_rows * widest >= 2**21 else 1024
    block_r = min(values // widest, triton.next_power_of_2(num_rows))
    # Triton (3.6, 3.7) fails to compile a gather from fewer values than the program has threads.
    return block_r, max(block_i, 256 // block_r), block_j


@lru_cache(maxsize=512)
def _band(
    length_in: int, length_out: int, mode: str, adjoint: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """First column and weights `[rows, T]` of every row's band of A, or of A transposed."""
    with torch.inference_mode(False):
        matrix = resample_matrix(length_in, length_out, mode)
        matrix = matrix.T if adjoint else matrix
        columns = torch.arange(matrix.shape[1], device="cpu")
        used = matrix != 0
        # An input that no output reads (nearest) leaves an empty row of A transposed.
        start = torch.where(used, columns, matrix.shape[1]).amin(1).clamp(max=matrix.shape[1] - 1)
        taps = int((torch.where(used, columns, -1).amax(1) - start + 1).clamp(min=1).max())
        reach = start[:, None] + torch.arange(taps, device="cpu")
        weights = torch.nn.functional.pad(matrix, (0, taps)).gather(1, reach)
        return start.int().to(device), weights.contiguous().to(device)


def _launch_banded(x: Tensor, size: tuple[int, int], mode: str, adjoint: bool) -> Tensor:
    """A_h x A_w^T, or with `adjoint` A_h^T x A_w, of the resampling between the two grids."""
    height, width = x.shape[-2:]
    out = torch.empty(*x.shape[:-2], *size, dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    maps = x.reshape(-1, height, width)
    bands = []
    for length, length_out in ((height, size[0]), (width, size[1])):
        lengths = (length_out, length) if adjoint else (length, length_out)
        bands.append(_band(*lengths, mode, adjoint, x.device))
    (starts_h, weights_h), (starts_w, weights_w) = bands
    tables = (starts_h, weights_h, starts_w, weights_w)
    taps = {
        "TAPS_H": weights_h.shape[1],
        "TAPS_W": weights_w.shape[1],
        "ACCUMULATE": tl.float64 if x.dtype == torch.float64 else tl.float32,
    }
    if max(width, size[1]) > MAX_COLUMNS:
        num_cells = size[0] * size[1]
        block_n = min(1024, triton.next_power_of_2(num_cells))
        cell_blocks = triton.cdiv(num_cells, block_n)
        wide_kernel[(cell_blocks * maps.shape[0],)](
            maps,
            out,
            *tables,
            height,
            width,
            num_cells,
            size[1],
            cell_blocks,
            *maps.stride(),
            **taps,
            BLOCK_N=block_n,
            num_warps=4,
            num_stages=1,
        )
        return out
    most = max(1, MAX_ROWS // size[0])
    for part, made in zip(maps.split(most), out.view(-1, *size).split(most), strict=True):
        num_rows = part.shape[0] * size[0]
        block_r, block_i, block_j = narrow_tiles(num_rows, width, size[1], x.itemsize)
        narrow_kernel[(triton.cdiv(num_rows, block_r),)](
            part,
            made,
            *tables,
            num_rows,
            height,
            size[0],
            *maps.stride(),
            WIDTH=width,
            WIDTH_OUT=size[1],
            **taps,
            BLOCK_R=block_r,
            BLOCK_I=block_i,
            BLOCK_J=block_j,
            num_warps=4,
            num_stages=1,
        )
    return out


class _Resample(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, size, mode):
        ctx.source, ctx.mode = tuple(x.shape[-2:]), mode
        return _launch_banded(x, size, mode, adjoint=False)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        return _launch_banded(grad_y, ctx.source, ctx.mode, adjoint=True), None, None


def _resample_triton(x: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    size = (int(size[0]), int(size[1]))
    return x if tuple(x.shape[-2:]) == size else _Resample.apply(x, size, mode)


def resample_adjoint_triton(g: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """`resample_adjoint` by the kernel."""
    refuse_recording("resample_adjoint", g=g)
    return g if tuple(g.shape[-2:]) == tuple(size) else _launch_banded(g, size, mode, adjoint=True)


def aot_variants() -> list[Variant]:
    """15,360 maps, 64 x 64 to 32 x 32 by area, back by bilinear and its adjoint; a wide map."""
    pointers = {
        **dict.fromkeys(("x_ptr", "out_ptr"), "*bf16"),
        **dict.fromkeys(("starts_h_ptr", "starts_w_ptr"), "*i32"),
        **dict.fromkeys(("weights_h_ptr", "weights_w_ptr"), "*fp32"),
    }
    integers = ("num_rows", "height", "height_out", "stride_xm", "stride_xh")
    cases = (("area", 64, 32, 2), ("bilinear", 32, 64, 2), ("bilinear_adjoint", 64, 32, 4))
    variants = []
    for name, length, length_out, taps in cases:
        blocks = narrow_tiles(15360 * length_out, length, length_out, 2)
        variants.append(
            Variant(
                name=f"resample-{name}",
                kernel=narrow_kernel,
                signature=pointers | dict.fromkeys(integers, "i32"),
                constexprs={
                    "stride_xw": 1,
                    "WIDTH": length,
                    "WIDTH_OUT": length_out,
                    "TAPS_H": taps,
                    "TAPS_W": taps,
                    "ACCUMULATE": tl.float32,
                    **dict(zip(("BLOCK_R", "BLOCK_I", "BLOCK_J"), blocks, strict=True)),
                },
                divisible=(*pointers, *integers),
                num_warps=4,
                num_stages=1,
                vector_bytes=16,
            )
        )
    integers = ("height", "width", "num_cells", "width_out", "cell_blocks", *integers[3:])
    variants.append(
        Variant(
            name="resample-wide",
            kernel=wide_kernel,
            signature=pointers | dict.fromkeys(integers, "i32"),
            constexprs={
                "stride_xw": 1,
                "TAPS_H": 2,
                "TAPS_W": 2,
                "ACCUMULATE": tl.float32,
                "BLOCK_N": 1024,
            },
            num_warps=4,
            num_stages=1,
        )
    )
    return variants


def resample(x: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """Resize the last two axes of `x`.

    A non-finite cell may also reach cells that do not sample it; how far depends on the backend.

    Args:
        x: `[..., H, W]`, floating; computed in float32.
        size: `(h, w)` of the result. Equal to `(H, W)`: `x` itself, untouched.
        mode: `"area"`, `"bilinear"` (align_corners false) or `"nearest"`.

    Returns:
        `[..., h, w]` in the dtype of `x`.

    Raises:
        ValueError: an unknown mode, a size below 1, or an `x` without two axes.
    """
    _check("x", x, size, mode)
    return select("resample", x, _RESAMPLE)(x, size, mode)


def resample_ref(x: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """Plain PyTorch twin of `resample`; differentiable, its adjoint comes from autograd."""
    height, width = x.shape[-2:]
    if (height, width) == tuple(size):
        return x
    rows = resample_matrix(height, size[0], mode, x.device)
    columns = resample_matrix(width, size[1], mode, x.device)
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (rows.to(dtype) @ x.to(dtype) @ columns.to(dtype).T).to(x.dtype)


def resample_adjoint(g: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """The gradient that `g` of a resampled map brings to the map itself.

    Args:
        g: `[..., h, w]`, floating; computed in float32.
        size: `(H, W)` of the map that was resampled to `(h, w)`. Equal: `g` itself, untouched.
        mode: as in `resample`.

    Returns:
        `[..., H, W]` in the dtype of `g`.

    Raises:
        ValueError: as `resample`, or on a GPU a gradient to be recorded.
    """
    _check("g", g, size, mode)
    return select("resample_adjoint", g, _RESAMPLE_ADJOINT)(g, size, mode)


def resample_adjoint_ref(g: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """Plain PyTorch twin of `resample_adjoint`."""
    height, width = g.shape[-2:]
    if (height, width) == tuple(size):
        return g
    rows = resample_matrix(size[0], height, mode, g.device)
    columns = resample_matrix(size[1], width, mode, g.device)
    dtype = torch.promote_types(g.dtype, torch.float32)
    return (rows.to(dtype).T @ g.to(dtype) @ columns.to(dtype)).to(g.dtype)


def _check(name: str, x: Tensor, size: tuple[int, int], mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {MODES}, got {mode!r}")
    if x.dim() < 2 or 0 in x.shape[-2:] or not x.is_floating_point():
        raise ValueError(f"{name}: expected floating [..., H, W], got {x.dtype} {list(x.shape)}")
    if not is_grid(size):
        raise ValueError(f"size: expected (h, w), integers of at least 1, got {size}")


_RESAMPLE = {"reference": resample_ref, "cpp": resample_cpp, "triton": _resample_triton}
_RESAMPLE_ADJOINT = {
    "reference": resample_adjoint_ref,
    "cpp": resample_adjoint_cpp,
    "triton": resample_adjoint_triton,
}
