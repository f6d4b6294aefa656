"""Multi-scale residual binary spherical quantisation of latent frames.

For one frame x [d,H,W], r = x, and for k = 1..K (arXiv 2412.04431; BSQ: arXiv 2406.07548):

    y_k = down(r, (H_k, W_k))      b_k = [y_k > 0]      q_k = (2 b_k - 1) / sqrt(d)
    r   = r - up(q_k, (H, W))      x_hat = sum_k up(q_k)

down = area, up = bilinear, neither at full size. The input of scale k+1 of the transformer is
resize(sum_{i<=k} up(q_i), (H_{k+1}, W_{k+1})), that of scale 1 of frame t is the x_hat of frame
t-1 resized to scale 1 (arXiv 2601.05966, Eq. 2, 6). With `flips`, the bits the model sees are
flipped and every later target is taken from the residual that the flipped codes leave
(Eq. 8). Frames never mix. Bytes that must move: x and x_hat once, bits and inputs once.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from videoar.kernels.bsq_quantize_cpp import bsq_quantize_cpp
from videoar.kernels.bsq_quantize_triton import BsqQuantize
from videoar.kernels.dispatch import select
from videoar.kernels.grids import Sizes, check_sizes
from videoar.kernels.resample import resample, resample_ref
from videoar.kernels.rows import check_devices

# Sharpness of the soft assignment inside the entropy terms (arXiv 2406.07548, section 4), for
# components scaled so that a typical one is 1, whatever d.
ENTROPY_SHARPNESS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """What `bsq_quantize` gives. N = sum of H_k W_k tokens a frame, scales in order, row-major.

    Attributes:
        targets: bool `[B,t,N,d]`, the bits a model is to predict.
        bits: bool `[B,t,N,d]`, the bits the reconstruction is made of: `targets ^ flips`.
        reconstruction: `[B,d,t,H,W]`, sum of the upsampled codes; straight-through gradient.
        inputs: `[B,t,N,d]` next-scale inputs, zero for the first scale of the first frame;
            None unless asked for.
        losses: `commitment`, `sample_entropy`, `batch_entropy` (scalars, in nats a bit for the
            entropies); None unless asked for.
    """

    targets: Tensor
    bits: Tensor
    reconstruction: Tensor
    inputs: Tensor | None
    losses: dict[str, Tensor] | None


def _check(x: Tensor, sizes: Sizes, flips: Tensor | None) -> None:
    if x.dim() != 5 or not x.is_floating_point() or x.shape[1] == 0:
        raise ValueError(f"x: expected floating [B,d,t,H,W], got {x.dtype} {list(x.shape)}")
    check_sizes(sizes)
    grid = tuple(x.shape[-2:])
    if tuple(sizes[-1]) != grid:
        raise ValueError(f"sizes: expected grids, the last {grid}, got {sizes}")
    expected = [x.shape[0], x.shape[2], sum(h * w for h, w in sizes), x.shape[1]]
    if flips is not None and (list(flips.shape) != expected or flips.dtype != torch.bool):
        raise ValueError(f"flips: expected bool {expected}, got {flips.dtype} {list(flips.shape)}")
    check_devices(x=x, flips=flips)


def bsq_quantize(
    x: Tensor,
    sizes: Sizes,
    *,
    flips: Tensor | None = None,
    return_inputs: bool = False,
    return_losses: bool = False,
) -> Quantized:
    """Quantise every latent frame over all its scales.

    Args:
        x: latents `[B,d,t,H,W]`, floating; computed in float32.
        sizes: `((H_1,W_1), ..., (H,W))`, coarse to fine, none larger than the last.
        flips: bool `[B,t,N,d]`, which history bits to flip (error correction); None: none.
        return_inputs: also give the transformer's inputs.
        return_losses: also give the commitment and entropy terms of tokenizer training.

    Raises:
        ValueError: a shape or dtype that does not fit, naming the argument.
    """
    _check(x, sizes, flips)
    implementation = select("bsq_quantize", x, _BSQ_QUANTIZE, flips=flips)
    return implementation(
        x, sizes, flips=flips, return_inputs=return_inputs, return_losses=return_losses
    )


def bits_to_codes(bits_MNd: Tensor) -> Tensor:
    """Bits `[..., d]` to codes +-1/sqrt(d), float32."""
    return (bits_MNd.float() * 2 - 1) * bits_MNd.shape[-1] ** -0.5


def _to_map(tokens_MNd: Tensor, size: tuple[int, int]) -> Tensor:
    return tokens_MNd.transpose(1, 2).unflatten(2, size)


def _to_tokens(map_MdHW: Tensor) -> Tensor:
    return map_MdHW.flatten(2).transpose(1, 2)


def _shift_frames(first_MNd: Tensor, batch: int, frames: int) -> Tensor:
    """The x_hat of frame t-1 at scale 1, for every frame t; zero for frame 0."""
    first = first_MNd.unflatten(0, (batch, frames))
    return torch.cat([torch.zeros_like(first[:, :1]), first[:, :-1]], dim=1).flatten(0, 1)


def _soft_terms(y: Tensor) -> dict[str, Tensor]:
    """Commitment to the nearest code and the factorised entropies of BSQ (Eq. 9-12 there).

    `y` [..., d] holds the residuals of all tokens before their signs are taken.
    """
    dim = y.shape[-1]
    unit = torch.nn.functional.normalize(y.reshape(-1, dim), dim=-1)
    code = torch.where(unit > 0, 1.0, -1.0) * dim**-0.5
    p = torch.sigmoid(ENTROPY_SHARPNESS * unit * dim**0.5)

    def entropy(q: Tensor) -> Tensor:
        q = q.clamp(1e-6, 1 - 1e-6)
        return -(q * q.log() + (1 - q) * (1 - q).log())

    return {
        "commitment": ((unit - code) ** 2).sum(-1).mean(),
        "sample_entropy": entropy(p).mean(),
        "batch_entropy": entropy(p.mean(0)).mean(),
    }


class _StraightThrough(torch.autograd.Function):
    """`value`, whose gradient goes to `x`; x + (value - x) would round at |x|."""

    @staticmethod
    def forward(ctx, x, value):
        return value.detach()

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def bsq_quantize_ref(
    x: Tensor,
    sizes: Sizes,
    *,
    flips: Tensor | None = None,
    return_inputs: bool = False,
    return_losses: bool = False,
) -> Quantized:
    """Plain PyTorch twin of `bsq_quantize`."""
    batch, _, frames, height, width = x.shape
    x_MdHW = x.transpose(1, 2).flatten(0, 1).float()
    residual, accumulated = x_MdHW, torch.zeros_like(x_MdHW)
    flips_MNd = None if flips is None else flips.flatten(0, 1)
    targets, history, inputs, scale_inputs = [], [], [], []
    offset = 0
    for k, size in enumerate(sizes):
        if return_inputs and k > 0:
            inputs.append(_to_tokens(resample_ref(accumulated, size, "bilinear")))
        y = resample_ref(residual, size, "area")
        scale_inputs.append(_to_tokens(y))
        target = _to_tokens(y.detach() > 0)
        n = target.shape[1]
        seen = target if flips_MNd is None else target ^ flips_MNd[:, offset : offset + n]
        offset += n
        up = resample_ref(_to_map(bits_to_codes(seen), size), (height, width), "bilinear")
        residual, accumulated = residual - up, accumulated + up
        targets.append(target)
        history.append(seen)
    if return_inputs:
        first = _to_tokens(resample_ref(accumulated, sizes[0], "bilinear"))
        inputs.insert(0, _shift_frames(first, batch, frames))
    # Straight-through (arXiv 2404.02905): the latents receive the reconstruction's gradient.
    reconstruction = _StraightThrough.apply(x_MdHW, accumulated)

    def frames_of(parts: list[Tensor]) -> Tensor:
        return torch.cat(parts, dim=1).unflatten(0, (batch, frames))

    return Quantized(
        targets=frames_of(targets),
        bits=frames_of(history),
        reconstruction=reconstruction.unflatten(0, (batch, frames)).transpose(1, 2).to(x.dtype),
        inputs=frames_of(inputs).to(x.dtype) if return_inputs else None,
        losses=_soft_terms(torch.cat(scale_inputs, dim=1)) if return_losses else None,
    )


def _bsq_quantize_triton(
    x: Tensor,
    sizes: Sizes,
    *,
    flips: Tensor | None = None,
    return_inputs: bool = False,
    return_losses: bool = False,
) -> Quantized:
    return _quantized(*BsqQuantize.apply(x, flips, _grids(sizes), return_inputs, return_losses))


def _bsq_quantize_cpp(
    x: Tensor,
    sizes: Sizes,
    *,
    flips: Tensor | None = None,
    return_inputs: bool = False,
    return_losses: bool = False,
) -> Quantized:
    return _quantized(*bsq_quantize_cpp(x, flips, _grids(sizes), return_inputs, return_losses))


def _grids(sizes: Sizes) -> tuple[tuple[int, int], ...]:
    return tuple(map(tuple, sizes))


def _quantized(
    reconstruction: Tensor,
    targets: Tensor,
    bits: Tensor,
    inputs: Tensor | None,
    scale_inputs: Tensor | None,
) -> Quantized:
    return Quantized(
        targets=targets,
        bits=bits,
        reconstruction=reconstruction,
        inputs=inputs,
        losses=None if scale_inputs is None else _soft_terms(scale_inputs),
    )


_BSQ_QUANTIZE = {
    "reference": bsq_quantize_ref,
    "cpp": _bsq_quantize_cpp,
    "triton": _bsq_quantize_triton,
}


def dequantize(bits: Tensor, sizes: Sizes) -> Tensor:
    """Latents from bits: the sum of the upsampled codes of all scales.

    Args:
        bits: bool `[B,t,N,d]`.
        sizes: as in `bsq_quantize`.

    Returns:
        float32 `[B,d,t,H,W]`.

    Raises:
        ValueError: another dtype, no bits, or a token count that is not that of `sizes`.
    """
    check_sizes(sizes)
    counts = [h * w for h, w in sizes]
    fits = bits.dim() == 4 and bits.shape[2] == sum(counts) and bits.shape[3] > 0
    if not fits or bits.dtype != torch.bool:
        expected = f"bool [B,t,{sum(counts)},d]"
        raise ValueError(f"bits: expected {expected}, got {bits.dtype} {list(bits.shape)}")
    batch, frames = bits.shape[:2]
    parts = bits_to_codes(bits.flatten(0, 1)).split(counts, dim=1)
    latents = sum(
        resample(_to_map(part, size), tuple(sizes[-1]), "bilinear")
        for part, size in zip(parts, sizes, strict=True)
    )
    return latents.unflatten(0, (batch, frames)).transpose(1, 2)
