"""Attention over a whole training sequence: text, then the chunks of a `ChunkSchedule`.

    out_i = sum_j softmax_j(scale q_i . k_j) v_j        over the keys j that token i sees

Text is causal among the real text keys. A video token sees the real text, the chunks of the visible
earlier frames, the earlier chunks of its own frame, and its own chunk in both directions
(arXiv 2601.05966, Eq. 5; frame visibility: Eq. 9).

Axes: B rows, H query heads, G key/value heads (head h reads h // (H // G)), L = text_len +
schedule.num_tokens, D head width. Bytes that must move: q, k, v and out once.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from videoar.kernels.chunk_attention_cpp import chunk_attention_cpp, chunk_attention_cpp_grad
from videoar.kernels.chunk_attention_triton import chunk_attention_triton
from videoar.kernels.chunk_blocks import Chunks, frames_of
from videoar.kernels.dispatch import select
from videoar.kernels.rows import check_devices
from videoar.kernels.values import values_known

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def chunk_attention(
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
    """Attention under the block-wise causal mask (arXiv 2601.05966, Eq. 5 and 9).

    Args:
        q_BHLD: `[B,H,L,D]`, floating, any strides. The kernels (see `dispatch`) take D up to 256,
            the one of a GPU float32, float16 or bfloat16.
        k_BGLD: `[B,G,L,D]`, of the dtype of q; G divides H.
        v_BGLD: as k.
        schedule: the chunks of the video part.
        text_len: text slots in front of the video, padding included.
        text_lengths: real text tokens of each row, integer `[B]` on any device; None: all
            `text_len`. Values on a GPU are trusted, unless VIDEOAR_DEBUG=1.
        frame_visible: bool `[F,F]` or `[B,F,F]` on any device, [query frame, key frame], read for
            earlier frames only; None: every earlier frame is visible.
        scale: of the scores; None: D^-1/2.
        mask: `chunk_mask` of these same arguments, for the reference alone, which otherwise makes
            it: the kernels work from the schedule, and nothing they make has the size L x L.
        return_lse: also return the log of the softmax denominators.

    Returns:
        `[B,H,L,D]` in the dtype of q, 0 for a token that sees nothing (padding in front of no
        text). With `return_lse` also float32 `[B,H,L]`, -inf for such a token.

    Raises:
        ValueError: a shape, dtype, device or length that does not fit, naming the argument.
    """
    _check_heads(q_BHLD, k_BGLD, v_BGLD, text_len, schedule.num_tokens)
    if mask is not None:
        _check_mask(mask, q_BHLD.shape[0], q_BHLD.shape[2])
    check_devices(q=q_BHLD, k=k_BGLD, v=v_BGLD, mask=mask)
    _check_visibility(schedule, text_len, text_lengths, frame_visible, q_BHLD.shape[0])
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"scale: expected a finite number, got {scale}")
    implementation = select("chunk_attention", q_BHLD, _IMPLEMENTATIONS, k=k_BGLD, v=v_BGLD)
    return implementation(
        q_BHLD,
        k_BGLD,
        v_BGLD,
        schedule,
        text_len=text_len,
        text_lengths=text_lengths,
        frame_visible=frame_visible,
        scale=scale,
        mask=mask,
        return_lse=return_lse,
    )


def chunk_attention_ref(
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
    """Plain PyTorch twin of `chunk_attention`."""
    if mask is None:
        mask = chunk_mask(schedule, text_len, text_lengths, frame_visible, q_BHLD.device)
    scale = q_BHLD.shape[-1] ** -0.5 if scale is None else scale
    if return_lse:
        return _attention_with_lse(q_BHLD, k_BGLD, v_BGLD, mask, scale)
    return masked_attention(q_BHLD, k_BGLD, v_BGLD, mask, scale)


_IMPLEMENTATIONS = {
    "reference": chunk_attention_ref,
    "cpp": chunk_attention_cpp,
    "cpp_grad": chunk_attention_cpp_grad,
    "triton": chunk_attention_triton,
}


def chunk_mask(
    schedule: Chunks,
    text_len: int = 0,
    text_lengths: Tensor | None = None,
    frame_visible: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The mask of `chunk_attention`, True where a query attends to a key.

    Args:
        schedule, text_len, text_lengths, frame_visible: as in `chunk_attention`.
        device: of the result.

    Returns:
        bool `[B,1,L,L]`; B is 1 unless `text_lengths` or `frame_visible` differ from row to row.

    Raises:
        ValueError: a shape or dtype that does not fit, naming the argument.
    """
    _check_visibility(schedule, text_len, text_lengths, frame_visible)
    video_BNN = _video_mask(schedule, frame_visible, device)
    text = torch.arange(text_len, device=device)
    text_BT = torch.ones_like(text, dtype=torch.bool)[None]
    if text_lengths is not None:
        text_BT = text < text_lengths.to(device)[:, None]
    batch = max(video_BNN.shape[0], text_BT.shape[0])
    length = text_len + schedule.num_tokens
    mask = torch.zeros(batch, length, length, dtype=torch.bool, device=device)
    mask[:, text_len:, text_len:] = video_BNN
    mask[:, :, :text_len] = text_BT[:, None]
    mask[:, :text_len, :text_len] &= text <= text[:, None]
    return mask[:, None]


