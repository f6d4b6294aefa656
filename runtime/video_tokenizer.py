"""The causal 3D video tokenizer: pixels <-> latent frames <-> bits (arXiv 2601.05966, section 3).

    video [B,3,T,H,W] in [-1,1] -> latents [B,d,t,h,w] -> bits [B,t,N,d] -> latents -> video

One network serves images (T = 1) and videos. Parameter names are those of the public 2D
checkpoints of arXiv 2412.04431. `Encoder.step` and `Decoder.step` work on a stream: the first
call takes 1 frame, later ones tau pixel frames or 1 latent frame.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoar.kernels.bsq_quantize import Quantized, bsq_quantize, dequantize
from videoar.runtime.causal import CausalConv, Downsample, FrameNorm, ResidualBlock, State, Upsample
from videoar.runtime.config import TokenizerConfig


class _Mid(nn.Module):
    def __init__(self, width: int, config: TokenizerConfig) -> None:
        super().__init__()
        groups, kernel_time = config.norm_groups, config.mid_kernel_time
        self.block_1 = ResidualBlock(width, width, groups, kernel_time)
        self.block_2 = ResidualBlock(width, width, groups, kernel_time)

    def forward(self, x: Tensor, state: State | None) -> Tensor:
        return self.block_2(self.block_1(x, state), state)


class _Level(nn.Module):
    """The residual blocks of one resolution, and the change of resolution behind them."""

    def __init__(self, width_in: int, level: int, blocks: int, config: TokenizerConfig) -> None:
        super().__init__()
        width = config.widths[level]
        groups, kernel_time = config.norm_groups, config.block_kernel_time[level]
        widths = [width_in] + [width] * (blocks - 1)
        self.block = nn.ModuleList(ResidualBlock(w, width, groups, kernel_time) for w in widths)

    def forward(self, x: Tensor, state: State | None) -> Tensor:
        for block in self.block:
            x = block(x, state)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x, state)
        return x


def _name_states(module: nn.Module) -> None:
    for name, child in module.named_modules():
        if isinstance(child, CausalConv):
            child.key = name


class Encoder(nn.Module):
    """Pixel frames to latent frames."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        widths, patch = config.widths, config.patch_size
        io = config.io_kernel_time
        self.conv_in = CausalConv(3 * patch**2, widths[0], kernel_time=io)
        self.down = nn.ModuleList()
        for level, blocks in enumerate(config.encoder_blocks):
            stage = _Level(widths[max(level - 1, 0)], level, blocks, config)
            if level < len(widths) - 1:
                temporal = level in config.temporal_levels
                length = config.resample_kernel_time[level]
                stage.downsample = Downsample(widths[level], length, temporal)
            self.down.append(stage)
        self.mid = _Mid(widths[-1], config)
        self.norm_out = FrameNorm(config.norm_groups, widths[-1])
        self.conv_out = CausalConv(widths[-1], config.latent_dim, kernel_time=io)
        _name_states(self)

    def forward(self, video: Tensor, state: State | None = None) -> Tensor:
        """`[B,3,T,H,W]` -> `[B,d,t,h,w]`; `state` (see `step`) is updated in place."""
        x = video.transpose(1, 2)
        if self.config.patch_size > 1:
            x = F.pixel_unshuffle(x, self.config.patch_size)
        x = self.conv_in(x, state)
        for stage in self.down:
            x = stage(x, state)
        x = self.conv_out(F.silu(self.norm_out(self.mid(x, state))), state)
        if self.config.latent_scale:
            x = F.normalize(x.float(), dim=2) * self.config.latent_scale
        return x.transpose(1, 2)

    def step(self, frames: Tensor, state: State | None) -> tuple[Tensor, State]:
        """The next latent frame of a stream.

        Args:
            frames: `[B,3,1,H,W]` with `state` None, else `[B,3,tau,H,W]`.
            state: what the last step gave; None at the start. Not changed.

        Returns:
            Latents `[B,d,1,h,w]` and the state for the next step.

        Raises:
            ValueError: another number of frames.
        """
        expected = 1 if state is None else self.config.temporal_compression
        if frames.shape[2] != expected:
            raise ValueError(f"frames: expected {expected} at this step, got {frames.shape[2]}")
        state = dict(state or {})
        return self(frames, state), state


