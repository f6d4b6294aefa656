"""The tokenizer's loss of one batch, Eq. 4 of arXiv 2601.05966.

    l_rec + l_perc + l_GAN + l_commit + l_entropy, each with its weight

It reads no data: what a step costs can be measured without the packages that decode videos.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from videoar.kernels.bsq_quantize import bsq_quantize
from videoar.runtime.schedule import Sizes
from videoar.runtime.video_tokenizer import VideoTokenizer
from videoar.training.adversarial import Adversary, adaptive_weight
from videoar.training.perceptual import Perceptual
from videoar.training.run import autocast

if TYPE_CHECKING:
    from videoar.training.recipes import TokenizerTraining

# Mean error of a pixel in [0,1] units, of two videos in [-1,1] (arXiv 2601.05966, Eq. 4: l_rec).
# Charbonnier: arXiv 1710.01992, with its epsilon of 1e-3.
ERRORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": lambda x, y: F.l1_loss(x, y) / 2,
    "l2": lambda x, y: F.mse_loss(x, y) / 4,
    "charbonnier": lambda x, y: ((x - y).square() / 4 + 1e-6).sqrt().mean(),
}


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
        last = model.decoder.conv_out.conv.weight
        weight = weight * adaptive_weight(loss, term, last, adversary.world)
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
