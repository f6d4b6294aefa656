"""Causal building blocks of the video tokenizer, on frames-first maps `x_BTCHW`.

A temporal kernel looks back only, so a clip may be cut anywhere: the last frames a convolution
read are its whole state. A kernel over time is computed as one 2D convolution over the channels
of its taps. State is a dict from a convolution's `key` to `[B,k,C,H,W]`; None means a whole clip
from its start, and a missing key the start of a stream.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = dict[str, Tensor]


class CausalConv(nn.Module):
    """A 3x3 (or 1x1) convolution with `kernel_time` causal taps.

    Weights `[out,in,3,3]` for one tap, `[out,in,k,3,3]` (oldest tap first) for more, under
    `conv.`, as in the public 2D checkpoints.

    Args:
        kernel_time: 1 or 3 taps over time.
        stride: spatial stride; with 2 the map is padded by one at the right and bottom only.
        stride_time: 1, or 2 for a causal temporal downsample (t -> (t + 1) / 2).
        drop: padding frames left out in front, 1 behind a frame-repeating upsample.
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        *,
        kernel: int = 3,
        kernel_time: int = 1,
        stride: int = 1,
        stride_time: int = 1,
        drop: int = 0,
    ) -> None:
        super().__init__()
        conv = nn.Conv2d if kernel_time == 1 else nn.Conv3d
        self.conv = conv(width_in, width_out, kernel)
        if kernel_time != 1:
            shape = (width_out, width_in, kernel_time, kernel, kernel)
            self.conv.weight = nn.Parameter(torch.empty(shape))
            nn.init.kaiming_uniform_(self.conv.weight, a=5**0.5)
        self.kernel, self.kernel_time = kernel, kernel_time
        self.stride, self.stride_time, self.drop = stride, stride_time, drop
        self.key = ""

    def _taps(self, x: Tensor, state: State | None) -> tuple[Tensor, Tensor]:
        """The taps of every output frame side by side on the channel axis, and their weights."""
        taps, step, weight = self.kernel_time, self.stride_time, self.conv.weight
        past = None if state is None else state.get(self.key)
        alone = past is None and x.shape[1] == 1 + self.drop
        if past is None:
            front = taps - 1 - self.drop
            past = x.new_zeros(x.shape[0], front, *x.shape[2:])
        padded = torch.cat([past, x], dim=1)
        if state is not None:
            state[self.key] = padded[:, padded.shape[1] - (taps - step) :]
        if alone:
            # One frame (or one and its repetition) behind zeros: a 2D convolution is enough.
            return x[:, -1:], weight[:, :, -1 - self.drop :].sum(2)
        count = (padded.shape[1] - taps) // step + 1
        last = step * (count - 1) + 1
        x = torch.cat([padded[:, i : i + last : step] for i in range(taps)], dim=2)
        return x, weight.transpose(1, 2).flatten(1, 2)

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        """`[B,T,C,H,W]` -> `[B,T',C',H',W']`; `state` is updated in place."""
        weight = self.conv.weight
        if self.kernel_time > 1:
            x, weight = self._taps(x, state)
        batch, frames = x.shape[:2]
        x = x.flatten(0, 1)
        if self.stride == 2:
            x, padding = F.pad(x, (0, 1, 0, 1)), 0
        else:
            padding = self.kernel // 2
        x = F.conv2d(x, weight, self.conv.bias, self.stride, padding)
        return x.unflatten(0, (batch, frames))


class FrameNorm(nn.Module):
    """GroupNorm with the statistics of each frame by itself (no temporal normalisation)."""

    def __init__(self, groups: int, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class ResidualBlock(nn.Module):
    """norm, SiLU, conv, twice, plus the input; the second conv starts at zero."""

    def __init__(
        self, width_in: int, width_out: int, groups: int, kernel_time: tuple[int, int]
    ) -> None:
        super().__init__()
        self.norm1 = FrameNorm(groups, width_in)
        self.conv1 = CausalConv(width_in, width_out, kernel_time=kernel_time[0])
        self.norm2 = FrameNorm(groups, width_out)
        self.conv2 = CausalConv(width_out, width_out, kernel_time=kernel_time[1])
        nn.init.zeros_(self.conv2.conv.weight)
        nn.init.zeros_(self.conv2.conv.bias)
        if width_in != width_out:
            self.nin_shortcut = CausalConv(width_in, width_out, kernel=1)

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)), state)
        h = self.conv2(F.silu(self.norm2(h)), state)
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Downsample(nn.Module):
    """Half the size, and half the frame rate where `temporal`."""

    def __init__(self, width: int, kernel_time: int, temporal: bool) -> None:
        super().__init__()
        self.conv = CausalConv(
            width, width, kernel_time=kernel_time, stride=2, stride_time=2 if temporal else 1
        )

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        return self.conv(x, state)


class Upsample(nn.Module):
    """Nearest x2 in space, frames repeated where `temporal` (t -> 2t - 1), then a convolution."""

    def __init__(self, width: int, kernel_time: int, temporal: bool) -> None:
        super().__init__()
        self.temporal = temporal
        self.conv = CausalConv(width, width, kernel_time=kernel_time, drop=1 if temporal else 0)

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        if self.temporal:
            x = x.repeat_interleave(2, dim=1)
        x = F.interpolate(x.flatten(0, 1), scale_factor=2.0).unflatten(0, x.shape[:2])
        return self.conv(x, state)
