"""Media files: what is written can be seen again, and what is broken is refused by name."""

import os
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from videoar.runtime import media_write
from videoar.runtime.errors import MediaError
from videoar.runtime.media import (
    check_writable,
    contact_sheet,
    list_media,
    read_video,
    to_float,
    to_uint8,
    write_png,
    write_video,
)
from videoar.runtime.media_orientation import exif_orientation
from videoar.training.clips import read_clip


def smooth_clip(num_frames: int = 9, height: int = 48, width: int = 64) -> np.ndarray:
    t, y, x = np.mgrid[:num_frames, :height, :width].astype(np.float64)
    red = 127 + 100 * np.sin(x / width * 4 + t / 3)
    green = 127 + 100 * np.cos(y / height * 3 + t / 4)
    blue = 127 + 80 * np.sin((x + y) / width * 3 - t / 5)
    return np.stack([red, green, blue], -1).round().astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.square(a.astype(np.float64) - b).mean()
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


def encode(path: Path, codec: str, clip: np.ndarray, rate: int = 8, pix_fmt: str = "yuv420p"):
    """Another program's file: no care for cuts, a plain container."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *clip.shape[1:3], pix_fmt
        for index, pixels in enumerate(clip):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = index, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def jpeg(pixels: np.ndarray, orientation: int, order: str) -> bytes:
    """A photograph as cameras write it, its orientation in EXIF of the given byte order."""
    codec = av.CodecContext.create("mjpeg", "w")
    codec.height, codec.width, codec.pix_fmt = *pixels.shape[:2], "yuvj444p"
    codec.time_base, codec.qmin, codec.qmax = Fraction(1), 1, 1
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuvj444p")
    picture = b"".join(bytes(packet) for packet in codec.encode(frame) + codec.encode(None))
    tiff = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, 1)
    tiff += struct.pack(f"{order}HHIHHI", 0x0112, 3, 1, orientation, 0, 0)
    exif = b"Exif\0\0" + tiff
    return picture[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif + picture[2:]


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


class TestWriting:
    def test_two_processes_write_the_same_bytes(self, tmp_path):
        code = (
            "import sys, numpy as np; from videoar.runtime.media_write import write_video;"
            "y = np.arange(7 * 40 * 56 * 3).reshape(7, 40, 56, 3) // 97 % 256;"
            "[write_video(f'{sys.argv[1]}/a.{s}', y.astype('u1'), 12) for s in sys.argv[2:]]"
        )
        suffixes = ["mp4", "gif", "png"]
        for folder, threads in (("a", "1"), ("b", "2")):
            environment = os.environ | {"OMP_NUM_THREADS": threads}
            command = [sys.executable, "-c", code, tmp_path / folder, *suffixes]
            subprocess.run(command, check=True, env=environment)
        for suffix in suffixes:
            first, second = (tmp_path / folder / f"a.{suffix}" for folder in "ab")
            assert first.read_bytes() == second.read_bytes(), suffix

    def test_mp4_does_not_depend_on_what_is_in_memory(self, tmp_path):
        """x264's macroblock tree made one small clip in three differ before it was turned off."""
        generator, contents = np.random.default_rng(0), set()
        for _ in range(15):
            dirt = [generator.bytes(generator.integers(1, 200_000)) for _ in range(5)]
            contents.add(write_video(tmp_path / "a.mp4", smooth_clip(9, 50, 70)).read_bytes())
            del dirt
        assert len(contents) == 1

    def test_mp4_looks_the_same(self, tmp_path):
        clip = smooth_clip()
        frames, fps = read_video(write_video(tmp_path / "a.mp4", clip, fps=12))
        assert frames.shape == clip.shape
        assert fps == 12
        assert min(psnr(a, b) for a, b in zip(frames, clip, strict=True)) > 34

    @pytest.mark.parametrize("color", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 64, 200)])
    def test_mp4_keeps_colors(self, tmp_path, color):
        """A wrong matrix or range shifts saturated colors by far more than this."""
        clip = np.broadcast_to(np.uint8(color), (3, 32, 32, 3))
        frames, _ = read_video(write_video(tmp_path / "a.mp4", clip))
        assert np.abs(frames.astype(int) - clip).max() <= 4

    def test_mp4_of_odd_size_repeats_the_edge(self, tmp_path):
        clip = smooth_clip(3, 33, 47)
        frames, _ = read_video(write_video(tmp_path / "a.mp4", clip))
        assert frames.shape == (3, 34, 48, 3)
        assert psnr(frames[:, :33, :47], clip) > 34
        assert psnr(frames[:, 33:, :47], clip[:, -1:]) > 30

    @pytest.mark.parametrize("size", [(33, 47), (1, 1), (2, 3)])
    @pytest.mark.parametrize("suffix", [".gif", ".png"])
    def test_odd_sizes(self, tmp_path, suffix, size):
        clip = smooth_clip(1, *size)
        frames, _ = read_video(write_video(tmp_path / f"a{suffix}", clip))
        assert frames.shape == clip.shape
        assert psnr(frames, clip) > (30 if suffix == ".gif" else 1000)

    @pytest.mark.parametrize("fps", [1, 8, 12, 23.976, 30, 50])
    def test_gif_loops_with_all_frames_at_the_right_rate(self, tmp_path, fps):
        path = write_video(tmp_path / "a.gif", smooth_clip(17), fps=fps)
        assert b"NETSCAPE2.0\x03\x01\x00\x00\x00" in path.read_bytes()
        frames, read_fps = read_video(path)
        assert len(frames) == 17
        assert psnr(frames, smooth_clip(17)) > 24
        assert read_fps == pytest.approx(fps, rel=0.02)

    @pytest.mark.parametrize("suffix", [".mp4", ".gif"])
    def test_frames_that_do_not_change_are_kept(self, tmp_path, suffix):
        clip = np.repeat(smooth_clip(1), 6, axis=0)
        frames, _ = read_video(write_video(tmp_path / f"a{suffix}", clip))
        assert len(frames) == 6
        assert psnr(frames, clip) > 25

    def test_png_of_a_clip_is_a_sheet(self, tmp_path):
        clip = smooth_clip(5, 8, 10)
        frames, _ = read_video(write_video(tmp_path / "a.png", clip))
        assert np.array_equal(frames[0], contact_sheet([clip], columns=3))

    def test_scale_repeats_pixels(self, tmp_path):
        clip = smooth_clip(1, 8, 10)
        frames, _ = read_video(write_video(tmp_path / "a.png", clip, scale=3))
        assert np.array_equal(frames, clip.repeat(3, 1).repeat(3, 2))

    def test_accepts_tensors_and_strided_arrays(self, tmp_path):
        clip = smooth_clip(3)
        first = write_video(tmp_path / "a.mp4", clip).read_bytes()
        tensor = torch.from_numpy(clip).permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
        assert write_video(tmp_path / "b.mp4", tensor).read_bytes() == first
        assert write_video(tmp_path / "c.mp4", clip.repeat(2, 0)[::2]).read_bytes() == first

    def test_makes_parent_folders_and_takes_any_name(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        path = write_video(Path("new/folder/http:%d é.MP4"), smooth_clip(2))
        assert len(read_video(path)[0]) == 2
        assert [p.name for p in path.parent.iterdir()] == [path.name]

    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("bug"), OSError("full")])
    @pytest.mark.parametrize("old", [None, b"old"])
    def test_an_interrupted_write_leaves_nothing(self, tmp_path, monkeypatch, error, old):
        path = tmp_path / "a.mp4"
        if old:
            path.write_bytes(old)

        def half_written(unfinished, *_):
            assert unfinished.parent == tmp_path
            unfinished.write_bytes(b"half")
            raise error

        monkeypatch.setitem(media_write._WRITERS, ".mp4", half_written)
        with pytest.raises((KeyboardInterrupt, RuntimeError)) as caught:
            write_video(path, smooth_clip(2))
        if isinstance(error, OSError):
            assert "a.mp4: could not be written" in str(caught.value)
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == (
            {"a.mp4": old} if old else {}
        )

    def test_an_error_within_the_encoder_leaves_nothing(self, tmp_path, monkeypatch):
        real, calls = av.VideoFrame.from_ndarray, []

        class Interrupted:
            @staticmethod
            def from_ndarray(*args, **kwargs):
                calls.append(1)
                if len(calls) == 5:
                    raise KeyboardInterrupt
                return real(*args, **kwargs)

        monkeypatch.setattr(media_write.av, "VideoFrame", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_video(tmp_path / "a.mp4", smooth_clip())
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("frames", "words"),
        [
            (np.zeros((2, 4, 4, 3), np.float32), "uint8 is needed, got float32"),
            (np.zeros((4, 4, 3), np.uint8), r"got \[4, 4, 3\]"),
            (np.zeros((2, 4, 4, 4), np.uint8), r"got \[2, 4, 4, 4\]"),
            (np.zeros((0, 4, 4, 3), np.uint8), r"got \[0, 4, 4, 3\]"),
        ],
    )
    def test_refuses_other_frames(self, tmp_path, frames, words):
        with pytest.raises(ValueError, match="frames: .*" + words):
            write_video(tmp_path / "a.mp4", frames)

    @pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 1e-9, 1e9])
    @pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
    def test_refuses_rates(self, tmp_path, fps, name):
        with pytest.raises(ValueError, match="fps: "):
            write_video(tmp_path / name, smooth_clip(2), fps=fps)

    def test_refuses_a_gif_that_browsers_would_slow_down(self, tmp_path):
        with pytest.raises(ValueError, match=r"fps: 0\.001 to 50 can be written to a\.gif"):
            write_video(tmp_path / "a.gif", smooth_clip(2), fps=60)

    def test_a_picture_has_no_rate(self, tmp_path):
        path = write_video(tmp_path / "a.png", smooth_clip(1), fps=1e6)
        assert read_video(path)[1] == 1.0
        path = write_video(tmp_path / "a.gif", smooth_clip(1), fps=50)
        assert read_video(path)[1] == 1.0


