"""The C++ kernel of `group_norm_silu` (csrc/group_norm_silu.h)."""

from torch import Tensor

from videoar.kernels.cpp import _C, DTYPE_CODES, address


def group_norm_silu_cpp(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, *, eps: float, out: Tensor | None
) -> Tensor:
    """As `group_norm_silu`, for checked arguments of a dtype in `DTYPE_CODES`."""
    if not x[:1].is_contiguous():
        x = x.contiguous()
    if out is None:
        out = x.new_empty(x.shape)
    frames, height, width, channels = x.shape
    weight, bias = weight.float().contiguous(), bias.float().contiguous()
    _C.group_norm_silu(
        address(x),
        address(weight),
        address(bias),
        address(out),
        frames,
        height * width,
        channels,
        groups,
        x.stride(0),
        out.stride(0),
        eps,
        DTYPE_CODES[x.dtype],
    )
    return out
