"""Where training batches come from: anything with `batch(step)`, a pure function of the step.

A batch is a dict. Its keys, of those that its source has:

    frames    uint8 [B,T,H,W,3]
    latents   floating [B,d,t,h,w]
    bits      bool [B,t,N,d]
    captions  list of B texts, None where there is none
    classes   list of B class ids, None where there is none
    sizes     grids of the scales of the bits
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import numpy as np
import torch

from videoar.runtime.errors import MediaError
from videoar.runtime.pixels import from_pixels
from videoar.runtime.video_tokenizer import VideoTokenizer
from videoar.training.run import autocast
from videoar.training.sampler import Pool, Sampler
from videoar.training.video_folder import Bucket, ClipConfig, VideoFolder

# Files in a row that may be unreadable before the trouble is taken to be elsewhere.
_MAX_REPLACED = 100


class Source(Protocol):
    """Batches by step."""

    def prepare(self) -> None:
        """Called once before the first batch, by all ranks; does nothing for most sources."""

    def batch(self, step: int) -> dict[str, Any]:
        """The batch of `step` (from 0); the same one whenever it is asked for."""

    def close(self) -> None:
        """Release files and processes; does nothing for most sources."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Shape of a stage's batches.

    Attributes:
        frames: of a clip in pixels, 1 for single frames (default: the model's length).
        batch: clips of a batch, all ranks together.
        share: of the batches, relative to the other shapes'.
        height, width: pixels of a frame (default: the model's).
    """

    frames: int | None = None
    batch: int
    share: float = 1.0
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        for name in ("frames", "batch", "height", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: at least 1, got {value}")
        if not 0 < self.share < float("inf"):
            raise ValueError(f"share: above 0, got {self.share}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A folder's part in a mix.

    Attributes:
        folder: where the files are.
        buckets: shapes of its clips; each file goes into one (`choose_bucket`).
        weight: share of the steps; the buckets divide it as they divide the files.
    """

    folder: VideoFolder
    buckets: tuple[Bucket, ...]
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Members:
    """The items of one folder that share a bucket."""

    folder: VideoFolder
    bucket: Bucket
    items: list[int]


class FolderSource(Source):
    """Clips from folders of videos and pictures.

    A file that cannot be decoded is replaced by the next one of its pool (folder and bucket), by
    name, behind the last by the first; the batch's `failed` holds `(path, reason)` pairs.

    Args:
        parts: what to mix.
        clip: how clips are drawn.
        seed: of the order and of every clip.
        rank, world_size: this process among those that share a batch.

    Raises:
        ValueError: impossible weights, batches or ranks.
        MediaError: nothing fills a bucket. One folder in which nothing does takes no part.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        clip: ClipConfig,
        seed: int = 0,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.clip, self.seed = clip, seed
        self.members: list[_Members] = []
        pools = []
        for part in parts:
            split = part.folder.split(part.buckets, clip.fps)
            total = sum(map(len, split))
            for bucket, items in zip(part.buckets, split, strict=True):
                if items:
                    share = part.weight * len(items) / total
                    pools.append(Pool(count=len(items), batch=bucket.batch, weight=share))
                    self.members.append(_Members(folder=part.folder, bucket=bucket, items=items))
        if not pools:
            refuse_short(parts, clip.fps)
        self.sampler = Sampler(pools, seed, rank=rank, world_size=world_size)

    def batch(self, step: int) -> dict[str, Any]:
        draws = self.sampler.draws(step)
        pool = self.members[draws.pool]
        failed: list[tuple[str, str]] = []
        clips, items = [], []
        for member, epoch in draws.samples:
            frames, number = self._read(pool, member, epoch, failed)
            clips.append(frames)
            items.append(pool.folder.items[number])
        return {
            "frames": torch.from_numpy(np.stack(clips)),
            "captions": [item.caption for item in items],
            "classes": [item.class_id for item in items],
            "failed": failed,
        }

    def _read(
        self, pool: _Members, member: int, epoch: int, failed: list[tuple[str, str]]
    ) -> tuple[np.ndarray, int]:
        folder, count = pool.folder, len(pool.items)
        tries = min(count, _MAX_REPLACED)
        for place in range(member, member + tries):
            number = pool.items[place % count]
            try:
                return folder.read(number, pool.bucket, self.clip, self.seed, epoch), number
            except MediaError as error:
                path = folder.path / folder.items[number].name
                failed.append((str(path), str(error).removeprefix(f"{path}: ")))
        path, reason = failed[-1]
        text = f"{tries} files in a row cannot be decoded, the last: {path}: {reason}"
        raise MediaError(f"{folder.path}: {text}")


def refuse_short(parts: Sequence[Part], fps: float) -> NoReturn:
    """MediaError that tells how long the longest file of each folder is."""
    longest = ", ".join(f"{part.folder.path} {part.folder.longest(fps)}" for part in parts)
    wanted = ", ".join(str(bucket) for bucket in parts[0].buckets)
    raise MediaError(f"nothing fills a clip of {wanted}; frames of the longest file: {longest}")


class MixedSource(Source):
    """Batches of several sources in turns.

    Args:
        sources: each is asked for its batches 0, 1, 2, ... in order.
        weights: share of the steps of each, relative to the others'.
        seed: of whose turn is first.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float], seed: int) -> None:
        self.sources = list(sources)
        self._turns = Sampler([Pool(count=1, batch=1, weight=w) for w in weights], seed)

    def batch(self, step: int) -> dict[str, Any]:
        number, turn = self._turns.turn(step)
        return self.sources[number].batch(turn)

    def prepare(self) -> None:
        for source in self.sources:
            source.prepare()

    def close(self) -> None:
        for source in self.sources:
            source.close()


class EncodedSource(Source):
    """Another source's frames as a tokenizer's latents, encoded when they are asked for.

    Batches without frames stay as they are.
    """

    def __init__(self, source: Source, tokenizer: VideoTokenizer) -> None:
        self.source, self.tokenizer = source, tokenizer

    @torch.no_grad()
    def batch(self, step: int) -> dict[str, Any]:
        batch = self.source.batch(step)
        if "frames" in batch:
            batch["latents"] = encode(self.tokenizer, batch.pop("frames"))
        return batch

    def prepare(self) -> None:
        self.source.prepare()

    def close(self) -> None:
        self.source.close()


@torch.no_grad()
def encode(tokenizer: VideoTokenizer, frames: torch.Tensor) -> torch.Tensor:
    """Frames uint8 `[B,T,H,W,3]` to latents float16 `[B,d,t,h,w]`, as caches store them."""
    device = next(tokenizer.parameters()).device
    with autocast(device):
        return tokenizer.encode(from_pixels(frames.numpy()).to(device)).half()
