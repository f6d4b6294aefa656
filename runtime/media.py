"""Clips and pictures on disk: frames are uint8 `[T,H,W,3]` RGB numpy arrays.

Needs PyAV, so import it where it is used and not at the top of a module of the runtime.
"""

from typing import Any

import numpy as np
import torch

from videoar.runtime.media_read import fit_frames, list_media, read_video
from videoar.runtime.media_sheet import contact_sheet, to_frames
from videoar.runtime.media_write import check_writable, write_png, write_video
from videoar.runtime.pixels import from_pixels, to_pixels

__all__ = [
    "check_writable",
    "contact_sheet",
    "fit_frames",
    "list_media",
    "read_video",
    "to_float",
    "to_uint8",
    "write_png",
    "write_video",
]


def to_float(frames: Any) -> torch.Tensor:
    """Frames, uint8 `[T,H,W,3]`, as the model's float32 `[3,T,H,W]` in [-1,1]."""
    return from_pixels(to_frames(frames))


def to_uint8(video: torch.Tensor) -> np.ndarray:
    """The inverse of `to_float`: clamped and rounded, from any device.

    Args:
        video: floating `[3,T,H,W]` or `[B,3,T,H,W]`, nominally in [-1,1].

    Returns:
        uint8 `[T,H,W,3]` or `[B,T,H,W,3]`, C-contiguous.

    Raises:
        ValueError: another shape or dtype, or a NaN.
    """
    if video.ndim not in (4, 5) or video.shape[-4] != 3 or not video.is_floating_point():
        shape = list(video.shape)
        raise ValueError(
            f"video: floating [B,3,T,H,W] or [3,T,H,W] needed, got {video.dtype} {shape}"
        )
    if video.isnan().any():
        raise ValueError("video: has NaN values")
    return to_pixels(video)
