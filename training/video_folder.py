"""A folder of videos and pictures as training data, and the clips drawn from it.

Every random choice of a clip is a function of (seed, epoch, item), so a clip can be made again
anywhere, at any time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path

import numpy as np

from videoar.runtime.errors import MediaError
from videoar.training.clips import MediaInfo, read_clip
from videoar.training.labels import CLASSES_NAME, Labels, read_labels, read_split
from videoar.training.media_index import scan_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """One shape of clips; a batch holds `batch` clips of one bucket, all ranks together."""

    frames: int
    height: int
    width: int
    batch: int = 1

    def __post_init__(self) -> None:
        for name in ("frames", "height", "width", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"bucket: {name}: at least 1, got {getattr(self, name)}")

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipConfig:
    """How clips are taken out of videos.

    Attributes:
        fps: frames a second of a clip; 0 keeps each video's own rate.
        crop: "random", or "centre" of what covers the bucket's size.
        mirror: share of the clips with left and right swapped.
    """

    fps: float = 0.0
    crop: str = "random"
    mirror: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.fps < float("inf"):
            raise ValueError(f"fps: at least 0, got {self.fps}")
        if self.crop not in ("random", "centre"):
            raise ValueError(f"crop: one of random, centre, got {self.crop!r}")
        if not 0 <= self.mirror <= 1:
            raise ValueError(f"mirror: a share from 0 to 1, got {self.mirror}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One file: its name within the folder, what it holds, and its labels where it has them."""

    name: str
    info: MediaInfo
    caption: str | None = None
    class_id: int | None = None


class VideoFolder:
    """The readable files of a folder with their labels.

    Attributes:
        path: the folder.
        items: sorted by name, or in the order of the split.
        skipped: why each other file is left out.
        class_names: by id; empty where classes are plain numbers or there are none.
    """

    def __init__(
        self,
        path: Path,
        *,
        split: Path | None = None,
        class_index: Path | None = None,
        index: Path | None = None,
    ) -> None:
        """Scan the folder (`scan_folder`) and read its labels (`read_labels`).

        Args:
            split: a list of the files to use, as UCF-101 has them. Default: all.
            class_index: a `classInd.txt`. Default: one beside the split or in the folder.
            index: where the scan is kept. Default: in the folder.

        Raises:
            MediaError: no folder, or no readable media in it (or in the split).
            ValueError: labels or a split that are not understood.
        """
        self.path = Path(path)
        if split is not None and class_index is None:
            beside = Path(split).with_name(CLASSES_NAME)
            class_index = beside if beside.is_file() else None
        scan = scan_folder(self.path, index)
        labels = read_labels(self.path, [*scan.media, *scan.skipped], class_index)
        self.class_names = labels.names
        names = list(scan.media) if split is None else read_split(Path(split))
        listed = dict.fromkeys([*labels.captions, *labels.classes], "listed, but not there")
        if split is not None:
            listed = dict.fromkeys(names, f"listed in {split}, but not there")
        there = scan.media.keys() | scan.skipped.keys()
        self.skipped = {name: why for name, why in listed.items() if name not in there}
        self.skipped |= {n: why for n, why in scan.skipped.items() if split is None or n in listed}
        self.items = _items([name for name in names if name in scan.media], scan.media, labels)
        if not self.items:
            raise MediaError(f"{self.path}: no readable video or picture of {split} in it")

    def split(self, buckets: Sequence[Bucket], fps: float = 0.0) -> list[list[int]]:
        """The items of each bucket: those that `choose_bucket` gives it."""
        members: list[list[int]] = [[] for _ in buckets]
        for number, item in enumerate(self.items):
            chosen = choose_bucket(item.info, buckets, fps)
            if chosen is not None:
                members[chosen].append(number)
        return members

    def longest(self, fps: float = 0.0) -> int:
        """Frames that the longest item gives at a rate."""
        return max(item.info.ticks(fps or None) for item in self.items)

    def read(
        self, number: int, bucket: Bucket, config: ClipConfig, seed: int, epoch: int
    ) -> np.ndarray:
        """The clip of item `number` in one epoch, uint8 `[T,H,W,3]`.

        Raises:
            MediaError: it cannot be decoded.
        """
        item, fps = self.items[number], config.fps or None
        rng = np.random.default_rng([seed, epoch, number])
        start = int(rng.integers(max(1, item.info.ticks(fps) - bucket.frames + 1)))
        row, column, side = rng.random(3)
        return read_clip(
            self.path / item.name,
            num_frames=bucket.frames,
            size=(bucket.height, bucket.width),
            fps=fps,
            start=start,
            crop=(row, column) if config.crop == "random" else None,
            mirror=bool(side < config.mirror),
        )


def _items(names: list[str], media: dict[str, MediaInfo], labels: Labels) -> tuple[Item, ...]:
    return tuple(
        Item(
            name=name,
            info=media[name],
            caption=labels.captions.get(name),
            class_id=labels.classes.get(name),
        )
        for name in names
    )


def choose_bucket(info: MediaInfo, buckets: Sequence[Bucket], fps: float = 0.0) -> int | None:
    """The bucket of a file: the longest that it fills, of those the nearest in aspect ratio,
    of those the largest that needs no enlarging (else the smallest); None if it is too short.
    """
    ticks, area = info.ticks(fps or None), info.height * info.width

    def rank(number: int) -> tuple:
        bucket = buckets[number]
        aspect = abs(log(bucket.height / bucket.width) - log(info.height / info.width))
        size = bucket.height * bucket.width
        return -bucket.frames, round(aspect, 6), size > area, size if size > area else -size

    fitting = [n for n, bucket in enumerate(buckets) if bucket.frames <= ticks]
    return min(fitting, key=rank, default=None)
