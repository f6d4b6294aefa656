"""The end of one decoding step: logits to bits, frame accumulator and the next step's input.

    delta = logit_1 - logit_0                    delta = uncond + guidance (cond - uncond)
    bit   = uniform < sigmoid(delta / temperature)      (temperature 0: bit = delta > 0)
    q     = (2 bit - 1) / sqrt(d)                accumulator += up(q, (H, W))
    input = resize(accumulator, size of the next scale)

(arXiv 2601.05966, Eq. 2, 5 and 6.) `up` and `resize` are bilinear, neither resamples between equal
sizes. The last scale completes the frame: the input that follows is the frame resized to the first
scale, which opens the next frame.

Axes: R rows, n tokens of the scale (row-major over its grid), d bits a token, H x W latent grid.
Everything is float32. Bytes that must move: both logits, accumulator in and out, bits and input.
"""

from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor

from videoar.kernels.bsq_quantize import bits_to_codes
from videoar.kernels.dispatch import select
from videoar.kernels.grids import Sizes, check_sizes
from videoar.kernels.next_scale_cpp import next_scale_cpp
from videoar.kernels.next_scale_triton import next_scale_triton
from videoar.kernels.philox import check_frames, philox_uniform_ref
from videoar.kernels.resample import resample_ref
from videoar.kernels.rows import check_devices
from videoar.kernels.values import values_known


class NextScale(NamedTuple):
    """What `next_scale` gives.

    Attributes:
        bits: bool `[R,n,d]`.
        accumulator: float32 `[R,d,H,W]`, with this scale added; after the last scale the frame.
        inputs: float32 `[R,n_next,d]`.
    """

    bits: Tensor
    accumulator: Tensor
    inputs: Tensor


def next_scale(
    logits: Tensor,
    accumulator: Tensor,
    sizes: Sizes,
    scale: int,
    *,
    logits_uncond: Tensor | None = None,
    guidance: float | Tensor = 1.0,
    temperature: float | Tensor = 1.0,
    seeds: Tensor | None = None,
    frames: int | Tensor = 0,
    noise: Tensor | None = None,
    out: NextScale | None = None,
    failed: Tensor | None = None,
) -> NextScale:
    """Sample the bits of one scale and prepare the next (arXiv 2601.05966, Eq. 2, 5 and 6).

    Args:
        logits: `[R,n,2d]`, floating; elements 2j and 2j + 1 are the logits of bit j being 0 and 1.
        accumulator: float32 `[R,d,H,W]`, sum of the upsampled codes of the coarser scales of the
            frame; zero before the first. Not changed, unless it is also `out.accumulator`.
        sizes: `((h_1,w_1), ..., (H,W))`, none larger than the last.
        scale: index of this scale, from 0.
        logits_uncond: of the unconditional rows, as `logits`; None: no guidance.
        guidance: strength, one for all rows or `[R]`, finite; 1 gives `logits`, and is the only
            one without `logits_uncond`.
        temperature: one for all rows or `[R]`; 0 takes the likelier bit.
        seeds: int64 `[R]`, keys of the random numbers; see `philox_uniform`.
        frames: latent frame index, one for all rows or `[R]`.
        noise: float32 `[R,n,d]` uniforms to use instead of those of `seeds`.
        out: where to write the results, contiguous, the rows of `out.bits` at any distance;
            `out.accumulator` may be `accumulator`.
        failed: bool `[R]`, contiguous; becomes True where a logit of the row, conditional or not,
            is NaN or infinite, and stays as it is elsewhere.

    Returns:
        New tensors, or those of `out`.

    Raises:
        ValueError: a shape or dtype that does not fit, naming the argument, or no source of
            uniforms at a temperature above 0.
    """
    _check_shapes(logits, accumulator, sizes, scale, logits_uncond)
    _check_sampling(logits, logits_uncond, guidance, temperature, seeds, noise)
    if seeds is not None and noise is None:
        frames = check_frames(frames, seeds)
    if out is not None:
        _check_out(out, accumulator, sizes, scale)
    if failed is not None:
        _check_failed(failed, accumulator)
    per_row = {"guidance": guidance, "temperature": temperature}
    tensors = {name: value for name, value in per_row.items() if isinstance(value, Tensor)}
    tensors |= {"logits_uncond": logits_uncond, "seeds": seeds, "noise": noise}
    tensors["failed"] = failed
    check_devices(logits=logits, accumulator=accumulator, **tensors)
    implementation = select("next_scale", logits, _NEXT_SCALE, accumulator=accumulator, **tensors)
    return implementation(
        logits,
        accumulator,
        sizes,
        scale,
        logits_uncond=logits_uncond,
        guidance=guidance,
        temperature=temperature,
        seeds=seeds,
        frames=frames,
        noise=noise,
        out=out,
        failed=failed,
    )


