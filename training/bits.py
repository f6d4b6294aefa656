"""How many bits a transformer predicts rightly, by latent frame and scale, on clips it never saw.

Teacher forced: every bit is predicted from the clip's true earlier bits (arXiv 2601.05966, Eq. 5),
the likelier value counts as the prediction, and nothing of the history is flipped or masked. In a
clip longer than the model's, a frame sees as many frames back as when generating.
"""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from videoar.kernels.bsq_quantize import bsq_quantize
from videoar.runtime.pipeline import VideoAR
from videoar.runtime.pixels import from_pixels
from videoar.runtime.text import check_class, encode_prompt, pad
from videoar.runtime.transformer import teacher_forced_logits
from videoar.training.eval_clips import Sample, condition_of
from videoar.training.frame_mask import window_mask


@torch.no_grad()
def eval_bits(
    model: VideoAR, samples: Iterable[Sample], *, batch: int = 8, total: int | None = None
) -> dict[str, Any]:
    """Bit accuracy and cross-entropy of a transformer on held-out clips.

    Args:
        samples: clips of one length with the captions or classes that the model takes.
        batch: clips of one pass.
        total: how many, for the progress bar.

    Returns:
        `bits` [F][K], the share of right bits of each latent frame and scale; `frames` [F],
        `scales` [K] and `accuracy`, the same over all bits of a frame, of a scale and altogether;
        `loss`, nats a bit; `loss_bits` [F][K]; `sizes`, the scales' grids; `num`.

    Raises:
        ValueError: no clips, a missing or unknown caption or class, or frames that the tokenizer
            cannot compress.
    """
    samples, num = iter(samples), 0
    right: Tensor | float = 0.0
    nats: Tensor | float = 0.0
    with tqdm(total=total, desc="predict", unit="clip", disable=None) as bar:
        while part := list(islice(samples, batch)):
            more_right, more_nats = _sums(model, part)
            right, nats, num = right + more_right, nats + more_nats, num + len(part)
            bar.update(len(part))
    if not num:
        raise ValueError("samples: at least one clip is needed")
    architecture = model.config.transformer
    # Bits of each scale, in one frame of all clips.
    count = torch.tensor([h * w for h, w in architecture.sizes]) * architecture.latent_dim * num

    def mean(sums_FK: Tensor, *axes: int) -> Any:
        share = sums_FK.sum(axes) / count.expand_as(sums_FK).sum(axes) if axes else sums_FK / count
        return _rounded(share.tolist())

    return {
        "accuracy": mean(right, 0, 1),
        "loss": mean(nats, 0, 1),
        "frames": mean(right, 1),
        "scales": mean(right, 0),
        "bits": mean(right),
        "loss_bits": mean(nats),
        "sizes": [list(size) for size in architecture.sizes],
        "num": num,
    }


def _sums(model: VideoAR, samples: list[Sample]) -> tuple[Tensor, Tensor]:
    """Right bits and nats of each latent frame and scale, summed over clips, float64 `[F,K]`."""
    architecture, device = model.config.transformer, model.device
    clips = torch.stack([from_pixels(sample.frames) for sample in samples])
    weight = next(model.tokenizer.parameters())
    latents = model.tokenizer.encode(clips.to(weight.device, weight.dtype))
    quantized = bsq_quantize(latents.float(), architecture.sizes, return_inputs=True)
    rows = [_prefix(model, sample) for sample in samples]
    tokens, lengths = (part.to(device) for part in pad(rows, max(map(len, rows))))
    visible = window_mask(quantized.inputs.shape[1], architecture.max_frames - 1).to(device)
    logits = teacher_forced_logits(
        model.transformer, tokens, lengths, quantized.inputs, frame_visible=visible
    )
    pairs, targets = logits.float().unflatten(-1, (-1, 2)), quantized.targets.long()
    right_BtNd = (pairs[..., 1] > pairs[..., 0]) == quantized.targets
    nats_BtNd = F.cross_entropy(pairs.movedim(-1, 1), targets, reduction="none")
    counts = [h * w for h, w in architecture.sizes]

    def by_scale(values_BtNd: Tensor) -> Tensor:
        per_token = values_BtNd.double().sum(dim=(0, 3))
        return torch.stack([part.sum(dim=1) for part in per_token.split(counts, dim=1)], 1).cpu()

    return by_scale(right_BtNd), by_scale(nats_BtNd)


def _prefix(model: VideoAR, sample: Sample) -> list[int]:
    architecture = model.config.transformer
    condition = condition_of(sample, architecture.condition)
    try:
        if architecture.condition == "class":
            return check_class(condition, architecture)
        return encode_prompt(model.text_tokenizer, condition, architecture.max_text)
    except ValueError as error:
        raise ValueError(f"{sample.name}: {error}") from error


def _rounded(values: Any) -> Any:
    return [_rounded(v) for v in values] if isinstance(values, list) else round(values, 6)
