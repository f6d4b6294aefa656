"""Decoding one latent frame: a chunk a step, all scales (arXiv 2601.05966, Eq. 5).

`decode_frame` reads every position from the device and writes in place (`FrameState`), so the same
callable runs eagerly and inside a captured graph. Everything random comes from Philox (DESIGN
promise 1), so a frame does not depend on what else is decoded beside it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from videoar.kernels.grids import Sizes
from videoar.kernels.next_scale import NextScale, next_scale, noise_of
from videoar.runtime.cache import CacheLayout, StaticCache
from videoar.runtime.frame_state import FrameState
from videoar.runtime.guidance import GuidanceSchedule
from videoar.runtime.schedule import ChunkSchedule
from videoar.runtime.transformer import (
    AttentionPlan,
    Transformer,
    teacher_forcing_plan,
    text_positions,
)
from videoar.runtime.values import moderate

Layers = Callable[[Tensor, Tensor, AttentionPlan], Tensor]
"""A form of `Transformer.forward`."""

NO_CHUNKS = ChunkSchedule(chunks=())


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one request samples.

    Attributes:
        guidance: strengths over frames and scales.
        temperature: of every bit; 0 is greedy.

    Raises:
        ValueError: a temperature below 0 or beyond a million.
    """

    guidance: GuidanceSchedule
    temperature: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperature", moderate("temperature", self.temperature))


@torch.no_grad()
def prefill_tokens(model: Transformer, tokens: Tensor, cache: StaticCache) -> None:
    """Write the keys and values of texts, int64 `[B,L]`, to the front of a cache of B rows."""
    plan = teacher_forcing_plan(NO_CHUNKS, tokens.shape[1], cache=cache)
    positions = text_positions(tokens.shape[1], tokens.device)
    model(model.embed_tokens(tokens), positions, plan)


def prefill_text(model: Transformer, tokens: Sequence[int], cache: StaticCache) -> None:
    """`prefill_tokens` of one text or class, which may be empty, on a cache of one row."""
    if tokens:
        prefill_tokens(model, torch.tensor([tokens], device=model.sos.device), cache)


@torch.no_grad()
def prepare(
    model: Transformer,
    prefixes: Sequence[Sequence[int]],
    null_prefix: Sequence[int] | None,
    seeds: Sequence[int],
    *,
    temperature: float = 1.0,
    window: int | None = None,
) -> FrameState:
    """A state of its own for these requests, each prefilled with its text or class.

    For what needs no engine, such as tests and baselines.

    Args:
        prefixes: tokens of each request.
        null_prefix: the unconditional prefix; None without guidance.
        seeds: one a request, 0 .. 2^63 - 1.
        window: earlier latent frames that stay visible; None: those of the trained length.
    """
    config, device = model.config, model.sos.device
    state = FrameState.create(
        config,
        CacheLayout.of(config, window=window),
        len(prefixes),
        rows_per_slot=1 if null_prefix is None else 2,
        dtype=model.embed_bits.weight.dtype,
        device=device,
    )
    for slot, prefix in enumerate(prefixes):
        texts = [prefix] if null_prefix is None else [prefix, null_prefix]
        for row, tokens in enumerate(texts, start=slot * len(texts)):
            prefill_text(model, tokens, state.cache.rows(row, 1))
            state.text_lengths[row] = len(tokens)
    state.seeds.copy_(torch.tensor(seeds, dtype=torch.int64))
    state.temperature.fill_(temperature)
    state.guidance.fill_(1.0)
    return state


def set_guidance(
    state: FrameState, schedule: GuidanceSchedule, frame: int, num_frames: int
) -> None:
    """Write the strengths of latent frame `frame` of `num_frames` for all slots of `state`."""
    strengths = schedule.of_frame(frame, num_frames, state.num_scales)
    state.guidance.copy_(torch.tensor(strengths, dtype=torch.float32))


@dataclass(frozen=True, slots=True)
class FramePlan:
    """Where the tokens of the coming frame stand and what they see, for all scales.

    Attributes:
        positions: int64 `[rows,N,3]`.
        starts: int64 `[K,rows]`, the first cache row of each chunk.
        segments: int32 `[K,rows,3,2]`.
        ends: tokens of the frame up to and with each scale.
    """

    positions: Tensor
    starts: Tensor
    segments: Tensor
    ends: tuple[int, ...]

    def scale(self, k: int) -> slice:
        """The tokens of scale `k` among those of the frame."""
        return slice(self.ends[k - 1] if k else 0, self.ends[k])


