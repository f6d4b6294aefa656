"""Separable resampling of feature maps: area, bilinear and nearest, up and down.

    y[..., i, j] = sum_{p, q} A_h[i, p] x[..., p, q] A_w[j, q]

A_h and A_w are small matrices that depend on the two lengths only, so one rule serves every
grid. `area` averages the source interval a target cell covers when shrinking (exact fractions),
`bilinear` is the align_corners=False form, both as in arXiv 2412.04431. Bytes that must move:
the input once, the output once.
"""

from functools import lru_cache

import torch
from torch import Tensor

from videoar.kernels.dispatch import select

MODES = ("area", "bilinear", "nearest")


def _area(length_in: int, length_out: int) -> Tensor:
    """Average over every source cell the target cell touches, as adaptive average pooling does."""
    i = torch.arange(length_out)
    start = (i * length_in) // length_out
    stop = -((-(i + 1) * length_in) // length_out)
    p = torch.arange(length_in)
    inside = (p >= start[:, None]) & (p < stop[:, None])
    return inside.double() / (stop - start)[:, None]


def _bilinear(length_in: int, length_out: int) -> Tensor:
    i = torch.arange(length_out, dtype=torch.float64)
    source = ((i + 0.5) * length_in / length_out - 0.5).clamp(min=0)
    low = source.floor().long().clamp(max=length_in - 1)
    high = (low + 1).clamp(max=length_in - 1)
    weight = source - low
    matrix = torch.zeros(length_out, length_in, dtype=torch.float64)
    rows = torch.arange(length_out)
    matrix[rows, low] += 1 - weight
    matrix[rows, high] += weight
    return matrix


def _nearest(length_in: int, length_out: int) -> Tensor:
    rows = torch.arange(length_out)
    matrix = torch.zeros(length_out, length_in, dtype=torch.float64)
    matrix[rows, (rows * length_in) // length_out] = 1
    return matrix


@lru_cache(maxsize=512)
def _matrix(length_in: int, length_out: int, mode: str, device: torch.device) -> Tensor:
    build = {"area": _area, "bilinear": _bilinear, "nearest": _nearest}[mode]
    # A matrix kept from inside inference mode could not be used by a backward pass later.
    with torch.inference_mode(False):
        return build(length_in, length_out).float().to(device)


def resample_matrix(
    length_in: int, length_out: int, mode: str, device: torch.device | str = "cpu"
) -> Tensor:
    """The matrix A of one axis, `[length_out, length_in]` float32; every row sums to 1."""
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {MODES}, got {mode!r}")
    if length_in < 1 or length_out < 1:
        raise ValueError(f"lengths must be at least 1, got {length_in} and {length_out}")
    return _matrix(length_in, length_out, mode, torch.device(device))


def resample(x: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """Resize the last two axes of `x`.

    Args:
        x: `[..., H, W]`, floating; computed in float32.
        size: `(h, w)` of the result. Equal to `(H, W)`: `x` itself, untouched.
        mode: `"area"`, `"bilinear"` (align_corners false) or `"nearest"`.

    Returns:
        `[..., h, w]` in the dtype of `x`.

    Raises:
        ValueError: an unknown mode, a size below 1, or an `x` without two axes.
    """
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {MODES}, got {mode!r}")
    if x.dim() < 2 or not x.is_floating_point():
        raise ValueError(f"x: expected floating [..., H, W], got {x.dtype} {tuple(x.shape)}")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size: expected (h, w) of at least 1, got {size}")
    return select("resample", x, {"reference": resample_ref})(x, size, mode)


def resample_ref(x: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """Plain PyTorch twin of `resample`; differentiable, its adjoint comes from autograd."""
    height, width = x.shape[-2:]
    if (height, width) == tuple(size):
        return x
    rows = resample_matrix(height, size[0], mode, x.device)
    columns = resample_matrix(width, size[1], mode, x.device)
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (rows.to(dtype) @ x.to(dtype) @ columns.to(dtype).T).to(x.dtype)
