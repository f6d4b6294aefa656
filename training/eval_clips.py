"""Clips to evaluate with: held-out moving digits or a folder's, and what models make of them."""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from videoar.kernels.bsq_quantize import Quantized
from videoar.runtime.errors import MediaError
from videoar.runtime.pipeline import VideoAR
from videoar.runtime.pixels import from_pixels, to_pixels
from videoar.runtime.schedule import Sizes
from videoar.runtime.text import encode_prompt
from videoar.runtime.video_tokenizer import VideoTokenizer
from videoar.training import digits
from videoar.training.video_folder import Bucket, ClipConfig, VideoFolder

OnUnreadable = Callable[[MediaError], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A clip, uint8 `[T,H,W,3]`, and what a model is asked for it, where that is known."""

    name: str
    frames: np.ndarray
    caption: str | None = None
    class_id: int | None = None


def report(error: MediaError) -> None:
    """Name a file that is left out on stderr, past a progress bar."""
    tqdm.write(f"left out: {error}", file=sys.stderr)


def digit_samples(num: int, seed: int = 0, num_frames: int = digits.NUM_FRAMES) -> Iterator[Sample]:
    """`num` held-out clips of moving digits, `[num_frames,64,64,3]`, with captions."""
    for index in range(num):
        frames, caption, _ = digits.clip("test", seed, index, num_frames)
        yield Sample(name=f"digits {seed}/{index}", frames=frames, caption=caption)


def folder_samples(
    folder: VideoFolder,
    num: int,
    bucket: Bucket,
    *,
    fps: float,
    seed: int = 0,
    on_unreadable: OnUnreadable = report,
) -> Iterator[Sample]:
    """A clip from each of `num` videos of a folder, in an order and from starts drawn by `seed`.

    Args:
        bucket: frames, height and width; frames are resized to cover it and cropped in the centre.
        fps: frames a second of the clips, 0 for each video's own.
        on_unreadable: called for every file that cannot be decoded; the next takes its place.

    Raises:
        MediaError: not one video that fills the bucket can be decoded.
    """
    (members,) = folder.split([bucket], fps)
    clip, found = ClipConfig(fps=fps, crop="centre"), 0
    for number in np.random.default_rng(seed).permutation(members).tolist():
        if found == num:
            return
        item = folder.items[number]
        try:
            frames = folder.read(number, bucket, clip, seed, 0)
        except MediaError as error:
            on_unreadable(error)
            continue
        found += 1
        path = str(folder.path / item.name)
        yield Sample(name=path, frames=frames, caption=item.caption, class_id=item.class_id)
    if not found:
        text = f"none of {len(folder.items)} videos gives a clip of {bucket}"
        raise MediaError(f"{folder.path}: {text}")


def folder_clips(
    folder: str | Path,
    num: int,
    size: tuple[int, int],
    num_frames: int,
    on_unreadable: OnUnreadable = report,
) -> Iterator[np.ndarray]:
    """The first frames of up to `num` videos in `folder` and below, in the order of their names.

    Args:
        size: `(height, width)` that every video is scaled to cover and cropped to.
        num_frames: how many frames to take; a shorter video counts as unreadable.
        on_unreadable: called for every unreadable file.

    Yields:
        uint8 `[num_frames,H,W,3]`.

    Raises:
        MediaError: no such folder, no media in it, or none that is readable.
    """
    from videoar.runtime.media import list_media, read_video

    readable, unreadable = 0, 0
    for path in list_media(folder):
        if readable == num:
            break
        try:
            frames, _ = read_video(path, size=size, num_frames=num_frames)
        except MediaError as error:
            unreadable += 1
            on_unreadable(error)
            continue
        readable += 1
        yield frames
    if not readable:
        raise MediaError(f"{folder}: none of its {unreadable} files could be read")


@torch.no_grad()
def restore(
    tokenizer: VideoTokenizer, sizes: Sizes, frames: np.ndarray
) -> tuple[np.ndarray, Quantized]:
    """A clip, uint8 `[T,H,W,3]`, encoded, quantised and decoded, and its tokens.

    Raises:
        ValueError: a size that cannot be compressed.
    """
    weight = next(tokenizer.parameters())
    video = from_pixels(frames[None]).to(weight.device, weight.dtype)
    quantized = tokenizer.quantize(tokenizer.encode(video), sizes)
    return to_pixels(tokenizer.decode(quantized.reconstruction.to(weight.dtype)))[0], quantized


def condition_of(sample: Sample, kind: str) -> str | int:
    """The caption ("text") or class ("class") of a sample.

    Raises:
        ValueError: it has none.
    """
    value = sample.caption if kind == "text" else sample.class_id
    if value is None:
        name = "caption" if kind == "text" else "class"
        raise ValueError(f"{sample.name}: {name}: missing, the model is conditioned on it")
    return value


def generated(
    model: VideoAR,
    conditions: Iterable[str | int],
    *,
    seed: int = 0,
    batch: int = 8,
    **options: Any,
) -> Iterator[np.ndarray]:
    """A clip for each prompt or class, uint8 `[T,H,W,3]`; clip i is made with `seed + i`.

    Args:
        batch: clips of one call of `generate`.
        options: `num_frames`, `guidance`, `temperature` and so on for `generate`.

    Raises:
        ValueError: what `generate` refuses.
    """
    conditions = list(conditions)
    name = "prompt" if model.config.transformer.condition == "text" else "class_id"
    for start in range(0, len(conditions), batch):
        part = conditions[start : start + batch]
        seeds = [seed + start + i for i in range(len(part))]
        yield from model.generate(**{name: part}, seed=seeds, **options).frames


def check_prompts(model: VideoAR, prompts: Iterable[str]) -> None:
    """Check all prompts before the first is used.

    Raises:
        ValueError: a model of classes, or a prompt that it cannot read; names the prompt.
    """
    architecture = model.config.transformer
    if architecture.condition != "text":
        raise ValueError("prompts: this model takes classes, not texts")
    for prompt in prompts:
        try:
            encode_prompt(model.text_tokenizer, prompt, architecture.max_text)
        except ValueError as error:
            raise ValueError(f"{prompt!r}: {error}") from error