class TestCheckWritable:
    def test_refuses_rates(self, tmp_path):
        check_writable(tmp_path / "a.gif", 50)
        with pytest.raises(ValueError, match=r"fps: 0\.001 to 50 can be written to a\.gif, got 51"):
            check_writable(tmp_path / "a.gif", 51)

    @pytest.mark.parametrize("name", ["a.mp4", "a.GIF", "new/folder/a.png"])
    def test_accepts_and_changes_nothing(self, tmp_path, name):
        check_writable(tmp_path / name)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("name", ["a.avi", "a", "a.mp4.tmp"])
    @pytest.mark.parametrize("check", [check_writable, lambda p: write_video(p, smooth_clip(1))])
    def test_unknown_suffix(self, tmp_path, name, check):
        with pytest.raises(ValueError, match=r"a.*: unknown suffix .*\.mp4, \.gif, \.png"):
            check(tmp_path / name)

    @pytest.mark.parametrize("check", [check_writable, lambda p: write_video(p, smooth_clip(1))])
    def test_folder_and_file_in_the_way(self, tmp_path, check):
        (tmp_path / "a.mp4").mkdir()
        with pytest.raises(MediaError, match=r"a\.mp4: is a folder"):
            check(tmp_path / "a.mp4")
        (tmp_path / "file").write_text("")
        with pytest.raises(MediaError, match=r"file.a\.mp4: c"):
            check(tmp_path / "file" / "a.mp4")

    def test_folder_without_permission(self, tmp_path, monkeypatch):
        def refuse(**_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(media_write.tempfile, "TemporaryFile", refuse)
        with pytest.raises(MediaError, match=r"a\.mp4: cannot be written, .*Permission denied"):
            check_writable(tmp_path / "a.mp4")


class TestReading:
    @pytest.mark.parametrize(
        ("name", "codec", "pix_fmt"),
        [
            ("a.webm", "libvpx", "yuv420p"),
            ("a.avi", "mpeg4", "yuv420p"),
            ("a.mkv", "libx264", "yuv420p"),
            ("a.mov", "mjpeg", "yuvj420p"),
            ("a.mp4", "libx264", "yuv444p"),
        ],
    )
    def test_formats(self, tmp_path, name, codec, pix_fmt):
        encode(tmp_path / name, codec, smooth_clip(), rate=10, pix_fmt=pix_fmt)
        frames, fps = read_video(tmp_path / name)
        assert frames.shape == smooth_clip().shape
        assert fps == 10
        assert psnr(frames, smooth_clip()) > 25

    @pytest.mark.parametrize("suffix", [".jpg", ".png"])
    def test_pictures(self, tmp_path, suffix):
        pixels, pix_fmt = (("png", "rgb24"), ("mjpeg", "yuvj444p"))[suffix == ".jpg"]
        codec = av.CodecContext.create(pixels, "w")
        codec.height, codec.width, codec.pix_fmt, codec.time_base = 48, 64, pix_fmt, Fraction(1)
        frame = av.VideoFrame.from_ndarray(smooth_clip(1)[0], format="rgb24")
        packets = codec.encode(frame.reformat(format=pix_fmt)) + codec.encode(None)
        (tmp_path / f"a%d{suffix}").write_bytes(b"".join(bytes(p) for p in packets))
        frames, fps = read_video(tmp_path / f"a%d{suffix}", fps=30, num_frames=1)
        assert frames.shape == (1, 48, 64, 3)
        assert fps == 30
        assert psnr(frames, smooth_clip(1)) > 30
        cut(tmp_path / f"a%d{suffix}", 0.7)
        with pytest.raises(MediaError, match=f"a%d{suffix}: "):
            read_video(tmp_path / f"a%d{suffix}")

    def test_part_of_a_video(self, tmp_path):
        write_video(tmp_path / "a.mp4", smooth_clip(12))
        everything, _ = read_video(tmp_path / "a.mp4")
        frames, _ = read_video(tmp_path / "a.mp4", start=3, num_frames=4)
        assert np.array_equal(frames, everything[3:7])
        assert np.array_equal(read_video(tmp_path / "a.mp4", start=11)[0], everything[11:])
        for last in (1, 5, 12, 30):
            assert np.array_equal(read_video(tmp_path / "a.mp4", last=last)[0], everything[-last:])
        for bad in ({"last": 0}, {"last": 3, "num_frames": 5}):
            with pytest.raises(ValueError, match="last: at least 1 is needed, and no num_frames"):
                read_video(tmp_path / "a.mp4", **bad)

    @pytest.mark.parametrize(
        ("fps", "expected"),
        [
            (8, range(12)),
            (4, range(0, 12, 2)),
            (16, [n // 2 for n in range(24)]),
            (3, [0, 3, 5, 8, 11]),
            (0.5, [0]),
        ],
    )
    def test_resampling_takes_the_nearest_frame(self, tmp_path, fps, expected):
        """Frames at 8 a second carry their number as brightness."""
        levels = np.arange(0, 240, 20, dtype=np.uint8)[:, None, None, None]
        clip = np.broadcast_to(levels, (12, 16, 16, 3))
        write_video(tmp_path / "a.mp4", clip, fps=8)
        frames, rate = read_video(tmp_path / "a.mp4", fps=fps)
        numbers = np.rint(frames.mean((1, 2, 3)) / 20).astype(int).tolist()
        assert numbers == list(expected)
        assert rate == fps

    def test_resampling_a_gif_evens_out_its_jitter(self, tmp_path):
        write_video(tmp_path / "a.gif", smooth_clip(17), fps=8)
        assert np.array_equal(
            read_video(tmp_path / "a.gif", fps=8)[0], read_video(tmp_path / "a.gif")[0]
        )

    @pytest.mark.parametrize(
        ("source", "size"),
        [((64, 128), (32, 32)), ((128, 64), (32, 32)), ((64, 96), (32, 24)), ((16, 24), (32, 32))],
    )
    def test_resize_covers_then_crops_the_center(self, tmp_path, source, size):
        height, width = source
        y, x = np.mgrid[:height, :width] + 0.5
        image = np.stack([y / height * 255, x / width * 255, 0 * x + 90], -1).round()
        path = write_png(tmp_path / "a.png", image.astype(np.uint8))
        frames, _ = read_video(path, size=size)
        assert frames.shape == (1, *size, 3)
        factor = max(size[0] / height, size[1] / width)
        rows = (np.arange(size[0]) + 0.5 - size[0] / 2) / factor + height / 2
        columns = (np.arange(size[1]) + 0.5 - size[1] / 2) / factor + width / 2
        # Upscaling has nothing beyond the edge to interpolate with.
        inner = slice(None) if factor < 1 else slice(3, -3)
        error = frames[0, ..., 0].mean(1) - rows / height * 255
        assert np.abs(error[inner]).max() < 2
        error = frames[0, ..., 1].mean(0) - columns / width * 255
        assert np.abs(error[inner]).max() < 2
        assert np.ptp(frames[..., 2].astype(int)) <= 2

    @pytest.mark.parametrize("size", [None, (64, 48), (32, 40)])
    def test_rotation_mark_is_obeyed(self, tmp_path, size):
        """The matrix that telephones write: show it turned a quarter clockwise."""
        path = write_video(tmp_path / "a.mp4", smooth_clip(3))
        upright, _ = read_video(path)
        content = bytearray(path.read_bytes())
        matrix = content.index(b"tkhd") + 44
        assert struct.unpack_from(">9i", content, matrix)[::4] == (1 << 16, 1 << 16, 1 << 30)
        struct.pack_into(">9i", content, matrix, 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
        path.write_bytes(content)
        frames, _ = read_video(path, size=size)
        if size == (32, 40):
            assert frames.shape == (3, 32, 40, 3)
        else:
            assert psnr(frames, np.rot90(upright, -1, (1, 2))) > 40

    @pytest.mark.parametrize("order", "<>")
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_orientation_of_photographs(self, tmp_path, orientation, order):
        """As EXIF numbers them: how the stored picture is to be turned."""
        stored = smooth_clip(1)[0]
        upright = {
            1: stored,
            2: stored[:, ::-1],
            3: stored[::-1, ::-1],
            4: stored[::-1],
            5: stored.transpose(1, 0, 2),
            6: np.rot90(stored, -1),
            7: stored[::-1, ::-1].transpose(1, 0, 2),
            8: np.rot90(stored),
        }[orientation]
        path = tmp_path / "a.jpg"
        path.write_bytes(jpeg(stored, orientation, order))
        frames, _ = read_video(path)
        assert frames.shape == (1, *upright.shape)
        assert psnr(frames[0], upright) > 30
        clip = read_clip(path, num_frames=1, size=upright.shape[:2])
        assert np.array_equal(clip, frames)

    def test_orientation_that_is_cut_off(self):
        picture = jpeg(smooth_clip(1)[0], 4, "<")
        needed = picture.index(b"Exif") + 26
        found = [exif_orientation(picture[:length]) for length in range(needed + 9)]
        assert found == [1] * needed + [4] * 9

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"size": (0, 4)}, "size: "),
            ({"size": (4,)}, "size: "),
            ({"num_frames": 0}, "num_frames: "),
            ({"fps": 0}, "fps: "),
            ({"fps": float("nan")}, "fps: "),
            ({"start": -1}, "start: "),
        ],
    )
    def test_bad_arguments(self, tmp_path, options, words):
        with pytest.raises(ValueError, match=words):
            read_video(tmp_path / "a.mp4", **options)


