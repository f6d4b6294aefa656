"""One teacher-forced step of the transformer: its batch, its loss and its bit accuracy.

    loss = mean over frames t, scales k, tokens and bits of -log p(bit | R_<t, R_t^<k, Psi)

in one pass (arXiv 2601.05966, Eq. 5), on histories with flipped bits (Eq. 8, `corruption.py`) and
hidden frames (Eq. 9, `frame_mask.py`), a share of the captions or classes left out for guidance.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import prod
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from videoar.kernels.bitwise_cross_entropy import bitwise_cross_entropy
from videoar.kernels.bsq_quantize import bsq_quantize
from videoar.runtime.config import TransformerConfig
from videoar.runtime.history import next_scale_inputs
from videoar.runtime.schedule import Sizes
from videoar.runtime.text import encode_prompt, pad
from videoar.runtime.transformer import Transformer, teacher_forced_logits
from videoar.training.corruption import FlipConfig, draw_flips, flip_probabilities
from videoar.training.frame_mask import draw_frame_mask
from videoar.training.recipes import TransformerStage
from videoar.training.run import autocast
from videoar.training.stages import sizes_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Teacher-forced inputs and targets of one step; `B` rows, `t` frames, `N` tokens a frame.

    Attributes:
        tokens, text_lengths: the conditions, int64 `[B,text]` and `[B]`.
        inputs: next-scale inputs `[B,t,N,d]`.
        targets: bool `[B,t,N,d]`.
        sizes: grids of the scales.
        frame_visible: bool `[B,t,t]`, or None where every earlier frame is seen.
    """

    tokens: Tensor
    text_lengths: Tensor
    inputs: Tensor
    targets: Tensor
    sizes: Sizes
    frame_visible: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch there."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()}
        return Batch(**moved)


def make_batch(
    sample: dict[str, Any],
    text_tokenizer: Tokenizer | None,
    architecture: TransformerConfig,
    stage: TransformerStage,
    generators: Sequence[torch.Generator],
) -> Batch:
    """Quantise with flips, draw the frame mask and tokenise with dropout.

    Args:
        sample: `latents` `[B,d,t,h,w]`, or else `bits` `[B,t,N,d]` and their `sizes`; and
            `captions` or `classes`.
        text_tokenizer: None for classes.
        generators: the random numbers of each row.
    """
    if "latents" in sample:
        latents = sample["latents"].float()
        sizes = sizes_of(tuple(latents.shape[-2:]), architecture.sizes)
        inputs, targets = flipped_history(latents, sizes, stage.flip, generators)
    else:
        targets, sizes = sample["bits"], sample["sizes"]
        inputs = clean_history(targets, sizes)
    conditions = sample["captions" if architecture.condition == "text" else "classes"]
    tokens, lengths = prefixes(conditions, text_tokenizer, architecture, stage.dropout, generators)
    visible = None
    if stage.mask.enabled:
        frames = targets.shape[1]
        visible = torch.cat([draw_frame_mask(stage.mask, 1, frames, g) for g in generators])
    return Batch(
        tokens=tokens,
        text_lengths=lengths,
        inputs=inputs,
        targets=targets,
        sizes=sizes,
        frame_visible=visible,
    )


def flipped_history(
    latents: Tensor, sizes: Sizes, flip: FlipConfig, generators: Sequence[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """Inputs `[B,t,N,d]` with flipped bits, and their targets (arXiv 2601.05966, Eq. 8)."""
    if not flip.enabled:
        clean = bsq_quantize(latents, sizes, return_inputs=True)
        return clean.inputs, clean.targets
    width, frames = latents.shape[1:3]
    flips = []
    for generator in generators:
        p = flip_probabilities(flip, 1, frames, len(sizes), generator)
        flips.append(draw_flips(p, sizes, width, generator))
    there = torch.cat(flips).to(latents.device)
    flipped = bsq_quantize(latents, sizes, flips=there, return_inputs=True)
    targets = flipped.targets if flip.requantize else bsq_quantize(latents, sizes).bits
    return flipped.inputs, targets


def clean_history(bits: Tensor, sizes: Sizes) -> Tensor:
    """The inputs `[B,t,N,d]` of bits alone, which do not tell the targets behind a flip."""
    inputs, _ = next_scale_inputs(bits.flatten(0, 1), sizes)
    inputs = inputs.unflatten(0, bits.shape[:2])
    # All clips in one call: the frame behind a clip's last one is another clip's first.
    inputs[:, 0, : prod(sizes[0])] = 0
    return inputs


def prefixes(
    conditions: Sequence[str | int],
    text_tokenizer: Tokenizer | None,
    architecture: TransformerConfig,
    dropout: float,
    generators: Sequence[torch.Generator],
) -> tuple[Tensor, Tensor]:
    """Captions or class ids as tokens `[B,text]` and lengths `[B]`, a share of them left out."""
    dropped = torch.cat([torch.rand(1, generator=g) for g in generators]) < dropout
    if architecture.condition == "class":
        ids = torch.tensor(conditions).masked_fill(dropped, architecture.vocab_size)
        return ids[:, None], torch.ones_like(ids)
    rows = [
        encode_prompt(text_tokenizer, "" if drop else caption, architecture.max_text)
        for caption, drop in zip(conditions, dropped.tolist(), strict=True)
    ]
    return pad(rows, max(map(len, rows)))


def transformer_loss(model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of a bit in nats, and the logits `[B,t,N,2d]` without a gradient."""
    with autocast(batch.inputs.device):
        logits = teacher_forced_logits(
            model,
            batch.tokens,
            batch.text_lengths,
            batch.inputs,
            frame_visible=batch.frame_visible,
            sizes=batch.sizes,
        )
    return bitwise_cross_entropy(logits, batch.targets), logits.detach()


def bit_accuracy(logits: Tensor, targets: Tensor, sizes: Sizes) -> Tensor:
    """Share of right bits by frame and scale, float32 `[t,K]`.

    Frame by frame and in the logits' own dtype: no copy of them all is made.

    Args:
        logits: `[B,t,N,2d]`.
        targets: bool `[B,t,N,d]`.
    """
    rows = []
    for frame in range(targets.shape[1]):
        zero, one = logits[:, frame].unflatten(-1, (-1, 2)).unbind(-1)
        right = (one > zero) == targets[:, frame]
        share_N = right.sum(dim=(0, 2)) / (right.shape[0] * right.shape[2])
        rows.append(torch.stack([p.mean() for p in share_N.split([h * w for h, w in sizes])]))
    return torch.stack(rows)


def accuracy_values(table: Tensor, sizes: Sizes) -> dict[str, float]:
    """Accuracy by scale and by frame as the log has it, from the table of both."""
    counts = torch.tensor([float(h * w) for h, w in sizes], device=table.device)
    scales, frames = table.mean(dim=0), table @ counts / counts.sum()
    values = {f"bits_{k + 1}": share for k, share in enumerate(scales.tolist())}
    return values | {f"frame_{t + 1}": share for t, share in enumerate(frames.tolist())}
