"""The C++ kernel of `next_scale` (csrc/next_scale.h)."""

import torch
from torch import Tensor

from videoar.kernels.cpp import _C, DTYPE_CODES, address


def next_scale_cpp(
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
    """As `next_scale`, for checked arguments: bits, accumulator and inputs."""
    rows, num_bits = accumulator.shape[:2]
    size, full, following = sizes[scale], sizes[-1], sizes[(scale + 1) % len(sizes)]
    logits = _unit_last_stride(logits)
    uncond = logits if logits_uncond is None else _unit_last_stride(logits_uncond)
    accumulator = accumulator.contiguous()
    guidance_rows, guidance_value = _per_row(guidance, torch.float32)
    temperature_rows, temperature_value = _per_row(temperature, torch.float32)
    frame_rows, frame_value, noise_rows = None, 0, None
    if noise is not None:
        noise_rows, seeds = noise.contiguous(), None
    if seeds is not None:
        frame_rows, frame_value = _per_row(frames, torch.int64)
        seeds = seeds.contiguous()
    if out is None:
        out = (
            accumulator.new_empty(rows, size[0] * size[1], num_bits, dtype=torch.bool),
            accumulator.new_empty(accumulator.shape),
            accumulator.new_empty(rows, following[0] * following[1], num_bits),
        )
    bits, total, inputs = out
    _C.next_scale(
        address(logits),
        0 if logits_uncond is None else address(uncond),
        address(accumulator),
        address(noise_rows),
        address(seeds),
        address(frame_rows),
        address(guidance_rows),
        address(temperature_rows),
        address(bits),
        address(total),
        address(inputs),
        address(failed),
        rows,
        num_bits,
        scale,
        frame_value,
        guidance_value,
        temperature_value,
        num_bits**-0.5,
        *size,
        *full,
        *following,
        logits.stride(0),
        logits.stride(1),
        uncond.stride(0),
        uncond.stride(1),
        bits.stride(0),
        DTYPE_CODES[logits.dtype],
    )
    return bits, total, inputs


def _unit_last_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _per_row(value: float | Tensor, dtype: torch.dtype) -> tuple[Tensor | None, float]:
    """A tensor to read by row, or one number for all rows."""
    return (value.to(dtype).contiguous(), 0) if isinstance(value, Tensor) else (None, value)
