"""Where tokens stand: the `(t, h, w)` that rotary embedding turns queries and keys by.

Multi-scale Temporal RoPE (arXiv 2601.05966, Eq. 7) puts the token in cell (h, w) of frame t at
`(t, h, w)`, cells counted on its own scale's grid; ordinary RoPE puts token i of the video at
`(i, i, i)`. Both are `cells + t * stride`; the length of the text is added on every axis.
"""

import torch
from torch import Tensor

from videoar.runtime.config import TransformerConfig
from videoar.runtime.schedule import ChunkSchedule


def frame_cells(config: TransformerConfig) -> Tensor:
    """Positions of the tokens of frame 0, before the text's length is added, int64 `[N,3]`."""
    if config.positions == "sequence":
        return torch.arange(config.tokens_per_frame)[:, None].repeat(1, 3)
    return ChunkSchedule.image(config.sizes).positions()


def frame_stride(config: TransformerConfig) -> tuple[int, int, int]:
    """What every frame adds to the positions of the one before it."""
    if config.positions == "sequence":
        return (config.tokens_per_frame,) * 3
    return 1, 0, 0


def video_positions(config: TransformerConfig, frames: int) -> Tensor:
    """Positions of the tokens of `frames` frames, before the text's length, int64 `[F N,3]`."""
    steps = torch.arange(frames)[:, None] * torch.tensor(frame_stride(config))
    return (frame_cells(config) + steps[:, None]).flatten(0, 1)
