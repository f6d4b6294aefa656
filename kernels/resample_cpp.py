"""The C++ kernel of `resample` and its adjoint (csrc/resample.h)."""

from torch import Tensor

from videoar.kernels.cpp import _C, DTYPE_CODES, address
from videoar.kernels.resample_matrix import MODES


def resample_cpp(x: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """As `resample`, for checked arguments of a dtype in `DTYPE_CODES`."""
    return _launch(x, size, mode, adjoint=False)


def resample_adjoint_cpp(g: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """As `resample_adjoint`, for checked arguments of a dtype in `DTYPE_CODES`."""
    return _launch(g, size, mode, adjoint=True)


def _launch(x: Tensor, size: tuple[int, int], mode: str, *, adjoint: bool) -> Tensor:
    height, width = x.shape[-2:]
    if (height, width) == tuple(size):
        return x
    out = x.new_empty(*x.shape[:-2], *size)
    if out.numel() == 0:
        return out
    maps = x.reshape(-1, height, width)
    _C.resample(
        address(maps),
        address(out),
        maps.shape[0],
        height,
        width,
        size[0],
        size[1],
        *maps.stride(),
        MODES.index(mode),
        adjoint,
        DTYPE_CODES[x.dtype],
    )
    return out