class Decoder(nn.Module):
    """Latent frames to pixel frames."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        widths, io = config.widths, config.io_kernel_time
        self.conv_in = CausalConv(config.latent_dim, widths[-1], kernel_time=io)
        self.mid = _Mid(widths[-1], config)
        self.up = nn.ModuleList()
        for level, blocks in enumerate(config.decoder_blocks):
            stage = _Level(widths[min(level + 1, len(widths) - 1)], level, blocks, config)
            if level > 0:
                temporal = level - 1 in config.temporal_levels
                length = config.resample_kernel_time[level - 1]
                stage.upsample = Upsample(widths[level], length, temporal)
            self.up.append(stage)
        self.norm_out = FrameNorm(config.norm_groups, widths[0])
        self.conv_out = CausalConv(widths[0], 3 * config.patch_size**2, kernel_time=io)
        _name_states(self)

    def forward(self, latents: Tensor, state: State | None = None) -> Tensor:
        """`[B,d,t,h,w]` -> `[B,3,T,H,W]`; `state` (see `step`) is updated in place."""
        x = self.mid(self.conv_in(latents.transpose(1, 2), state), state)
        for stage in reversed(self.up):
            x = stage(x, state)
        x = self.conv_out(F.silu(self.norm_out(x)), state)
        if self.config.patch_size > 1:
            x = F.pixel_shuffle(x, self.config.patch_size)
        return x.transpose(1, 2)

    def step(self, latent_frame: Tensor, state: State | None) -> tuple[Tensor, State]:
        """The next pixel frames of a stream: 1 at the start (`state` None), then tau each.

        Args:
            latent_frame: `[B,d,1,h,w]`.
            state: what the last step gave; None at the start. Not changed.

        Returns:
            Pixels `[B,3,1 or tau,H,W]` and the state for the next step.

        Raises:
            ValueError: not exactly one latent frame.
        """
        if latent_frame.shape[2] != 1:
            raise ValueError(f"latent_frame: expected 1 frame, got {latent_frame.shape[2]}")
        state = dict(state or {})
        return self(latent_frame, state), state


class VideoTokenizer(nn.Module):
    """Encoder, multi-scale residual quantiser and decoder."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, video: Tensor) -> Tensor:
        """Video `[B,3,T,H,W]` in [-1,1] -> continuous latents `[B,d,t,h,w]`.

        Raises:
            ValueError: a frame count or size that cannot be compressed, with the nearest valid.
        """
        if video.dim() != 5 or video.shape[1] != 3:
            raise ValueError(f"video: expected [B,3,T,H,W], got {tuple(video.shape)}")
        self.config.latent_frames(video.shape[2])
        self.config.latent_size(*video.shape[3:])
        return self.encoder(video)

    def quantize(self, latents: Tensor, sizes: tuple[tuple[int, int], ...]) -> Quantized:
        """Latents -> bits of all scales and the reconstructed latents (`bsq_quantize`)."""
        return bsq_quantize(latents, sizes)

    def dequantize(self, bits: Tensor, sizes: tuple[tuple[int, int], ...]) -> Tensor:
        """Bits `[B,t,N,d]` -> latents `[B,d,t,h,w]`."""
        return dequantize(bits, sizes)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents `[B,d,t,h,w]` -> video `[B,3,T,H,W]`, not clamped."""
        if latents.dim() != 5 or latents.shape[1] != self.config.latent_dim:
            expected = f"[B,{self.config.latent_dim},t,h,w]"
            raise ValueError(f"latents: expected {expected}, got {tuple(latents.shape)}")
        return self.decoder(latents)


@torch.no_grad()
def inflate(image_tokenizer: VideoTokenizer, config: TokenizerConfig) -> VideoTokenizer:
    """A 3D tokenizer that equals a 2D one on single frames (arXiv 2310.05737).

    Every 3D kernel is zero but for its last temporal slice, which takes the 2D kernel.

    Args:
        image_tokenizer: built from `config.as_2d()`.
        config: the 3D form.

    Raises:
        ValueError: the two forms are not of one architecture, naming the first parameter.
    """
    video_tokenizer = VideoTokenizer(config)
    source = image_tokenizer.state_dict()
    for name, target in video_tokenizer.state_dict().items():
        kernel = source.get(name)
        if kernel is not None and kernel.shape == target.shape:
            target.copy_(kernel)
        elif kernel is not None and kernel.shape == target[:, :, -1].shape:
            target.zero_()
            target[:, :, -1].copy_(kernel)
        else:
            raise ValueError(f"{name}: the 2D tokenizer has no weight that fits")
    return video_tokenizer
