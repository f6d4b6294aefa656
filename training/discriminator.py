"""A 3D patch discriminator: a logit for every patch of a video, real above 0.

PatchGAN (arXiv 1611.07004, section 3.2.2) with kernels over time, as video tokenizers train with
it (arXiv 2204.03638, arXiv 2310.05737). An image is a one-frame video: behind the zero padding
only the middle slice of each kernel meets it, so on images the network is a 2D PatchGAN.

GroupNorm with the statistics of each frame by itself, as in the tokenizer: batch statistics would
mix images with videos and depend on how a batch is spread over devices; spectral normalisation
keeps an iterate that every forward pass moves, and the smoothness it is used for is LeCAM's part.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoar.runtime.causal import FrameNorm

SLOPE = 0.2
GROUPS = 16


class TimeConv(nn.Module):
    """A convolution over three frames, padded by zeros on every side by 1, on maps `x_BTCHW`.

    Computed as one 2D convolution over the channels of its taps: oneDNN's bf16 weight gradient of
    a 3D one is wrong for two frames (torch 2.13 on a CPU), and its 2D kernels are the tuned ones.

    Args:
        kernel: taps along height and width.
        stride: of all three axes.
    """

    def __init__(self, width_in: int, width_out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_out, width_in, 3, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(width_out))
        nn.init.normal_(self.weight, 0.0, 0.02)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """`[B,T,C,H,W]` -> `[B,T',C',H',W']`; stride 2 halves T, rounded up."""
        batch, frames = x.shape[:2]
        x = F.pad(x, (0, 0, 0, 0, 0, 0, 1, 1))
        taps = torch.cat([x[:, i : i + frames : self.stride] for i in range(3)], dim=2)
        weight = self.weight.transpose(1, 2).flatten(1, 2)
        x = F.conv2d(taps.flatten(0, 1), weight, self.bias, self.stride, padding=1)
        return x.unflatten(0, (batch, -1))


class Discriminator(nn.Module):
    """`layers` convolutions that halve the size and the frame rate, then two that keep them.

    Args:
        channels: width behind the first layer; doubled by each further one, 8 times at most.
        layers: halvings; three give patches of 54x54 pixels.

    Raises:
        ValueError: no layers, or a width that the groups of the GroupNorms do not divide.
    """

    def __init__(self, channels: int = 64, layers: int = 3) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers: at least 1, got {layers}")
        if channels < 1 or channels % GROUPS:
            raise ValueError(f"channels: a multiple of {GROUPS}, got {channels}")
        widths = [3] + [channels * min(2**i, 8) for i in range(layers + 1)]
        pairs = list(pairwise(widths))
        self.convs = nn.ModuleList(TimeConv(a, b, 4, 2) for a, b in pairs[:-1])
        self.convs.append(TimeConv(*pairs[-1], 3, 1))
        self.norms = nn.ModuleList(FrameNorm(GROUPS, width) for width in widths[2:])
        self.head = TimeConv(widths[-1], 1, 3, 1)
        self.layers = layers

    def forward(self, video: Tensor) -> Tensor:
        """`[B,3,T,H,W]` in [-1,1] -> logits `[B,t,h,w]`, float32: T halved up, H and W down.

        Raises:
            ValueError: frames with less than one patch.
        """
        if min(video.shape[-2:]) < 2**self.layers:
            size = list(video.shape[-2:])
            raise ValueError(f"video: sides of at least {2**self.layers} needed, got {size}")
        x = F.leaky_relu(self.convs[0](video.transpose(1, 2)), SLOPE)
        for conv, norm in zip(self.convs[1:], self.norms, strict=True):
            x = F.leaky_relu(norm(conv(x)), SLOPE)
        return self.head(x).squeeze(2).float()
