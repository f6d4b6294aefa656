"""Writing clips and pictures: MP4 (H.264), GIF and PNG, whole or not at all, byte for byte
the same in every process."""

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from videoar.runtime.aside import written_aside
from videoar.runtime.errors import MediaError
from videoar.runtime.media_sheet import contact_sheet, enlarge, to_frames

_BT709 = 1
_CRF = 14
_GIF_TICKS = 100
# Browsers show frames that are shorter than this many hundredths of a second much slower.
_GIF_MIN_TICKS = 2
# libswscale's bicubic, full chroma, accurate rounding, bitexact; older PyAV names only the first.
_CONVERT = 1 << 2 | 1 << 13 | 1 << 18 | 1 << 19


def write_video(path: str | os.PathLike, frames: Any, fps: float = 8, *, scale: int = 1) -> Path:
    """Writes one clip in the format that the suffix names.

    `.mp4` is H.264 (yuv420p, BT.709, constant rate factor 14). Its sides must be even, so an odd
    side gets its last row or column once more. `.gif` has one palette for the clip and loops
    for ever. `.png` is the picture itself for one frame and a near-square contact sheet for more.
    Missing parent folders are made. The file appears under its name only when it is complete.

    Args:
        path: `.mp4`, `.gif` or `.png`.
        frames: uint8 `[T,H,W,3]` RGB, an array or a torch tensor.
        fps: frames a second (of no effect for `.png`).
        scale: every pixel becomes `scale x scale` pixels.

    Returns:
        The path.

    Raises:
        ValueError: unknown suffix, wrong frames, `fps` or `scale`.
        MediaError: the file could not be written.
    """
    path = Path(path)
    writer = _writer(path)
    clip = enlarge(to_frames(frames), scale)
    rate = _rate(fps, path)
    with _replacing(path) as unfinished:
        writer(unfinished, clip, rate)
    return path


