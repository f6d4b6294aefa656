"""The Triton kernel of `next_scale`, with its launcher.

One program owns a row and a block of bit channels, so nothing it reads was written by another
program. Bits and accumulator go to memory, where they must go anyway, and the cells of the next
phase gather them from there (that is, from the cache) behind a barrier of the program's threads:
any grid is served and no tile grows with it.

Bytes that must move a row: 4 n d logits (bf16, twice with guidance), 8 H W d accumulator in and
out, n d bits, 4 n_next d input. FLOPs: about 11 H W d + 9 n_next d + 12 n d, and 60 n d integer
operations for Philox.
"""

import torch
from torch import Tensor

from videoar.kernels.bilinear_triton import load_bilinear
from videoar.kernels.jit import jit, pdl_options, tl, triton, wait_then_release
from videoar.kernels.philox import bit_uniform
from videoar.kernels.variant import Variant


@jit
def _bit_delta(logits_ptr, offs_n, mask_n, first_d, num_bits, BLOCK_D: tl.constexpr):
    """logit_1 - logit_0 [N, D] of tokens at offsets offs_n and bits from first_d, in float32.

    And whether both are finite.
    """
    # Both logits of a bit lie side by side: one axis, so that neighbours are read together.
    offs_c = 2 * first_d + tl.arange(0, 2 * BLOCK_D)
    mask = mask_n[:, None] & (offs_c < 2 * num_bits)[None, :]
    logits = tl.load(logits_ptr + offs_n[:, None] + offs_c[None, :], mask=mask, other=0.0)
    pairs = tl.reshape(logits.to(tl.float32), (offs_n.shape[0], BLOCK_D, 2))
    zero, one = tl.split(pairs)
    infinity = float("inf")
    return one - zero, (tl.abs(zero) < infinity) & (tl.abs(one) < infinity)


@jit
def _of_row(row_ptr, value, row):
    """The row's own number, or the one of all rows."""
    if row_ptr is not None:
        value = tl.load(row_ptr + row)
    return value


