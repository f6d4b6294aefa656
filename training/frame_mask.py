"""Random frame mask: which earlier frames a frame sees while training.

    S_t = { t' in [max(1, t - w), t - 1] : m_t' = 1 },     m_t' ~ Bernoulli(1 - p_mask), i.i.d.

(arXiv 2601.05966, Eq. 9; w: the window.) Frame t attends to the frames of S_t, to the text and to
itself; a masked frame is hidden from all later ones. The mask is one of attention alone: the first
scale of frame t still takes the accumulated features of frame t-1 as its input (Eq. 6), even
where t-1 is masked. At inference nothing is masked and the window alone applies, as the size of the
cache's ring.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameMaskConfig:
    """Visibility of earlier frames while training.

    Attributes:
        p_mask: probability that a frame is hidden from all later ones.
        window: earlier latent frames that stay visible (default: all).
    """

    p_mask: float = 0.0
    window: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.p_mask <= 1:
            raise ValueError(f"p_mask: 0 to 1, got {self.p_mask}")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window: at least 1, got {self.window}; leave it out for all frames")

    @property
    def enabled(self) -> bool:
        """Whether anything is ever hidden."""
        return self.p_mask > 0 or self.window is not None


def window_mask(frames: int, window: int | None) -> Tensor:
    """The frames that each frame sees where nothing is masked, as when generating.

    Args:
        window: earlier frames that are seen; None: all.

    Returns:
        bool `[frames,frames]`, [query frame, key frame]; a frame sees itself, and nothing later.
    """
    back = torch.arange(frames)[:, None] - torch.arange(frames)
    return (back >= 0) & (back <= (frames if window is None else window))


def draw_frame_mask(
    config: FrameMaskConfig, batch: int, frames: int, generator: torch.Generator
) -> Tensor:
    """Draw the frames that each sample's frames see.

    Returns:
        bool `[batch,frames,frames]`, as of `window_mask`; a frame sees itself also where masked.
    """
    kept = torch.rand(batch, 1, frames, generator=generator) >= config.p_mask
    return window_mask(frames, config.window) & (kept | torch.eye(frames, dtype=torch.bool))
