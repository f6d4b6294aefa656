"""`videoar train cache`: a folder's clips through the encoder and the quantiser, into shards."""

import hashlib
import json
import os
import shutil
from contextlib import closing
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from videoar.kernels.bsq_quantize import bsq_quantize
from videoar.kernels.pack_bits import pack_bits
from videoar.runtime.checkpoint_json import CONFIG_NAME, config_text, read_config
from videoar.runtime.errors import CheckpointError, MediaError
from videoar.runtime.schedule import Sizes
from videoar.runtime.video_tokenizer import VideoTokenizer
from videoar.training.loader import Loader
from videoar.training.sources import Part, Source, encode, refuse_short
from videoar.training.token_cache import (
    COMPONENT,
    CachePlan,
    read_shard,
    shard_name,
    shard_path,
    shard_shapes,
    tokenizer_hash,
)
from videoar.training.video_folder import Bucket, ClipConfig, VideoFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """Settings of a token cache.

    Attributes:
        views: clips of each file; each has its own start, crop and mirroring.
        seed: of the draws.
        shard_clips: clips of a shard.
        batch: clips encoded at once; divides `shard_clips`.
        latents: store the latents beside the bits; training with flipped history needs them.
        workers: processes that decode videos.
        clip: how clips are drawn.
    """

    views: int = 1
    seed: int = 0
    shard_clips: int = 1024
    batch: int = 16
    latents: bool = True
    workers: int = 2
    clip: ClipConfig = field(default_factory=ClipConfig)

    def __post_init__(self) -> None:
        for name in ("views", "shard_clips", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: at least 1, got {getattr(self, name)}")
        if self.shard_clips % self.batch:
            raise ValueError(f"batch: must divide shard_clips {self.shard_clips}, got {self.batch}")


class _Views(Source):
    """The clips of a cache in their order, `config.batch` at a time; broken ones are left out."""

    def __init__(self, folder: VideoFolder, bucket: Bucket, config: CacheConfig) -> None:
        self.folder, self.bucket, self.config = folder, bucket, config
        (self.members,) = folder.split([bucket], config.clip.fps)
        if not self.members:
            refuse_short([Part(folder=folder, buckets=(bucket,))], config.clip.fps)

    def batch(self, step: int) -> dict[str, Any]:
        clips, rows, broken = [], [], {}
        first, end = step * self.config.batch, len(self.members) * self.config.views
        for place in range(first, min(first + self.config.batch, end)):
            epoch, member = divmod(place, len(self.members))
            item = self.folder.items[self.members[member]]
            try:
                clips.append(self._read(self.members[member], epoch))
            except MediaError as error:
                broken[item.name] = str(error).removeprefix(f"{self.folder.path / item.name}: ")
                continue
            row = {"file": item.name, "epoch": epoch}
            rows.append(row | {"caption": item.caption, "class": item.class_id})
        frames = torch.from_numpy(np.stack(clips)) if clips else None
        return {"frames": frames, "rows": rows, "broken": broken}

    def _read(self, number: int, epoch: int) -> np.ndarray:
        config = self.config
        return self.folder.read(number, self.bucket, config.clip, config.seed, epoch)


def write_cache(
    out: Path,
    folder: VideoFolder,
    tokenizer: VideoTokenizer,
    sizes: Sizes,
    bucket: Bucket,
    config: CacheConfig,
) -> dict[str, str]:
    """Write the cache of `folder` into `out`, or what is missing of it.

    A shard is written aside and renamed, so one that has its name is whole; it is kept if it can
    be read and is of this plan. An interrupted call goes on where it was.

    Args:
        sizes: grids of the scales.
        bucket: shape of the clips.

    Returns:
        Why each file that could not be decoded could not, by name.

    Raises:
        ValueError: a clip that the tokenizer cannot compress, or `out` holds another cache; names
            the first field that differs.
        MediaError: nothing in `folder` is long enough.
        CheckpointError: `out` could not be written.
    """
    views = _Views(folder, bucket, config)
    plan = _plan(views, tokenizer, sizes)
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        return _write_shards(Path(out), _settle(Path(out), plan), views, tokenizer)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{out}: could not be written ({error})") from error


def _plan(views: _Views, tokenizer: VideoTokenizer, sizes: Sizes) -> CachePlan:
    bucket, config = views.bucket, views.config
    grid = tokenizer.config.latent_size(bucket.height, bucket.width)
    if tuple(sizes[-1]) != grid:
        raise ValueError(f"sizes: must end with {grid} for {bucket}, got {sizes[-1]}")
    labels = hashlib.sha256()
    for number in views.members:
        labels.update(repr(views.folder.items[number]).encode())
    return CachePlan(
        tokenizer=tokenizer_hash(tokenizer),
        sizes=sizes,
        latent_dim=tokenizer.config.latent_dim,
        latent_frames=tokenizer.config.latent_frames(bucket.frames),
        num_frames=bucket.frames,
        height=bucket.height,
        width=bucket.width,
        clip=config.clip,
        seed=config.seed,
        views=config.views,
        latents=config.latents,
        files=len(views.members),
        labels=labels.hexdigest(),
        class_names=views.folder.class_names,
        shard_clips=config.shard_clips,
    )


def _settle(out: Path, plan: CachePlan) -> CachePlan:
    """Write the plan into an empty folder, or make sure that it is the one that is there.

    Returns:
        The plan as it is read back: shards are named after that.
    """
    if not (out / CONFIG_NAME).exists():
        if any(not path.name.startswith(".") for path in out.iterdir()):
            raise ValueError(f"{out}: holds something else than a token cache")
        unfinished = out / f".{CONFIG_NAME}.{os.getpid()}.tmp"
        unfinished.write_text(config_text(COMPONENT, plan), encoding="utf-8")
        os.replace(unfinished, out / CONFIG_NAME)
    there = read_config(out, CachePlan, component=COMPONENT)
    for field_ in fields(CachePlan):
        old, new = getattr(there, field_.name), getattr(plan, field_.name)
        if old != new:
            text = f"the cache there has {old}, this one would have {new}; give another folder"
            raise ValueError(f"{out / CONFIG_NAME}: {field_.name}: {text}")
    return there


def _write_shards(
    out: Path, plan: CachePlan, views: _Views, tokenizer: VideoTokenizer
) -> dict[str, str]:
    for left in out.glob(".shard-*.tmp"):
        left.unlink(missing_ok=True)
    broken: dict[str, str] = {}
    with (
        closing(Loader(views, views.config.workers)) as loader,
        tqdm(total=plan.clips, desc="encode", unit="clip", disable=None) as bar,
    ):
        for number in range(plan.shards):
            first = number * plan.shard_clips
            count = min(plan.shard_clips, plan.clips - first)
            found = _finished(out, number, plan)
            if found is None:
                size = views.config.batch
                steps = range(first // size, -(-(first + count) // size))
                found = _write_shard(out, number, plan, steps, loader, tokenizer)
            broken |= found
            bar.update(count)
    return broken


def _finished(out: Path, number: int, plan: CachePlan) -> dict[str, str] | None:
    """The broken files of a shard that is there and whole, else None."""
    try:
        return read_shard(out, number, plan)[2] if shard_path(out, number).exists() else None
    except CheckpointError:
        return None


def _write_shard(
    out: Path,
    number: int,
    plan: CachePlan,
    steps: range,
    loader: Loader,
    tokenizer: VideoTokenizer,
) -> dict[str, str]:
    parts: dict[str, list[Tensor]] = {"words": [], "latents": []}
    rows: list[dict[str, Any]] = []
    broken: dict[str, str] = {}
    for step in steps:
        batch = loader.batch(step)
        broken |= batch["broken"]
        rows += batch["rows"]
        if batch["frames"] is not None:
            latents = encode(tokenizer, batch["frames"])
            # The bits are those of the latents as they are stored.
            bits = bsq_quantize(latents.float(), plan.sizes).bits
            parts["words"].append(pack_bits(bits).cpu())
            parts["latents"].append(latents.cpu())
    tensors = {
        name: torch.cat([torch.empty([0, *shape[1:]], dtype=dtype), *parts[name]]).contiguous()
        for name, (dtype, shape) in shard_shapes(plan, 0).items()
    }
    # Safetensors writes several entries in any order; one gives the same bytes every time.
    content = {"shard": shard_name(plan, number), "failed": broken, "rows": rows}
    metadata = {"content": json.dumps(content)}
    path = shard_path(out, number)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file(tensors, unfinished, metadata=metadata)
    # Safetensors makes files for their owner alone; others should be able to load them.
    shutil.copymode(out / CONFIG_NAME, unfinished)
    os.replace(unfinished, path)
    return broken
