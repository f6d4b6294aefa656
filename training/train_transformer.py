"""Training the transformer on cached latents: chunk-causal teacher forcing over all scales.

First form of arXiv 2601.05966, section 4: bitwise cross-entropy, flipped histories with
self-correcting targets, text dropout for guidance; single frames first (stage I), then clips.
"""

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from videoar.kernels.bitwise_cross_entropy import bitwise_cross_entropy
from videoar.kernels.bsq_quantize import bsq_quantize
from videoar.runtime.config import TransformerConfig
from videoar.runtime.history import next_scale_inputs
from videoar.runtime.pixels import from_pixels
from videoar.runtime.text import encode_prompt, pad
from videoar.runtime.transformer import Transformer, teacher_forced_logits
from videoar.runtime.video_tokenizer import VideoTokenizer
from videoar.training import digits
from videoar.training.corruption import FlipConfig, draw_flips, flip_probabilities
from videoar.training.run import OptimConfig, Run, autocast, draw_generator, train
from videoar.training.sources import Shape, Source, SourceOf


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
    conditions: Sequence[str | int],
    text_tokenizer: Tokenizer | None,
    architecture: TransformerConfig,
    config: TransformerTraining,
    generator: torch.Generator,
) -> Batch:
    """Quantise with flips and tokenise with dropout.

    Args:
        latents: `[B,d,t,h,w]`.
        conditions: a caption or a class id a sample, as the model takes them.
        text_tokenizer: None for classes.
    """
    sizes = architecture.sizes
    batch, frames = latents.shape[0], latents.shape[2]
    p = flip_probabilities(config.flip, batch, frames, len(sizes), generator)
    flips = draw_flips(p, sizes, architecture.latent_dim, generator)
    quantized = bsq_quantize(latents.float(), sizes, flips=flips, return_inputs=True)
    tokens, lengths = prefixes(conditions, text_tokenizer, architecture, config.dropout, generator)
    return Batch(
        tokens=tokens, text_lengths=lengths, inputs=quantized.inputs, targets=quantized.targets
    )


def make_clean_batch(
    bits: Tensor,
    conditions: Sequence[str | int],
    text_tokenizer: Tokenizer | None,
    architecture: TransformerConfig,
    config: TransformerTraining,
    generator: torch.Generator,
) -> Batch:
    """`make_batch` of bits `[B,t,N,d]` alone: histories without flips.

    Raises:
        ValueError: the settings ask for flips, whose targets bits do not tell.
    """
    if config.flip.p_max > 0 or config.flip.delta > 0:
        text = "must be 0 for a cache of bits alone; write it with latents for flipped histories"
        raise ValueError(f"flip.p_max, flip.delta: {text}")
    inputs, _ = next_scale_inputs(bits.flatten(0, 1), architecture.sizes)
    inputs = inputs.unflatten(0, bits.shape[:2])
    # All clips in one call: the frame behind a clip's last one is another clip's first.
    inputs[:, 0, : prod(architecture.sizes[0])] = 0
    tokens, lengths = prefixes(conditions, text_tokenizer, architecture, config.dropout, generator)
    return Batch(tokens=tokens, text_lengths=lengths, inputs=inputs, targets=bits)


def prefixes(
    conditions: Sequence[str | int],
    text_tokenizer: Tokenizer | None,
    architecture: TransformerConfig,
    dropout: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Captions or class ids as tokens `[B,text]` and lengths `[B]`, a share of them left out."""
    dropped = torch.rand(len(conditions), generator=generator) < dropout
    if architecture.condition == "class":
        ids = torch.tensor(conditions).masked_fill(dropped, architecture.vocab_size)
        return ids[:, None], torch.ones_like(ids)
    rows = [
        encode_prompt(text_tokenizer, "" if drop else caption, architecture.max_text)
        for caption, drop in zip(conditions, dropped.tolist(), strict=True)
    ]
    return pad(rows, max(map(len, rows)))


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


class _DigitLatents(Source):
    """Latents of moving digits, drawn from a store that is encoded once."""

    def __init__(self, latents: Tensor, num_frames: int, batch: int, seed: int) -> None:
        self.latents, self.num_frames, self.size, self.seed = latents, num_frames, batch, seed

    def batch(self, step: int) -> dict[str, Any]:
        index = np.random.default_rng([self.seed, step]).integers(len(self.latents), size=self.size)
        clips = [digits.clip("train", self.seed, int(i), self.num_frames) for i in index]
        return {
            "latents": self.latents[torch.from_numpy(index)],
            "captions": [caption for _, caption, _ in clips],
        }


def train_transformer(
    folder: Path,
    tokenizer: VideoTokenizer,
    architecture: TransformerConfig,
    config: TransformerTraining,
    *,
    source_of: SourceOf | None = None,
    text_tokenizer: Tokenizer | None = None,
) -> Transformer:
    """Both stages, each resumable in its own folder below `folder`; returns the EMA model.

    Args:
        source_of: batches with latents or bits, and captions or classes. Default: moving digits.
        text_tokenizer: of the captions. Default: the digits' words.
    """
    if text_tokenizer is None and architecture.condition == "text":
        text_tokenizer = digits.text_tokenizer()
    torch.manual_seed(config.seed)
    model = Transformer(architecture)

    def digit_latents(shapes: Sequence[Shape], seed: int) -> Source:
        (shape,) = shapes
        count = config.images if shape.frames == 1 else config.clips
        latents = cache_latents(folder, tokenizer, seed, count, shape.frames)
        return _DigitLatents(latents, shape.frames, shape.batch, seed)

    def stage(name: str, shape: Shape, optim: OptimConfig) -> None:
        seed = config.seed + (2 if shape.frames > 1 else 3)
        with closing((source_of or digit_latents)([shape], seed)) as source:
            run = Run(folder / name, model, optim, f"transformer, {name}s")

            def loss_of(draw: int) -> tuple[Tensor, dict[str, float]]:
                generator = draw_generator(seed, draw)
                sample = source.batch(draw)
                conditions = sample["captions" if architecture.condition == "text" else "classes"]
                make, tokens = make_clean_batch, sample.get("bits")
                if "latents" in sample:
                    make, tokens = make_batch, sample["latents"]
                batch = make(tokens, conditions, text_tokenizer, architecture, config, generator)
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
    num_frames = 1 + (architecture.max_frames - 1) * tokenizer.config.temporal_compression
    stage("image", Shape(frames=1, batch=config.image_batch), image)
    stage("clip", Shape(frames=num_frames, batch=config.clip_batch), clip)
    return model.eval()
