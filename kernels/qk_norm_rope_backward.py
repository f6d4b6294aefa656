"""The Triton backward pass of `qk_norm_rope`; deterministic, without atomics."""

import torch
from torch import Tensor

from videoar.kernels.jit import jit, tl, triton
from videoar.kernels.rope_triton import (
    cos_sin,
    like_tokens,
    position_strides,
    qk_norm_rope_tiles,
    rope_frequencies,
    store_pairs,
    unit_stride,
)
from videoar.kernels.variant import Variant


@jit
def _rows_gradient(
    x_row,
    grad_row,
    dx_row,
    w_ptr,
    partial_ptr,
    cos,
    sin,
    mask,
    eps,
    HAS_NORM: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """dx of a block of rows of one head, and their sum of g n into `partial_ptr` [D]."""
    offs_p = tl.arange(0, BLOCK_P)
    mask_p = offs_p < PAIRS
    grad_ptrs = grad_row[:, None] + offs_p[None, :]
    first = tl.load(grad_ptrs, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(grad_ptrs + PAIRS, mask=mask, other=0.0).to(tl.float32)
    first, second = first * cos + second * sin, second * cos - first * sin
    if HAS_NORM:
        x_ptrs = x_row[:, None] + offs_p[None, :]
        n_first = tl.load(x_ptrs, mask=mask, other=0.0).to(tl.float32)
        n_second = tl.load(x_ptrs + PAIRS, mask=mask, other=0.0).to(tl.float32)
        squares = tl.sum(n_first * n_first, 1) + tl.sum(n_second * n_second, 1)
        scale = tl.rsqrt(squares / (2 * PAIRS) + eps)[:, None]
        n_first *= scale
        n_second *= scale
        tl.store(partial_ptr + offs_p, tl.sum(first * n_first, 0), mask=mask_p)
        tl.store(partial_ptr + PAIRS + offs_p, tl.sum(second * n_second, 0), mask=mask_p)
        first *= tl.load(w_ptr + offs_p, mask=mask_p, other=0.0).to(tl.float32)[None, :]
        second *= tl.load(w_ptr + PAIRS + offs_p, mask=mask_p, other=0.0).to(tl.float32)[None, :]
        mean = tl.sum(first * n_first, 1) + tl.sum(second * n_second, 1)
        mean = (mean / (2 * PAIRS))[:, None]
        first = (first - n_first * mean) * scale
        second = (second - n_second * mean) * scale
    store_pairs(dx_row, first, second, mask, PAIRS, BLOCK_P)


@jit
def backward_kernel(
    q_ptr,
    k_ptr,
    grad_q_ptr,
    grad_k_ptr,
    dq_ptr,
    dk_ptr,
    partial_ptr,
    q_weight_ptr,
    k_weight_ptr,
    position_ptr,
    frequency_ptr,
    stride_qb,
    stride_qh,
    stride_ql,
    stride_kb,
    stride_kg,
    stride_kl,
    stride_gqb,
    stride_gqh,
    stride_gql,
    stride_gkb,
    stride_gkg,
    stride_gkl,
    stride_pb,
    stride_pl,
    stride_pa,
    heads,
    groups,
    length,
    tokens,
    eps,
    SECTION_T: tl.constexpr,
    SECTION_H: tl.constexpr,
    PAIRS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """With n = x / rms(x) and g the gradient turned back:

        dx = (g weight - n mean(g weight n)) / rms(x)      partial[head, block] = sum_tokens(g n)

    Moves q, k and their gradients once in, dq and dk once out, 4 D bytes a program of partial.
    dq and dk lie as `[B,L,H,D]`.
    """
    slot = tl.program_id(1)
    offs_t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    mask_t = offs_t < tokens
    batch, token = offs_t // length, offs_t % length
    mask = mask_t[:, None] & (tl.arange(0, BLOCK_P) < PAIRS)[None, :]
    cos, sin = cos_sin(
        position_ptr + batch * stride_pb + token * stride_pl,
        stride_pa,
        frequency_ptr,
        mask_t,
        SECTION_T,
        SECTION_H,
        PAIRS,
        BLOCK_P,
    )
    block = slot.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    partial_ptr += block * (2 * PAIRS)
    # Rows are read and written inside of the branches: what Triton 3.6 knows about an address ends
    # where branches meet, and it moved values one by one.
    if slot < heads:
        _rows_gradient(
            q_ptr + batch * stride_qb + slot * stride_qh + token * stride_ql,
            grad_q_ptr + batch * stride_gqb + slot * stride_gqh + token * stride_gql,
            dq_ptr + (offs_t * heads + slot) * (2 * PAIRS),
            q_weight_ptr,
            partial_ptr,
            cos,
            sin,
            mask,
            eps,
            HAS_NORM,
            PAIRS,
            BLOCK_P,
        )
    else:
        group = slot - heads
        _rows_gradient(
            k_ptr + batch * stride_kb + group * stride_kg + token * stride_kl,
            grad_k_ptr + batch * stride_gkb + group * stride_gkg + token * stride_gkl,
            dk_ptr + (offs_t * groups + group) * (2 * PAIRS),
            k_weight_ptr,
            partial_ptr,
            cos,
            sin,
            mask,
            eps,
            HAS_NORM,
            PAIRS,
            BLOCK_P,
        )


def launch_backward(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    positions: Tensor,
    grad_q: Tensor,
    grad_k: Tensor,
    sections: tuple[int, int, int],
    theta: float,
    eps: float,
) -> tuple[Tensor | None, ...]:
    """Gradients of q, k, q_weight and k_weight."""
    q, k, grad_q, grad_k = (unit_stride(x) for x in (q, k, grad_q, grad_k))
    dq, dk = like_tokens(q), like_tokens(k)
    batch, heads, length, width = q.shape
    groups, tokens = k.shape[1], batch * length
    block_t, block_p, num_warps = qk_norm_rope_tiles(tokens, width)
    blocks = triton.cdiv(tokens, block_t)
    partial = q.new_empty(heads + groups, blocks, width, dtype=torch.float32)
    if tokens:
        backward_kernel[(blocks, heads + groups)](
            q,
            k,
            grad_q,
            grad_k,
            dq,
            dk,
            partial,
            q if q_weight is None else q_weight.contiguous(),
            k if k_weight is None else k_weight.contiguous(),
            positions,
            rope_frequencies(width // 2, theta, q.device),
            *(s for x in (q, k, grad_q, grad_k) for s in x.stride()[:3]),
            *position_strides(positions),
            heads,
            groups,
            length,
            tokens,
            eps,
            SECTION_T=sections[0],
            SECTION_H=sections[1],
            PAIRS=width // 2,
            HAS_NORM=q_weight is not None,
            BLOCK_T=block_t,
            BLOCK_P=block_p,
            num_warps=num_warps,
        )
    if q_weight is None:
        return dq, dk, None, None
    dq_weight = partial[:heads].sum((0, 1)).to(q_weight.dtype)
    dk_weight = partial[heads:].sum((0, 1)).to(k_weight.dtype)
    return dq, dk, dq_weight, dk_weight


def backward_variant(name: str, tokens: int, config) -> Variant:
    """The kernel over `tokens` tokens of a `TransformerConfig`."""
    block_t, block_p, num_warps = qk_norm_rope_tiles(tokens, config.head_dim)
    tensors = ("q", "k", "grad_q", "grad_k", "dq", "dk", "q_weight", "k_weight")
    pointers = {f"{x}_ptr": "*bf16" for x in tensors}
    pointers |= {"partial_ptr": "*fp32", "position_ptr": "*i64", "frequency_ptr": "*fp32"}
    axes = {"q": "bhl", "k": "bgl", "gq": "bhl", "gk": "bgl"}
    strides = tuple(f"stride_{x}{axis}" for x, names in axes.items() for axis in names)
    integers = ("stride_pb", "stride_pl", "heads", "groups", "length", "tokens")
    return Variant(
        name=f"qk_norm_rope_backward-{name}",
        kernel=backward_kernel,
        signature=pointers | dict.fromkeys((*strides, *integers), "i32") | {"eps": "fp32"},
        constexprs={
            "stride_pa": 1,
            "SECTION_T": config.rope_sections[0],
            "SECTION_H": config.rope_sections[1],
            "PAIRS": config.head_dim // 2,
            "HAS_NORM": True,
            "BLOCK_T": block_t,
            "BLOCK_P": block_p,
        },
        divisible=(*pointers, *strides),
        num_warps=num_warps,
        vector_bytes=16,
    )
