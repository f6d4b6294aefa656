"""Training the video tokenizer: 2D on single frames, inflated, then 3D on clips.

The loss is Eq. 4 of arXiv 2601.05966: reconstruction, perceptual, adversarial, commitment and
entropy terms, each with its weight. The 2D form learns continuous latents first and quantised ones
after; the inflated 3D form starts from it and is fine-tuned on whole clips, mixed with frames.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from videoar.kernels.bsq_quantize import bsq_quantize
from videoar.runtime.config import TokenizerConfig
from videoar.runtime.pixels import from_pixels
from videoar.runtime.video_tokenizer import VideoTokenizer, inflate
from videoar.training import digits
from videoar.training.adversarial import Adversary, GanConfig, adaptive_weight
from videoar.training.perceptual import Perceptual, PerceptualConfig, load_perceptual
from videoar.training.run import OptimConfig, Run, autocast, train
from videoar.training.sources import Shape, Source, SourceOf

Sizes = tuple[tuple[int, int], ...]

# Mean error of a pixel in [0,1] units, of two videos in [-1,1] (arXiv 2601.05966, Eq. 4: l_rec).
# Charbonnier: arXiv 1710.01992, with its epsilon of 1e-3.
ERRORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": lambda x, y: F.l1_loss(x, y) / 2,
    "l2": lambda x, y: F.mse_loss(x, y) / 4,
    "charbonnier": lambda x, y: ((x - y).square() / 4 + 1e-6).sqrt().mean(),
}

# What is drawn with a stream of its own begins with its number (`digits.clip` has 0 and 1).
_MIX_STREAM = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerTraining:
    """Settings of one tokenizer run on the moving digits.

    Attributes:
        image_steps: steps of the 2D form, `image_batch` frames each.
        continuous_steps: how many of them pass the latents on without quantising them.
        clip_steps: steps of the 3D form, `clip_batch` clips each.
        image_share: probability that a step of the 3D form takes `image_batch` single frames.
        seed: of the data and the initial weights.
        reconstruction: error of a pixel: "l1", "l2" or "charbonnier".
        reconstruction_weight: of its mean, in [0,1] units.
        commitment, entropy: weights of the quantiser's terms.
        perceptual: distance in the features of a given network.
        gan: the adversarial term.
    """

    image_steps: int = 2000
    continuous_steps: int = 500
    image_batch: int = 64
    image_rate: float = 1e-3
    clip_steps: int = 4500
    clip_batch: int = 4
    clip_rate: float = 6e-4
    image_share: float = 0.0
    seed: int = 0
    reconstruction: str = "l2"
    reconstruction_weight: float = 10.0
    commitment: float = 0.02
    entropy: float = 0.0
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    gan: GanConfig = field(default_factory=GanConfig)
    optim: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.reconstruction not in ERRORS:
            raise ValueError(f"reconstruction: one of {list(ERRORS)}, got {self.reconstruction!r}")
        if not 0 <= self.image_share <= 1:
            raise ValueError(f"image_share: 0 to 1, got {self.image_share}")
        for name in ("reconstruction_weight", "commitment", "entropy"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: at least 0, got {getattr(self, name)}")


class DigitsSource(Source):
    """Moving digits by `batch(draw)`: whole clips, or a random frame of each of `batch` clips.

    Args:
        shapes: clips, frames, or both; then a draw takes frames by `takes_images`.
    """

    def __init__(self, shapes: Sequence[Shape], seed: int) -> None:
        self.shapes, self.seed = {shape.frames == 1: shape for shape in shapes}, seed

    def batch(self, step: int) -> dict[str, Any]:
        images = True in self.shapes
        if len(self.shapes) == 2:
            images = takes_images(self.seed, step, self.shapes[True].share)
        shape, clips = self.shapes[images], []
        for i in range(step * shape.batch, (step + 1) * shape.batch):
            clip, _, _ = digits.clip("train", self.seed, i)
            clips.append(clip[i * 7 % digits.NUM_FRAMES, None] if images else clip[: shape.frames])
        return {"frames": torch.from_numpy(np.stack(clips))}


def reconstruct(
    model: VideoTokenizer, video: Tensor, sizes: Sizes | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """What comes back of a video, float32, and the quantiser's terms.

    Args:
        sizes: the scales, or None for continuous latents, which have no terms.
    """
    with autocast(video.device):
        latents = model.encoder(video)
        if sizes is None:
            return model.decoder(latents).float(), {}
        quantized = bsq_quantize(latents.float(), sizes, return_losses=True)
        return model.decoder(quantized.reconstruction).float(), quantized.losses


def quantizer_loss(terms: dict[str, Tensor], config: TokenizerTraining) -> Tensor:
    """Weighted commitment and entropy penalty (Eq. 4: l_commit, l_entropy; arXiv 2406.07548)."""
    entropy = terms["sample_entropy"] - terms["batch_entropy"]
    return config.commitment * terms["commitment"] + config.entropy * entropy


def adversarial_loss(
    model: VideoTokenizer, video: Tensor, output: Tensor, loss: Tensor, adversary: Adversary
) -> tuple[Tensor, dict[str, float]]:
    """The tokenizer's adversarial term and the discriminator's own loss, whose graphs do not meet.

    Args:
        loss: reconstruction and perceptual terms, for the adaptive weight.
    """
    term, weight = adversary.generator_loss(output), adversary.config.weight
    if adversary.config.adaptive:
        weight = weight * adaptive_weight(loss, term, model.decoder.conv_out.conv.weight)
    own, values = adversary.discriminator_loss(video, output)
    return weight * term + own, values | {"gan": term.item(), "gan_weight": float(weight)}


def tokenizer_loss(
    model: VideoTokenizer,
    video: Tensor,
    sizes: Sizes | None,
    config: TokenizerTraining,
    perceptual: Perceptual | None = None,
    adversary: Adversary | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """All terms of one batch (arXiv 2601.05966, Eq. 4) and values to log.

    Args:
        sizes: the scales, or None for continuous latents.
        perceptual, adversary: None where a term is off, or not on yet.
    """
    output, terms = reconstruct(model, video, sizes)
    values = {"psnr": float(-10 * torch.log10(ERRORS["l2"](output.detach(), video)))}
    loss = config.reconstruction_weight * ERRORS[config.reconstruction](output, video)
    if perceptual is not None:
        distance = perceptual(output, video)
        loss = loss + config.perceptual.weight * distance
        values["lpips"] = distance.item()
    if adversary is not None:
        adversarial, more = adversarial_loss(model, video, output, loss, adversary)
        loss, values = loss + adversarial, values | more
    if terms:
        loss = loss + quantizer_loss(terms, config)
        values |= {name: value.item() for name, value in terms.items()}
    return loss, values


def takes_images(seed: int, draw: int, share: float) -> bool:
    """Whether batch `draw` of the 3D form is one of single frames."""
    return np.random.default_rng([_MIX_STREAM, seed, draw]).random() < share


def _stage(
    folder: Path,
    model: VideoTokenizer,
    config: TokenizerTraining,
    optim: OptimConfig,
    source: Source,
    sizes: Sizes,
    continuous_steps: int = 0,
) -> None:
    """Train one form; resumed where `folder` holds a state. Ends with the averaged weights."""
    perceptual = adversary = None
    if config.perceptual.enabled:
        perceptual = load_perceptual(config.perceptual.path, config.perceptual.heads)
    if config.gan.weight:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            adversary = Adversary(config.gan)
    others = {} if adversary is None else {"adversary": adversary.learner(optim)}
    run = Run(folder, model, optim, f"tokenizer {folder.name}", others=others)
    if perceptual is None:
        why = "its weight is 0" if config.perceptual.path else "no feature network given"
        run.note(f"perceptual term off: {why}")

    def loss_of(draw: int) -> tuple[Tensor, dict[str, float]]:
        step = draw // optim.accumulate - continuous_steps
        judging = adversary if step >= config.gan.start else None
        quantised = sizes if step >= 0 else None
        video = from_pixels(source.batch(draw)["frames"].numpy())
        return tokenizer_loss(model, video, quantised, config, perceptual, judging)

    train(run, loss_of)
    model.load_state_dict(run.averaged())


def train_tokenizer(
    folder: Path,
    architecture: TokenizerConfig,
    sizes: Sizes,
    config: TokenizerTraining,
    *,
    source_of: SourceOf = DigitsSource,
    num_frames: int = digits.NUM_FRAMES,
) -> VideoTokenizer:
    """Both stages, each resumable in its own folder below `folder`; returns the EMA model.

    Args:
        source_of: batches with frames. Default: moving digits.
        num_frames: of a clip.
    """
    torch.manual_seed(config.seed)
    image_model = VideoTokenizer(architecture.as_2d())
    optim = OptimConfig(
        steps=config.image_steps, learning_rate=config.image_rate, warmup=200, **config.optim
    )
    images = Shape(frames=1, batch=config.image_batch)
    with closing(source_of([images], config.seed)) as source:
        stage = folder / "image"
        _stage(stage, image_model, config, optim, source, sizes, config.continuous_steps)

    model = inflate(image_model, architecture)
    optim = OptimConfig(
        steps=config.clip_steps, learning_rate=config.clip_rate, warmup=100, **config.optim
    )
    share = config.image_share
    clips = Shape(frames=num_frames, batch=config.clip_batch, share=1 - share)
    shapes = [shape for shape in (replace(images, share=share), clips) if shape.share > 0]
    with closing(source_of(shapes, config.seed + 1)) as source:
        _stage(folder / "clip", model, config, optim, source, sizes)
    return model.eval()
