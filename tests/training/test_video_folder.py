"""Folders: the scan and its index, labels, UCF-101's layout, buckets and drawn clips."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from videoar.runtime.errors import MediaError
from videoar.training.clips import MediaInfo
from videoar.training.labels import read_class_index, read_labels, read_split
from videoar.training.media_index import INDEX_NAME, scan_folder
from videoar.training.video_folder import Bucket, ClipConfig, VideoFolder, choose_bucket


@pytest.fixture
def copy(mixed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(mixed, tmp_path / "copy", ignore=shutil.ignore_patterns(INDEX_NAME))


def test_a_scan_is_done_once(copy: Path, make_video: Callable[..., Path]) -> None:
    first = scan_folder(copy)
    assert first.probed == 9
    assert list(first.media) == sorted(first.media)
    assert first.skipped.keys() == {"broken.mp4"}
    assert "broken.mp4" not in first.skipped["broken.mp4"]
    again = scan_folder(copy)
    assert (again.probed, again.media, again.skipped) == (0, first.media, first.skipped)
    make_video(copy / "broken.mp4", 4)
    (copy / "short.mp4").unlink()
    os.utime(copy / "0.png", ns=(1, 1))
    changed = scan_folder(copy)
    assert changed.probed == 2
    assert changed.media["broken.mp4"].frames == 4
    assert "short.mp4" not in changed.media
    entries = json.loads((copy / INDEX_NAME).read_text())["files"]
    assert entries.keys() == changed.media.keys()
    assert [path.name for path in copy.iterdir() if path.name.endswith(".tmp")] == []


@pytest.mark.parametrize("content", ["", "{", '{"format": "other", "files": {}}', "[]"])
def test_a_torn_index_is_made_again(copy: Path, content: str) -> None:
    (copy / INDEX_NAME).write_text(content)
    assert scan_folder(copy).probed == 9
    assert scan_folder(copy).probed == 0


def test_an_interrupted_scan_keeps_what_it_has(copy: Path, monkeypatch) -> None:
    from videoar.training import media_index

    probe = media_index.probe

    def stopped(path: Path) -> MediaInfo:
        if path.name == "3.mp4":
            raise KeyboardInterrupt
        return probe(path)

    monkeypatch.setattr(media_index, "probe", stopped)
    with pytest.raises(KeyboardInterrupt):
        scan_folder(copy)
    monkeypatch.setattr(media_index, "probe", probe)
    assert scan_folder(copy).probed < 9


def test_an_index_that_cannot_be_written(copy: Path) -> None:
    with pytest.warns(UserWarning, match="cannot be written"):
        scan = scan_folder(copy, copy / "nowhere" / "index.json")
    assert len(scan.media) == 8


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="does not exist"):
        VideoFolder(tmp_path / "none")
    with pytest.raises(MediaError, match="no video"):
        VideoFolder(tmp_path)
    (tmp_path / "a.mp4").write_bytes(b"broken")
    with pytest.raises(MediaError, match=r"none of 1 files.*a\.mp4"):
        VideoFolder(tmp_path)


def test_captions(copy: Path) -> None:
    with (copy / "captions.jsonl").open("a") as file:
        file.write('\n{"file": "gone.mp4", "caption": "a red 1 moving up"}\n')
    folder = VideoFolder(copy)
    captions = {item.name: item.caption for item in folder.items}
    assert captions["videos/3.mp4"] == "a red 3 moving left"
    assert captions["1.png"] == "a blue 1 standing still"
    assert folder.skipped.keys() == {"broken.mp4", "gone.mp4"}
    assert folder.skipped["gone.mp4"] == "listed, but not there"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "captions.jsonl:2: no JSON"),
        ("[]", "captions.jsonl:2: an object"),
        ('{"caption": "x"}', "captions.jsonl:2: file"),
        ('{"file": "b.mp4"}', "captions.jsonl:2: caption: missing"),
        ('{"file": "b.mp4", "caption": 3}', "captions.jsonl:2: caption"),
        ('{"file": "b.mp4", "class": true}', "captions.jsonl:2: class"),
        ('{"file": "b.mp4", "class": -1}', "class: b.mp4 has -1"),
        ('{"file": "b.mp4", "class": "run"}', "numbers and names"),
        ('{"file": "a.mp4", "class": 1}', "captions.jsonl:2: file: a.mp4 is in line 1"),
    ],
)
def test_bad_captions(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "captions.jsonl").write_text(f'{{"file": "a.mp4", "class": 0}}\n{line}\n')
    with pytest.raises(ValueError, match=message):
        read_labels(tmp_path, ["a.mp4", "b.mp4"])


def test_lists_that_are_not_there(mixed: Path, tmp_path: Path) -> None:
    for argument in ("split", "class_index"):
        with pytest.raises(ValueError, match=r"none\.txt: cannot be read \(No such file"):
            VideoFolder(mixed, **{argument: tmp_path / "none.txt"}, index=tmp_path / "index")


def test_captions_as_other_programs_write_them(tmp_path: Path) -> None:
    """With a mark in front, Windows' ends of lines, and what Unicode too takes for one."""
    first = '{"file": "a.mp4", "caption": "one\u2028line"}'
    text = f'\ufeff{first}\r\n\r\n{{"file": "./b.mp4", "caption": "two"}}'
    (tmp_path / "captions.jsonl").write_bytes(text.encode())
    labels = read_labels(tmp_path, ["a.mp4", "b.mp4"])
    assert labels.captions == {"a.mp4": "one\u2028line", "b.mp4": "two"}


