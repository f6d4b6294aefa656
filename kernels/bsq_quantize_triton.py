"""The Triton kernel of `bsq_quantize`: all scales of many frames in one launch.

One program owns a frame and a block of channels, and goes through the scales. Its running
reconstruction a = sum_i up(q_i) (which is the result), the row-averaged residual and the bits lie
in memory, that is in the cache, and pass between the program's threads behind barriers:

    rows:     s[i, q] = mean_p (x - a)[p, q]         over the rows p that target row i touches
    columns:  y[i, j] = mean_q s[i, q]               bits = [y > 0] ^ flips
    add:      a[p, q] += up(2 bits - 1)[p, q] / sqrt(d)

No tile grows with the grid. The residual is x - a, rounded once, where the reference subtracts
scale by scale; so bits may differ where |y| is a rounding error of the values it averages.

Bytes that must move a frame: 4 H W d for x and for the reconstruction (2 in bf16), N d for
targets, bits and flips each, 2 or 4 N d for the inputs. FLOPs: about 4 to 8 H W d a scale to
average, 12 H W d to add, 9 N d for the inputs.
"""

from functools import lru_cache
from math import gcd

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from videoar.kernels.bilinear_triton import load_bilinear
from videoar.kernels.bsq_quantize_lanes import Sizes, launch_lanes, serves, store_bits
from videoar.kernels.jit import jit, tl, triton
from videoar.kernels.resample import resample_adjoint_triton
from videoar.kernels.variant import Variant


