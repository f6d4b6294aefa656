"""Cross-frame error correction: which bits of the history the model sees are flipped.

    p(t,k) ~ U(p_min + delta t, p_max + delta t)                     k > 1, or t = 1
    p(t,1) ~ U(p(t-1,K), p_max + delta t)                            t > 1 (error inheritance)

(arXiv 2601.05966, Eq. 8 and Fig. 3; t from 0 here.) The targets that follow a flip are requantised
by `bsq_quantize(flips=...)`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipConfig:
    """Range of the flip probability at frame 0 and its growth a frame."""

    p_min: float = 0.0
    p_max: float = 0.25
    delta: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.p_min <= self.p_max <= 1:
            raise ValueError(f"p_min, p_max: 0 <= p_min <= p_max <= 1, got {self}")
        if self.delta < 0:
            raise ValueError(f"delta: at least 0, got {self.delta}")


def flip_probabilities(
    config: FlipConfig, batch: int, frames: int, scales: int, generator: torch.Generator
) -> Tensor:
    """Draw p of every sample, frame and scale, float32 `[batch,frames,scales]`."""
    uniform = torch.rand(batch, frames, scales, generator=generator)
    ramp = config.delta * torch.arange(frames)[None, :, None]
    low = (config.p_min + ramp).expand_as(uniform)
    high = (config.p_max + ramp).expand_as(uniform)
    p = low + uniform * (high - low)
    inherited = p[:, :-1, -1]
    p[:, 1:, 0] = inherited + uniform[:, 1:, 0] * (high[:, 1:, 0] - inherited)
    return p.clamp(0, 1)


def draw_flips(
    p: Tensor, sizes: tuple[tuple[int, int], ...], dim: int, generator: torch.Generator
) -> Tensor:
    """Flip every bit of scale k of frame t with probability `p[:, t, k]`, bool `[B,t,N,d]`."""
    counts = torch.tensor([h * w for h, w in sizes])
    p_tokens = p.repeat_interleave(counts, dim=-1)
    uniform = torch.rand(*p_tokens.shape, dim, generator=generator)
    return uniform < p_tokens[..., None]