def masked_attention(
    q_BHLD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """Grouped-query attention under a boolean mask, in plain PyTorch.

    Args:
        q_BHLD: `[B,H,L,D]`.
        k_BGSD: `[B,G,S,D]`.
        v_BGSD: as k.
        mask: bool, broadcast to `[B,1,L,S]`, True = attend; None: everything.
        scale: of the scores.

    Returns:
        `[B,H,L,D]`, 0 (with gradient 0) for a query that sees nothing.
    """
    grouped = q_BHLD.shape[1] != k_BGSD.shape[1]
    options = {"scale": scale, "enable_gqa": grouped}
    if q_BHLD.device.type == "cpu":
        # Forward + backward at B=64, H=4, L=160, D=64 on one Zen core: bfloat16 38 ms, where SDPA
        # with a boolean or an additive mask takes 121 ms. In float32 both take 83 ms, but at B=2,
        # H=8, L=1280 SDPA takes 286 ms and this 473; its boolean mask costs what an additive does.
        if q_BHLD.dtype == torch.bfloat16:
            return _materialised_attention(q_BHLD, k_BGSD, v_BGSD, mask, scale)
        # On the CPU SDPA itself gives 0, with gradient 0, to a query that sees nothing.
        return scaled_dot_product_attention(q_BHLD, k_BGSD, v_BGSD, attn_mask=mask, **options)
    attend, empty = _open_empty_rows(mask)
    out = scaled_dot_product_attention(q_BHLD, k_BGSD, v_BGSD, attn_mask=attend, **options)
    return out if empty is None else out.masked_fill(empty, 0)


def _materialised_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """Two batched products around a softmax; the scores are rounded to the dtype of q."""
    batch, heads, length, width = q.shape
    groups, keys = k.shape[1:3]
    share = heads // groups
    q_MLD = q.reshape(batch * groups, share * length, width)
    k_MSD, v_MSD = k.reshape(-1, keys, width), v.reshape(-1, keys, width)
    bias = torch.zeros((), dtype=q.dtype, device=q.device)
    attend, empty = _open_empty_rows(mask)
    if attend is not None:
        closed = torch.full_like(bias, float("-inf"))
        bias = torch.where(attend, bias, closed)[:, :, None]
        bias = bias.expand(batch, groups, share, length, keys)
        bias = bias.reshape(batch * groups, share * length, keys)
    scores = torch.baddbmm(bias, q_MLD, k_MSD.transpose(1, 2), alpha=scale)
    out = (scores.softmax(-1) @ v_MSD).view(batch, heads, length, width)
    return out if empty is None else out.masked_fill_(empty, 0)


def _attention_with_lse(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(q.dtype, torch.float32)
    attend, empty = _open_empty_rows(mask)
    q_BGRLD = q.to(dtype).unflatten(1, (k.shape[1], -1))
    k_BG1SD, v_BG1SD = k.to(dtype)[:, :, None], v.to(dtype)[:, :, None]
    scores = (q_BGRLD @ k_BG1SD.transpose(-1, -2)) * scale
    scores = scores.masked_fill(~attend[:, :, None], float("-inf"))
    lse = scores.logsumexp(-1, keepdim=True)
    out = ((scores - lse).exp() @ v_BG1SD).flatten(1, 2).masked_fill(empty, 0)
    lse = lse.flatten(1, 2).masked_fill(empty, float("-inf"))
    return out.to(q.dtype), lse.squeeze(-1)


def _open_empty_rows(mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The mask with its all-False rows opened, and which they are.

    A softmax over nothing is NaN, and so is its gradient even where the output is replaced; over
    everything both are finite and the replacement stops the gradient.
    """
    if mask is None:
        return None, None
    empty = ~mask.any(-1, keepdim=True)
    return mask | empty, empty


def _video_mask(
    schedule: Chunks, frame_visible: Tensor | None, device: torch.device | str
) -> Tensor:
    """Bool `[B or 1, N, N]` of the video tokens among themselves."""
    chunk_N = schedule.chunk_ids().to(device)
    causal = chunk_N[None, :] <= chunk_N[:, None]
    if frame_visible is None:
        return causal[None]
    frame_N = frames_of(schedule).to(device)
    visible = frame_visible.to(device)
    visible = visible if visible.dim() == 3 else visible[None]
    seen = visible[:, frame_N][:, :, frame_N]
    own = (chunk_N[None, :] == chunk_N[:, None]) | (frame_N[None, :] == frame_N[:, None])
    return causal & (own | seen)


def _check_heads(q: Tensor, k: Tensor, v: Tensor, text_len: int, num_tokens: int) -> None:
    length = text_len + num_tokens
    fits = q.dim() == 4 and q.shape[2] == length and q.shape[1] > 0 and q.shape[3] > 0
    if not fits or not q.is_floating_point():
        raise ValueError(
            f"q: expected floating [B,H,{length},D] for text_len {text_len} and the {num_tokens} "
            f"tokens of the schedule, got {q.dtype} {list(q.shape)}"
        )
    batch, heads, _, width = q.shape
    for name, x in {"k": k, "v": v}.items():
        same_axes = x.dim() == 4 and (x.shape[0], *x.shape[2:]) == (batch, length, width)
        same_axes = same_axes and x.shape[1] > 0 and heads % x.shape[1] == 0
        if not same_axes or x.shape != k.shape or x.dtype != q.dtype:
            raise ValueError(
                f"{name}: expected {q.dtype} [{batch}, G, {length}, {width}] with G a divisor of "
                f"{heads}, got {x.dtype} {list(x.shape)}"
            )


def _check_mask(mask: Tensor, batch: int, length: int) -> None:
    expected = (1, length, length)
    if tuple(mask.shape) not in ((1, *expected), (batch, *expected)) or mask.dtype != torch.bool:
        raise ValueError(
            f"mask: expected bool [{batch} or 1, 1, {length}, {length}], "
            f"got {mask.dtype} {list(mask.shape)}"
        )


def _check_visibility(
    schedule: Chunks,
    text_len: int,
    text_lengths: Tensor | None,
    frame_visible: Tensor | None,
    batch: int | None = None,
) -> None:
    """Raise ValueError; without `batch` the two tensors only have to agree with each other."""
    if not isinstance(text_len, int) or text_len < 0:
        raise ValueError(f"text_len: expected an integer of at least 0, got {text_len}")
    if text_lengths is not None:
        rows = text_lengths.shape[0] if text_lengths.dim() == 1 else -1
        if rows < 0 or rows != (batch or rows) or text_lengths.dtype not in INTEGERS:
            raise ValueError(
                f"text_lengths: expected integer [{batch or 'B'}], "
                f"got {text_lengths.dtype} {list(text_lengths.shape)}"
            )
        known = values_known(text_lengths)
        if known and ((text_lengths < 0) | (text_lengths > text_len)).any():
            raise ValueError(f"text_lengths: expected 0 .. {text_len}, got {text_lengths.tolist()}")
        batch = rows
    if frame_visible is not None:
        frames = int(schedule.frame_ids().max()) + 1 if schedule.num_tokens else 0
        shape = frame_visible.shape
        batched = len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, batch or shape[0]))
        if not (batched and shape[-1] == shape[-2] >= frames) or frame_visible.dtype != torch.bool:
            raise ValueError(
                f"frame_visible: expected bool [F,F] or [{batch or 'B'},F,F] with F at least "
                f"{frames}, got {frame_visible.dtype} {list(shape)}"
            )
