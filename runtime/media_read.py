"""Reading clips and pictures: whatever PyAV decodes, checked for being whole."""

import math
import mmap
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter

from videoar.runtime.errors import MediaError
from videoar.runtime.media_orientation import is_mirrored

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".gif")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SUFFIXES = VIDEO_SUFFIXES + IMAGE_SUFFIXES
# libswscale's full chroma and accurate rounding, which older PyAV has no names for.
_ACCURATE = 1 << 13 | 1 << 18


def list_media(folder: str | os.PathLike) -> list[Path]:
    """The videos and pictures in `folder` and below, by suffix, sorted; hidden ones left out.

    Raises:
        MediaError: `folder` is missing, is no folder or holds no media.
    """
    folder = Path(folder)
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise MediaError(f"{folder}: {problem}")
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not paths:
        raise MediaError(f"{folder}: holds no video or picture ({', '.join(SUFFIXES)})")
    return paths


def read_video(
    path: str | os.PathLike,
    *,
    size: tuple[int, int] | None = None,
    num_frames: int | None = None,
    fps: float | None = None,
    start: int = 0,
    last: int | None = None,
) -> tuple[np.ndarray, float]:
    """Decodes a video or a picture (one frame) from its beginning.

    Marks of rotation are obeyed, and those of mirroring in photographs; pixels are taken to be
    square. With `num_frames` decoding stops as soon as there are enough, and what follows in the
    file is not checked.

    Args:
        path: the file; its content decides about the format, not its suffix.
        size: `(height, width)`: resized (area down, bicubic up) with the aspect ratio kept until
            it covers `size`, then cropped around the centre. Default: as stored.
        num_frames: how many frames to return. Default: all.
        fps: rate to resample to; each output frame is the source frame nearest in time.
        start: first frame to return, counted after resampling.
        last: return only so many, the last ones; the others take no memory. Not with `num_frames`.

    Returns:
        Frames, uint8 `[T,H,W,3]` RGB, and their rate a second: `fps` if given (a picture has 1.0).

    Raises:
        ValueError: bad arguments.
        MediaError: no such file, no readable video in it, cut off or damaged, too few frames.
    """
    path = Path(path)
    _check_arguments(size, num_frames, fps, start, last)
    stop = None if num_frames is None else start + num_frames
    with open_media(path) as (container, stream):
        still = is_still(container)
        frames = _decoded(path, container, stream, still)
        if fps is not None and not still:
            frames = resampled(frames, Fraction(fps).limit_denominator(1001))
        frames = islice(frames, start, stop)
        if last is not None:
            frames = deque(frames, maxlen=last)
        converted, times, previous, scaler = [], [], None, VideoReformatter()
        mirrored = is_mirrored(path)
        for frame in frames:
            # A frame that resampling repeats need not be converted again.
            if frame is previous:
                converted.append(converted[-1])
            else:
                converted.append(to_rgb(frame, size, scaler=scaler, mirrored=mirrored))
            times.append(frame.time)
            previous = frame
        source_rate = 1.0 if still else _source_rate(stream, times)
        rate = float(fps or source_rate)
    found = len(converted)
    if num_frames is not None and found < num_frames:
        raise MediaError(f"{path}: {num_frames} frames from {start} asked for, {found} are there")
    if not converted:
        raise MediaError(f"{path}: has no frame {start}")
    if len({frame.shape for frame in converted}) > 1:
        raise MediaError(f"{path}: the picture size changes within the video, give a size")
    return np.stack(converted), rate


