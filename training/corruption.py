"""Cross-frame error correction: which bits of the history the model sees are flipped.

    p(t,k) ~ U(p_min + delta t, p_max + delta t)                     k > 1, or t = 1
    p(t,1) ~ U(p(t-1,K), p_max + delta t)                            t > 1 (error inheritance)

(arXiv 2601.05966, Eq. 8 and Fig. 3; t from 0 here.) The targets that follow a flip are requantised
by `bsq_quantize(flips=...)`. Each part can be switched off: `delta = 0` the ramp over time,
`inherit` and `requantize` theirs, `p_max = 0` with `delta = 0` all of it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipConfig:
    """How bits of the history are flipped.

    Attributes:
        p_min: least probability that a bit is flipped, at frame 0.
        p_max: largest probability that a bit is flipped, at frame 0.
        delta: growth of both a latent frame.
        inherit: draw the first scale's probability from that of the frame before it upwards.
        requantize: targets are the bits of the residual behind the flips, which correct them;
            without, those of the clip itself.
    """

    p_min: float = 0.0
    p_max: float = 0.25
    delta: float = 0.01
    inherit: bool = True
    requantize: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.p_min <= 1:
            raise ValueError(f"p_min: 0 to 1, got {self.p_min}")
        if not self.p_min <= self.p_max <= 1:
            raise ValueError(f"p_max: from p_min ({self.p_min}) to 1, got {self.p_max}")
        if not 0 <= self.delta <= 1:
            raise ValueError(f"delta: 0 to 1, got {self.delta}")

    @property
    def enabled(self) -> bool:
        """Whether any bit is ever flipped."""
        return self.p_max > 0 or self.delta > 0


def flip_probabilities(
    config: FlipConfig, batch: int, frames: int, scales: int, generator: torch.Generator
) -> Tensor:
    """Draw p of every sample, frame and scale, float32 `[batch,frames,scales]`."""
    uniform = torch.rand(batch, frames, scales, generator=generator)
    ramp = config.delta * torch.arange(frames)[None, :, None]
    low = (config.p_min + ramp).expand_as(uniform)
    high = (config.p_max + ramp).expand_as(uniform)
    p = low + uniform * (high - low)
    # Frame by frame: where there is one scale, it passes on what it has inherited.
    for t in range(1, frames if config.inherit else 1):
        inherited = p[:, t - 1, -1]
        p[:, t, 0] = inherited + uniform[:, t, 0] * (high[:, t, 0] - inherited)
    return p.clamp(0, 1)


def draw_flips(
    p: Tensor, sizes: tuple[tuple[int, int], ...], dim: int, generator: torch.Generator
) -> Tensor:
    """Flip every bit of scale k of frame t with probability `p[:, t, k]`, bool `[B,t,N,d]`."""
    counts = torch.tensor([h * w for h, w in sizes])
    p_tokens = p.repeat_interleave(counts, dim=-1)
    uniform = torch.rand(*p_tokens.shape, dim, generator=generator)
    return uniform < p_tokens[..., None]
