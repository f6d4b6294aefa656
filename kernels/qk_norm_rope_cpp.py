"""The C++ kernels of `qk_norm_rope`, forward and backward (csrc/qk_norm_rope.h)."""

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from videoar.kernels.cpp import _C, DTYPE_CODES, address

if TYPE_CHECKING:
    from videoar.kernels.qk_norm_rope import CacheWrite, Sections

_NO_STRIDES = (0, 0, 0, 0)
_NO_CACHE = (0, _NO_STRIDES, 0, _NO_STRIDES, 0, _NO_STRIDES, 0, 0, 0, 0)


def qk_norm_rope_cpp(
    q_BHLD: Tensor,
    k_BGLD: Tensor,
    positions: Tensor,
    *,
    sections: "Sections",
    theta: float = 10000.0,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 1e-6,
    cache: "CacheWrite | None" = None,
) -> tuple[Tensor, Tensor]:
    """As `qk_norm_rope`, for checked arguments of dtypes in `DTYPE_CODES`.

    Raises:
        ValueError: a cache with strided channels, values or caches of different dtypes, or D over
            1024.
    """
    # Every tensor whose address goes out keeps a name until the call is over.
    q, k, powers = _dense(q_BHLD), _dense(k_BGLD), frequencies(q_BHLD.shape[-1] // 2, theta)
    q_out, k_out = q.new_empty(q.shape), k.new_empty(k.shape)
    if positions.dtype is not torch.int64:  # a call of .to that has nothing to do takes 0.7 us
        positions = positions.to(torch.int64)
    strides = positions.stride()
    norm = q_weight is not None
    if norm:
        q_weight, k_weight = q_weight.contiguous(), k_weight.contiguous()
    v = start = None
    if cache is not None:
        v, start = _checked_values(q.dtype, cache), cache.start
        start = start.to(torch.int64).contiguous() if isinstance(start, Tensor) else start
    _C.qk_norm_rope(
        q.shape,
        k.shape[1],
        DTYPE_CODES[q.dtype],
        q.data_ptr(),
        q.stride(),
        k.data_ptr(),
        k.stride(),
        q_out.data_ptr(),
        k_out.data_ptr(),
        positions.data_ptr(),
        strides if len(strides) == 3 else (0, *strides),
        sections,
        powers.data_ptr(),
        address(q_weight),
        address(k_weight),
        DTYPE_CODES[q_weight.dtype] if norm else 0,
        DTYPE_CODES[k_weight.dtype] if norm else 0,
        eps,
        *(_NO_CACHE if cache is None else _cache_arguments(cache, v, start)),
    )
    return q_out, k_out


def qk_norm_rope_cpp_grad(
    q_BHLD: Tensor,
    k_BGLD: Tensor,
    positions: Tensor,
    *,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """As `qk_norm_rope_cpp`, recorded by autograd; the cache is written without gradient."""
    return _QkNormRope.apply(q_BHLD, k_BGLD, q_weight, k_weight, positions, options)


class _QkNormRope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, q_weight, k_weight, positions, options):
        ctx.save_for_backward(q, k, q_weight, k_weight, positions)
        ctx.options = {name: options[name] for name in ("sections", "theta", "eps")}
        return qk_norm_rope_cpp(q, k, positions, q_weight=q_weight, k_weight=k_weight, **options)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_q, grad_k):
        return *_backward(*ctx.saved_tensors, grad_q, grad_k, **ctx.options), None, None


def _backward(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    positions: Tensor,
    grad_q: Tensor,
    grad_k: Tensor,
    *,
    sections: "Sections",
    theta: float,
    eps: float,
) -> tuple[Tensor | None, ...]:
    """Gradients of q, k, q_weight and k_weight; those of q and k lie as `[B,L,H,D]`."""
    batch, heads, length, width = q.shape
    dq = q.new_empty(batch, length, heads, width)
    dk = q.new_empty(batch, length, k.shape[1], width)
    q, k, grad_q, grad_k = (_dense(x) for x in (q, k, grad_q, grad_k))
    positions, powers = positions.to(torch.int64), frequencies(width // 2, theta)
    strides, norm = positions.stride(), q_weight is not None
    weights = [w.contiguous() for w in (q_weight, k_weight)] if norm else [None, None]
    sums = [q.new_empty(width, dtype=torch.float32) if norm else None for _ in weights]
    _C.qk_norm_rope_backward(
        q.shape,
        k.shape[1],
        DTYPE_CODES[q.dtype],
        q.data_ptr(),
        q.stride(),
        k.data_ptr(),
        k.stride(),
        positions.data_ptr(),
        strides if len(strides) == 3 else (0, *strides),
        sections,
        powers.data_ptr(),
        *map(address, weights),
        *(DTYPE_CODES[w.dtype] if norm else 0 for w in weights),
        eps,
        grad_q.data_ptr(),
        grad_q.stride(),
        grad_k.data_ptr(),
        grad_k.stride(),
        dq.data_ptr(),
        dk.data_ptr(),
        *map(address, sums),
    )
    if norm:
        sums = [total.to(w.dtype) for total, w in zip(sums, weights, strict=True)]
    return dq.transpose(1, 2), dk.transpose(1, 2), *sums


@lru_cache(maxsize=16)
def frequencies(pairs: int, theta: float) -> Tensor:
    """`theta^(-i / pairs)`, float32 `[pairs]`, rounded once as in the reference."""
    exponents = torch.arange(pairs, dtype=torch.float64, device="cpu") / pairs
    return (theta**-exponents).float()


def _checked_values(dtype: torch.dtype, cache: "CacheWrite") -> Tensor:
    if cache.v_BGLD.dtype != dtype:
        raise ValueError(f"cache.v_BGLD: the C++ kernel takes {dtype}, got {cache.v_BGLD.dtype}")
    k_cache, v_cache = cache.k_cache, cache.v_cache
    if v_cache.dtype != k_cache.dtype:
        raise ValueError(
            f"cache.v_cache: the C++ kernel takes {k_cache.dtype} as k_cache, got {v_cache.dtype}"
        )
    if k_cache.stride(3) != 1 or v_cache.stride(3) != 1:
        raise ValueError(
            "cache: the C++ kernel takes contiguous channels, got strides "
            f"{k_cache.stride()} and {v_cache.stride()}"
        )
    return _dense(cache.v_BGLD)


def _cache_arguments(cache: "CacheWrite", v: Tensor, start: int | Tensor) -> tuple:
    """The binding's last arguments, from `v` to `start`."""
    k_cache, v_cache = cache.k_cache, cache.v_cache
    whole = isinstance(start, int)
    return (
        v.data_ptr(),
        v.stride(),
        k_cache.data_ptr(),
        k_cache.stride(),
        v_cache.data_ptr(),
        v_cache.stride(),
        min(k_cache.shape[2], v_cache.shape[2]),
        DTYPE_CODES[k_cache.dtype],
        0 if whole else start.data_ptr(),
        start if whole else 0,
    )


def _dense(x: Tensor) -> Tensor:
    """`x` with contiguous channels; a copy only where they are strided."""
    return x if x.stride(-1) == 1 else x.contiguous()
