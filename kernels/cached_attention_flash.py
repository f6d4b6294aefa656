"""`cached_attention` through the flash-attn package (extra `flash`; method: arXiv 2307.08691).

The package's decoding function wants the keys of a batch row one behind the other from row 0 of a
cache, and reads how many there are from device memory. So the cache rows that the segments name are
gathered in front of it, into buffers of the cache's own capacity: all shapes follow from the
arguments' shapes, no host reads a length, and a captured graph serves every frame as it does with
our kernel. The price is that both caches are copied: an alternative to compare with, not a
faster one.
"""

import torch
from torch import Tensor

from videoar.kernels.rope_triton import unit_stride

DTYPES = (torch.float16, torch.bfloat16)
MAX_WIDTH = 256
MISSING = "impl: 'flash' needs the flash-attn package (pip install 'videoar[flash]')"


def cached_attention_flash(
    q_BHLD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    segments: Tensor,
    *,
    scale: float | None = None,
    impl: str | None = None,
) -> Tensor:
    """flash-attn twin of `cached_attention`; `impl` makes no difference here.

    Raises:
        ValueError: a device, dtype or head width that the package does not serve.
        ImportError: the package is not there.
    """
    if not q_BHLD.is_cuda:
        raise ValueError(f"q: impl 'flash' takes CUDA tensors, got one on {q_BHLD.device}")
    width = q_BHLD.shape[-1]
    if q_BHLD.dtype not in DTYPES or width > MAX_WIDTH or width % 8:
        raise ValueError(
            f"q: impl 'flash' takes {list(DTYPES)} and D a multiple of 8 up to {MAX_WIDTH}, "
            f"got {q_BHLD.dtype} {list(q_BHLD.shape)}"
        )
    return attend_gathered(q_BHLD, k_cache, v_cache, segments, scale)


def attend_gathered(
    q_BHLD: Tensor, k_cache: Tensor, v_cache: Tensor, segments: Tensor, scale: float | None
) -> Tensor:
    """`cached_attention` by `flash_attn_with_kvcache`, on whatever that function takes.

    Raises:
        ImportError: the package is not there.
    """
    try:
        from flash_attn import flash_attn_with_kvcache
    except ImportError as error:
        raise ImportError(f"{MISSING}: {error}") from error
    if 0 in (q_BHLD.numel(), k_cache.numel(), segments.numel()):
        return torch.zeros_like(q_BHLD)
    rows, lengths = segment_rows(segments, k_cache.shape[2])
    batch = torch.arange(len(rows), device=rows.device)[:, None]
    keys, values = (x.transpose(1, 2)[batch, rows] for x in (k_cache, v_cache))
    out = flash_attn_with_kvcache(
        unit_stride(q_BHLD).transpose(1, 2),
        keys,
        values,
        cache_seqlens=lengths,
        softmax_scale=scale,
    )
    return out.transpose(1, 2).masked_fill((lengths == 0)[:, None, None, None], 0)


def segment_rows(segments: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    """Which cache rows `segments` `[B,S,2]` name, S being at least 1.

    Returns:
        int64 `[B,capacity]`: the row of each key, segment by segment, and 0 behind the last one;
        int32 `[B]`: the number of keys.
    """
    start_BS, length_BS = segments.long().unbind(-1)
    end_BS = length_BS.cumsum(1)
    number = torch.arange(capacity, device=segments.device).repeat(len(segments), 1)
    # The first segment that ends behind a number holds it: empty ones never do.
    owner = torch.searchsorted(end_BS, number, right=True).clamp(max=segments.shape[1] - 1)
    rows = number + (start_BS + length_BS - end_BS).gather(1, owner)
    total = end_BS[:, -1:]
    return torch.where(number < total, rows, 0), total.squeeze(1).int()
