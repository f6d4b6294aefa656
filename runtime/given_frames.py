"""Pictures and clips that a request brings along, as the model takes them: size, rate, length."""

import math
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from videoar.runtime.config import ModelConfig
from videoar.runtime.values import is_number


def given_image(image: Any, config: ModelConfig) -> np.ndarray:
    """A picture as a clip of one frame of the model's size.

    Args:
        image: a file (of a video, its first frame), or uint8 `[H,W,3]` RGB as an array, a tensor or
            whatever else turns into an array. Another size is scaled until it covers the
            model's, and cropped around the centre.

    Returns:
        uint8 `[1,H,W,3]`.

    Raises:
        ValueError: another dtype or shape.
        MediaError: the file cannot be read.
    """
    if _is_path(image):
        from videoar.runtime.media import read_video

        return read_video(image, size=(config.height, config.width), num_frames=1)[0]
    return _fit(_array(image, "image", ("H", "W", 3))[None], config)


def given_video(video: Any, config: ModelConfig, *, fps: float | None, most: int) -> np.ndarray:
    """The end of a clip, at the model's size and rate.

    Args:
        video: a file, or uint8 `[T,H,W,3]` RGB; size as in `given_image`.
        fps: its frames a second; None: the file's rate, and of an array the model's. Frames are
            dropped or repeated to come to the model's rate.
        most: frames to return at most.

    Returns:
        uint8 `[n,H,W,3]`, the last n = 1 + tau i frames.

    Raises:
        ValueError: another dtype or shape, no frame, or no rate.
        MediaError: the file cannot be read.
    """
    if fps is not None and not (is_number(fps) and math.isfinite(fps) and fps >= 0.001):
        raise ValueError(f"video_fps: expected a number of at least 0.001, got {fps!r}")
    if _is_path(video):
        from videoar.runtime.media import read_video

        # With a rate of the caller's, which frames are the last ones shows when all are counted.
        own_rate = {"fps": config.fps, "last": most} if fps is None else {}
        frames, _ = read_video(video, size=(config.height, config.width), **own_rate)
    else:
        frames = _array(video, "video", ("T", "H", "W", 3))
    if fps is not None:
        frames = frames[resampled(len(frames), fps, config.fps)[-most:]]
    tau = config.tokenizer.temporal_compression
    count = 1 + (min(len(frames), most) - 1) // tau * tau
    return _fit(frames[-count:], config)


def resampled(count: int, source_fps: float, fps: float) -> list[int]:
    """For each tick of `fps` the frame nearest in time, for as long as `count` frames last."""
    ratio = Fraction(float(source_fps)).limit_denominator(1001) / Fraction(fps).limit_denominator(
        1001
    )
    ticks = max(1, math.floor(count / ratio + Fraction(1, 2)))
    return [min(count - 1, math.ceil(tick * ratio - Fraction(1, 2))) for tick in range(ticks)]


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike, Path))


def _array(value: Any, name: str, axes: tuple[str | int, ...]) -> np.ndarray:
    """`value` as a non-empty uint8 array of these axes, or a ValueError that names it."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    fits = array.ndim == len(axes) and array.shape[-1] == 3 and array.size
    if array.dtype != np.uint8 or not fits:
        shape = ",".join(map(str, axes))
        raise ValueError(
            f"{name}: expected a file or a non-empty uint8 [{shape}], "
            f"got {array.dtype} {list(array.shape)}"
        )
    return array


def _fit(frames: np.ndarray, config: ModelConfig) -> np.ndarray:
    """A copy of the model's size: a request may wait while its caller reuses the array."""
    size = (config.height, config.width)
    if frames.shape[1:3] == size:
        return np.array(frames, order="C")
    from videoar.runtime.media import fit_frames

    return fit_frames(frames, size)
