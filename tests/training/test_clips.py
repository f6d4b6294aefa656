"""What is said of a file and what is cut out of it agree with reading the whole file."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from videoar.runtime.errors import MediaError
from videoar.runtime.media import read_video, write_png
from videoar.training.clips import MediaInfo, probe, read_clip

FILES = {
    "a.mp4": {"b_frames": 2},
    "b.avi": {"codec": "mpeg4"},
    "c.avi": {"codec": "mpeg4", "b_frames": 2},
    "d.mkv": {"fps": Fraction(30000, 1001)},
    "e.ts": {},
    "f.mpg": {"codec": "mpeg1video", "fps": 25, "b_frames": 2},
    "g.gif": {"codec": "gif", "fps": 10},
    "h.webm": {"codec": "libvpx-vp9"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for name, options in FILES.items():
        make_video(folder / name, **options)
    return folder


@pytest.mark.parametrize("name", FILES)
def test_probe_counts_what_can_be_read(folder: Path, name: str) -> None:
    info = probe(folder / name)
    frames, fps = read_video(folder / name)
    assert (info.frames, info.height, info.width) == frames.shape[:3]
    assert info.fps == pytest.approx(fps, rel=1e-3)  # Matroska stores milliseconds
    assert info.duration == pytest.approx(20 / fps, rel=1e-3)
    for rate in (3, 7.3, 11, 50):
        # Half a tick at the end may be there or not; what is promised must be there.
        assert len(read_video(folder / name, fps=rate)[0]) - info.ticks(rate) in (0, 1)
    assert info.ticks(None) == info.frames


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("fps", [None, 5])
def test_a_clip_is_a_part_of_the_whole(folder: Path, name: str, fps: float | None) -> None:
    whole, _ = read_video(folder / name, fps=fps, size=(24, 24))
    length = 3
    for start in range(len(whole) - length + 1):
        clip = read_clip(folder / name, num_frames=length, size=(24, 24), fps=fps, start=start)
        np.testing.assert_array_equal(clip, whole[start : start + length], err_msg=f"{start}")
    with pytest.raises(MediaError, match="asked for"):
        read_clip(folder / name, num_frames=length, size=(24, 24), fps=fps, start=len(whole) - 2)


def test_crop_and_mirror(tmp_path: Path) -> None:
    pixels = np.arange(20, dtype=np.uint8)[None, :, None].repeat(10, 0).repeat(3, 2)
    write_png(tmp_path / "a.png", pixels)
    seen = {}
    for share in (0.0, 0.5, 0.999):
        clip = read_clip(tmp_path / "a.png", num_frames=1, size=(10, 10), crop=(0.0, share))
        seen[share] = clip[0, 0, :, 0].tolist()
    assert seen == {s: list(range(x, x + 10)) for s, x in ((0.0, 0), (0.5, 5), (0.999, 10))}
    clip = read_clip(tmp_path / "a.png", num_frames=1, size=(10, 10), mirror=True)
    assert clip[0, 0, :, 0].tolist() == list(range(14, 4, -1))
    assert probe(tmp_path / "a.png") == MediaInfo(
        height=10, width=20, frames=1, fps=0.0, duration=0.0
    )
    with pytest.raises(MediaError, match="asked for"):
        read_clip(tmp_path / "a.png", num_frames=2, size=(10, 10))


def test_damage_is_met(folder: Path, tmp_path: Path) -> None:
    content = (folder / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    for name in ("cut.mp4", "text.mp4", "empty.mp4", "none.mp4"):
        with pytest.raises(MediaError, match=name):
            probe(tmp_path / name)
        with pytest.raises(MediaError, match=name):
            read_clip(tmp_path / name, num_frames=2, size=(8, 8))
