"""Attention of one chunk against the static cache, while decoding.

    out_i = sum_j softmax_j(scale q_i . k_j) v_j        over the cache rows j of the row's segments

The chunk's own keys are already in the cache (`qk_norm_rope` writes them) and every query sees the
same keys, so there is no mask inside a chunk: what `chunk_attention` hides is what the segments
leave out (arXiv 2601.05966, Eq. 5). Segments are the text region and the parts of the frame ring.

Axes: B rows, H query heads, G key/value heads (head h reads h // (H // G)), L queries, D head
width, S segments. Bytes that must move: the used rows of both caches, q and out once.
"""

import torch
from torch import Tensor

from videoar.kernels.cached_attention_cpp import cached_attention_cpp
from videoar.kernels.cached_attention_flash import cached_attention_flash
from videoar.kernels.cached_attention_triton import cached_attention_triton
from videoar.kernels.chunk_attention import masked_attention
from videoar.kernels.dispatch import select
from videoar.kernels.rows import check_devices
from videoar.kernels.values import values_known


def cached_attention(
    q_BHLD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    segments: Tensor,
    *,
    scale: float | None = None,
    impl: str | None = None,
) -> Tensor:
    """Attend to the cache rows that `segments` name (arXiv 2601.05966, Eq. 5).

    Args:
        q_BHLD: `[B,H,L,D]`, floating, any strides. On a GPU: float32, float16 or bfloat16, D at
            most 256.
        k_cache: `[B,G,capacity,D]`, of the dtype of q; G divides H. Rows outside of the segments do
            not count, but must be finite.
        v_cache: as `k_cache`.
        segments: int32 `[B,S,2]` of (start, length), disjoint within a row, in any order; length 0
            is allowed. Values on a GPU are trusted, unless VIDEOAR_DEBUG=1.
        scale: of the scores; None: D^-1/2.
        impl: None for the kernel of the device, "sdpa" for the plain PyTorch twin around
            `scaled_dot_product_attention`, "flash" for the flash-attn package (a GPU, 16-bit q, D
            a multiple of 8).

    Returns:
        `[B,H,L,D]` in the dtype of q, 0 in a row without keys.

    Raises:
        ValueError: a shape, dtype, device or segment that does not fit, an unknown `impl`, or on a
            GPU a gradient to be recorded, which its kernel has none of.
        ImportError: `impl` "flash" without its package.
    """
    if impl not in (None, *_ALTERNATIVES):
        raise ValueError(f"impl: expected one of {(None, *_ALTERNATIVES)}, got {impl!r}")
    _check(q_BHLD, k_cache, v_cache, segments)
    if impl is None:
        implementation = select(
            "cached_attention", q_BHLD, _IMPLEMENTATIONS, k_cache=k_cache, v_cache=v_cache
        )
    else:
        implementation = _ALTERNATIVES[impl]
    return implementation(q_BHLD, k_cache, v_cache, segments, scale=scale, impl=impl)


def cached_attention_ref(
    q_BHLD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    segments: Tensor,
    *,
    scale: float | None = None,
    impl: str | None = None,
) -> Tensor:
    """Plain PyTorch twin of `cached_attention`; `impl` makes no difference here."""
    scale = q_BHLD.shape[-1] ** -0.5 if scale is None else scale
    low, high, uniform = 0, k_cache.shape[2], False
    if segments.device.type == "cpu":
        low, high, uniform = _used_range(segments)
        if low == high:
            return torch.zeros_like(q_BHLD)
    mask = None if uniform else segment_mask(segments, low, high)
    # Queries differ in nothing but their vector, so the heads of a group can be rows of one.
    q_BGMD = q_BHLD.reshape(q_BHLD.shape[0], k_cache.shape[1], -1, q_BHLD.shape[-1])
    out = masked_attention(q_BGMD, k_cache[:, :, low:high], v_cache[:, :, low:high], mask, scale)
    return out.view(q_BHLD.shape)


_IMPLEMENTATIONS = {
    "reference": cached_attention_ref,
    "cpp": cached_attention_cpp,
    "triton": cached_attention_triton,
}
_ALTERNATIVES = {"sdpa": cached_attention_ref, "flash": cached_attention_flash}


def segment_mask(segments: Tensor, low: int, high: int) -> Tensor:
    """Bool `[B,1,1,high - low]`: which of the cache rows low .. high the segments cover."""
    row = torch.arange(low, high, device=segments.device)
    start, length = segments[..., :1], segments[..., 1:]
    covered = (row >= start) & (row < start + length)
    return covered.any(1)[:, None, None]


def _used_range(segments: Tensor) -> tuple[int, int, bool]:
    """First used cache row, last one + 1, and whether every row of the batch uses all between."""
    used = [[(s, s + n) for s, n in row if n] for row in segments.tolist()]
    edges = [edge for row in used for pair in row for edge in pair]
    if not edges:
        return 0, 0, True
    low, high = min(edges), max(edges)
    return low, high, all(sum(e - s for s, e in row) == high - low for row in used)


def _check(q: Tensor, k_cache: Tensor, v_cache: Tensor, segments: Tensor) -> None:
    if q.dim() != 4 or not q.is_floating_point() or 0 in (q.shape[1], q.shape[3]):
        raise ValueError(f"q: expected floating [B,H,L,D], got {q.dtype} {list(q.shape)}")
    batch, heads, _, width = q.shape
    for name, x in {"k_cache": k_cache, "v_cache": v_cache}.items():
        same_axes = x.dim() == 4 and (x.shape[0], x.shape[3]) == (batch, width)
        same_axes = same_axes and x.shape[1] > 0 and heads % x.shape[1] == 0
        if not same_axes or x.shape != k_cache.shape or x.dtype != q.dtype:
            raise ValueError(
                f"{name}: expected {q.dtype} [{batch}, G, capacity, {width}] with G a divisor of "
                f"{heads}, got {x.dtype} {list(x.shape)}"
            )
    if segments.dim() != 3 or (segments.shape[0], segments.shape[2]) != (batch, 2):
        raise ValueError(f"segments: expected [{batch}, S, 2], got {list(segments.shape)}")
    if segments.dtype != torch.int32:
        raise ValueError(f"segments: expected torch.int32, got {segments.dtype}")
    check_devices(q=q, k_cache=k_cache, v_cache=v_cache, segments=segments)
    if values_known(segments):
        _check_segments(segments, k_cache.shape[2])


def _check_segments(segments: Tensor, capacity: int) -> None:
    for row, pairs in enumerate(segments.tolist()):
        end = 0
        for start, length in sorted(pair for pair in pairs if pair[1]):
            if start < end or length < 0 or start + length > capacity:
                raise ValueError(
                    f"segments[{row}]: expected disjoint (start, length) within {capacity} rows, "
                    f"got {pairs}"
                )
            end = start + length
