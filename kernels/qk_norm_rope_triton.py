"""The Triton kernels of `qk_norm_rope`, forward with cache write and backward.

A program turns a few tokens of one head: blocks of tokens on the first axis of the grid; query
heads, key heads and, with a cache, value heads on the second. Angles come from the positions and a
table of D/2 frequencies, which are computed in float64 once; cos and sin are never in memory.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from videoar.kernels.jit import jit, pdl_options, tl, triton, wait_then_release
from videoar.kernels.qk_norm_rope_backward import backward_variant, launch_backward
from videoar.kernels.rope_triton import (
    cos_sin,
    like_tokens,
    position_strides,
    qk_norm_rope_tiles,
    rope_frequencies,
    store_pairs,
    unit_stride,
)
from videoar.kernels.rows import check_dtype
from videoar.kernels.variant import Variant

if TYPE_CHECKING:
    from videoar.kernels.qk_norm_rope import CacheWrite, Sections


@jit
def _turn(
    x_row,
    w_ptr,
    cos,
    sin,
    mask,
    eps,
    HAS_NORM: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Both halves of the normalised and turned rows, in float32."""
    offs_p = tl.arange(0, BLOCK_P)
    first = tl.load(x_row[:, None] + offs_p[None, :], mask=mask, other=0.0).to(tl.float32)
    second = tl.load(x_row[:, None] + PAIRS + offs_p[None, :], mask=mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        squares = tl.sum(first * first, 1) + tl.sum(second * second, 1)
        scale = tl.rsqrt(squares / (2 * PAIRS) + eps)[:, None]
        mask_p = offs_p < PAIRS
        first *= scale * tl.load(w_ptr + offs_p, mask=mask_p, other=0.0).to(tl.float32)[None, :]
        w_second = tl.load(w_ptr + PAIRS + offs_p, mask=mask_p, other=0.0).to(tl.float32)
        second *= scale * w_second[None, :]
    return first * cos - second * sin, second * cos + first * sin


@jit
def forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    q_out_ptr,
    k_out_ptr,
    k_cache_ptr,
    v_cache_ptr,
    q_weight_ptr,
    k_weight_ptr,
    position_ptr,
    frequency_ptr,
    start_ptr,
    start,
    stride_qb,
    stride_qh,
    stride_ql,
    stride_kb,
    stride_kg,
    stride_kl,
    stride_vb,
    stride_vg,
    stride_vl,
    stride_qob,
    stride_qoh,
    stride_qol,
    stride_kob,
    stride_kog,
    stride_kol,
    stride_kcb,
    stride_kcg,
    stride_kcn,
    stride_vcb,
    stride_vcg,
    stride_vcn,
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
    HAS_CACHE: tl.constexpr,
    START_ON_DEVICE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PDL: tl.constexpr = False,
):
    """x = x / sqrt(mean(x^2) + eps) * weight, then its pairs (i, i + D/2) turned; v is copied.

    Moves q and k once in and once out; with a cache also v once in and k, v once out.
    """
    if PDL:
        wait_then_release()
    slot = tl.program_id(1)
    offs_t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    mask_t = offs_t < tokens
    batch, token = offs_t // length, offs_t % length
    mask = mask_t[:, None] & (tl.arange(0, BLOCK_P) < PAIRS)[None, :]
    if START_ON_DEVICE:
        place = tl.load(start_ptr + batch, mask=mask_t, other=0).to(tl.int64) + token
    else:
        place = token + start
    if slot < heads + groups:
        position = position_ptr + batch * stride_pb + token * stride_pl
        cos, sin = cos_sin(
            position, stride_pa, frequency_ptr, mask_t, SECTION_T, SECTION_H, PAIRS, BLOCK_P
        )
        if slot < heads:
            row = q_ptr + batch * stride_qb + slot * stride_qh + token * stride_ql
            out_row = q_out_ptr + batch * stride_qob + slot * stride_qoh + token * stride_qol
            q1, q2 = _turn(row, q_weight_ptr, cos, sin, mask, eps, HAS_NORM, PAIRS, BLOCK_P)
            store_pairs(out_row, q1, q2, mask, PAIRS, BLOCK_P)
        else:
            group = slot - heads
            row = k_ptr + batch * stride_kb + group * stride_kg + token * stride_kl
            out_row = k_out_ptr + batch * stride_kob + group * stride_kog + token * stride_kol
            k1, k2 = _turn(row, k_weight_ptr, cos, sin, mask, eps, HAS_NORM, PAIRS, BLOCK_P)
            # Rounded once: the cache holds what the caller gets.
            k1, k2 = k1.to(row.dtype.element_ty), k2.to(row.dtype.element_ty)
            store_pairs(out_row, k1, k2, mask, PAIRS, BLOCK_P)
            if HAS_CACHE:
                cache_row = k_cache_ptr + batch * stride_kcb + group * stride_kcg
                store_pairs(cache_row + place * stride_kcn, k1, k2, mask, PAIRS, BLOCK_P)
    elif HAS_CACHE:
        value = slot - heads - groups
        v_row = v_ptr + batch * stride_vb + value * stride_vg + token * stride_vl
        v_ptrs = v_row[:, None] + tl.arange(0, BLOCK_P)[None, :]
        v1 = tl.load(v_ptrs, mask=mask, other=0.0)
        v2 = tl.load(v_ptrs + PAIRS, mask=mask, other=0.0)
        v_cache_row = v_cache_ptr + batch * stride_vcb + value * stride_vcg + place * stride_vcn
        store_pairs(v_cache_row, v1, v2, mask, PAIRS, BLOCK_P)


