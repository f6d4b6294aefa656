"""The C++ kernel of `cached_attention` (csrc/cached_attention.h)."""

from torch import Tensor

from videoar.kernels.cpp import _C, DTYPE_CODES


def cached_attention_cpp(
    q_BHLD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    segments: Tensor,
    *,
    scale: float | None = None,
    impl: str | None = None,
) -> Tensor:
    """As `cached_attention`, for checked arguments of a dtype in `DTYPE_CODES`.

    The result is laid out as `[B,L,H,D]`, so that the heads of a token lie side by side for the
    projection that follows.

    Raises:
        ValueError: a cache with strided channels, or D over 256.
    """
    q = q_BHLD if q_BHLD.stride(3) == 1 else q_BHLD.contiguous()
    batch, heads, length, width = q.shape
    out = q.new_empty((batch, length, heads, width)).transpose(1, 2)
    segments = segments.contiguous()
    _C.cached_attention(
        q.shape,
        k_cache.shape,
        DTYPE_CODES[q.dtype],
        q.data_ptr(),
        q.stride(),
        k_cache.data_ptr(),
        k_cache.stride(),
        v_cache.data_ptr(),
        v_cache.stride(),
        segments.data_ptr(),
        segments.shape[1],
        width**-0.5 if scale is None else scale,
        out.data_ptr(),
        out.stride(),
    )
    return out
