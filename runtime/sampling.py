"""Decoding: prefill the text, then one chunk a step, one latent frame at a time.

`Rows` are the sequences the transformer sees: the requests, and behind them, with guidance, the
same requests unconditionally. Everything random comes from Philox (DESIGN promise 1).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from videoar.kernels.next_scale import next_scale
from videoar.runtime.cache import CacheLayout, StaticCache
from videoar.runtime.guidance import GuidanceSchedule
from videoar.runtime.schedule import Chunk, ChunkSchedule
from videoar.runtime.text import pad
from videoar.runtime.transformer import (
    AttentionPlan,
    Transformer,
    teacher_forcing_plan,
    text_positions,
)

StepHook = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one call samples.

    Attributes:
        guidance: strengths over frames and scales.
        temperature: of every bit; 0 is greedy.
    """

    guidance: GuidanceSchedule
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature: must be 0 or more, got {self.temperature}; nearest: 0")


@dataclass(slots=True, kw_only=True)
class DecodingState:
    """What carries over from step to step.

    Attributes:
        cache: keys and values of all rows.
        text_lengths: int64 `[rows]`.
        seeds: int64 `[R]`, one a request.
        inputs: `[R,n,d]`, next-scale input of the coming step.
        frame: index of the coming latent frame.
    """

    cache: StaticCache
    text_lengths: Tensor
    seeds: Tensor
    inputs: Tensor
    frame: int = 0


def prepare(
    model: Transformer,
    prefixes: list[list[int]],
    null_prefix: list[int] | None,
    seeds: list[int],
    num_latent_frames: int,
) -> DecodingState:
    """Create the cache and write every row's text or class into it.

    Args:
        prefixes: tokens of each request.
        null_prefix: the unconditional prefix; None without guidance.
        seeds: one a request, 0 .. 2^63 - 1.
        num_latent_frames: how many will be asked for; more than the trained window go round.
    """
    config, weight = model.config, model.embed_bits.weight
    rows = prefixes + ([null_prefix] * len(prefixes) if null_prefix is not None else [])
    layout = CacheLayout.of(config, num_latent_frames)
    cache = StaticCache(config, layout, len(rows), weight.dtype, weight.device)
    tokens, lengths = pad(rows, max(map(len, rows)))
    tokens, lengths = tokens.to(weight.device), lengths.to(weight.device)
    schedule, text_len = ChunkSchedule(chunks=()), tokens.shape[1]
    plan = teacher_forcing_plan(schedule, text_len, lengths, cache=cache, device=weight.device)
    model(model.embed_tokens(tokens), text_positions(text_len, weight.device), plan)
    first = config.sizes[0][0] * config.sizes[0][1]
    return DecodingState(
        cache=cache,
        text_lengths=lengths,
        seeds=torch.tensor(seeds, dtype=torch.int64, device=weight.device),
        inputs=torch.zeros(len(prefixes), first, config.latent_dim, device=weight.device),
    )


def chunk_logits(model: Transformer, state: DecodingState, scale: int, filled: int) -> Tensor:
    """Logits of the coming chunk for all rows, `[rows,n,2d]`; writes its keys and values.

    Args:
        filled: tokens of the current frame that are in the cache already.
    """
    config, layout, device = model.config, state.cache.layout, state.inputs.device
    inputs = state.inputs.repeat(len(state.text_lengths) // state.inputs.shape[0], 1, 1)
    scale_ids = torch.full(inputs.shape[1:2], scale, device=device)
    start = state.frame == 0 and scale == 0
    x = model.embed_video(inputs, scale_ids, start=start)
    chunk = Chunk(
        offset=filled,
        length=inputs.shape[1],
        frame=state.frame,
        scale=scale,
        grid=config.sizes[scale],
    )
    positions = chunk.positions().to(device)
    plan = AttentionPlan(
        schedule=ChunkSchedule(chunks=()),
        cache=state.cache,
        start=layout.start(state.frame) + filled,
        segments=layout.segments(state.text_lengths, state.frame, filled + inputs.shape[1]),
    )
    return model.head(model(x, positions + state.text_lengths[:, None, None], plan))


def decode_frame(
    model: Transformer,
    state: DecodingState,
    params: SamplingParams,
    num_frames: int,
    on_step: StepHook | None = None,
    given_bits: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Decode the coming latent frame over all its scales.

    Args:
        state: updated in place.
        num_frames: latent frames over which a guidance schedule runs.
        on_step: called with (frame, scale) behind every step.
        given_bits: bool `[R,N,d]`: take these instead of sampling (a history).

    Returns:
        The frame `[R,d,H,W]` float32 and its bits bool `[R,N,d]`.
    """
    config, count = model.config, state.inputs.shape[0]
    height, width = config.sizes[-1]
    shape = (count, config.latent_dim, height, width)
    accumulator = torch.zeros(shape, device=state.inputs.device)
    bits, filled, guided = [], 0, len(state.text_lengths) > count
    for scale in range(len(config.sizes)):
        logits = chunk_logits(model, state, scale, filled)
        noise, temperature = None, params.temperature
        if given_bits is not None:
            # A uniform of -1 draws a one and of 2 a zero, whatever the logits.
            window = given_bits[:, filled : filled + state.inputs.shape[1]]
            noise, temperature = 2.0 - 3.0 * window.float(), 1.0
        strength = params.guidance.strength(state.frame, scale, num_frames, len(config.sizes))
        filled += state.inputs.shape[1]
        step = next_scale(
            logits[:count],
            accumulator,
            config.sizes,
            scale,
            logits_uncond=logits[count:] if guided else None,
            guidance=strength if guided else 1.0,
            temperature=temperature,
            seeds=state.seeds,
            frames=state.frame,
            noise=noise,
        )
        accumulator, state.inputs = step.accumulator, step.inputs
        bits.append(step.bits)
        if on_step is not None:
            on_step(state.frame, scale)
    state.frame += 1
    return accumulator, torch.cat(bits, dim=1)


@torch.inference_mode()
def decode_latents(
    model: Transformer,
    state: DecodingState,
    params: SamplingParams,
    num_latent_frames: int,
    on_step: StepHook | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield `num_latent_frames` frames, each as `decode_frame` gives it."""
    for _ in range(num_latent_frames):
        yield decode_frame(model, state, params, num_latent_frames, on_step)
