"""Frames in front of a clip: their bits, and those bits' keys and values in the cache.

Image to video, continuation and the later shots of a long clip are one thing: the chunks of given
frames are prefilled like text, and decoding goes on behind them (arXiv 2601.05966, section 4).
"""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from videoar.kernels.next_scale import next_scale, noise_of
from videoar.runtime.cache import StaticCache
from videoar.runtime.pixels import from_pixels
from videoar.runtime.positions import video_positions
from videoar.runtime.schedule import ChunkSchedule, Sizes
from videoar.runtime.transformer import AttentionPlan, Transformer, teacher_forcing_plan
from videoar.runtime.video_tokenizer import VideoTokenizer


@torch.inference_mode()
def encode_history(tokenizer: VideoTokenizer, frames: np.ndarray, sizes: Sizes) -> Tensor:
    """Pixel frames to bits, one latent frame at a time, so that memory is that of one.

    Args:
        frames: uint8 `[T,H,W,3]`, T = 1 + tau n, of a size that the tokenizer compresses.
        sizes: grids of the scales.

    Returns:
        bool `[1 + n,N,d]`; `VideoTokenizer.dequantize` gives the latents that the decoder is to
        be primed with.

    Raises:
        ValueError: a frame count or size that cannot be compressed, naming the nearest.
    """
    tau = tokenizer.config.temporal_compression
    tokenizer.config.latent_frames(len(frames))
    tokenizer.config.latent_size(*frames.shape[1:3])
    weight = tokenizer.encoder.conv_in.conv.weight
    bits, state = [], None
    for start in (0, *range(1, len(frames), tau)):
        piece = from_pixels(frames[start : start + (tau if start else 1)])[None]
        latents, state = tokenizer.encoder.step(piece.to(weight.device, weight.dtype), state)
        bits.append(tokenizer.quantize(latents, sizes).bits[0])
    return torch.cat(bits)


def next_scale_inputs(bits: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """What the transformer is fed while it decodes these bits (arXiv 2601.05966, Eq. 2 and 6).

    Args:
        bits: bool `[t,N,d]`.

    Returns:
        Inputs float32 `[t,N,d]`, zero for the very first scale (it takes `<SOS>`), and those of
        the first scale behind the last frame, `[1,n_1,d]`.
    """
    frames, _, width = bits.shape
    zeros = partial(torch.zeros, dtype=torch.float32, device=bits.device)
    accumulator = zeros(frames, width, *sizes[-1])
    inputs = []
    for scale, window in enumerate(bits.split([h * w for h, w in sizes], dim=1)):
        # The frames do not depend on each other here: they are rows of one call.
        step = next_scale(
            zeros(*window.shape[:2], 2 * width),
            accumulator,
            sizes,
            scale,
            noise=noise_of(window),
        )
        accumulator = step.accumulator
        inputs.append(step.inputs)
    # The last call's inputs open the frame behind each.
    opening = inputs.pop()
    first = torch.cat([torch.zeros_like(opening[:1]), opening[:-1]])
    return torch.cat([first, *inputs], dim=1), opening[-1:]


@torch.inference_mode()
def prefill_history(
    model: Transformer, cache: StaticCache, text_lengths: Tensor, bits: Tensor
) -> Tensor:
    """Write keys and values of given frames into the cache, in one pass over all of their scales.

    The cache holds the text of its rows; the frames become latent frames 0 .. t-1 behind it, as if
    they had been sampled.

    Args:
        cache: of the rows of one request; all of them share the bits.
        text_lengths: int64 `[rows]`.
        bits: bool `[t,N,d]`, at most as many frames as the cache's ring holds.

    Returns:
        Input of the first scale of frame t, float32 `[1,n_1,d]`.

    Raises:
        ValueError: no frames, or more than the ring holds.
    """
    config, layout, rows = model.config, cache.layout, len(text_lengths)
    if not 1 <= len(bits) <= layout.ring_frames:
        expected = f"1 to {layout.ring_frames} frames, as the cache holds"
        raise ValueError(f"bits: expected {expected}, got {len(bits)}")
    inputs, following = next_scale_inputs(bits, config.sizes)
    schedule = ChunkSchedule.video(len(bits), config.sizes)
    scale_ids = schedule.scale_ids().to(bits.device)
    opens = torch.ones(1, dtype=torch.bool, device=bits.device)
    x = model.embed_video(inputs.flatten(0, 1)[None], scale_ids, opens)
    positions = video_positions(config, len(bits)).to(bits.device) + text_lengths[:, None, None]
    model(x.expand(rows, -1, -1), positions, _plan(schedule, cache, text_lengths))
    return following


def _plan(schedule: ChunkSchedule, cache: StaticCache, text_lengths: Tensor) -> AttentionPlan:
    return teacher_forcing_plan(
        schedule,
        cache.layout.max_text,
        text_lengths,
        cache=cache,
        text_cached=True,
    )
