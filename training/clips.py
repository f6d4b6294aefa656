"""Single files as training data: what a file holds, and one clip out of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from math import floor
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from videoar.runtime.errors import MediaError
from videoar.runtime.media_orientation import is_mirrored
from videoar.runtime.media_read import frame_time, is_still, open_media, resampled, to_rgb


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaInfo:
    """What a file holds.

    Attributes:
        height, width: pixels of an upright frame.
        frames: of the whole file.
        fps: frames a second on average; 0 for a picture.
        duration: seconds from the first frame to the end of the last; 0 for a picture.
    """

    height: int
    width: int
    frames: int
    fps: float
    duration: float

    def ticks(self, fps: float | None) -> int:
        """Frames that the file gives at least at a rate (None: its own); a picture gives one."""
        if not self.duration or fps is None:
            return self.frames
        # Rounding of the product must not promise a frame that is not there.
        return max(1, floor(self.duration * fps + 0.5 - 1e-6))


def probe(path: Path) -> MediaInfo:
    """Look through a file once: its first frame is decoded, the others are only counted.

    Raises:
        MediaError: no readable video or picture, or cut off.
    """
    with open_media(path) as (container, stream):
        if is_still(container):
            stream.codec_context.options = {"err_detect": "explode"}
        first, spans = None, []
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise MediaError(f"{path}: cut off or damaged after {len(spans)} frames")
            if packet.size and not packet.is_discard:
                spans.append((packet.pts, packet.duration or 0))
            if first is None:
                first = next(iter(packet.decode()), None)
        if first is None:
            raise MediaError(f"{path}: not one frame could be read")
        turned = round(first.rotation / 90) % 2
        height, width = (first.width, first.height) if turned else (first.height, first.width)
        if is_still(container):
            return MediaInfo(height=height, width=width, frames=1, fps=0.0, duration=0.0)
        seconds = _duration(spans, stream)
    return MediaInfo(
        height=height,
        width=width,
        frames=len(spans),
        fps=float(len(spans) / seconds),
        duration=float(seconds),
    )


def _duration(spans: list[tuple[int | None, int]], stream) -> Fraction:
    """Seconds that packets of `(pts, duration)` last; by their number where they have no times."""
    times = [(pts, length) for pts, length in spans if pts is not None]
    if len(times) == len(spans):
        last, length = max(times)
        seconds = (last + length - min(times)[0]) * stream.time_base
        if seconds > 0:
            return seconds
    return len(spans) / (stream.average_rate or stream.guessed_rate or Fraction(25))


def read_clip(
    path: Path,
    *,
    num_frames: int,
    size: tuple[int, int],
    fps: float | None = None,
    start: int = 0,
    crop: tuple[float, float] | None = None,
    mirror: bool = False,
) -> np.ndarray:
    """Decode a clip from within a file: only from the key frame in front of it on.

    The same frames as `read_video` with these arguments gives, for files whose key frames
    can be found.

    Args:
        size: `(height, width)`; resized to cover it, then cropped.
        fps: rate to resample to (nearest frame). Default: the file's own.
        start: first frame, counted after resampling.
        crop: where to crop, see `to_rgb`. Default: the centre.
        mirror: swap left and right.

    Returns:
        uint8 `[T,H,W,3]`.

    Raises:
        MediaError: not readable, damaged inside the clip, or too few frames.
    """
    frames = _clip_frames(path, start, num_frames, fps, seek=start > 0)
    if frames is None:
        frames = _clip_frames(path, start, num_frames, fps, seek=False)
    if len(frames) < num_frames:
        found = start + len(frames) if frames else f"at most {start}"
        raise MediaError(f"{path}: {num_frames} frames from {start} asked for, {found} are there")
    converted: list[np.ndarray] = []
    previous, scaler = None, VideoReformatter()
    mirrored = is_mirrored(path)
    for frame in frames:
        # A frame that resampling repeats need not be converted again.
        same = frame is previous
        converted.append(converted[-1] if same else to_rgb(frame, size, crop, scaler, mirrored))
        previous = frame
    clip = np.stack(converted)
    return np.ascontiguousarray(clip[:, :, ::-1]) if mirror else clip


def _clip_frames(
    path: Path, start: int, num_frames: int, fps: float | None, seek: bool
) -> list[av.VideoFrame] | None:
    """The frames of a clip; None where `seek` did not lead in front of it."""
    with open_media(path) as (container, stream):
        if is_still(container):
            stream.codec_context.options = {"err_detect": "explode"}
            return list(islice(_decoded(path, container, stream), start, start + num_frames))
        rate = Fraction(fps).limit_denominator(1001) if fps else stream.average_rate
        if not rate:
            raise MediaError(f"{path}: has no frame rate, give one")
        if not seek:
            frames = resampled(_decoded(path, container, stream), rate)
            return list(islice(frames, start, start + num_frames))
        if not _has_key_frame_times(container, stream):
            return None
        first = stream.start_time * stream.time_base
        target = first + start / rate
        container.seek(floor(target / stream.time_base), stream=stream)
        frames = _decoded(path, container, stream)
        earliest = next(frames)
        if frame_time(earliest) > target:
            return None
        frames = resampled(chain([earliest], frames), rate, start=start, first=first)
        return list(islice(frames, num_frames))


def _has_key_frame_times(container, stream) -> bool:
    """Whether a seek ends at a key frame, and frames behind it keep their times."""
    names = container.format.name.split(",")
    # AVI stores the order of decoding alone; MPEG streams have no index.
    indexed = {"mov", "matroska"} & set(names)
    plain_avi = "avi" in names and not stream.codec_context.has_b_frames
    return stream.start_time is not None and bool(indexed or plain_avi)


def _decoded(path: Path, container, stream) -> Iterator[av.VideoFrame]:
    """Frames from where the container stands, with a time each; MediaError for damage."""
    count = 0
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise MediaError(f"{path}: cut off or damaged")
            for frame in packet.decode():
                if frame.is_corrupt:
                    raise MediaError(f"{path}: damaged")
                if frame.pts is None:
                    frame.time_base = 1 / (stream.average_rate or Fraction(25))
                    frame.pts = count
                count += 1
                yield frame
    except av.error.FFmpegError as error:
        raise MediaError(f"{path}: damaged ({error.strerror})") from error
    if not count:
        raise MediaError(f"{path}: not one frame could be read")