def write_png(path: str | os.PathLike, image: Any) -> Path:
    """Writes one picture, uint8 `[H,W,3]` RGB, as PNG; errors as in `write_video`."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: the suffix of a picture must be .png")
    clip = to_frames(image[None])
    with _replacing(path) as unfinished:
        _write_png(unfinished, clip, Fraction(1))
    return path


def check_writable(path: str | os.PathLike, fps: float | None = None) -> None:
    """Finds out, before any work is done for it, whether `write_video` can write to `path`.

    Args:
        fps: frames a second, once they are known.

    Raises:
        ValueError: unknown suffix, or a rate that the format does not have.
        MediaError: `path` is a folder, or its folder cannot be made or written to.
    """
    path = Path(path)
    _writer(path)
    if fps is not None:
        _rate(fps, path)
    if path.is_dir():
        raise MediaError(f"{path}: is a folder, not a file")
    parent = path.absolute().parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir():
        raise MediaError(f"{path}: cannot be written, {parent} is not a folder")
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise MediaError(f"{path}: cannot be written, {parent}: {error.strerror}") from error


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """`written_aside` with MediaErrors; makes the folder."""
    try:
        if path.is_dir():
            raise MediaError(f"{path}: is a folder, not a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        # Absolute, because FFmpeg takes what stands before a colon for a protocol.
        with written_aside(path.absolute()) as unfinished:
            yield unfinished
    except (av.error.FFmpegError, OSError) as error:
        raise MediaError(f"{path}: could not be written ({error})") from error


def _writer(path: Path):
    try:
        return _WRITERS[path.suffix.lower()]
    except KeyError:
        valid = ", ".join(_WRITERS)
        raise ValueError(f"{path}: unknown suffix {path.suffix!r}, valid are {valid}") from None


def _rate(fps: float, path: Path) -> Fraction:
    if not math.isfinite(fps) or fps <= 0:
        raise ValueError(f"fps: a positive number is needed, got {fps!r}")
    rate = Fraction(fps).limit_denominator(1001)
    suffix = path.suffix.lower()
    if suffix == ".png":  # has none
        return rate
    highest = _GIF_TICKS // _GIF_MIN_TICKS if suffix == ".gif" else 1000
    if not Fraction(1, 1000) <= rate <= highest:
        raise ValueError(f"fps: 0.001 to {highest} can be written to {path.name}, got {fps!r}")
    return rate


def _write_mp4(path: Path, clip: np.ndarray, rate: Fraction) -> None:
    _, height, width, _ = clip.shape
    clip = np.pad(clip, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    # bitexact keeps library versions out of the file. x264 repeats itself only with one thread,
    # without macroblock-tree rate control (it reads memory that nobody wrote, on small pictures)
    # and without the shortcuts that depend on the processor.
    x264 = "threads=1:mbtree=0:cpu-independent=1"
    container_options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(str(path), "w", format="mp4", container_options=container_options) as container:
        options = {"crf": str(_CRF), "preset": "medium", "x264-params": x264}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = clip.shape[1], clip.shape[2], "yuv420p"
        codec = stream.codec_context
        codec.thread_count = 1
        codec.flags |= av.codec.context.Flags.bitexact
        codec.color_primaries = codec.color_trc = codec.colorspace = _BT709
        codec.color_range = ColorRange.MPEG.value
        for index, pixels in enumerate(clip):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=_CONVERT,
            )
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _write_gif(path: Path, clip: np.ndarray, rate: Fraction) -> None:
    _, height, width, _ = clip.shape
    # A GIF counts in hundredths of a second: rounding every start keeps the average rate exact.
    ticks = [
        math.floor(index * _GIF_TICKS / rate + Fraction(1, 2)) for index in range(len(clip) + 1)
    ]
    graph = _palette_graph(height, width)
    for pixels, start in zip(clip, ticks[:-1], strict=True):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = start, Fraction(1, _GIF_TICKS)
        graph.push(frame)
    graph.push(None)
    container_options = {"loop": "0", "fflags": "+bitexact"}
    with av.open(str(path), "w", format="gif", container_options=container_options) as container:
        stream = container.add_stream("gif", rate=_GIF_TICKS)
        stream.height, stream.width, stream.pix_fmt = height, width, "pal8"
        packets = [p for _ in clip for p in stream.encode(graph.pull())] + stream.encode()
        for packet, start, stop in zip(packets, ticks[:-1], ticks[1:], strict=True):
            packet.duration = stop - start
            container.mux(packet)


def _palette_graph(height: int, width: int) -> av.filter.Graph:
    """RGB frames in, frames in the best 256 colours of the whole clip out."""
    graph = av.filter.Graph()
    graph.threads = 1
    source = graph.add_buffer(
        width=width,
        height=height,
        format=av.VideoFormat("rgb24"),
        time_base=Fraction(1, _GIF_TICKS),
    )
    split, palette = graph.add("split"), graph.add("palettegen", "stats_mode=full")
    apply, sink = graph.add("paletteuse", "dither=sierra3"), graph.add("buffersink")
    source.link_to(split)
    split.link_to(apply, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(apply, 0, 1)
    apply.link_to(sink)
    graph.configure()
    return graph


def _write_png(path: Path, clip: np.ndarray, _rate: Fraction) -> None:
    columns = math.ceil(math.sqrt(len(clip)))
    image = clip[0] if len(clip) == 1 else contact_sheet([clip], columns)
    codec = av.CodecContext.create("png", "w")
    codec.height, codec.width, codec.pix_fmt = image.shape[0], image.shape[1], "rgb24"
    codec.time_base = Fraction(1)
    codec.thread_count = 1
    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
    packets = codec.encode(frame) + codec.encode(None)
    path.write_bytes(b"".join(bytes(packet) for packet in packets))


_WRITERS = {".mp4": _write_mp4, ".gif": _write_gif, ".png": _write_png}
