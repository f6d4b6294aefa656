"""The Triton backward pass of `chunk_attention`: one kernel for dq, one for dk and dv.

With p_ij = exp(s_ij - lse_i), s = scale q . k, and D_i = grad_out_i . out_i - grad_lse_i:

    dv_j = sum_i p_ij grad_out_i      ds_ij = p_ij (grad_out_i . v_j - D_i)
    dq_i = scale sum_j ds_ij k_j      dk_j = scale sum_i ds_ij q_i

(arXiv 2307.08691, section 3.1). Every gradient is summed by one program in a fixed order, the heads
of a group one after the other, so there are no atomics and repeated runs are equal bit for bit.
"""

import torch
from torch import Tensor

from videoar.kernels.cached_attention_triton import dot_dtype
from videoar.kernels.chunk_blocks import (
    OPERANDS_IN_SHARED,
    Chunks,
    Tiles,
    block_lists,
    shared_limit,
    token_table,
    visibility,
    visible_tile,
)
from videoar.kernels.jit import jit, tl, triton
from videoar.kernels.rope_triton import like_tokens, unit_stride


@jit
def query_gradient_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    grad_ptr,
    grad_lse_ptr,
    dq_ptr,
    delta_ptr,
    list_ptr,
    count_ptr,
    end_ptr,
    frame_ptr,
    slot_ptr,
    lengths_ptr,
    word_ptr,
    stride_qb,
    stride_qh,
    stride_ql,
    stride_kb,
    stride_kg,
    stride_kl,
    stride_vb,
    stride_vg,
    stride_vl,
    stride_gb,
    stride_gh,
    stride_gl,
    stride_list,
    stride_word,
    num_frames,
    heads,
    share,
    length,
    text_len,
    others,
    scale,
    HAS_GRAD_LSE: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    HAS_VISIBLE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOT: tl.constexpr,
):
    """dq of a block of queries, and D for the other kernel.

    Moves q, out, grad_out, dq once, k and v once a query block. FLOPs: 6 D a pair. out and dq lie
    as `[B,L,H,D]`.
    """
    own = tl.num_programs(0) - 1 - tl.program_id(0)
    batch, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    offs_m = own * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)[None, :]
    mask_m = offs_m < length
    mask = mask_m[:, None] & (offs_d < WIDTH)
    q_row = q_ptr + batch * stride_qb + head * stride_qh + offs_m * stride_ql
    grad_row = grad_ptr + batch * stride_gb + head * stride_gh + offs_m * stride_gl
    token = ((batch * length + offs_m) * heads + head) * WIDTH
    row = (batch * heads + head) * length + offs_m
    q = tl.load(q_row[:, None] + offs_d, mask=mask, other=0.0)
    grad = tl.load(grad_row[:, None] + offs_d, mask=mask, other=0.0)
    out = tl.load(out_ptr + token[:, None] + offs_d, mask=mask, other=0.0)
    # A row that sees nothing has no probabilities: 2^(s - inf) = 0.
    lse = tl.load(lse_ptr + row, mask=mask_m, other=0.0) * 1.4426950408889634
    lse = tl.where(lse == float("-inf"), float("inf"), lse)[:, None]
    delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
    if HAS_GRAD_LSE:
        delta -= tl.load(grad_lse_ptr + row, mask=mask_m, other=0.0)
    tl.store(delta_ptr + row, delta, mask=mask_m)
    end_m = tl.load(end_ptr + offs_m, mask=mask_m, other=0)[:, None]
    word_m_ptr = word_ptr + batch * stride_word
    word_m_ptr += tl.load(frame_ptr + offs_m, mask=mask_m, other=0)
    real_text = text_len
    if HAS_LENGTHS:
        real_text = tl.load(lengths_ptr + batch).to(tl.int32)
    k_base = k_ptr + batch * stride_kb + (head // share) * stride_kg
    v_base = v_ptr + batch * stride_vb + (head // share) * stride_vg
    entry = batch * stride_list + own
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for MIXED in tl.static_range(2):
        for i in range(tl.load(count_ptr + 2 * entry + MIXED)):
            n = tl.load(list_ptr + (2 * entry + MIXED) * others + i)
            offs_n = n * BLOCK_N + tl.arange(0, BLOCK_N)
            mask_n = (offs_n < length)[:, None] & (offs_d < WIDTH)
            k = tl.load(k_base + offs_n[:, None] * stride_kl + offs_d, mask=mask_n, other=0.0)
            v = tl.load(v_base + offs_n[:, None] * stride_vl + offs_d, mask=mask_n, other=0.0)
            scores = tl.dot(q.to(DOT), tl.trans(k).to(DOT), input_precision="ieee")
            p = tl.exp2(scores * (scale * 1.4426950408889634) - lse)
            dp = tl.dot(grad.to(DOT), tl.trans(v).to(DOT), input_precision="ieee")
            ds = p * (dp - delta[:, None])
            if MIXED:
                slot_n = tl.load(slot_ptr + offs_n, mask=offs_n < length, other=0)[None, :]
                word_m = end_m
                if HAS_VISIBLE:
                    word_m = tl.load(word_m_ptr + n * num_frames)[:, None]
                seen = visible_tile(
                    offs_n[None, :], end_m, word_m, slot_n, real_text, text_len, HAS_VISIBLE
                )
                ds = tl.where(seen, ds, 0.0)
            dq = tl.dot(ds.to(k.dtype).to(DOT), k.to(DOT), dq, input_precision="ieee")
    dq = (dq * scale).to(dq_ptr.dtype.element_ty)
    tl.store(dq_ptr + token[:, None] + offs_d, dq, mask=mask)


@jit
def key_gradient_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    lse_ptr,
    grad_ptr,
    delta_ptr,
    dk_ptr,
    dv_ptr,
    list_ptr,
    count_ptr,
    end_ptr,
    frame_ptr,
    slot_ptr,
    lengths_ptr,
    word_ptr,
    stride_qb,
    stride_qh,
    stride_ql,
    stride_kb,
    stride_kg,
    stride_kl,
    stride_vb,
    stride_vg,
    stride_vl,
    stride_gb,
    stride_gh,
    stride_gl,
    stride_list,
    stride_word,
    num_frames,
    groups,
    share,
    length,
    text_len,
    others,
    scale,
    HAS_LENGTHS: tl.constexpr,
    HAS_VISIBLE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOT: tl.constexpr,
):
    """dk and dv of a block of keys, over all heads of its group.

    Moves k, v, dk, dv once, q and grad_out once a key block. FLOPs: 8 D a pair. Tiles are
    transposed, keys first, so that p and ds are left operands as they come. dk and dv lie as
    `[B,L,G,D]`.
    """
    own = tl.program_id(0)
    batch, group = (tl.program_id(1) // groups).to(tl.int64), tl.program_id(1) % groups
    # Addresses are a scalar and an offset within the tile: gradients take half of the registers,
    # and what is wanted again behind the loops must cost none meanwhile.
    rows_n, rows_m = tl.arange(0, BLOCK_N)[:, None], tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)[None, :]
    first_n = own.to(tl.int64) * BLOCK_N
    offs_n = own * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (rows_n < length - own * BLOCK_N) & (offs_d < WIDTH)
    k_base = k_ptr + batch * stride_kb + group * stride_kg + first_n * stride_kl
    v_base = v_ptr + batch * stride_vb + group * stride_vg + first_n * stride_vl
    k = tl.load(k_base + (rows_n * stride_kl + offs_d), mask=mask, other=0.0)
    v = tl.load(v_base + (rows_n * stride_vl + offs_d), mask=mask, other=0.0)
    slot_n = tl.load(slot_ptr + offs_n, mask=offs_n < length, other=0)[:, None]
    word_n_ptr = word_ptr + batch * stride_word + own * num_frames
    real_text = text_len
    if HAS_LENGTHS:
        real_text = tl.load(lengths_ptr + batch).to(tl.int32)
    entry = batch * stride_list + own
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for MIXED in tl.static_range(2):
        count = tl.load(count_ptr + 2 * entry + MIXED)
        for i in range(share * count):
            head = group * share + i // count
            m = tl.load(list_ptr + (2 * entry + MIXED) * others + i % count)
            first_m = m.to(tl.int64) * BLOCK_M
            offs_m = m * BLOCK_M + rows_m
            mask_m = offs_m < length
            mask_q = mask_m[:, None] & (offs_d < WIDTH)
            q_base = q_ptr + batch * stride_qb + head * stride_qh + first_m * stride_ql
            grad_base = grad_ptr + batch * stride_gb + head * stride_gh + first_m * stride_gl
            row = (batch * groups * share + head) * length + first_m
            q = tl.load(q_base + (rows_m[:, None] * stride_ql + offs_d), mask=mask_q, other=0.0)
            grad = tl.load(
                grad_base + (rows_m[:, None] * stride_gl + offs_d), mask=mask_q, other=0.0
            )
            lse = tl.load(lse_ptr + row + rows_m, mask=mask_m, other=0.0)[None, :]
            lse *= 1.4426950408889634
            lse = tl.where(lse == float("-inf"), float("inf"), lse)
            scores = tl.dot(k.to(DOT), tl.trans(q).to(DOT), input_precision="ieee")
            p = tl.exp2(scores * (scale * 1.4426950408889634) - lse)
            if MIXED:
                end_m = tl.load(end_ptr + offs_m, mask=mask_m, other=0)[None, :]
                word_m = end_m
                if HAS_VISIBLE:
                    frame_m = tl.load(frame_ptr + offs_m, mask=mask_m, other=0)
                    word_m = tl.load(word_n_ptr + frame_m)[None, :]
                seen = visible_tile(
                    offs_n[:, None], end_m, word_m, slot_n, real_text, text_len, HAS_VISIBLE
                )
                p = tl.where(seen, p, 0.0)
            dv = tl.dot(p.to(grad.dtype).to(DOT), grad.to(DOT), dv, input_precision="ieee")
            dp = tl.dot(v.to(DOT), tl.trans(grad).to(DOT), input_precision="ieee")
            delta = tl.load(delta_ptr + row + rows_m, mask=mask_m, other=0.0)[None, :]
            ds = p * (dp - delta)
            dk = tl.dot(ds.to(q.dtype).to(DOT), q.to(DOT), dk, input_precision="ieee")
    base = ((batch * length + first_n) * groups + group) * WIDTH
    token = rows_n * (groups * WIDTH) + offs_d
    dk = (dk * scale).to(dk_ptr.dtype.element_ty)
    tl.store(dk_ptr + base + token, dk, mask=mask)
    tl.store(dv_ptr + base + token, dv.to(dv_ptr.dtype.element_ty), mask=mask)


def backward_tiles(width: int, itemsize: int, limit: int) -> tuple[Tiles, Tiles]:
    """Tiles of dq and of dk, dv: the larger side is the one whose gradients stay in registers."""
    if itemsize > 2 or width > 128:
        # float32 products take no matrix instruction: with 4 warps they keep 10 KB on the stack.
        num_warps = 8 if itemsize > 2 else 4
        return Tiles(64, 32, num_warps, 2), Tiles(32, 64, num_warps, 2)
    if limit < OPERANDS_IN_SHARED:
        return Tiles(64, 32, 4, 2), Tiles(16, 64, 8, 2)
    # The most queries that leave sm_90 enough registers beside the gradients of 128 keys, and the
    # stages with which neither Triton 3.6 nor 3.7 spills on sm_90 and sm_100.
    keys = Tiles(64, 128, 8, 2) if width <= 64 else Tiles(32, 128, 8, 3 if width == 128 else 2)
    return Tiles(128, 64, 8, 2), keys


def launch_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    grad: Tensor,
    grad_lse: Tensor | None,
    schedule: Chunks,
    text_len: int,
    scale: float,
    text_lengths: Tensor | None,
    frame_visible: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv, laid out as `[B,L,H,D]`."""
    dq, dk, dv = like_tokens(q), like_tokens(k), like_tokens(v)
    if q.numel() == 0:
        return dq, dk, dv
    batch, heads, length, width = q.shape
    groups, grad, delta = k.shape[1], unit_stride(grad), torch.empty_like(lse)
    strides = [s for x in (q, k, v, grad) for s in x.stride()[:3]]
    has_grad_lse = grad_lse is not None
    grad_lse = grad_lse.contiguous() if has_grad_lse else lse
    for tiles, transposed in zip(
        backward_tiles(width, q.itemsize, shared_limit(q.device)), (False, True), strict=True
    ):
        table = token_table(schedule, text_len, tiles.block_m, tiles.block_n, q.device)
        seen = visibility(table, text_lengths, frame_visible)
        lists, counts = block_lists(seen, batch, text_len, tiles.block_n, transposed)
        tables = (lists, counts, table.end, table.frame, table.slot, seen.lengths, seen.words)
        list_stride = lists.shape[1] if seen.per_sample else 0
        sizes = (heads // groups, length, text_len, lists.shape[3], scale)
        options = {
            "HAS_LENGTHS": seen.has_lengths,
            "HAS_VISIBLE": seen.has_visible,
            "WIDTH": width,
            "BLOCK_M": tiles.block_m,
            "BLOCK_N": tiles.block_n,
            "BLOCK_D": max(16, triton.next_power_of_2(width)),
            "DOT": dot_dtype(q.dtype),
            "num_warps": tiles.num_warps,
            "num_stages": tiles.num_stages,
        }
        inner = (*strides, list_stride, seen.stride_word, table.num_frames)
        if transposed:
            tensors = (q, k, v, lse, grad, delta, dk, dv)
            key_gradient_kernel[(lists.shape[1], batch * groups)](
                *tensors, *tables, *inner, groups, *sizes, **options
            )
        else:
            tensors = (q, k, v, out, lse, grad, grad_lse, dq, delta)
            query_gradient_kernel[(lists.shape[1], batch * heads)](
                *tensors, *tables, *inner, heads, *sizes, HAS_GRAD_LSE=has_grad_lse, **options
            )
    return dq, dk, dv
