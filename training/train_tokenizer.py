"""Training the video tokenizer: 2D on single frames, inflated, then 3D on clips.

The first form of arXiv 2601.05966, section 3: reconstruction, commitment and entropy terms. The
2D form learns continuous latents first and quantised ones after; the inflated 3D form starts
from it and is fine-tuned on whole clips.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from videoar.kernels.bsq_quantize import bsq_quantize
from videoar.runtime.config import TokenizerConfig
from videoar.runtime.pixels import from_pixels
from videoar.runtime.video_tokenizer import VideoTokenizer, inflate
from videoar.training import digits
from videoar.training.run import OptimConfig, Run, autocast, train

Sizes = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerTraining:
    """Settings of one tokenizer run on the moving digits.

    Attributes:
        image_steps: steps of the 2D form, `image_batch` frames each.
        continuous_steps: how many of them pass the latents on without quantising them.
        clip_steps: steps of the 3D form, `clip_batch` clips each.
        seed: of the data and the initial weights.
        commitment, entropy: weights of the quantiser's terms.
    """

    image_steps: int = 2000
    continuous_steps: int = 500
    image_batch: int = 64
    image_rate: float = 1e-3
    clip_steps: int = 4500
    clip_batch: int = 4
    clip_rate: float = 6e-4
    seed: int = 0
    commitment: float = 0.02
    entropy: float = 0.0
    optim: dict = field(default_factory=dict)


def image_batch(seed: int, step: int, size: int) -> Tensor:
    """One random frame of each of `size` training clips, `[size,3,1,64,64]`."""
    frames = []
    for i in range(size):
        clip, _, _ = digits.clip("train", seed, step * size + i)
        frames.append(clip[(step * size + i) * 7 % digits.NUM_FRAMES, None])
    return from_pixels(np.stack(frames))


def clip_batch(seed: int, step: int, size: int) -> Tensor:
    """`size` training clips, `[size,3,17,64,64]`."""
    clips = [digits.clip("train", seed, step * size + i)[0] for i in range(size)]
    return from_pixels(np.stack(clips))


def tokenizer_loss(
    model: VideoTokenizer, video: Tensor, sizes: Sizes | None, config: TokenizerTraining
) -> tuple[Tensor, dict[str, float]]:
    """Reconstruction (squared error in [0,1] units) plus the quantiser's terms.

    Args:
        sizes: the scales, or None for continuous latents.
    """
    with autocast(video.device):
        latents = model.encoder(video)
        quantized = None
        if sizes is not None:
            quantized = bsq_quantize(latents.float(), sizes, return_losses=True)
            latents = quantized.reconstruction
        output = model.decoder(latents)
    mse = F.mse_loss(output.float(), video) / 4
    values = {"psnr": float(-10 * torch.log10(mse.detach()))}
    loss = mse * 10
    if quantized is not None:
        terms = quantized.losses
        loss = loss + config.commitment * terms["commitment"]
        loss = loss + config.entropy * (terms["sample_entropy"] - terms["batch_entropy"])
        values |= {name: value.item() for name, value in terms.items()}
    return loss, values


def train_tokenizer(
    folder: Path, architecture: TokenizerConfig, sizes: Sizes, config: TokenizerTraining
) -> VideoTokenizer:
    """Both stages, each resumable in its own folder below `folder`; returns the EMA model."""
    torch.manual_seed(config.seed)
    image_model = VideoTokenizer(architecture.as_2d())
    optim = OptimConfig(
        steps=config.image_steps, learning_rate=config.image_rate, warmup=200, **config.optim
    )
    run = Run(folder / "image", image_model, optim, "tokenizer 2D")

    def image_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        video = image_batch(config.seed, step, config.image_batch)
        quantised = step >= config.continuous_steps
        return tokenizer_loss(image_model, video, sizes if quantised else None, config)

    train(run, image_loss)
    image_model.load_state_dict(run.averaged())

    model = inflate(image_model, architecture)
    optim = OptimConfig(
        steps=config.clip_steps, learning_rate=config.clip_rate, warmup=100, **config.optim
    )
    run = Run(folder / "clip", model, optim, "tokenizer 3D")
    train(
        run,
        lambda step: tokenizer_loss(
            model, clip_batch(config.seed + 1, step, config.clip_batch), sizes, config
        ),
    )
    model.load_state_dict(run.averaged())
    return model.eval()