def noise_of(bits: Tensor) -> Tensor:
    """Uniforms with which `next_scale` at a temperature of 1 draws just these bits.

    -1 draws a one and 2 a zero, whatever the logits.
    """
    return 2.0 - 3.0 * bits.float()


@torch.no_grad()
def next_scale_ref(
    logits: Tensor,
    accumulator: Tensor,
    sizes: Sizes,
    scale: int,
    *,
    logits_uncond: Tensor | None = None,
    guidance: float | Tensor = 1.0,
    temperature: float | Tensor = 1.0,
    seeds: Tensor | None = None,
    frames: int | Tensor = 0,
    noise: Tensor | None = None,
    out: NextScale | None = None,
    failed: Tensor | None = None,
) -> NextScale:
    """Plain PyTorch twin of `next_scale`."""
    if failed is not None:
        for part in (logits, logits_uncond):
            if part is not None:
                failed.logical_or_(~torch.isfinite(part).flatten(1).all(1))
    delta = _bit_delta(logits)
    if logits_uncond is not None:
        uncond = _bit_delta(logits_uncond)
        delta = uncond + _per_row(guidance) * (delta - uncond)
    if noise is None and seeds is not None:
        noise = philox_uniform_ref(seeds, frames, scale, *delta.shape[1:])
    bits = _draw(delta, temperature, noise)
    codes = bits_to_codes(bits).transpose(1, 2).unflatten(2, tuple(sizes[scale]))
    accumulator = accumulator + resample_ref(codes, tuple(sizes[-1]), "bilinear")
    following = tuple(sizes[(scale + 1) % len(sizes)])
    inputs = resample_ref(accumulator, following, "bilinear").flatten(2).transpose(1, 2)
    step = NextScale(bits, accumulator, inputs)
    return step if out is None else NextScale(*(o.copy_(s) for o, s in zip(out, step, strict=True)))


def _next_scale_triton(*arguments, **options) -> NextScale:
    return NextScale(*next_scale_triton(*arguments, **options))


def _next_scale_cpp(*arguments, **options) -> NextScale:
    return NextScale(*next_scale_cpp(*arguments, **options))


_NEXT_SCALE = {
    "reference": next_scale_ref,
    "cpp": _next_scale_cpp,
    "triton": _next_scale_triton,
}


def _bit_delta(logits: Tensor) -> Tensor:
    pairs = logits.float().unflatten(-1, (-1, 2))
    return pairs[..., 1] - pairs[..., 0]


def _per_row(value: float | Tensor) -> float | Tensor:
    return value.float()[:, None, None] if isinstance(value, Tensor) else value


def _draw(delta: Tensor, temperature: float | Tensor, noise: Tensor | None) -> Tensor:
    greedy = delta > 0
    if isinstance(temperature, Tensor):
        temperature = _per_row(temperature)
        drawn = noise < torch.sigmoid(delta / temperature)
        return torch.where(temperature == 0, greedy, drawn)
    return greedy if temperature == 0 else noise < torch.sigmoid(delta / temperature)


