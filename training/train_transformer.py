"""Training the transformer on cached latents: chunk-causal teacher forcing over all scales.

First form of arXiv 2601.05966, section 4: bitwise cross-entropy, flipped histories with
self-correcting targets, text dropout for guidance; single frames first (stage I), then clips.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from videoar.kernels.bitwise_cross_entropy import bitwise_cross_entropy
from videoar.kernels.bsq_quantize import bsq_quantize
from videoar.runtime.config import TransformerConfig
from videoar.runtime.pixels import from_pixels
from videoar.runtime.text import encode_prompt, pad, word_tokenizer
from videoar.runtime.transformer import Transformer, teacher_forced_logits
from videoar.runtime.video_tokenizer import VideoTokenizer
from videoar.training import digits
from videoar.training.corruption import FlipConfig, draw_flips, flip_probabilities
from videoar.training.run import OptimConfig, Run, autocast, train


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerTraining:
    """Settings of one transformer run on the moving digits.

    Attributes:
        images: training frames encoded once, then drawn from in stage I.
        clips: training clips encoded once, then drawn from in stage II.
        image_steps: steps on single frames.
        image_batch: frames a step.
        clip_steps: steps on whole clips, `clip_batch` each.
        dropout: share of captions replaced by the empty prompt.
        flip: history corruption.
        seed: of the data, the initial weights and every draw.
    """

    images: int = 60000
    clips: int = 12000
    image_steps: int = 1500
    image_batch: int = 128
    image_rate: float = 1.5e-3
    clip_steps: int = 2000
    clip_batch: int = 64
    clip_rate: float = 1e-3
    dropout: float = 0.1
    flip: FlipConfig = field(default_factory=lambda: FlipConfig(p_max=0.15))
    seed: int = 0
    optim: dict = field(default_factory=dict)


def digits_text_tokenizer() -> Tokenizer:
    """The words of the caption grammar."""
    directions = [d for d in digits.DIRECTIONS if d != "still"]
    words = ["a", "moving", "standing", "still", *digits.COLOURS, *directions, *digits.SPEEDS]
    return word_tokenizer([*words, *digits.WORDS, *(str(d) for d in range(10))])


@torch.no_grad()
def cache_latents(
    folder: Path, tokenizer: VideoTokenizer, seed: int, count: int, num_frames: int
) -> Tensor:
    """Encode `count` training clips once, float16 `[count,d,t,h,w]`; kept in `folder`.

    Clip i is `digits.clip("train", seed, i, num_frames)`, whose caption is made again when it is
    needed.
    """
    path = folder / f"latents-{seed}-{count}-{num_frames}.safetensors"
    if path.exists():
        return load_file(path)["latents"]
    folder.mkdir(parents=True, exist_ok=True)
    parts, size = [], 16 * digits.NUM_FRAMES // num_frames
    for start in tqdm(range(0, count, size), desc="encode", unit="batch", disable=None):
        stop = min(start + size, count)
        clips = [digits.clip("train", seed, i, num_frames)[0] for i in range(start, stop)]
        with autocast(torch.device("cpu")):
            parts.append(tokenizer.encode(from_pixels(np.stack(clips))).half())
    latents = torch.cat(parts)
    temporary = path.with_suffix(".tmp")
    save_file({"latents": latents}, temporary)
    os.replace(temporary, path)
    return latents


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Teacher-forced inputs and targets of one step."""

    tokens: Tensor
    text_lengths: Tensor
    inputs: Tensor
    targets: Tensor


def make_batch(
    latents: Tensor,
    captions: list[str],
    text_tokenizer: Tokenizer,
    architecture: TransformerConfig,
    config: TransformerTraining,
    generator: torch.Generator,
) -> Batch:
    """Quantise with flips and tokenise with dropout.

    Args:
        latents: `[B,d,t,h,w]`.
        captions: one a sample.
    """
    sizes = architecture.sizes
    batch, frames = latents.shape[0], latents.shape[2]
    p = flip_probabilities(config.flip, batch, frames, len(sizes), generator)
    flips = draw_flips(p, sizes, architecture.latent_dim, generator)
    quantized = bsq_quantize(latents.float(), sizes, flips=flips, return_inputs=True)
    dropped = torch.rand(batch, generator=generator) < config.dropout
    rows = [
        encode_prompt(text_tokenizer, "" if drop else caption, architecture.max_text)
        for caption, drop in zip(captions, dropped.tolist(), strict=True)
    ]
    tokens, lengths = pad(rows, max(map(len, rows)))
    return Batch(
        tokens=tokens, text_lengths=lengths, inputs=quantized.inputs, targets=quantized.targets
    )


def transformer_loss(model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """Mean cross-entropy of a bit (in nats), and the bit accuracy by scale."""
    with autocast(batch.inputs.device):
        logits = teacher_forced_logits(model, batch.tokens, batch.text_lengths, batch.inputs)
    loss = bitwise_cross_entropy(logits, batch.targets)
    with torch.no_grad():
        pairs = logits.float().unflatten(-1, (-1, 2))
        right = ((pairs[..., 1] > pairs[..., 0]) == batch.targets).float().mean(dim=(0, 1, 3))
        counts = [h * w for h, w in model.config.sizes]
        scales = {f"bits_{k + 1}": part.mean().item() for k, part in enumerate(right.split(counts))}
    return loss, scales


def train_transformer(
    folder: Path,
    tokenizer: VideoTokenizer,
    architecture: TransformerConfig,
    config: TransformerTraining,
) -> Transformer:
    """Both stages, each resumable in its own folder below `folder`; returns the EMA model."""
    text_tokenizer = digits_text_tokenizer()
    torch.manual_seed(config.seed)
    model = Transformer(architecture)

    def stage(name: str, count: int, frames: int, size: int, optim: OptimConfig) -> None:
        seed = config.seed + (2 if frames > 1 else 3)
        latents = cache_latents(folder, tokenizer, seed, count, frames)
        run = Run(folder / name, model, optim, f"transformer, {name}s")

        def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
            generator = torch.Generator().manual_seed(seed * 2**32 + step)
            index = torch.randint(count, (size,), generator=generator)
            captions = [digits.clip("train", seed, i, frames)[1] for i in index.tolist()]
            batch = make_batch(
                latents[index], captions, text_tokenizer, architecture, config, generator
            )
            return transformer_loss(model, batch)

        train(run, loss_of)
        model.load_state_dict(run.averaged())

    image, clip = (
        OptimConfig(steps=steps, learning_rate=rate, warmup=200, **config.optim)
        for steps, rate in (
            (config.image_steps, config.image_rate),
            (config.clip_steps, config.clip_rate),
        )
    )
    stage("image", config.images, 1, config.image_batch, image)
    stage("clip", config.clips, digits.NUM_FRAMES, config.clip_batch, clip)
    return model.eval()
