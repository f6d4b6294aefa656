"""Worker processes: the order of batches, files that cannot be decoded, and how they end."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from videoar.runtime.errors import MediaError
from videoar.training.loader import Loader
from videoar.training.sources import FolderSource, Part, Source
from videoar.training.video_folder import Bucket, ClipConfig, VideoFolder

VIDEOS = Bucket(frames=5, height=16, width=16, batch=2)
PICTURES = Bucket(frames=1, height=16, width=16, batch=3)


def source(folder: Path, *buckets: Bucket, **options: Any) -> FolderSource:
    parts = [Part(folder=VideoFolder(folder), buckets=buckets or (VIDEOS, PICTURES))]
    return FolderSource(parts, ClipConfig(fps=8, mirror=0.5), 7, **options)


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return torch.equal(left["frames"], right["frames"]) and left["captions"] == right["captions"]


def test_a_batch_has_one_shape(mixed: Path) -> None:
    batches = [source(mixed).batch(step) for step in range(8)]
    shapes = {tuple(batch["frames"].shape) for batch in batches}
    assert shapes == {(2, 5, 16, 16, 3), (3, 1, 16, 16, 3)}
    for batch in batches:
        kind = "moving" if batch["frames"].shape[1] == 5 else "standing|up"
        assert all(any(k in text for k in kind.split("|")) for text in batch["captions"])
        assert batch["classes"] == [None] * len(batch["captions"])


def test_a_source_can_be_sent_to_processes(mixed: Path) -> None:
    sent = pickle.loads(pickle.dumps(source(mixed)))
    assert same(sent.batch(4), source(mixed).batch(4))


def test_ranks_share_a_batch(mixed: Path) -> None:
    parts = [source(mixed, VIDEOS, rank=rank, world_size=2).batch(3) for rank in (0, 1)]
    whole = source(mixed, VIDEOS).batch(3)
    assert torch.equal(torch.cat([part["frames"] for part in parts]), whole["frames"])


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_batches(mixed: Path, workers: int) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    with (
        closing(Loader(source(mixed))) as plain,
        closing(Loader(source(mixed), workers)) as loader,
    ):
        for step in (0, 1, 2, 3, 10, 11, 1):
            assert same(loader.batch(step), plain.batch(step)), f"step {step}"
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture
def broken(mixed: Path, tmp_path: Path) -> Path:
    """Two of five videos break behind their first frames, after they were scanned."""
    folder = shutil.copytree(mixed, tmp_path / "copy")
    VideoFolder(folder)
    for number in (1, 2):
        path = folder / "videos" / f"{number}.mp4"
        stamp = path.stat()
        content = bytearray(path.read_bytes())
        middle = content.index(b"mdat") + 12
        content[middle:] = bytes(len(content) - middle)
        path.write_bytes(content)
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_file_stands_in(broken: Path, workers: int, capsys) -> None:
    assert VideoFolder(broken).skipped.keys() == {"broken.mp4"}
    three = replace_batch(VIDEOS, 5)
    with closing(Loader(source(broken, three), workers)) as loader:
        captions = [loader.batch(step)["captions"] for step in range(2)]
    for row in captions:
        assert sorted(text[6] for text in row) == ["0", "3", "3", "3", "4"]
    assert {Path(path).name for path in loader.failures} == {"1.mp4", "2.mp4"}
    assert capsys.readouterr().err.count("left out") == 2


def replace_batch(bucket: Bucket, batch: int) -> Bucket:
    return Bucket(frames=bucket.frames, height=bucket.height, width=bucket.width, batch=batch)


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_can_be_decoded(broken: Path, workers: int) -> None:
    for number in (0, 3, 4):
        (broken / "videos" / f"{number}.mp4").write_bytes(b"broken")
    parts = source(broken, VIDEOS)
    parts.members[0].items[:] = [n for n in parts.members[0].items if n in (3, 4)]
    with pytest.raises(MediaError, match="in a row") as caught:
        Loader(parts, workers).batch(0)
    assert "Traceback" not in str(caught.value)


def test_too_short(mixed: Path) -> None:
    with pytest.raises(MediaError, match=r"nothing fills a clip of 99x16x16.* 24"):
        source(mixed, Bucket(frames=99, height=16, width=16))


class Failing(Source):
    """Works for two steps."""

    def batch(self, step: int) -> dict[str, Any]:
        if step == 2:
            raise RuntimeError("a bug at step 2")
        return {"process": os.getpid()}


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_workers_end_with_an_exception() -> None:
    loader = Loader(Failing(), workers=2)
    processes = {loader.batch(step)["process"] for step in range(2)}
    assert len(processes) == 2
    assert os.getpid() not in processes
    with pytest.raises(RuntimeError, match="a bug at step 2"):
        loader.batch(2)
    assert not any(map(alive, processes))
    loader.close()


ENDLESS = """
import os, sys, time
from videoar.training.loader import Loader
from videoar.training.sources import Source

class Endless(Source):
    def batch(self, step):
        time.sleep(0.01)
        return {"process": os.getpid()}

loader = Loader(Endless(), workers=2)
print(*{loader.batch(step)["process"] for step in range(4)}, flush=True)
step = 4
while True:
    loader.batch(step)
    step += 1
"""


def test_workers_end_with_their_parent() -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", ENDLESS]
    parents = [subprocess.Popen(command, start_new_session=True, **pipes) for _ in range(2)]
    workers = [int(word) for parent in parents for word in parent.stdout.readline().split()]
    assert len(workers) == 4
    interrupted, killed = parents
    # As a terminal does it: to all of them.
    os.killpg(interrupted.pid, signal.SIGINT)
    killed.kill()
    errors = [parent.communicate(timeout=60)[1] for parent in parents]
    # The parent says that it was interrupted; its workers stay silent.
    assert [text.count("KeyboardInterrupt") for text in errors] == [1, 0], errors
    end = time.monotonic() + 30
    while any(map(alive, workers)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(alive, workers))


def test_bad_arguments(make_video: Callable[..., Path]) -> None:
    for values in ({"workers": -1}, {"ahead": 0}):
        with pytest.raises(ValueError, match="workers"):
            Loader(Failing(), **values)