@jit
def _average_rows(
    x_ptr,
    sum_ptr,
    average_ptr,
    offs_xd,
    offs_map,
    mask_d,
    use_sum,
    height,
    width,
    height_out,
    taps,
    stride_xh,
    stride_xw,
    BLOCK_N: tl.constexpr,
):
    """average[i, q] = mean of x - sum over the rows that row i of the smaller grid touches."""
    for start in range(0, height_out * width, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        mask_n = offs_n < height_out * width
        i = offs_n // width
        q = offs_n - i * width
        low, high = (i * height) // height_out, ((i + 1) * height + height_out - 1) // height_out
        total = tl.zeros((BLOCK_N, mask_d.shape[0]), dtype=tl.float32)
        for a in range(taps):
            p = low + a
            mask = (mask_n & (p < high))[:, None] & mask_d[None, :]
            offs_x = offs_xd[None, :] + (p * stride_xh + q * stride_xw)[:, None]
            x = tl.load(x_ptr + offs_x, mask=mask, other=0.0).to(tl.float32)
            offs_sum = offs_map[None, :] + (p * width + q)[:, None]
            known = tl.load(sum_ptr + offs_sum, mask=mask & use_sum, other=0.0)
            total += x - known
        average = total * (1.0 / (high - low).to(tl.float32))[:, None]
        mask = mask_n[:, None] & mask_d[None, :]
        tl.store(average_ptr + (offs_map[None, :] + offs_n[:, None]), average, mask=mask)


@jit
def _average_columns(average_ptr, offs_map, mask_d, offs_n, mask_n, width, width_out, taps):
    """y [N, D] at cells of the smaller grid, from row averages."""
    i = offs_n // width_out
    j = offs_n - i * width_out
    low, high = (j * width) // width_out, ((j + 1) * width + width_out - 1) // width_out
    total = tl.zeros((offs_n.shape[0], mask_d.shape[0]), dtype=tl.float32)
    for b in range(taps):
        q = low + b
        mask = (mask_n & (q < high))[:, None] & mask_d[None, :]
        offs = offs_map[None, :] + (i * width + q)[:, None]
        total += tl.load(average_ptr + offs, mask=mask, other=0.0)
    return total * (1.0 / (high - low).to(tl.float32))[:, None]


@jit
def bsq_quantize_kernel(
    x_ptr,
    sum_ptr,
    average_ptr,
    flips_ptr,
    targets_ptr,
    bits_ptr,
    narrow_ptr,
    inputs_ptr,
    scale_inputs_ptr,
    scales_ptr,
    num_scales,
    num_tokens,
    num_bits,
    num_frames,
    height,
    width,
    code,
    stride_xb,
    stride_xd,
    stride_xt,
    stride_xh,
    stride_xw,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """All scales of one frame and BLOCK_D channels; formula and bytes at the file's head."""
    blocks_d = tl.cdiv(num_bits, BLOCK_D)
    index = tl.program_id(0) // blocks_d
    m, frame = index.to(tl.int64), index % num_frames
    first_d = (tl.program_id(0) % blocks_d) * BLOCK_D
    offs_d, num_cells = tl.arange(0, BLOCK_D), height * width
    mask_d = offs_d < num_bits - first_d
    # Addresses are those of the frame and its first channel, and an offset of 32 bits.
    x_ptr += (index // num_frames).to(tl.int64) * stride_xb + frame.to(tl.int64) * stride_xt
    x_ptr += first_d.to(tl.int64) * stride_xd
    first_cell = (m * num_bits + first_d) * num_cells
    sum_ptr += first_cell
    average_ptr += first_cell
    first_bit = m * num_tokens * num_bits + first_d
    targets_ptr += first_bit
    bits_ptr += first_bit
    if flips_ptr is not None:
        flips_ptr += first_bit
    if inputs_ptr is not None:
        inputs_ptr += first_bit
    if scale_inputs_ptr is not None:
        scale_inputs_ptr += first_bit
    offs_xd, offs_map = offs_d * stride_xd, offs_d * num_cells

    token = 0
    for k in range(num_scales - 1):
        h, w = tl.load(scales_ptr + 4 * k), tl.load(scales_ptr + 4 * k + 1)
        taps_h, taps_w = tl.load(scales_ptr + 4 * k + 2), tl.load(scales_ptr + 4 * k + 3)
        _average_rows(
            x_ptr, sum_ptr, average_ptr, offs_xd, offs_map, mask_d, k > 0,
            height, width, h, taps_h, stride_xh, stride_xw, BLOCK_N,
        )  # fmt: skip
        tl.debug_barrier()
        for start in range(0, h * w, BLOCK_N):
            offs_n = start + tl.arange(0, BLOCK_N)
            mask_n = offs_n < h * w
            mask = mask_n[:, None] & mask_d[None, :]
            offs = (token + offs_n)[:, None] * num_bits + offs_d[None, :]
            y = _average_columns(average_ptr, offs_map, mask_d, offs_n, mask_n, width, w, taps_w)
            flips = None
            if flips_ptr is not None:
                flips = tl.load(flips_ptr + offs, mask=mask, other=0)
            store_bits(y, flips, offs, mask, targets_ptr, bits_ptr, scale_inputs_ptr, 1.0)
            if inputs_ptr is not None:
                value = load_bilinear(
                    sum_ptr, offs_map, mask_d, offs_n, mask_n & (k > 0),
                    height, width, h, w, 1, 1.0, 0.0,
                )  # fmt: skip
                known = mask & ((k > 0) | (frame == 0))
                tl.store(inputs_ptr + offs, value, mask=known)
        tl.debug_barrier()
        for start in range(0, num_cells, BLOCK_N):
            offs_n = start + tl.arange(0, BLOCK_N)
            mask_n = offs_n < num_cells
            mask = mask_n[:, None] & mask_d[None, :]
            total = load_bilinear(
                bits_ptr + token * num_bits, offs_d, mask_d, offs_n, mask_n,
                h, w, height, width, num_bits, 2 * code, -code,
            )  # fmt: skip
            cells = offs_map[None, :] + offs_n[:, None]
            total += tl.load(sum_ptr + cells, mask=mask & (k > 0), other=0.0)
            tl.store(sum_ptr + cells, total, mask=mask)
        tl.debug_barrier()
        token += h * w

    # The last scale is the latent grid itself: nothing is resampled, and every cell is on its own.
    for start in range(0, num_cells, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        mask = (offs_n < num_cells)[:, None] & mask_d[None, :]
        i = offs_n // width
        offs_x = offs_xd[None, :] + (i * stride_xh + (offs_n - i * width) * stride_xw)[:, None]
        x = tl.load(x_ptr + offs_x, mask=mask, other=0.0).to(tl.float32)
        cells = offs_map[None, :] + offs_n[:, None]
        known = tl.load(sum_ptr + cells, mask=mask & (num_scales > 1), other=0.0)
        offs = (token + offs_n)[:, None] * num_bits + offs_d[None, :]
        if inputs_ptr is not None:
            told = mask & ((num_scales > 1) | (frame == 0))
            tl.store(inputs_ptr + offs, known, mask=told)
        flips = None
        if flips_ptr is not None:
            flips = tl.load(flips_ptr + offs, mask=mask, other=0)
        sign = store_bits(
            x - known, flips, offs, mask, targets_ptr, bits_ptr, scale_inputs_ptr, 1.0
        )
        total = known + sign * code
        tl.store(sum_ptr + cells, total, mask=mask)
        if narrow_ptr is not None:
            tl.store(narrow_ptr + first_cell + cells, total, mask=mask)
    tl.debug_barrier()
    token += num_cells

    if inputs_ptr is not None:
        # The next frame's first scale starts from this frame; the last frame has none to start.
        h, w = tl.load(scales_ptr), tl.load(scales_ptr + 1)
        for start in range(0, h * w, BLOCK_N):
            offs_n = start + tl.arange(0, BLOCK_N)
            mask_n = (offs_n < h * w) & (frame + 1 < num_frames)
            value = load_bilinear(
                sum_ptr, offs_map, mask_d, offs_n, mask_n, height, width, h, w, 1, 1.0, 0.0
            )
            offs = (token + offs_n)[:, None] * num_bits + offs_d[None, :]
            mask = mask_n[:, None] & mask_d[None, :]
            tl.store(inputs_ptr + offs, value, mask=mask)


def bsq_quantize_tiles(num_cells: int, num_frames: int) -> tuple[int, int, int]:
    """BLOCK_N, BLOCK_D and warps; 4 values a thread, since 8 spill.

    Many frames take the tile with the fewest instructions: most scales have few cells, which would
    leave a larger one idle. Few frames take one that goes through the grid in fewer steps, and
    twice as many programs.
    """
    if num_frames >= 256:
        return 16, 16, 2
    block_n = min(64, max(16, triton.next_power_of_2(num_cells)))
    return block_n, 8, block_n // 16


@lru_cache(maxsize=64)
def _scale_table(sizes: Sizes, device: torch.device) -> Tensor:
    """int32 [K, 4]: grid of every scale and the most rows and columns one of its cells averages."""

    def taps(length: int, length_out: int) -> int:
        return (length + 2 * length_out - gcd(length, length_out) - 1) // length_out

    height, width = sizes[-1]
    rows = [(h, w, taps(height, h), taps(width, w)) for h, w in sizes]
    with torch.inference_mode(False):
        return torch.tensor(rows, dtype=torch.int32, device="cpu").to(device)


def _launch(
    x: Tensor, flips: Tensor | None, sizes: Sizes, return_inputs: bool, return_scale_inputs: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Reconstruction, targets, bits, inputs and per-scale y; see `bsq_quantize`."""
    batch, dim, frames, height, width = x.shape
    num_tokens = sum(h * w for h, w in sizes)
    if max(height * width, num_tokens) * dim >= 2**31:
        raise ValueError(f"x: expected under 2**31 values a frame, got {tuple(x.shape)}")
    steps = zip((dim, height, width), (x.stride(1), *x.stride()[3:]), strict=True)
    if sum((length - 1) * stride for length, stride in steps) >= 2**31:
        raise ValueError(
            f"x: expected a frame within 2**31 values of memory, got {list(x.shape)} "
            f"with strides {list(x.stride())}"
        )

    def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(batch, frames, *shape, dtype=dtype, device=x.device)

    tokens, maps = (num_tokens, dim), (dim, height, width)
    targets, bits = empty(tokens, torch.bool), empty(tokens, torch.bool)
    inputs = empty(tokens, x.dtype) if return_inputs else None
    scale_inputs = empty(tokens, torch.float32) if return_scale_inputs else None
    if flips is not None:
        flips = flips.contiguous().view(torch.uint8)
    if serves(sizes, dim):
        out = empty(maps, x.dtype)
        if x.numel() > 0:
            masks = (targets.view(torch.uint8), bits.view(torch.uint8))
            launch_lanes(x, flips, sizes, *masks, out, inputs, scale_inputs)
        return out.transpose(1, 2), targets, bits, inputs, scale_inputs
    total, average = empty(maps, torch.float32), empty(maps, torch.float32)
    narrow = None if x.dtype == torch.float32 else empty(maps, x.dtype)
    block_n, block_d, num_warps = bsq_quantize_tiles(height * width, batch * frames)
    if x.numel() > 0:
        bsq_quantize_kernel[(batch * frames * triton.cdiv(dim, block_d),)](
            x,
            total,
            average,
            flips,
            targets.view(torch.uint8),
            bits.view(torch.uint8),
            narrow,
            inputs,
            scale_inputs,
            _scale_table(sizes, x.device),
            len(sizes),
            num_tokens,
            dim,
            frames,
            height,
            width,
            dim**-0.5,
            *x.stride(),
            BLOCK_N=block_n,
            BLOCK_D=block_d,
            num_warps=num_warps,
            num_stages=1,
        )
    reconstruction = (total if narrow is None else narrow).transpose(1, 2)
    return reconstruction, targets, bits, inputs, scale_inputs


class BsqQuantize(torch.autograd.Function):
    """`_launch` with the straight-through gradient, and that of every y through its averages."""

    @staticmethod
    def forward(ctx, x, flips, sizes, return_inputs, return_scale_inputs):
        ctx.sizes, ctx.dtype = sizes, x.dtype
        ctx.set_materialize_grads(False)
        outputs = _launch(x, flips, sizes, return_inputs, return_scale_inputs)
        ctx.mark_non_differentiable(*(o for o in outputs[1:4] if o is not None))
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_reconstruction, _targets, _bits, _inputs, grad_y):
        grad = grad_reconstruction
        if grad_y is not None:
            parts = grad_y.split([h * w for h, w in ctx.sizes], dim=2)
            maps = [
                part.transpose(2, 3).unflatten(3, size)
                for part, size in zip(parts, ctx.sizes, strict=True)
            ]
            grads = (resample_adjoint_triton(g, ctx.sizes[-1], "area") for g in maps)
            whole = sum(grads).transpose(1, 2)
            grad = whole.to(ctx.dtype) if grad is None else grad + whole.to(ctx.dtype)
        return grad, None, None, None, None


def aot_variants() -> list[Variant]:
    """Error correction with inputs in bf16, of many frames and of few."""
    pointers = {
        **dict.fromkeys(("x_ptr", "narrow_ptr", "inputs_ptr"), "*bf16"),
        **dict.fromkeys(("sum_ptr", "average_ptr", "scale_inputs_ptr"), "*fp32"),
        **dict.fromkeys(("flips_ptr", "targets_ptr", "bits_ptr"), "*u8"),
        "scales_ptr": "*i32",
        "code": "fp32",
    }
    strides = ("stride_xb", "stride_xd", "stride_xt")
    names = "num_scales num_tokens num_bits num_frames height width stride_xh"
    integers = dict.fromkeys((*names.split(), *strides), "i32")
    tiles = {"many": bsq_quantize_tiles(64, 320), "few": bsq_quantize_tiles(64, 5)}
    return [
        Variant(
            name=f"bsq_quantize-{name}",
            kernel=bsq_quantize_kernel,
            signature={**pointers, **integers},
            constexprs={"stride_xw": 1, "BLOCK_N": block_n, "BLOCK_D": block_d},
            # 48 bits, maps of 64 cells.
            divisible=(*(x for x in pointers if x != "code"), "num_bits", *strides),
            num_warps=num_warps,
            num_stages=1,
        )
        for name, (block_n, block_d, num_warps) in tiles.items()
    ]
