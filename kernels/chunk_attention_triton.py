"""The Triton forward pass of `chunk_attention`, and its autograd function.

A program computes a block of queries of one head. It goes through the two lists of key blocks that
`chunk_blocks` made for it: the wholly visible ones without a mask, then the mixed ones. Hidden
blocks are in neither, so they cost nothing.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from videoar.kernels.cached_attention_triton import (
    LOG2_E,
    MAX_WIDTH,
    dot_dtype,
    positive_scale,
)
from videoar.kernels.chunk_attention_backward import backward_tiles, launch_backward
from videoar.kernels.chunk_blocks import (
    OPERANDS_IN_SHARED,
    Chunks,
    Tiles,
    Visibility,
    block_lists,
    check_span,
    shared_limit,
    token_table,
    visibility,
    visible_tile,
)
from videoar.kernels.jit import jit, tl, triton
from videoar.kernels.rope_triton import like_tokens, unit_stride
from videoar.kernels.rows import check_dtype


@jit
def _attend(
    n,
    q,
    acc,
    denominator,
    top,
    k_base,
    v_base,
    stride_kl,
    stride_vl,
    end_m,
    word_m_ptr,
    num_frames,
    slot_ptr,
    real_text,
    text_len,
    length,
    scale_log2,
    MIXED: tl.constexpr,
    HAS_VISIBLE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOT: tl.constexpr,
):
    """One step of the running softmax, over key block n; `top` is in units of q . k.

    The scale, which must be positive, comes in with the exponential, where it costs nothing.
    """
    offs_n = n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    mask_n = (offs_n < length)[:, None] & (offs_d < WIDTH)[None, :]
    k = tl.load(k_base + offs_n[:, None] * stride_kl + offs_d[None, :], mask=mask_n, other=0.0)
    v = tl.load(v_base + offs_n[:, None] * stride_vl + offs_d[None, :], mask=mask_n, other=0.0)
    scores = tl.dot(q.to(DOT), tl.trans(k).to(DOT), input_precision="ieee")
    if MIXED:
        slot_n = tl.load(slot_ptr + offs_n, mask=offs_n < length, other=0)[None, :]
        word_m = end_m
        if HAS_VISIBLE:
            word_m = tl.load(word_m_ptr + n * num_frames)[:, None]
        seen = visible_tile(
            offs_n[None, :], end_m, word_m, slot_n, real_text, text_len, HAS_VISIBLE
        )
        scores = tl.where(seen, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    base = new_top
    if MIXED:
        # A row that has seen nothing yet; -inf - -inf would be NaN.
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
    base *= scale_log2
    p = tl.exp2(scores * scale_log2 - base[:, None])
    decay = tl.exp2(top * scale_log2 - base)
    denominator = denominator * decay + tl.sum(p, 1)
    acc = acc * decay[:, None]
    acc = tl.dot(p.to(v.dtype).to(DOT), v.to(DOT), acc, input_precision="ieee")
    return acc, denominator, new_top


@jit
def forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
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
    stride_list,
    stride_word,
    num_frames,
    heads,
    share,
    length,
    text_len,
    others,
    scale_log2,
    HAS_LENGTHS: tl.constexpr,
    HAS_VISIBLE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOT: tl.constexpr,
):
    """out_i = sum_j softmax_j(scale q_i . k_j) v_j over the seen keys; lse_i = ln sum_j exp(...).

    Moves q, out and lse once, k and v once a query block (from L2, where a head's fit). out lies as
    `[B,L,H,D]`. FLOPs: 4 D for every pair in a block that is not hidden.
    """
    # The last blocks see most, so they start first.
    own = tl.num_programs(0) - 1 - tl.program_id(0)
    batch, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    batch = batch.to(tl.int64)
    group = head // share
    offs_m = own * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    mask_m = offs_m < length
    mask = mask_m[:, None] & (offs_d < WIDTH)[None, :]
    q_row = q_ptr + batch * stride_qb + head * stride_qh + offs_m * stride_ql
    q = tl.load(q_row[:, None] + offs_d[None, :], mask=mask, other=0.0)
    end_m = tl.load(end_ptr + offs_m, mask=mask_m, other=0)[:, None]
    word_m_ptr = word_ptr + batch * stride_word
    word_m_ptr += tl.load(frame_ptr + offs_m, mask=mask_m, other=0)
    real_text = text_len
    if HAS_LENGTHS:
        real_text = tl.load(lengths_ptr + batch).to(tl.int32)
    k_base = k_ptr + batch * stride_kb + group * stride_kg
    v_base = v_ptr + batch * stride_vb + group * stride_vg
    row = batch * stride_list + own
    full_ptr = list_ptr + row * 2 * others
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    denominator = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for MIXED in tl.static_range(2):
        for i in range(tl.load(count_ptr + 2 * row + MIXED)):
            acc, denominator, top = _attend(
                tl.load(full_ptr + MIXED * others + i),
                q,
                acc,
                denominator,
                top,
                k_base,
                v_base,
                stride_kl,
                stride_vl,
                end_m,
                word_m_ptr,
                num_frames,
                slot_ptr,
                real_text,
                text_len,
                length,
                scale_log2,
                MIXED,
                HAS_VISIBLE,
                WIDTH,
                BLOCK_N,
                BLOCK_D,
                DOT,
            )
    # A row that sees nothing gives 0, and its `top` is -inf.
    denominator = tl.where(denominator == 0, 1.0, denominator)
    out = (acc * (1.0 / denominator)[:, None]).to(out_ptr.dtype.element_ty)
    out_row = out_ptr + ((batch * length + offs_m) * heads + head) * WIDTH
    tl.store(out_row[:, None] + offs_d[None, :], out, mask=mask)
    lse = (top * scale_log2 + tl.log2(denominator)) * 0.6931471805599453
    tl.store(lse_ptr + (batch * heads + head) * length + offs_m, lse, mask=mask_m)


def chunk_attention_tiles(length: int, width: int, itemsize: int, shared_limit: int) -> Tiles:
    """Tiles of the forward pass for heads of `width` on a device with that much shared memory."""
    block_d = max(16, triton.next_power_of_2(width))
    if itemsize > 2 or block_d > 128:
        # float32 products take no matrix instruction: with 4 warps they keep 8 KB on the stack.
        return Tiles(min(64, _block(length)), 32, 8 if itemsize > 2 else 4, 2)
    if shared_limit < OPERANDS_IN_SHARED:
        return Tiles(min(64, _block(length)), 32, 8, 2)
    block_m = min(128, _block(length))
    # Three stages keep two key blocks on the way while a third is computed.
    three = (block_m + 3 * 2 * 64) * block_d * itemsize
    return Tiles(block_m, 64, 8 if block_m == 128 else 4, 3 if three <= shared_limit else 2)


def _block(length: int) -> int:
    return max(16, triton.next_power_of_2(length))


def chunk_attention_triton(
    q_BHLD: Tensor,
    k_BGLD: Tensor,
    v_BGLD: Tensor,
    schedule: Chunks,
    *,
    text_len: int = 0,
    text_lengths: Tensor | None = None,
    frame_visible: Tensor | None = None,
    scale: float | None = None,
    mask: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Triton twin of `chunk_attention`; works from the schedule and does not read `mask`.

    Raises:
        ValueError: a dtype or head width that the kernel does not serve.
    """
    check_dtype("q", q_BHLD)
    if q_BHLD.shape[-1] > MAX_WIDTH:
        raise ValueError(
            f"q: the Triton kernel takes D up to {MAX_WIDTH}, got {list(q_BHLD.shape)}"
        )
    scale = q_BHLD.shape[-1] ** -0.5 if scale is None else scale
    wanted = any(x.requires_grad for x in (q_BHLD, k_BGLD, v_BGLD)) and q_BHLD.numel()
    if wanted and torch.is_grad_enabled():
        # What the backward would refuse is refused here, before anything is launched.
        for one in backward_tiles(q_BHLD.shape[3], q_BHLD.itemsize, shared_limit(q_BHLD.device)):
            blocks = (one.block_m, one.block_n)
            check_span(token_table(schedule, text_len, *blocks, q_BHLD.device), frame_visible)
    out, lse = _ChunkAttention.apply(
        q_BHLD, k_BGLD, v_BGLD, schedule, text_len, text_lengths, frame_visible, scale
    )
    return (out, lse) if return_lse else out


class _ChunkAttention(torch.autograd.Function):
    """Saves q, k, v, out and lse; the backward pass computes the probabilities again."""

    @staticmethod
    def forward(ctx, q, k, v, schedule, text_len, text_lengths, frame_visible, scale):
        q, k, v = unit_stride(q), unit_stride(k), unit_stride(v)
        out, lse = like_tokens(q), q.new_empty(q.shape[:3], dtype=torch.float32)
        if out.numel():
            limit = shared_limit(q.device)
            tiles = chunk_attention_tiles(q.shape[2], q.shape[3], q.itemsize, limit)
            table = token_table(schedule, text_len, tiles.block_m, tiles.block_n, q.device)
            seen = visibility(table, text_lengths, frame_visible)
            _launch_forward(q, k, v, out, lse, seen, text_len, scale, tiles)
        ctx.save_for_backward(q, k, v, out, lse, text_lengths, frame_visible)
        ctx.arguments = schedule, text_len, scale
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out, grad_lse):
        *tensors, text_lengths, frame_visible = ctx.saved_tensors
        if grad_out is None:
            grad_out = torch.zeros_like(tensors[3])
        grads = launch_backward(
            *tensors, grad_out, grad_lse, *ctx.arguments, text_lengths, frame_visible
        )
        return *grads, None, None, None, None, None


def _launch_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    seen: Visibility,
    text_len: int,
    scale: float,
    tiles: Tiles,
) -> None:
    batch, heads, length, width = q.shape
    q, scale = positive_scale(q, scale)
    lists, counts = block_lists(seen, batch, text_len, tiles.block_n, transposed=False)
    forward_kernel[(lists.shape[1], batch * heads)](
        q,
        k,
        v,
        out,
        lse,
        lists,
        counts,
        seen.table.end,
        seen.table.frame,
        seen.table.slot,
        seen.lengths,
        seen.words,
        *(s for x in (q, k, v) for s in x.stride()[:3]),
        lists.shape[1] if seen.per_sample else 0,
        seen.stride_word,
        seen.table.num_frames,
        heads,
        heads // k.shape[1],
        length,
        text_len,
        lists.shape[3],
        scale * LOG2_E,
        HAS_LENGTHS=seen.has_lengths,
        HAS_VISIBLE=seen.has_visible,
        WIDTH=width,
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        BLOCK_D=max(16, triton.next_power_of_2(width)),
        DOT=dot_dtype(q.dtype),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