def fit_frames(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Frames uint8 `[T,H,W,3]` RGB scaled and cropped to `size`, as `read_video` does it."""
    pictures = (av.VideoFrame.from_ndarray(pixels, format="rgb24") for pixels in frames)
    scaler = VideoReformatter()
    return np.stack([to_rgb(picture, size, scaler=scaler) for picture in pictures])


def _check_arguments(size, num_frames, fps, start, last) -> None:
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"size: (height, width) of at least 1 is needed, got {size!r}")
    if num_frames is not None and num_frames < 1:
        raise ValueError(f"num_frames: at least 1 is needed, got {num_frames!r}")
    if fps is not None and not (math.isfinite(fps) and fps >= 0.001):
        raise ValueError(f"fps: at least 0.001 is needed, got {fps!r}")
    if start < 0:
        raise ValueError(f"start: must not be negative, got {start!r}")
    if last is not None and (last < 1 or num_frames is not None):
        raise ValueError(f"last: at least 1 is needed, and no num_frames, got {last!r}")


@contextmanager
def open_media(path: Path) -> Iterator[tuple]:
    """The container and its first video stream; FFmpeg's and the system's errors as MediaError."""
    if not path.exists():
        raise MediaError(f"{path}: does not exist")
    if not path.is_file():
        raise MediaError(f"{path}: is not a file")
    if path.stat().st_size == 0:
        raise MediaError(f"{path}: is empty")
    try:
        # Given a name, FFmpeg would guess by suffix (a .txt becomes terminal art) and expand
        # patterns in it; given a protocol, a playlist posing as video could open other files.
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
            av.open(content, options={"protocol_whitelist": "none"}) as container,
        ):
            stream = _video_stream(path, container)
            if container.format.name == "gif":
                _check_gif_end(path, content)
            yield container, stream
    except (av.error.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"{path}: not a readable video or picture ({reason})") from error


def is_still(container) -> bool:
    """Whether an opened file is a picture."""
    return container.format.name == "image2" or container.format.name.endswith("_pipe")


def _video_stream(path: Path, container):
    for stream in container.streams.video:
        # The cover picture of a song is a video stream to FFmpeg.
        if not stream.disposition & Disposition.attached_pic:
            return stream
    kinds = " and ".join(sorted({stream.type for stream in container.streams})) or "nothing"
    raise MediaError(f"{path}: has no video stream, {kinds} alone")


def _check_gif_end(path: Path, content: mmap.mmap) -> None:
    # FFmpeg counts the frames of a GIF by scanning it, so a cut file looks merely shorter.
    tail = content[-64:].rstrip(b"\0")
    if not tail.endswith(b";"):
        raise MediaError(f"{path}: cut off, the end mark of the GIF is missing")


def _decoded(path: Path, container, stream, still: bool) -> Iterator[av.VideoFrame]:
    """All frames in showing order, with a time each; MediaError at the first sign of damage."""
    count, last = 0, None
    if still:
        # A cut-off JPEG decodes to a grey remainder unless errors count.
        stream.codec_context.options = {"err_detect": "explode"}
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise MediaError(f"{path}: cut off or damaged, {_progress(count, stream)}")
            for frame in packet.decode():
                if frame.is_corrupt:
                    raise MediaError(f"{path}: damaged, {_progress(count, stream)}")
                if frame.pts is None:
                    frame.time_base = 1 / (stream.average_rate or Fraction(25))
                    frame.pts = count
                count, last = count + 1, frame
                yield frame
    except av.error.FFmpegError as error:
        text = f"{path}: damaged ({error.strerror}), {_progress(count, stream)}"
        raise MediaError(text) from error
    if not count:
        raise MediaError(f"{path}: not one frame could be read")
    if not still and _is_short(container, stream, count, last):
        raise MediaError(f"{path}: cut off, {_progress(count, stream)}")


def _progress(count: int, stream) -> str:
    end, rate = _declared_end(stream), stream.average_rate
    declared = stream.frames or (round(end * rate) if end and rate else 0)
    return f"{count} of {declared} frames could be read" if declared else f"after {count} frames"


def _is_short(container, stream, count: int, last: av.VideoFrame) -> bool:
    """Whether fewer frames came out than the container declares.

    MP4 lists may declare frames that an edit list then hides, and Matroska declares only a
    duration, so there the time that the last frame reaches decides.
    """
    if stream.frames and (count >= stream.frames or "mov" not in container.format.name):
        return count < stream.frames
    end, rate = _declared_end(stream), stream.average_rate
    if end is None or not rate:
        return False
    reached = frame_time(last) + ((last.duration or 0) * last.time_base or 1 / rate)
    return reached < end - 1 / (2 * rate)


def _declared_end(stream) -> Fraction | None:
    """When the stream ends, in seconds, as its container says."""
    if stream.duration:
        return (stream.duration + (stream.start_time or 0)) * stream.time_base
    try:
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return Fraction(hours) * 3600 + Fraction(minutes) * 60 + Fraction(seconds)
    except (KeyError, ValueError):
        return None


def frame_time(frame: av.VideoFrame) -> Fraction:
    """When a frame is shown, in seconds."""
    return frame.pts * frame.time_base


def resampled(
    frames: Iterator[av.VideoFrame],
    fps: Fraction,
    *,
    start: int = 0,
    first: Fraction | None = None,
) -> Iterator[av.VideoFrame]:
    """For each tick of `fps` the frame nearest in time, as many ticks as the clip lasts.

    Args:
        start: first tick to give. `frames` may begin late, with any frame shown before it.
        first: time of the clip's first frame in seconds. Default: that of `frames`.
    """
    count, previous = start, None
    for frame in frames:
        if previous is None:
            first = frame_time(frame) if first is None else first
        else:
            middle = (frame_time(previous) + frame_time(frame)) / 2 - first
            while count / fps <= middle:
                yield previous
                count += 1
        previous = frame
    duration = frame_time(previous) - first + (previous.duration or 0) * previous.time_base
    while count < max(1, math.floor(duration * fps + Fraction(1, 2))):
        yield previous
        count += 1


def _source_rate(stream, times: list[float]) -> float:
    # A GIF stores delays only, and FFmpeg's average is thrown off by rounding.
    if stream.codec_context.name == "gif":
        if stream.frames == 1:  # a picture
            return 1.0
        if times[-1] > times[0]:
            return round((len(times) - 1) / (times[-1] - times[0]), 3)
    return stream.average_rate or stream.guessed_rate or 1.0


def to_rgb(
    frame: av.VideoFrame,
    size: tuple[int, int] | None,
    crop: tuple[float, float] | None = None,
    scaler: VideoReformatter | None = None,
    mirrored: bool = False,
) -> np.ndarray:
    """One upright frame, uint8 `[H,W,3]`, scaled to cover `size` and cropped to it.

    Args:
        crop: where along the stored height and width, each in [0,1). Default: the centre.
        scaler: kept from frame to frame, as preparing one takes longer than its work.
        mirrored: what `is_mirrored` says of the file.
    """
    turns = round(frame.rotation / 90) % 4
    scale = (scaler or VideoReformatter()).reformat
    if size is None:
        kind = Interpolation.BICUBIC.value | _ACCURATE
        rgb = scale(frame, format="rgb24", interpolation=kind)
        return _upright(rgb.to_ndarray(), turns, mirrored)
    target_height, target_width = size if turns % 2 == 0 else size[::-1]
    factor = max(target_height / frame.height, target_width / frame.width)
    height = max(target_height, round(frame.height * factor))
    width = max(target_width, round(frame.width * factor))
    kind = Interpolation.AREA if factor < 1 else Interpolation.BICUBIC
    kind = kind.value | _ACCURATE
    rgb = scale(frame, width, height, "rgb24", interpolation=kind).to_ndarray()
    rooms = (height - target_height, width - target_width)
    places = [room // 2 for room in rooms]
    if crop is not None:
        places = [int((room + 1) * share) for room, share in zip(rooms, crop, strict=True)]
    top, left = places
    rgb = rgb[top : top + target_height, left : left + target_width]
    return _upright(rgb, turns, mirrored)


def _upright(pixels: np.ndarray, turns: int, mirrored: bool) -> np.ndarray:
    return np.ascontiguousarray(np.rot90(pixels[::-1] if mirrored else pixels, turns))
