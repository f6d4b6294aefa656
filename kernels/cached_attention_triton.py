"""The Triton kernels of `cached_attention`: split over the keys, then combined.

The cache rows that the segments of a batch row name are numbered one after the other, 0 .. total.
Split s of S takes the numbers from s * share on, share = total / S rounded up to whole key blocks,
so the work is even whatever the segments are, and no host ever reads their lengths: one launch
geometry, taken from the shapes alone, serves every frame. The queries of all heads that share a
key head are rows of one tile, so a key is loaded once for the group.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from videoar.kernels.dispatch import refuse_recording
from videoar.kernels.jit import interpreted, jit, pdl_options, tl, triton, wait_then_release

LOG2_E = 1.4426950408889634
MAX_WIDTH = 256
MAX_SPLITS = 16
# Programs that fill a large GPU once; a constant, so that splits do not depend on the device.
PROGRAMS = 132
COMBINE_ROWS = 16
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@jit
def split_attention_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    segments_ptr,
    out_ptr,
    lse_ptr,
    stride_qb,
    stride_qh,
    stride_ql,
    stride_kb,
    stride_kg,
    stride_kn,
    stride_vb,
    stride_vg,
    stride_vn,
    stride_ob,
    stride_oh,
    stride_ol,
    groups,
    share,
    length,
    scale_log2,
    SEGMENTS: tl.constexpr,
    SPLITS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOT: tl.constexpr,
    PDL: tl.constexpr = False,
):
    """out = sum_j 2^(s_j - m) v_j / sum_j 2^(s_j - m), s = scale_log2 q . k, over one split's keys.

    Moves its keys and values once, q and out once. With one split `out` is the result, else a
    float32 part `[SPLITS, B, H, L, D]` with its log2 denominators in `lse`.
    """
    if PDL:
        wait_then_release()
    batch, group = tl.program_id(2) // groups, tl.program_id(2) % groups
    split = tl.program_id(1)
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    head, token = group * share + offs_m // length, offs_m % length
    mask_m = (offs_m < share * length)[:, None] & (offs_d < WIDTH)[None, :]
    batch = batch.to(tl.int64)
    q_row = q_ptr + batch * stride_qb + head * stride_qh + token * stride_ql
    q = tl.load(q_row[:, None] + offs_d[None, :], mask=mask_m, other=0.0)

    starts, ends, total = (), (), 0
    for s in tl.static_range(SEGMENTS):
        pair_ptr = segments_ptr + (batch * SEGMENTS + s) * 2
        # Number n of the concatenated keys is cache row n + (start - number of the first).
        starts += (tl.load(pair_ptr) - total,)
        total += tl.load(pair_ptr + 1)
        ends += (total,)
    per_split = tl.cdiv(tl.cdiv(total, SPLITS), BLOCK_N) * BLOCK_N
    first = split * per_split
    stop = tl.minimum(first + per_split, total)

    k_base = k_ptr + batch * stride_kb + group.to(tl.int64) * stride_kg
    v_base = v_ptr + batch * stride_vb + group.to(tl.int64) * stride_vg
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    denominator = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for number in range(first, stop, BLOCK_N):
        offs_n = number + tl.arange(0, BLOCK_N)
        row = offs_n + starts[SEGMENTS - 1]
        for s in tl.static_range(SEGMENTS - 1):
            # From the last but one to the first, so that the first that holds it stays.
            inside = offs_n < ends[SEGMENTS - 2 - s]
            row = tl.where(inside, offs_n + starts[SEGMENTS - 2 - s], row)
        mask_n = (offs_n < stop)[:, None] & (offs_d < WIDTH)[None, :]
        k = tl.load(k_base + row[:, None] * stride_kn + offs_d[None, :], mask=mask_n, other=0.0)
        v = tl.load(v_base + row[:, None] * stride_vn + offs_d[None, :], mask=mask_n, other=0.0)
        scores = tl.dot(q.to(DOT), tl.trans(k).to(DOT), input_precision="ieee")
        scores = tl.where((offs_n < stop)[None, :], scores, float("-inf"))
        # Every block holds a key, so the maximum is finite from the first block on. It is one of
        # q . k: the scale, which is positive, comes in with the exponential, where it is free.
        new_top = tl.maximum(top, tl.max(scores, 1))
        p = tl.exp2(scores * scale_log2 - (new_top * scale_log2)[:, None])
        decay = tl.exp2((top - new_top) * scale_log2)
        denominator = denominator * decay + tl.sum(p, 1)
        acc *= decay[:, None]
        acc = tl.dot(p.to(v.dtype).to(DOT), v.to(DOT), acc, input_precision="ieee")
        top = new_top

    # Without keys the result is 0 and its log denominator `top`, which is -inf.
    denominator = tl.where(denominator == 0, 1.0, denominator)
    out = acc * (1.0 / denominator)[:, None]
    out_row = out_ptr + batch * stride_ob + head * stride_oh + token * stride_ol
    if SPLITS > 1:
        # The parts of a split lie as [B, H, L, D], whose heads are the rows of q in order.
        part = (split * (tl.num_programs(2) // groups) + batch) * groups * share * length
        row = head * length + token
        tl.store(
            lse_ptr + part + row,
            top * scale_log2 + tl.log2(denominator),
            mask=offs_m < share * length,
        )
        out_row = out_ptr + part * WIDTH + row * WIDTH
    tl.store(out_row[:, None] + offs_d[None, :], out.to(out_ptr.dtype.element_ty), mask=mask_m)


@jit
def combine_kernel(
    part_ptr,
    lse_ptr,
    out_ptr,
    stride_ob,
    stride_oh,
    stride_ol,
    heads,
    length,
    rows,
    SPLITS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PDL: tl.constexpr = False,
):
    """out = sum_s 2^lse_s part_s / sum_s 2^lse_s; 0 where every split was empty.

    Moves the float32 parts once, out once.
    """
    if PDL:
        wait_then_release()
    offs_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    offs_d = tl.arange(0, BLOCK_D)
    mask_r = offs_r < rows
    mask = mask_r[:, None] & (offs_d < WIDTH)[None, :]
    flat = offs_r.to(tl.int64)
    top = tl.full([BLOCK_R], float("-inf"), tl.float32)
    for s in tl.static_range(SPLITS):
        top = tl.maximum(top, tl.load(lse_ptr + s * rows + flat, mask=mask_r, other=0.0))
    top = tl.where(top == float("-inf"), 0.0, top)
    denominator = tl.zeros([BLOCK_R], tl.float32)
    acc = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for s in tl.static_range(SPLITS):
        row = s * rows + flat
        weight = tl.exp2(tl.load(lse_ptr + row, mask=mask_r, other=0.0) - top)
        part_ptrs = part_ptr + row[:, None] * WIDTH + offs_d[None, :]
        acc += weight[:, None] * tl.load(part_ptrs, mask=mask, other=0.0)
        denominator += weight
    out = acc * (1.0 / tl.where(denominator == 0, 1.0, denominator))[:, None]
    batch, head, token = offs_r // (heads * length), (offs_r // length) % heads, offs_r % length
    out_row = out_ptr + batch.to(tl.int64) * stride_ob + head * stride_oh + token * stride_ol
    tl.store(out_row[:, None] + offs_d[None, :], out.to(out_ptr.dtype.element_ty), mask=mask)


def positive_scale(q: Tensor, scale: float) -> tuple[Tensor, float]:
    """q and a positive scale that give the same scores.

    The kernels look for the largest q . k, which is the largest score under such a scale only.
    """
    if scale > 0:
        return q, scale
    return (-q, -scale) if scale else (torch.zeros_like(q), 1.0)


class Tiles(NamedTuple):
    """Launch geometry: rows and keys of a tile, splits of the keys, warps, pipeline stages."""

    block_m: int
    block_n: int
    splits: int
    num_warps: int
    num_stages: int


def cached_attention_tiles(
    batch: int, groups: int, rows: int, capacity: int, width: int, itemsize: int
) -> Tiles:
    """Tiles for `rows` query rows a key head against a cache of `capacity` rows.

    Rows fill a tile of 16 to 128. The keys are split until the programs fill the GPU once, but not
    below two key blocks a split.
    """
    block_m = min(max(16, triton.next_power_of_2(rows)), 128)
    block_n = 64
    # float32 and widths over 128 take twice the memory and registers a row.
    if itemsize > 2 or width > 128:
        block_m, block_n = min(block_m, 64), 32
    # float32 products take no matrix instruction: with 4 warps they keep 10 KB on the stack.
    num_warps = 8 if block_m == 128 or itemsize > 2 else 4
    programs = batch * groups * triton.cdiv(rows, block_m)
    splits = min(PROGRAMS // programs, capacity // (2 * block_n), MAX_SPLITS)
    return Tiles(block_m, block_n, max(splits, 1), num_warps, 2)


def cached_attention_triton(
    q_BHLD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    segments: Tensor,
    *,
    scale: float | None = None,
    impl: str | None = None,
) -> Tensor:
    """Triton twin of `cached_attention`; `impl` makes no difference here.

    Raises:
        ValueError: a dtype, head width or stride that the kernel does not serve.
    """
    batch, heads, length, width = q_BHLD.shape
    groups, capacity = k_cache.shape[1:3]
    _check(q_BHLD, k_cache, v_cache)
    refuse_recording("cached_attention", q=q_BHLD, k_cache=k_cache, v_cache=v_cache)
    # Laid out as [B,L,H,D], so that the projection behind it reads a view.
    out = q_BHLD.new_empty(batch, length, heads, width).transpose(1, 2)
    if out.numel() == 0:
        return out
    if capacity == 0 or segments.shape[1] == 0:
        return out.zero_()
    q = q_BHLD if q_BHLD.stride(-1) == 1 else q_BHLD.contiguous()
    rows = heads // groups * length
    tiles = cached_attention_tiles(batch, groups, rows, capacity, width, q.itemsize)
    parts = lse = out
    if tiles.splits > 1:
        parts = q.new_empty(tiles.splits, *q.shape, dtype=torch.float32)
        lse = q.new_empty(tiles.splits, *q.shape[:3], dtype=torch.float32)
    q, scale = positive_scale(q, width**-0.5 if scale is None else scale)
    block_d = max(16, triton.next_power_of_2(width))
    split_attention_kernel[(triton.cdiv(rows, tiles.block_m), tiles.splits, batch * groups)](
        q,
        k_cache,
        v_cache,
        segments.contiguous(),
        parts,
        lse,
        *q.stride()[:3],
        *k_cache.stride()[:3],
        *v_cache.stride()[:3],
        *out.stride()[:3],
        groups,
        heads // groups,
        length,
        scale * LOG2_E,
        SEGMENTS=segments.shape[1],
        SPLITS=tiles.splits,
        WIDTH=width,
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        BLOCK_D=block_d,
        DOT=dot_dtype(q.dtype),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        **pdl_options(q.device),
    )
    if tiles.splits > 1:
        total = batch * heads * length
        combine_kernel[(triton.cdiv(total, COMBINE_ROWS),)](
            parts,
            lse,
            out,
            *out.stride()[:3],
            heads,
            length,
            total,
            SPLITS=tiles.splits,
            WIDTH=width,
            BLOCK_R=COMBINE_ROWS,
            BLOCK_D=block_d,
            **pdl_options(q.device),
        )
    return out


def dot_dtype(dtype: torch.dtype):
    """What the matrix products read: the dtype itself, but the interpreter has no bfloat16 ones."""
    if dtype == torch.bfloat16 and interpreted():
        return tl.float32
    return getattr(tl, str(dtype).removeprefix("torch."))


def _check(q: Tensor, k_cache: Tensor, v_cache: Tensor) -> None:
    if q.dtype not in DTYPES or q.shape[-1] > MAX_WIDTH:
        raise ValueError(
            f"q: the Triton kernel takes {list(DTYPES)} and D up to {MAX_WIDTH}, "
            f"got {q.dtype} {list(q.shape)}"
        )
    for name, x in {"k_cache": k_cache, "v_cache": v_cache}.items():
        if x.stride(-1) != 1:
            raise ValueError(f"{name}: expected unit stride in the last axis, got {x.stride()}")
