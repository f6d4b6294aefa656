"""QK normalisation and multi-scale temporal RoPE of the queries and keys of a chunk or sequence.

    q = q / sqrt(mean_D(q^2) + eps) * q_weight                       (k likewise; optional)
    angle_i = position[axis(i)] * theta^(-2 i / D)                   i = 0 .. D/2 - 1
    (q_i, q_{i+D/2}) <- (q_i cos - q_{i+D/2} sin, q_{i+D/2} cos + q_i sin)

axis(i) splits the ordinary frequency list into three contiguous sections: time, height, width. With
three equal positions this is ordinary RoPE (arXiv 2104.09864, section 3.2); the split over axes is
arXiv 2601.05966 (Eq. 7), the normalisation that of Qwen3 (arXiv 2505.09388).

Axes: B rows, H query heads, G key heads, L tokens, D head width. All arithmetic is float32 with one
rounding at the end. Bytes that must move: q and k once in, once out; with a cache write also v
once in and k, v once out.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from videoar.kernels.dispatch import select
from videoar.kernels.qk_norm_rope_cpp import qk_norm_rope_cpp, qk_norm_rope_cpp_grad
from videoar.kernels.qk_norm_rope_triton import qk_norm_rope_triton
from videoar.kernels.rows import check_devices
from videoar.kernels.values import values_known

Sections = tuple[int, int, int]
_START_DTYPES = (torch.int32, torch.int64)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, *_START_DTYPES)


@dataclass(frozen=True, slots=True)
class CacheWrite:
    """Where the rotated keys and the values of a chunk go.

    Attributes:
        v_BGLD: the chunk's values, `[B,G,L,D]`.
        k_cache: `[B,G,capacity,D]`, rows start .. start + L are overwritten in place.
        v_cache: as `k_cache`, for the values.
        start: first row, an int for the whole batch or an int32/int64 tensor `[B]`. The values of
            a tensor on a GPU are trusted, unless VIDEOAR_DEBUG=1.
    """

    v_BGLD: Tensor
    k_cache: Tensor
    v_cache: Tensor
    start: int | Tensor


def rope_sections(head_dim: int) -> Sections:
    """Rotary pairs per axis (time, height, width): 3/8 each for height and width, time the rest.

    Raises:
        ValueError: an odd or non-positive head width.
    """
    if head_dim < 2 or head_dim % 2:
        raise ValueError(f"head_dim: expected an even number of at least 2, got {head_dim}")
    pairs = head_dim // 2
    side = 3 * pairs // 8
    return pairs - 2 * side, side, side


def qk_norm_rope(
    q_BHLD: Tensor,
    k_BGLD: Tensor,
    positions: Tensor,
    *,
    sections: Sections,
    theta: float = 10000.0,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 1e-6,
    cache: CacheWrite | None = None,
) -> tuple[Tensor, Tensor]:
    """Normalise and rotate queries and keys (arXiv 2601.05966, Eq. 7).

    Args:
        q_BHLD: `[B,H,L,D]`, floating, any strides. On a GPU: float32, float16 or bfloat16.
        k_BGLD: `[B,G,L,D]`, of the dtype of q.
        positions: (time, height, width) of every token, integer `[L,3]` or `[B,L,3]`.
        sections: rotary pairs of each axis, sum D/2; see `rope_sections`.
        theta: base of the frequencies.
        q_weight: `[D]`, shared by the heads; together with `k_weight`, or both None: no norm.
        k_weight: `[D]`.
        eps: added to the mean square.
        cache: also write the rotated keys and the values into the cache, without gradient.

    Returns:
        q and k, in their shapes and dtypes.

    Raises:
        ValueError: a shape, dtype or device that does not fit, or a start beyond the capacity.
    """
    _check_heads(q_BHLD, k_BGLD, positions, sections, theta)
    _check_weights(q_BHLD.shape[-1], q_weight, k_weight)
    check_devices(q=q_BHLD, k=k_BGLD, positions=positions, q_weight=q_weight, k_weight=k_weight)
    if cache is not None:
        _check_cache(k_BGLD, cache)
    written = {}
    if cache is not None:
        written = {"v_BGLD": cache.v_BGLD, "k_cache": cache.k_cache, "v_cache": cache.v_cache}
    weights = {"q_weight": q_weight, "k_weight": k_weight}
    implementation = select(
        "qk_norm_rope", q_BHLD, _IMPLEMENTATIONS, k=k_BGLD, **weights, **written
    )
    return implementation(
        q_BHLD,
        k_BGLD,
        positions,
        sections=sections,
        theta=theta,
        q_weight=q_weight,
        k_weight=k_weight,
        eps=eps,
        cache=cache,
    )


def qk_norm_rope_ref(
    q_BHLD: Tensor,
    k_BGLD: Tensor,
    positions: Tensor,
    *,
    sections: Sections,
    theta: float = 10000.0,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 1e-6,
    cache: CacheWrite | None = None,
) -> tuple[Tensor, Tensor]:
    """Plain PyTorch twin of `qk_norm_rope`."""
    dtype = torch.promote_types(q_BHLD.dtype, torch.float32)
    angles = rope_angles(positions, sections, theta, dtype)
    if angles.dim() == 3:
        angles = angles[:, None]
    cos, sin = angles.cos(), angles.sin()
    q_out = _rotate(_normalise(q_BHLD.to(dtype), q_weight, eps), cos, sin).to(q_BHLD.dtype)
    k_out = _rotate(_normalise(k_BGLD.to(dtype), k_weight, eps), cos, sin).to(k_BGLD.dtype)
    if cache is not None:
        _write(cache.k_cache, k_out, cache.start)
        _write(cache.v_cache, cache.v_BGLD, cache.start)
    return q_out, k_out


_IMPLEMENTATIONS = {
    "reference": qk_norm_rope_ref,
    "cpp": qk_norm_rope_cpp,
    "cpp_grad": qk_norm_rope_cpp_grad,
    "triton": qk_norm_rope_triton,
}


def rope_angles(
    positions: Tensor, sections: Sections, theta: float, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Rotation angle of every pair: positions `[..., 3]` to `[..., D/2]` in radians."""
    pairs = sum(sections)
    exponents = torch.arange(pairs, dtype=torch.float64, device=positions.device) / pairs
    frequencies = (theta**-exponents).to(dtype)
    owners = [
        positions[..., axis : axis + 1].expand(*positions.shape[:-1], n)
        for axis, n in enumerate(sections)
    ]
    return torch.cat(owners, dim=-1).to(dtype) * frequencies


