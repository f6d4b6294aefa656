"""Tensors as rows, for kernels that work on the last axis."""

import math

import torch
from torch import Tensor

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def as_rows(x: Tensor) -> Tensor:
    """`x` as `[rows, C]` with a contiguous last axis and any distance between rows.

    It is a view where the leading axes can be merged (a slice of the last axis, for instance);
    otherwise, or if the last axis is strided, a copy.
    """
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def check_devices(**tensors: Tensor | None) -> None:
    """Refuse tensors, by argument name, that are not where the first one is.

    Raises:
        ValueError: a tensor on another device.
    """
    first, device = "", None
    for name, t in tensors.items():
        if t is None:
            continue
        if device is None:
            first, device = name, t.device
        elif t.device != device:
            raise ValueError(f"{name}: expected on {device} as {first}, got on {t.device}")


def check_dtype(name: str, x: Tensor) -> None:
    """Refuse what the Triton kernels do not compute, float64 above all.

    Raises:
        ValueError: another floating dtype than float32, float16 and bfloat16.
    """
    if x.dtype not in KERNEL_DTYPES:
        raise ValueError(f"{name}: the Triton kernel takes {KERNEL_DTYPES}, got {x.dtype}")
