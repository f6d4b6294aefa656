"""The C++ kernels of `chunk_attention`, forward and backward (csrc/chunk_attention.h)."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from videoar.kernels.chunk_blocks import Chunks, frames_of
from videoar.kernels.cpp import _C, DTYPE_CODES, address


class _Tokens(NamedTuple):
    """Where chunks and frames end: what the mask of a sequence follows from, int64."""

    ends: Tensor  # [L], one behind the last token of the token's chunk; of itself, for text
    starts: Tensor  # [F+1], first token of each frame, and L


class _Call(NamedTuple):
    """What a forward and its backward share besides the tensors of tokens."""

    tokens: _Tokens
    text_lengths: Tensor | None
    visible: Tensor | None
    scale: float


def chunk_attention_cpp(
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
    """As `chunk_attention`, for checked arguments of a dtype in `DTYPE_CODES`; reads no mask.

    The result is laid out as `[B,L,H,D]`, so that the heads of a token lie side by side for the
    projection that follows.

    Raises:
        ValueError: D over 256, or a chunk that reaches over frames.
    """
    call = _call(q_BHLD, schedule, text_len, text_lengths, frame_visible, scale)
    out, lse = _forward(_dense(q_BHLD), _dense(k_BGLD), _dense(v_BGLD), call)
    return (out, lse) if return_lse else out


def chunk_attention_cpp_grad(
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
    """As `chunk_attention_cpp`, recorded by autograd: saves q, k, v, the result and lse."""
    call = _call(q_BHLD, schedule, text_len, text_lengths, frame_visible, scale)
    out, lse = _ChunkAttention.apply(q_BHLD, k_BGLD, v_BGLD, call)
    return (out, lse) if return_lse else out


class _ChunkAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, call):
        q, k, v = (_dense(x) for x in (q, k, v))
        out, lse = _forward(q, k, v, call)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.call = call
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out, grad_lse):
        q, k, v, out, lse = ctx.saved_tensors
        if grad_out is None:
            grad_out = torch.zeros_like(out)
        grad_out = _dense(grad_out)
        grad_lse = None if grad_lse is None else grad_lse.contiguous()
        grads = [_token_major(x) for x in (q, k, v)]
        _C.chunk_attention_backward(
            *_arguments(q, k, v, out, lse, ctx.call),
            _located(grad_out),
            address(grad_lse),
            *map(_located, grads),
        )
        return *grads, None


def _forward(q: Tensor, k: Tensor, v: Tensor, call: _Call) -> tuple[Tensor, Tensor]:
    out = _token_major(q)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device="cpu")
    _C.chunk_attention(*_arguments(q, k, v, out, lse, call))
    return out, lse


def _call(
    q: Tensor,
    schedule: Chunks,
    text_len: int,
    text_lengths: Tensor | None,
    visible: Tensor | None,
    scale: float | None,
) -> _Call:
    if text_lengths is not None:
        text_lengths = text_lengths.to("cpu", torch.int64).contiguous()
    if visible is not None:
        visible = visible.to("cpu").contiguous()
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _Call(_tokens(schedule, text_len), text_lengths, visible, scale)


@lru_cache(maxsize=64)
def _tokens(schedule: Chunks, text_len: int) -> _Tokens:
    # Tables kept from inside inference mode could not be used by a recorded call later.
    with torch.inference_mode(False):
        chunk, frame = schedule.chunk_ids(), frames_of(schedule)
        text = torch.arange(text_len, device="cpu")
        ends = torch.cat([text + 1, text_len + torch.searchsorted(chunk, chunk, right=True)])
        count = int(frame.max()) + 1 if len(frame) else 0
        starts = text_len + torch.searchsorted(frame, torch.arange(count + 1, device="cpu"))
        return _Tokens(ends, starts)


def _arguments(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, call: _Call
) -> tuple[object, ...]:
    batch, heads, length, width = q.shape
    visible, (ends, starts) = call.visible, call.tokens
    row = frame = 0
    if visible is not None:
        frame = visible.stride(-2)
        row = visible.stride(0) if visible.dim() == 3 and visible.shape[0] > 1 else 0
    return (
        (
            *(batch, length, len(starts) - 1),
            *(address(x) for x in (ends, starts, call.text_lengths, visible)),
            *(row, frame),
        ),
        heads,
        k.shape[1],
        width,
        DTYPE_CODES[q.dtype],
        *map(_located, (q, k, v, out)),
        address(lse),
        call.scale,
    )


def _located(x: Tensor) -> tuple[int, tuple[int, ...]]:
    return address(x), x.stride()


def _dense(x: Tensor) -> Tensor:
    return x if x.stride(3) == 1 else x.contiguous()


def _token_major(x: Tensor) -> Tensor:
    """An uninitialised tensor like x `[B,H,L,D]` in memory as `[B,L,H,D]`."""
    batch, heads, length, width = x.shape
    return x.new_empty((batch, length, heads, width)).transpose(1, 2)
