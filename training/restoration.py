"""What a video tokenizer gives back of clips: scores by folder, and a picture to look at."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from videoar.runtime.media_sheet import contact_sheet
from videoar.runtime.schedule import Sizes
from videoar.runtime.video_tokenizer import VideoTokenizer
from videoar.training.eval_clips import Sample, restore
from videoar.training.metrics import psnr, ssim

# PSNR of a clip that comes back exactly, so that means stay finite.
MAX_PSNR = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Restoration:
    """A clip, what came back of it (uint8 `[T,H,W,3]` both), and how alike they are.

    Attributes:
        name: of the sample.
        psnr: dB over the whole clip, at most 100.
        ssim: mean over frames and channels.
        num_bits: of all its latent frames.
    """

    name: str
    frames: np.ndarray
    restored: np.ndarray
    psnr: float
    ssim: float
    num_bits: int

    @property
    def folder(self) -> str:
        """Name of the folder that the clip's file is in."""
        return Path(self.name).parent.name


def restorations(
    tokenizer: VideoTokenizer, sizes: Sizes, samples: Iterable[Sample], total: int | None = None
) -> Iterator[Restoration]:
    """Encode, quantise and decode samples one after the other.

    Args:
        total: how many, for the progress bar.

    Raises:
        ValueError: a size that cannot be compressed.
    """
    for sample in tqdm(samples, total=total, desc="restore", unit="clip", disable=None):
        restored, quantized = restore(tokenizer, sizes, sample.frames)
        yield Restoration(
            name=sample.name,
            frames=sample.frames,
            restored=restored,
            psnr=min(MAX_PSNR, psnr(restored, sample.frames)),
            ssim=ssim(restored, sample.frames),
            num_bits=quantized.bits.numel(),
        )


def mean_scores(clips: Sequence[Restoration]) -> dict[str, float]:
    """Means over clips: `psnr` (dB), `ssim`, `bits_per_pixel`; and their number, `num`.

    Raises:
        ValueError: no clips.
    """
    if not clips:
        raise ValueError("clips: at least one is needed")
    rows = [(c.psnr, c.ssim, c.num_bits / np.prod(c.frames.shape[:3])) for c in clips]
    names = ("psnr", "ssim", "bits_per_pixel")
    means = zip(names, np.mean(rows, axis=0), strict=True)
    return {name: round(float(mean), 5) for name, mean in means} | {"num": len(clips)}


def by_folder(clips: Sequence[Restoration]) -> dict[str, dict[str, float]]:
    """`mean_scores` of the clips of each folder, by its name."""
    names = sorted({clip.folder for clip in clips})
    return {name: mean_scores([c for c in clips if c.folder == name]) for name in names}


def median_of_each_folder(clips: Sequence[Restoration], count: int = 1) -> list[Restoration]:
    """`count` clips of each folder, those around the median PSNR: neither the best nor the worst.

    Folders in the order of their names; fewer where a folder holds fewer.
    """
    chosen = []
    for folder in sorted({clip.folder for clip in clips}):
        members = sorted((c for c in clips if c.folder == folder), key=lambda c: (c.psnr, c.name))
        first = max(0, (len(members) - count) // 2)
        chosen += members[first : first + count]
    return chosen


def comparison_sheet(
    clips: Sequence[Restoration], *, every: int = 4, scale: int = 2, columns: int = 2
) -> np.ndarray:
    """Two rows for each clip, its frames and below them what came back, uint8 `[H,W,3]`.

    Args:
        clips: of one frame size and length.
        every: frames from one shown frame to the next.
        scale: every pixel becomes `scale x scale` pixels.
        columns: clips side by side.

    Raises:
        ValueError: no clips, or of different sizes.
    """
    count = min(columns, len(clips)) or 1
    parts = [_rows(clips[column::count], every, scale) for column in range(count)]
    height = max(len(part) for part in parts)
    blank = parts[0][0, 0, 0]
    below = [((0, height - len(part)), (0, 0), (0, 0)) for part in parts]
    padded = [np.pad(p, room, constant_values=blank) for p, room in zip(parts, below, strict=True)]
    return np.concatenate(padded, axis=1)


def _rows(clips: Sequence[Restoration], every: int, scale: int) -> np.ndarray:
    rows, labels = [], []
    for clip in clips:
        shown = " ".join(map(str, range(0, len(clip.frames), every)))
        rows += [clip.frames[::every], clip.restored[::every]]
        labels += [
            f"{clip.folder.replace('_', ' ')}, frames {shown}",
            f"restored: PSNR {clip.psnr:.1f} dB, SSIM {clip.ssim:.3f}",
        ]
    return contact_sheet(rows, scale=scale, labels=labels)