@jit
def next_scale_kernel(
    logits_ptr,
    uncond_ptr,
    accumulator_ptr,
    noise_ptr,
    seeds_ptr,
    frames_ptr,
    guidance_ptr,
    temperature_ptr,
    bits_ptr,
    out_ptr,
    inputs_ptr,
    failed_ptr,
    frame_value,
    guidance_value,
    temperature_value,
    code,
    scale,
    num_bits,
    height,
    width,
    height_full,
    width_full,
    height_next,
    width_next,
    stride_lr,
    stride_ln,
    stride_ur,
    stride_un,
    stride_br,
    SAMPLED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PDL: tl.constexpr = False,
):
    """Bits, accumulator and next input of one row and BLOCK_D bit channels; see the file's head."""
    if PDL:
        wait_then_release()
    blocks_d = tl.cdiv(num_bits, BLOCK_D)
    row = (tl.program_id(0) // blocks_d).to(tl.int64)
    first_d = (tl.program_id(0) % blocks_d) * BLOCK_D
    offs_d = first_d + tl.arange(0, BLOCK_D)
    mask_d = offs_d < num_bits
    num_tokens = height * width
    num_cells = height_full * width_full
    num_next = height_next * width_next

    guidance = _of_row(guidance_ptr, guidance_value, row)
    temperature = _of_row(temperature_ptr, temperature_value, row)
    # Addresses are those of the row and its first channel, and an offset of 32 bits.
    bits_ptr += row * stride_br + first_d
    first_cell = (row * num_bits + first_d) * num_cells
    accumulator_ptr += first_cell
    out_ptr += first_cell
    inputs_ptr += row * num_next * num_bits + first_d
    offs_local = tl.arange(0, BLOCK_D)
    offs_map = offs_local * num_cells
    for start in range(0, num_tokens, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        mask_n = offs_n < num_tokens
        mask = mask_n[:, None] & mask_d[None, :]
        wide_n = offs_n.to(tl.int64)
        delta, finite = _bit_delta(
            logits_ptr + row * stride_lr, wide_n * stride_ln, mask_n, first_d, num_bits, BLOCK_D
        )
        if uncond_ptr is not None:
            base, base_finite = _bit_delta(
                uncond_ptr + row * stride_ur, wide_n * stride_un, mask_n, first_d, num_bits, BLOCK_D
            )
            delta = base + guidance * (delta - base)
            finite &= base_finite
        if failed_ptr is not None:
            # Nothing is written where all logits are finite.
            marks = failed_ptr + row + tl.zeros((BLOCK_N, BLOCK_D), tl.int32)
            tl.store(marks, 1, mask=~finite)
        bit = delta > 0
        if SAMPLED:
            if noise_ptr is not None:
                offs = (row * num_tokens + offs_n)[:, None] * num_bits + offs_d[None, :]
                uniform = tl.load(noise_ptr + offs, mask=mask, other=0.0)
            else:
                seed = tl.load(seeds_ptr + row)
                frame = _of_row(frames_ptr, frame_value, row)
                uniform = bit_uniform(seed, frame, scale, offs_n[:, None], offs_d[None, :])
            divisor = tl.where(temperature == 0, 1.0, temperature)
            drawn = uniform < 1.0 / (1.0 + tl.exp(-delta / divisor))
            bit = tl.where(temperature == 0, bit, drawn)
        offs = offs_n[:, None] * num_bits + offs_local[None, :]
        tl.store(bits_ptr + offs, bit.to(tl.uint8), mask=mask)
    tl.debug_barrier()

    for start in range(0, num_cells, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        mask_n = offs_n < num_cells
        up = load_bilinear(
            bits_ptr, offs_local, mask_d, offs_n, mask_n,
            height, width, height_full, width_full, num_bits, 2 * code, -code,
        )  # fmt: skip
        offs = offs_map[None, :] + offs_n[:, None]
        mask = mask_n[:, None] & mask_d[None, :]
        before = tl.load(accumulator_ptr + offs, mask=mask, other=0.0)
        tl.store(out_ptr + offs, before + up, mask=mask)
    tl.debug_barrier()

    for start in range(0, num_next, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        mask_n = offs_n < num_next
        value = load_bilinear(
            out_ptr, offs_map, mask_d, offs_n, mask_n,
            height_full, width_full, height_next, width_next, 1, 1.0, 0.0,
        )  # fmt: skip
        offs = offs_n[:, None] * num_bits + offs_local[None, :]
        tl.store(inputs_ptr + offs, value, mask=mask_n[:, None] & mask_d[None, :])


def next_scale_tiles(num_cells: int) -> tuple[int, int, int]:
    """BLOCK_N, BLOCK_D and warps of `next_scale_kernel` for a full grid of `num_cells`.

    16 channels make 64-byte rows of bf16 logits and, with 48 bits, 3 programs a row: at one clip
    the launch is a few programs whatever is chosen, at many it fills the device. 4 values a thread.
    """
    block_n = min(64, max(16, triton.next_power_of_2(num_cells)))
    return block_n, 16, block_n // 8


def _unit_last_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


@torch.no_grad()
def next_scale_triton(
    logits: Tensor,
    accumulator: Tensor,
    sizes: tuple[tuple[int, int], ...],
    scale: int,
    *,
    logits_uncond: Tensor | None,
    guidance: float | Tensor,
    temperature: float | Tensor,
    seeds: Tensor | None,
    frames: int | Tensor,
    noise: Tensor | None,
    out: tuple[Tensor, Tensor, Tensor] | None,
    failed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch `next_scale_kernel`; arguments and results as `next_scale`."""
    rows, num_bits = accumulator.shape[:2]
    size, full, following = sizes[scale], sizes[-1], sizes[(scale + 1) % len(sizes)]
    logits = _unit_last_stride(logits)
    uncond = None if logits_uncond is None else _unit_last_stride(logits_uncond)
    accumulator = accumulator.contiguous()
    greedy = not isinstance(temperature, Tensor) and temperature == 0
    if greedy:
        noise = seeds = None
    if noise is not None:
        noise, seeds = noise.contiguous(), None
    if seeds is not None:
        seeds = seeds.contiguous()
    if full[0] * full[1] * num_bits >= 2**31:
        raise ValueError(
            f"accumulator: expected under 2**31 values a row, got {list(accumulator.shape)}"
        )
    if out is None:
        out = (
            torch.empty(rows, size[0] * size[1], num_bits, dtype=torch.bool, device=logits.device),
            torch.empty_like(accumulator),
            accumulator.new_empty(rows, following[0] * following[1], num_bits),
        )
    bits, total, inputs = out
    if bits.numel() == 0:
        return bits, total, inputs

    def per_row(value: float | Tensor) -> tuple[Tensor | None, float]:
        return (value.float().contiguous(), 0.0) if isinstance(value, Tensor) else (None, value)

    guidance_rows, guidance_value = per_row(guidance)
    temperature_rows, temperature_value = per_row(temperature)
    frame_rows = frames.contiguous() if isinstance(frames, Tensor) and seeds is not None else None
    block_n, block_d, num_warps = next_scale_tiles(full[0] * full[1])
    next_scale_kernel[(rows * triton.cdiv(num_bits, block_d),)](
        logits,
        uncond,
        accumulator,
        noise,
        seeds,
        frame_rows,
        guidance_rows,
        temperature_rows,
        bits.view(torch.uint8),
        total,
        inputs,
        None if failed is None else failed.view(torch.uint8),
        0 if isinstance(frames, Tensor) else frames,
        float(guidance_value),
        float(temperature_value),
        num_bits**-0.5,
        scale,
        num_bits,
        *size,
        *full,
        *following,
        *logits.stride()[:2],
        *((0, 0) if uncond is None else uncond.stride()[:2]),
        bits.stride(0),
        SAMPLED=not greedy,
        BLOCK_N=block_n,
        BLOCK_D=block_d,
        num_warps=num_warps,
        num_stages=1,
        **pdl_options(logits.device),
    )
    return bits, total, inputs


def aot_variants() -> list[Variant]:
    """Guided sampling by seed; the tile is the same from 8 x 8 cells on."""
    floats = dict.fromkeys(("guidance_value", "temperature_value", "code"), "fp32")
    names = "scale num_bits height width height_full width_full height_next width_next"
    strides = ("stride_lr", "stride_ln", "stride_ur", "stride_un", "stride_br")
    integers = dict.fromkeys((*names.split(), *strides, "frame_value"), "i32")
    pointers = {
        **dict.fromkeys(("logits_ptr", "uncond_ptr"), "*bf16"),
        **dict.fromkeys(("accumulator_ptr", "out_ptr", "inputs_ptr"), "*fp32"),
        **dict.fromkeys(("guidance_ptr", "temperature_ptr"), "*fp32"),
        **dict.fromkeys(("seeds_ptr", "frames_ptr"), "*i64"),
        **dict.fromkeys(("bits_ptr", "failed_ptr"), "*u8"),
    }
    block_n, block_d, num_warps = next_scale_tiles(64)
    return [
        Variant(
            name="next_scale",
            kernel=next_scale_kernel,
            signature=pointers | floats | integers,
            constexprs={
                "noise_ptr": None,
                "SAMPLED": True,
                "BLOCK_N": block_n,
                "BLOCK_D": block_d,
            },
            # 48 bits: rows of bits and logits begin at multiples of 16.
            divisible=(*pointers, "num_bits", *strides),
            num_warps=num_warps,
            num_stages=1,
            vector_bytes=16,
        )
    ]