def frame_plan(model: Transformer, state: FrameState) -> FramePlan:
    """The plan of the coming frame, computed on the device."""
    ring, lengths = state.cache.layout.ring_frames, state.text_lengths
    frames = state.frames.repeat_interleave(state.rows_per_slot)
    place = torch.where(frames < ring, frames, frames % ring + ring)
    segments = state.segments.index_select(1, place)
    segments[:, :, 0, 1] = lengths
    origin = torch.addcmul(lengths[:, None], frames[:, None], state.stride)
    sizes = [h * w for h, w in model.config.sizes]
    return FramePlan(
        positions=state.cells + origin[:, None],
        starts=state.starts.index_select(1, place),
        segments=segments,
        ends=tuple(sum(sizes[: k + 1]) for k in range(len(sizes))),
    )


def chunk_logits(
    model: Transformer,
    state: FrameState,
    plan: FramePlan,
    inputs: Tensor,
    k: int,
    layers: Layers | None = None,
) -> Tensor:
    """Logits of scale `k` of the coming frame for all rows; writes their keys and values.

    Args:
        inputs: `[R,n,d]`, next-scale inputs of the slots.
        layers: as in `decode_frame`.

    Returns:
        `[rows,n,2d]`.
    """
    rows = inputs[:, None].expand(-1, state.rows_per_slot, -1, -1)
    inputs = rows.to(model.embed_bits.weight.dtype).flatten(0, 1).contiguous()
    start = () if k else ((state.frames == 0).repeat_interleave(state.rows_per_slot),)
    # A CPU's plain linear layers sum in an order that depends on how many rows they are given.
    together = state.rows_per_slot if inputs.is_cpu else len(inputs)
    tokens = plan.scale(k)
    attention = AttentionPlan(
        schedule=NO_CHUNKS,
        cache=state.cache,
        start=plan.starts[k],
        segments=plan.segments[k],
    )
    x = _in_parts(
        lambda part, *begins: model.embed_video(part, k, *begins), together, inputs, *start
    )
    hidden = (layers or model)(x, plan.positions[:, tokens], attention)
    return _in_parts(model.head, together, hidden)


def _in_parts(function: Callable[..., Tensor], rows: int, *tensors: Tensor) -> Tensor:
    """`function` of tensors with one first axis, `rows` of it in a call."""
    if len(tensors[0]) <= rows:
        return function(*tensors)
    parts = zip(*(tensor.split(rows) for tensor in tensors), strict=True)
    return torch.cat([function(*part) for part in parts])


@torch.inference_mode()
def decode_frame(
    model: Transformer,
    state: FrameState,
    *,
    layers: Layers | None = None,
    on_scale: Callable[[int], None] | None = None,
    given_bits: Tensor | None = None,
) -> None:
    """Decode the coming latent frame of all slots over all scales, into `latents` and `bits`.

    Args:
        state: updated in place; the next call decodes the next frame.
        layers: what computes `model.forward`, such as `CpuLayers`; None: `model` itself.
        on_scale: called with the scale behind every step.
        given_bits: bool `[R,N,d]`: take these instead of sampling.
    """
    plan, sizes, inputs = frame_plan(model, state), model.config.sizes, state.inputs
    guidance = state.guidance.t().contiguous()
    state.latents.zero_()
    for k in range(len(sizes)):
        logits = chunk_logits(model, state, plan, inputs, k, layers)
        inputs = state.inputs if k == len(sizes) - 1 else _inputs_of(k + 1, state, sizes)
        noise = None
        if given_bits is not None:
            noise = noise_of(given_bits[:, plan.scale(k)])
        pairs = logits.unflatten(0, (state.slots, -1))
        guided = pairs.shape[1] == 2
        next_scale(
            pairs[:, 0],
            state.latents,
            sizes,
            k,
            logits_uncond=pairs[:, 1] if guided else None,
            guidance=guidance[k] if guided else 1.0,
            temperature=1.0 if given_bits is not None else state.temperature,
            seeds=state.seeds,
            frames=state.draws,
            noise=noise,
            out=NextScale(state.bits[:, plan.scale(k)], state.latents, inputs),
            failed=state.failed,
        )
        if on_scale is not None:
            on_scale(k)
    state.frames.add_(1)
    state.draws.add_(1)


def _inputs_of(k: int, state: FrameState, sizes: Sizes) -> Tensor:
    """Memory for the inputs of scale `k`."""
    height, width = sizes[k]
    return state.inputs.new_empty(state.slots, height * width, state.inputs.shape[2])