def qk_norm_rope_triton(
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
    """Triton twin of `qk_norm_rope`.

    Raises:
        ValueError: a dtype or stride that the kernel does not serve.
    """
    check_dtype("q", q_BHLD)
    for name in ("k_cache", "v_cache"):
        if cache is not None and getattr(cache, name).stride(-1) != 1:
            raise ValueError(
                f"cache.{name}: expected unit stride in the last axis, "
                f"got {getattr(cache, name).stride()}"
            )
    return _QKNormRope.apply(
        q_BHLD, k_BGLD, q_weight, k_weight, positions, sections, theta, eps, cache
    )


class _QKNormRope(torch.autograd.Function):
    """Saves the inputs only; the backward pass normalises again."""

    @staticmethod
    def forward(ctx, q, k, q_weight, k_weight, positions, sections, theta, eps, cache):
        ctx.save_for_backward(q, k, q_weight, k_weight, positions)
        ctx.arguments = sections, theta, eps
        return _launch_forward(q, k, q_weight, k_weight, positions, sections, theta, eps, cache)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_q, grad_k):
        grads = launch_backward(*ctx.saved_tensors, grad_q, grad_k, *ctx.arguments)
        return *grads, None, None, None, None, None


def _launch_forward(q, k, q_weight, k_weight, positions, sections, theta, eps, cache):
    q, k = unit_stride(q), unit_stride(k)
    q_out, k_out = like_tokens(q), like_tokens(k)
    batch, heads, length, width = q.shape
    if batch * length == 0:
        return q_out, k_out
    groups, tokens = k.shape[1], batch * length
    block_t, block_p, num_warps = qk_norm_rope_tiles(tokens, width)
    v = k_cache = v_cache = k
    start, start_ptr = 0, positions
    if cache is not None:
        v, k_cache, v_cache = unit_stride(cache.v_BGLD), cache.k_cache, cache.v_cache
        if isinstance(cache.start, Tensor):
            start_ptr = cache.start.contiguous()
        else:
            start = cache.start
    slots = heads + groups * (1 if cache is None else 2)
    forward_kernel[(triton.cdiv(tokens, block_t), slots)](
        q,
        k,
        v,
        q_out,
        k_out,
        k_cache,
        v_cache,
        q if q_weight is None else q_weight.contiguous(),
        k if k_weight is None else k_weight.contiguous(),
        positions,
        rope_frequencies(width // 2, theta, q.device),
        start_ptr,
        start,
        *(s for x in (q, k, v, q_out, k_out, k_cache, v_cache) for s in x.stride()[:3]),
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
        HAS_CACHE=cache is not None,
        START_ON_DEVICE=cache is not None and isinstance(cache.start, Tensor),
        BLOCK_T=block_t,
        BLOCK_P=block_p,
        num_warps=num_warps,
        **pdl_options(q.device),
    )
    return q_out, k_out


def aot_variants() -> list[Variant]:
    """Forward at the last step of a frame, with the cache, and backward over a clip."""
    from videoar.runtime.presets import PRESETS

    variants = []
    for preset in ("videoar-l", "videoar-xl", "videoar-4b"):
        config = PRESETS[preset].transformer
        height, width = config.sizes[-1]
        name = f"{preset}-d{config.head_dim}"
        variants.append(_forward_variant(name, 2 * height * width, config))
        variants.append(backward_variant(name, config.max_frames * config.tokens_per_frame, config))
    return variants


def _forward_variant(name: str, tokens: int, config) -> Variant:
    block_t, block_p, num_warps = qk_norm_rope_tiles(tokens, config.head_dim)
    tensors = ["q", "k", "v", "q_out", "k_out", "k_cache", "v_cache", "q_weight", "k_weight"]
    axes = {"q": "bhl", "k": "bgl", "v": "bgl", "qo": "bhl", "ko": "bgl", "kc": "bgn", "vc": "bgn"}
    pointers = {f"{x}_ptr": "*bf16" for x in tensors}
    pointers |= {"position_ptr": "*i64", "frequency_ptr": "*fp32", "start_ptr": "*i64"}
    strides = tuple(f"stride_{x}{axis}" for x, names in axes.items() for axis in names)
    integers = ("start", "stride_pb", "stride_pl", "heads", "groups", "length", "tokens")
    return Variant(
        name=f"qk_norm_rope-{name}",
        kernel=forward_kernel,
        signature=pointers | dict.fromkeys((*strides, *integers), "i32") | {"eps": "fp32"},
        constexprs={
            "stride_pa": 1,
            "SECTION_T": config.rope_sections[0],
            "SECTION_H": config.rope_sections[1],
            "PAIRS": config.head_dim // 2,
            "HAS_NORM": True,
            "HAS_CACHE": True,
            "START_ON_DEVICE": True,
            "BLOCK_T": block_t,
            "BLOCK_P": block_p,
        },
        divisible=(*pointers, *strides),
        num_warps=num_warps,
        vector_bytes=16,
    )
