"""The matrices of one axis that `resample` applies to rows and columns; see `resample`'s file."""

from functools import lru_cache

import torch
from torch import Tensor

MODES = ("area", "bilinear", "nearest")


def _area(length_in: int, length_out: int) -> Tensor:
    """Average over every source cell the target cell touches, as adaptive average pooling does."""
    i = torch.arange(length_out, device="cpu")
    start = (i * length_in) // length_out
    stop = -((-(i + 1) * length_in) // length_out)
    p = torch.arange(length_in, device="cpu")
    inside = (p >= start[:, None]) & (p < stop[:, None])
    return inside.double() / (stop - start)[:, None]


def _bilinear(length_in: int, length_out: int) -> Tensor:
    i = torch.arange(length_out, dtype=torch.float64, device="cpu")
    source = ((i + 0.5) * length_in / length_out - 0.5).clamp(min=0)
    low = source.floor().long().clamp(max=length_in - 1)
    high = (low + 1).clamp(max=length_in - 1)
    weight = source - low
    matrix = torch.zeros(length_out, length_in, dtype=torch.float64, device="cpu")
    rows = torch.arange(length_out, device="cpu")
    matrix[rows, low] += 1 - weight
    matrix[rows, high] += weight
    return matrix


def _nearest(length_in: int, length_out: int) -> Tensor:
    rows = torch.arange(length_out, device="cpu")
    matrix = torch.zeros(length_out, length_in, dtype=torch.float64, device="cpu")
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
