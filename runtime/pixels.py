"""Between frames as files and screens have them and video as the networks have it."""

import numpy as np
import torch
from torch import Tensor


def from_pixels(frames: np.ndarray) -> Tensor:
    """uint8 `[...,T,H,W,3]` -> float32 `[...,3,T,H,W]` in [-1,1]."""
    return torch.from_numpy(frames).movedim(-1, -4).float() / 127.5 - 1


def to_pixels(video: Tensor) -> np.ndarray:
    """`[...,3,T,H,W]` in [-1,1] -> uint8 `[...,T,H,W,3]`, clamped and rounded, C-contiguous."""
    scaled = (video.detach().float().clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).movedim(-4, -1).contiguous().cpu().numpy()