class TestBrokenFiles:
    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("a.mp4", b"", "is empty"),
            ("a.mp4", b"hello world\n" * 50, "not a readable"),
            ("a.txt", b"hello world\n" * 50, "not a readable"),
            ("a.mp4", bytes(range(256)) * 20, "not a readable"),
            (
                "a.mp4",
                b"1\n00:00:01,000 --> 00:00:02,000\nhi\n\n",
                "no video stream, subtitle alone",
            ),
            ("a.mp4", b"ffconcat version 1.0\nfile b.mp4\n", "not a readable"),
            ("a.m3u8", b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nb.mp4\n", "not a readable"),
        ],
    )
    def test_no_video(self, tmp_path, name, content, words):
        write_video(tmp_path / "b.mp4", smooth_clip(2))
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MediaError, match=f"{name}: .*{words}"):
            read_video(tmp_path / name)

    def test_missing_file_and_folder(self, tmp_path):
        with pytest.raises(MediaError, match=r"no\.mp4: does not exist"):
            read_video(tmp_path / "no.mp4")
        with pytest.raises(MediaError, match="is not a file"):
            read_video(tmp_path)

    def test_sound_alone(self, tmp_path):
        with av.open(str(tmp_path / "a.mp4"), "w") as container:
            stream = container.add_stream("aac", rate=44100, layout="mono")
            samples = np.zeros((1, 4096), np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.rate = 44100
            container.mux(stream.encode(frame) + stream.encode(None))
        with pytest.raises(MediaError, match=r"a\.mp4: has no video stream, audio alone"):
            read_video(tmp_path / "a.mp4")

    def test_video_without_a_frame(self, tmp_path):
        encode(tmp_path / "a.webm", "libvpx", smooth_clip())
        content = (tmp_path / "a.webm").read_bytes()
        first_cluster = content.index(b"\x1f\x43\xb6\x75")
        (tmp_path / "a.webm").write_bytes(content[: first_cluster + 4])
        with pytest.raises(MediaError, match=r"a\.webm: not one frame"):
            read_video(tmp_path / "a.webm")

    def test_mp4_without_its_table_of_contents(self, tmp_path):
        encode(tmp_path / "a.mp4", "libx264", smooth_clip())
        cut(tmp_path / "a.mp4", 0.5)
        with pytest.raises(MediaError, match=r"a\.mp4: not a readable"):
            read_video(tmp_path / "a.mp4")

    @pytest.mark.parametrize("share", [0.4, 0.6, 0.8, 0.95, 0.999])
    def test_cut_off_mp4_says_how_many_frames(self, tmp_path, share):
        path = write_video(tmp_path / "a.mp4", smooth_clip(17))
        cut(path, share)
        with pytest.raises(MediaError, match=r"a\.mp4: .*\d+ of 17 frames could be read"):
            read_video(path)

    @pytest.mark.parametrize(("name", "codec"), [("a.webm", "libvpx"), ("a.mkv", "mpeg4")])
    def test_cut_off_matroska(self, tmp_path, name, codec):
        """Here the container declares no count, only how long the stream is."""
        encode(tmp_path / name, codec, smooth_clip(17))
        cut(tmp_path / name, 0.6)
        with pytest.raises(MediaError, match=name + r": cut off, \d+ of 17 frames could be read"):
            read_video(tmp_path / name)

    def test_cut_off_between_two_frames(self, tmp_path):
        """Every byte that is left is sound, only the count tells."""
        encode(tmp_path / "a.avi", "mpeg4", smooth_clip(17))
        content = (tmp_path / "a.avi").read_bytes()
        start = content.index(b"movi")
        for _ in range(13):
            start = content.index(b"00dc", start + 1)
        (tmp_path / "a.avi").write_bytes(content[:start])
        with pytest.raises(MediaError, match=r"a\.avi: cut off, 12 of 17 frames could be read"):
            read_video(tmp_path / "a.avi")

    @pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
    def test_cut_off_gif(self, tmp_path, share):
        path = write_video(tmp_path / "a.gif", smooth_clip())
        cut(path, share)
        with pytest.raises(MediaError, match=r"a\.gif: cut off"):
            read_video(path)

    def test_too_few_frames(self, tmp_path):
        path = write_video(tmp_path / "a.mp4", smooth_clip(9))
        with pytest.raises(MediaError, match=r"a\.mp4: 10 frames from 0 asked for, 9 are there"):
            read_video(path, num_frames=10)
        with pytest.raises(MediaError, match=r"a\.mp4: 4 frames from 7 asked for, 2 are there"):
            read_video(path, num_frames=4, start=7)
        with pytest.raises(MediaError, match=r"a\.mp4: has no frame 9"):
            read_video(path, start=9)


class TestListing:
    def test_sorted_and_recursive(self, tmp_path):
        names = ["b.mp4", "a.PNG", "deep/er/c.gif"]
        for name in [*names, "notes.txt", ".hidden.mp4", ".cache/d.mp4"]:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        (tmp_path / "folder.mp4").mkdir()
        assert list_media(tmp_path) == sorted(tmp_path / name for name in names)

    def test_nothing_there(self, tmp_path):
        with pytest.raises(MediaError, match="holds no video or picture"):
            list_media(tmp_path)
        with pytest.raises(MediaError, match="no: does not exist"):
            list_media(tmp_path / "no")
        (tmp_path / "file").touch()
        with pytest.raises(MediaError, match="file: is not a folder"):
            list_media(tmp_path / "file")


class TestSheet:
    def test_layout(self):
        clips = [smooth_clip(3, 4, 5), smooth_clip(1, 4, 5) // 2]
        sheet = contact_sheet(clips, columns=2)
        assert sheet.shape == (3 * 6 + 2, 2 * 7 + 2, 3)
        assert np.array_equal(sheet[2:6, 2:7], clips[0][0])
        assert np.array_equal(sheet[2:6, 9:14], clips[0][1])
        assert np.array_equal(sheet[8:12, 2:7], clips[0][2])
        assert np.array_equal(sheet[14:18, 2:7], clips[1][0])
        assert (sheet[8:, 9:] == sheet[0, 0]).all()

    def test_scale(self):
        sheet = contact_sheet(np.stack([smooth_clip(2, 4, 5)] * 3), scale=3)
        assert sheet.shape == (3 * 14 + 2, 2 * 17 + 2, 3)
        assert np.array_equal(sheet[2:14:3, 2:17:3], smooth_clip(2, 4, 5)[0])

    def test_labels(self):
        clip = np.zeros((1, 4, 40, 3), np.uint8)
        plain, labelled = contact_sheet([clip]), contact_sheet([clip], labels=["t ß"])
        assert np.array_equal(labelled[14:], plain)
        ink = labelled[2:12:2, 2:24:2, 0] > 100
        letter_t = np.array([[1, 1, 1], [0, 1, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]], bool)
        assert np.array_equal(ink[:, :3], letter_t)
        assert not ink[:, 3:8].any()

    def test_long_label_is_cut(self):
        clip = np.zeros((1, 4, 9, 3), np.uint8)
        assert contact_sheet([clip], labels=["a long label"]).shape == (8 + 14, 13, 3)

    @pytest.mark.parametrize(
        ("clips", "options", "words"),
        [
            ([], {}, "clips: at least one"),
            ([smooth_clip(1, 4, 4), smooth_clip(1, 4, 5)], {}, "clips: all must have one height"),
            ([smooth_clip(1)], {"columns": 0}, "columns: "),
            ([smooth_clip(1)], {"scale": 0}, "scale: "),
            ([smooth_clip(1)], {"labels": ["a", "b"]}, "labels: 1 are needed"),
        ],
    )
    def test_refuses(self, clips, options, words):
        with pytest.raises(ValueError, match=words):
            contact_sheet(clips, **options)


class TestConversion:
    def test_all_values_round_trip(self):
        frames = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
        video = to_float(frames)
        assert video.shape == (3, 1, 16, 16)
        assert video.dtype == torch.float32
        assert (video.min(), video.max()) == (-1, 1)
        assert np.array_equal(to_uint8(video), frames)
        assert np.array_equal(to_uint8(video[None].double())[0], frames)

    def test_axes(self):
        video = torch.zeros(2, 3, 4, 5, 6)
        video[1, 2, 3, 4, 5] = 1
        frames = to_uint8(video)
        assert frames.shape == (2, 4, 5, 6, 3)
        assert frames[1, 3, 4, 5, 2] == 255
        assert (frames == 255).sum() == 1

    def test_clamps_and_rounds(self):
        values = torch.tensor([-9.0, -1, 0.0, 0.004, 1, 9]).expand(3, 1, 1, 6)
        assert to_uint8(values)[0, 0, :, 0].tolist() == [0, 0, 128, 128, 255, 255]
        assert to_uint8(values.bfloat16())[0, 0, :, 0].tolist() == [0, 0, 128, 128, 255, 255]

    def test_refuses(self):
        with pytest.raises(ValueError, match="video: floating"):
            to_uint8(torch.zeros(4, 3, 5, 5))
        with pytest.raises(ValueError, match="video: floating"):
            to_uint8(torch.zeros(3, 4, 5, 5, dtype=torch.uint8))
        with pytest.raises(ValueError, match="video: has NaN"):
            to_uint8(torch.full((3, 1, 2, 2), torch.nan))


def test_the_package_does_not_import_pyav():
    code = "import sys, videoar; assert 'av' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