def _check_shapes(
    logits: Tensor, accumulator: Tensor, sizes: Sizes, scale: int, logits_uncond: Tensor | None
) -> None:
    check_sizes(sizes)
    if not isinstance(scale, int) or not 0 <= scale < len(sizes):
        raise ValueError(f"scale: expected 0 .. {len(sizes) - 1}, got {scale}")
    tokens = sizes[scale][0] * sizes[scale][1]
    fits = (
        logits.dim() == 3
        and logits.shape[1] == tokens
        and logits.shape[2] % 2 == 0 < logits.shape[2]
    )
    if not fits or not logits.is_floating_point():
        raise ValueError(
            f"logits: expected floating [R, {tokens}, 2d], got {logits.dtype} {list(logits.shape)}"
        )
    expected = (logits.shape[0], logits.shape[2] // 2, *sizes[-1])
    if tuple(accumulator.shape) != expected or accumulator.dtype != torch.float32:
        raise ValueError(
            f"accumulator: expected torch.float32 {list(expected)}, "
            f"got {accumulator.dtype} {list(accumulator.shape)}"
        )
    if logits_uncond is None:
        return
    if logits_uncond.shape != logits.shape or logits_uncond.dtype != logits.dtype:
        raise ValueError(
            f"logits_uncond: expected {logits.dtype} {list(logits.shape)}, "
            f"got {logits_uncond.dtype} {list(logits_uncond.shape)}"
        )


def _check_out(out: NextScale, accumulator: Tensor, sizes: Sizes, scale: int) -> None:
    rows, num_bits = accumulator.shape[:2]
    height, width = sizes[(scale + 1) % len(sizes)]
    expected = {
        "bits": (torch.bool, (rows, sizes[scale][0] * sizes[scale][1], num_bits)),
        "accumulator": (torch.float32, tuple(accumulator.shape)),
        "inputs": (torch.float32, (rows, height * width, num_bits)),
    }
    for (name, (dtype, shape)), tensor in zip(expected.items(), out, strict=True):
        fits = tensor.dtype == dtype and tuple(tensor.shape) == shape
        fits = fits and (tensor.is_contiguous() or (name == "bits" and _rows_apart(tensor)))
        if not fits or tensor.device != accumulator.device:
            raise ValueError(
                f"out.{name}: expected contiguous {dtype} {list(shape)} on {accumulator.device}, "
                f"got {tensor.dtype} {list(tensor.shape)}, strides {list(tensor.stride())}, "
                f"on {tensor.device}"
            )


def _rows_apart(x: Tensor) -> bool:
    """Whether every row of `x` is contiguous and none reaches into the next."""
    return x[:1].is_contiguous() and x.stride(0) >= x[:1].numel()


def _check_failed(failed: Tensor, accumulator: Tensor) -> None:
    fits = failed.dtype == torch.bool and failed.shape == accumulator.shape[:1]
    if not fits or not failed.is_contiguous():
        raise ValueError(
            f"failed: expected contiguous torch.bool [{len(accumulator)}], "
            f"got {failed.dtype} {list(failed.shape)}, strides {list(failed.stride())}"
        )


def _known_numbers(name: str, value: float | Tensor, rows: int) -> list[float]:
    """What `value`, a number or one for each row, holds; nothing where it may not be read."""
    if not isinstance(value, Tensor):
        if not isinstance(value, int | float):
            raise ValueError(f"{name}: expected a float or [{rows}], got {value!r}")
        return [value]
    if tuple(value.shape) != (rows,) or value.is_complex():
        got = f"{value.dtype} {list(value.shape)}"
        raise ValueError(f"{name}: expected a float or [{rows}], got {got}")
    return value.tolist() if values_known(value) else []


def _check_sampling(
    logits: Tensor,
    logits_uncond: Tensor | None,
    guidance: float | Tensor,
    temperature: float | Tensor,
    seeds: Tensor | None,
    noise: Tensor | None,
) -> None:
    rows, tokens, classes = logits.shape
    strengths = _known_numbers("guidance", guidance, rows)
    temperatures = _known_numbers("temperature", temperature, rows)
    if logits_uncond is None and (isinstance(guidance, Tensor) or guidance != 1):
        raise ValueError(f"guidance: expected 1 without logits_uncond, got {guidance}")
    if not all(map(isfinite, strengths)):
        raise ValueError(f"guidance: expected finite, got {guidance}")
    if not all(t >= 0 for t in temperatures):
        raise ValueError(f"temperature: expected at least 0, got {temperature}")
    greedy = not isinstance(temperature, Tensor) and temperature == 0
    if seeds is None and noise is None and not greedy:
        raise ValueError("seeds: expected seeds or noise at a temperature above 0, got neither")
    if seeds is not None and (tuple(seeds.shape) != (rows,) or seeds.dtype != torch.int64):
        raise ValueError(f"seeds: expected int64 [{rows}], got {seeds.dtype} {list(seeds.shape)}")
    expected = (rows, tokens, classes // 2)
    if noise is not None and (tuple(noise.shape) != expected or noise.dtype != torch.float32):
        raise ValueError(
            f"noise: expected torch.float32 {list(expected)}, got {noise.dtype} {list(noise.shape)}"
        )