def _normalise(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    if weight is None:
        return x
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _write(cache: Tensor, x_BGLD: Tensor, start: int | Tensor) -> None:
    x = x_BGLD.detach().to(cache.dtype)
    length = x.shape[2]
    if isinstance(start, int):
        cache[:, :, start : start + length] = x
        return
    rows = start[:, None] + torch.arange(length, device=cache.device)
    batch = torch.arange(cache.shape[0], device=cache.device)[:, None]
    cache[batch, :, rows] = x.transpose(1, 2)


def _check_heads(q: Tensor, k: Tensor, positions: Tensor, sections: Sections, theta: float) -> None:
    q_shape, k_shape = q.shape, k.shape
    if len(q_shape) != 4 or not q.is_floating_point() or q_shape[3] < 2 or q_shape[3] % 2:
        raise ValueError(f"q: expected floating [B,H,L,even D], got {q.dtype} {list(q.shape)}")
    batch, heads, length, width = q_shape
    same_axes = len(k_shape) == 4 and (k_shape[0], *k_shape[2:]) == (batch, length, width)
    if not same_axes or 0 in (heads, k_shape[1]) or k.dtype != q.dtype:
        raise ValueError(
            f"k: expected {q.dtype} [{batch}, G, {length}, {width}], got {k.dtype} {list(k.shape)}"
        )
    if positions.dtype not in _INTEGERS or tuple(positions.shape) not in (
        (length, 3),
        (batch, length, 3),
    ):
        raise ValueError(
            f"positions: expected integer [{length}, 3] or [{batch}, {length}, 3], "
            f"got {positions.dtype} {list(positions.shape)}"
        )
    counts = len(sections) == 3 and all(isinstance(count, int) for count in sections)
    if not counts or min(sections) < 0 or sum(sections) != width // 2:
        raise ValueError(f"sections: expected 3 counts that sum to {width // 2}, got {sections}")
    if not 0 < theta < math.inf:
        raise ValueError(f"theta: expected above 0, got {theta}")


def _check_weights(width: int, q_weight: Tensor | None, k_weight: Tensor | None) -> None:
    if (q_weight is None) != (k_weight is None):
        missing = "q_weight" if q_weight is None else "k_weight"
        raise ValueError(f"{missing}: expected both weights or neither, got None")
    for name, weight in {"q_weight": q_weight, "k_weight": k_weight}.items():
        if weight is None:
            continue
        if tuple(weight.shape) != (width,) or not weight.is_floating_point():
            raise ValueError(
                f"{name}: expected floating [{width}], got {weight.dtype} {list(weight.shape)}"
            )


def _check_cache(k: Tensor, cache: CacheWrite) -> None:
    batch, groups, length, width = k.shape
    v = cache.v_BGLD
    if v.shape != k.shape or not v.is_floating_point():
        raise ValueError(
            f"cache.v_BGLD: expected floating {list(k.shape)}, got {v.dtype} {list(v.shape)}"
        )
    caches = {"cache.k_cache": cache.k_cache, "cache.v_cache": cache.v_cache}
    for name, rows in caches.items():
        shape = rows.shape
        same_axes = len(shape) == 4 and (shape[0], shape[1], shape[3]) == (batch, groups, width)
        if not same_axes or not rows.is_floating_point():
            raise ValueError(
                f"{name}: expected floating [{batch}, {groups}, capacity, {width}], "
                f"got {rows.dtype} {list(rows.shape)}"
            )
        if any(n > 1 and not stride for n, stride in zip(shape, rows.stride(), strict=True)):
            raise ValueError(f"{name}: expected rows apart, got strides {rows.stride()}")
    start = cache.start
    if not isinstance(start, int | Tensor):
        raise ValueError(f"cache.start: expected an int or int32 or int64 [{batch}], got {start!r}")
    on_device = {"cache.start": start} if isinstance(start, Tensor) else {}
    if on_device and (tuple(start.shape) != (batch,) or start.dtype not in _START_DTYPES):
        raise ValueError(
            f"cache.start: expected an int or int32 or int64 [{batch}], "
            f"got {start.dtype} {list(start.shape)}"
        )
    check_devices(k=k, **{"cache.v_BGLD": v}, **caches, **on_device)
    capacity = min(cache.k_cache.shape[2], cache.v_cache.shape[2])
    starts = [start]
    if on_device:
        starts = start.tolist() if values_known(start) else []
    if starts and not 0 <= min(starts) <= max(starts) <= capacity - length:
        raise ValueError(
            f"cache.start: expected 0 .. {capacity - length} ({length} rows into a cache of "
            f"{capacity}), got {starts if on_device else start}"
        )