def test_ucf_as_it_is(ucf: Path) -> None:
    folder = VideoFolder(ucf)
    # Upper and lower case count alike, as in the official numbering.
    assert folder.class_names == ("Hammering", "HammerThrow", "YoYo")
    classes = {item.name: item.class_id for item in folder.items}
    assert len(classes) == 6
    assert classes["HammerThrow/v_HammerThrow_g01_c02.avi"] == 1
    assert folder.skipped.keys() == {"YoYo/v_YoYo_g02_c01.avi"}


def test_ucf_with_its_lists(ucf: Path, tmp_path: Path) -> None:
    (tmp_path / "classInd.txt").write_text("1 YoYo\n2 Hammering\n3 HammerThrow\n4 ApplyLipstick\n")
    split = tmp_path / "trainlist01.txt"
    lines = ["YoYo/v_YoYo_g01_c02.avi 1", "Hammering/v_Hammering_g01_c01.avi 2"]
    lines += ["YoYo/v_YoYo_g02_c01.avi 1", "YoYo/v_YoYo_g09_c01.avi 1", ""]
    split.write_text("\r\n".join(lines))
    folder = VideoFolder(ucf, split=split)
    assert [(item.name[:4], item.class_id) for item in folder.items] == [("YoYo", 0), ("Hamm", 1)]
    assert folder.skipped.keys() == {line.split()[0] for line in lines[2:4]}
    split.write_text("YoYo/v_YoYo_g01_c01.avi\n")
    assert len(VideoFolder(ucf, split=split).items) == 1
    split.write_text("YoYo/v_YoYo_g09_c01.avi 1\n")
    with pytest.raises(MediaError, match="trainlist01"):
        VideoFolder(ucf, split=split)
    (tmp_path / "classInd.txt").write_text("1 YoYo\n")
    with pytest.raises(ValueError, match="no class 'Hammer"):
        VideoFolder(ucf, class_index=tmp_path / "classInd.txt")


@pytest.mark.parametrize("text", ["YoYo 1\n", "1 YoYo\n3 Hammering\n", "1 YoYo\n1 Hammering\n"])
def test_bad_lists(tmp_path: Path, text: str) -> None:
    (tmp_path / "classInd.txt").write_text(text)
    with pytest.raises(ValueError, match=r"classInd\.txt"):
        read_class_index(tmp_path / "classInd.txt")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"empty\.txt"):
        read_split(tmp_path / "empty.txt")


@pytest.mark.parametrize(
    ("height", "width", "frames", "expected"),
    [
        (240, 320, 100, "17x96x128"),
        (320, 240, 100, "17x64x48"),
        (60, 80, 100, "17x48x64"),
        (480, 640, 100, "17x96x128"),
        (20, 26, 100, "17x48x64"),
        (240, 320, 16, "1x64x64"),
        (200, 200, 1, "1x64x64"),
    ],
)
def test_buckets(height: int, width: int, frames: int, expected: str) -> None:
    names = ["1x64x64", "17x48x64", "17x64x48", "17x96x128"]
    shapes = [tuple(map(int, name.split("x"))) for name in names]
    buckets = [Bucket(frames=f, height=h, width=w) for f, h, w in shapes]
    info = MediaInfo(height=height, width=width, frames=frames, fps=8.0, duration=frames / 8)
    assert str(buckets[choose_bucket(info, buckets)]) == expected
    short = MediaInfo(height=4, width=4, frames=3, fps=8.0, duration=3 / 8)
    assert choose_bucket(short, buckets[1:]) is None


def test_drawn_clips(mixed: Path) -> None:
    folder = VideoFolder(mixed)
    bucket = Bucket(frames=5, height=16, width=16)
    config = ClipConfig(fps=8, mirror=0.5)
    (members,) = folder.split([bucket], config.fps)
    assert [folder.items[n].name for n in members] == [f"videos/{n}.mp4" for n in range(5)]
    clips = [folder.read(members[0], bucket, config, 3, epoch) for epoch in range(6)]
    assert all(clip.shape == (5, 16, 16, 3) for clip in clips)
    assert len({clip.tobytes() for clip in clips}) == 6
    again = VideoFolder(mixed).read(members[0], bucket, config, 3, 4)
    np.testing.assert_array_equal(again, clips[4])
    assert not np.array_equal(folder.read(members[0], bucket, config, 4, 4), clips[4])
    starts = ClipConfig(fps=8, crop="centre")
    whole = Bucket(frames=20, height=16, width=16)
    fixed = [folder.read(members[0], whole, starts, 3, epoch) for epoch in range(2)]
    np.testing.assert_array_equal(*fixed)


@pytest.mark.parametrize("values", [{"fps": -1}, {"crop": "left"}, {"mirror": 1.5}])
def test_bad_clip_settings(values: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        ClipConfig(**values)
