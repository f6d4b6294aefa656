"""Clips as tokens on disk, so that the transformer trains without the tokenizer's encoder.

config.json           what the cache holds: the fields of `CachePlan`
shard-00000.safetensors ...
    words    int32 [n,t,N,W], the bits of all scales, packed (`kernels/pack_bits.py`)
    latents  float16 [n,d,t,h,w], what the bits were made of; left out on demand
    metadata: "content", JSON: which shard of which plan, one object a row, failed files

Bits alone are exact as targets, but the self-correcting targets behind a flipped bit follow from
the residual (arXiv 2601.05966, Eq. 8), which the bits do not tell: for those there are latents.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from videoar.kernels.pack_bits import WORD_BITS, unpack_bits
from videoar.runtime.checkpoint_json import CONFIG_NAME, read_config
from videoar.runtime.errors import CheckpointError
from videoar.runtime.schedule import Sizes
from videoar.runtime.video_tokenizer import VideoTokenizer
from videoar.training.sampler import Pool, Sampler
from videoar.training.sources import Source
from videoar.training.video_folder import ClipConfig

COMPONENT = "tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePlan:
    """What a cache holds. Two of the same plan hold the same.

    Attributes:
        tokenizer: `tokenizer_hash` of the one that made it.
        sizes: grids of the scales.
        latent_dim: d, bits of one token.
        latent_frames: t of a clip.
        num_frames, height, width: of the clips in pixels.
        clip: how they were drawn.
        seed: of the draws.
        views: clips of each file, drawn like those of as many epochs.
        latents: whether the latents are stored beside the bits.
        files: how many files the clips are from.
        labels: hash of the files' names, sizes, captions and classes.
        class_names: by id; empty where there are none.
        shard_clips: clips of a shard, those that could not be decoded included.
    """

    tokenizer: str
    sizes: Sizes
    latent_dim: int
    latent_frames: int
    num_frames: int
    height: int
    width: int
    clip: ClipConfig
    seed: int
    views: int
    latents: bool
    files: int
    labels: str
    class_names: tuple[str, ...]
    shard_clips: int

    @property
    def clips(self) -> int:
        """Clips of the whole cache, those that could not be decoded included."""
        return self.files * self.views

    @property
    def shards(self) -> int:
        """Shards of the whole cache."""
        return -(-self.clips // self.shard_clips)


def shard_path(folder: Path, number: int) -> Path:
    """Where shard `number` lies."""
    return folder / f"shard-{number:05d}.safetensors"


def shard_name(plan: CachePlan, number: int) -> str:
    """What a shard calls itself: the hash of its plan, and its number."""
    text = json.dumps(asdict(plan), sort_keys=True)
    return f"{hashlib.sha256(text.encode()).hexdigest()} {number}"


def tokenizer_hash(tokenizer: VideoTokenizer) -> str:
    """What decides about a clip's bits: SHA-256 over the configuration and the encoder's weights.

    Weights count as float32; the decoder does not count, it may be trained further.
    """
    digest = hashlib.sha256(json.dumps(asdict(tokenizer.config), sort_keys=True).encode())
    for name, tensor in sorted(tokenizer.encoder.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class TokenCache:
    """A finished cache, memory-mapped: a row is read from disk when it is asked for.

    Args:
        folder: as `videoar train cache` wrote it.
        tokenizer: the tokenizer whose tokens are wanted. Default: any.

    Attributes:
        plan: what it was made from.
        rows: file, epoch, caption and class of every clip.

    Raises:
        CheckpointError: missing, unfinished, torn, or made with another tokenizer.
    """

    def __init__(self, folder: Path, tokenizer: VideoTokenizer | None = None) -> None:
        self.folder = Path(folder)
        self.plan = read_config(self.folder, CachePlan, component=COMPONENT)
        if tokenizer is not None:
            wanted, found = tokenizer_hash(tokenizer), self.plan.tokenizer
            if wanted != found:
                text = f"made with tokenizer {found}, not with {wanted}"
                raise CheckpointError(f"{self.folder / CONFIG_NAME}: tokenizer: {text}")
        self.rows: list[dict[str, Any]] = []
        self._words: list[Tensor] = []
        self._latents: list[Tensor] = []
        self._places: list[tuple[int, int]] = []
        self._open_shards()

    def _open_shards(self) -> None:
        count = self.plan.shards
        there = sum(shard_path(self.folder, number).exists() for number in range(count))
        if there < count:
            text = f"{there} of {count} shards are there; the same `train cache` goes on"
            raise CheckpointError(f"{self.folder}: unfinished, {text}")
        for number in range(count):
            tensors, rows, _ = read_shard(self.folder, number, self.plan)
            self._words.append(tensors["words"])
            if self.plan.latents:
                self._latents.append(tensors["latents"])
            self._places += [(number, row) for row in range(len(rows))]
            self.rows += rows
        if not self.rows:
            raise CheckpointError(f"{self.folder}: holds no clip, none could be decoded")

    def __len__(self) -> int:
        return len(self.rows)

    def bits(self, clips: Iterable[int], frames: int | None = None) -> Tensor:
        """Bits of clips, bool `[B,t,N,d]`; of their first latent frames alone where given."""
        words = [self._words[shard][row, :frames] for shard, row in map(self._at, clips)]
        return unpack_bits(torch.stack(words), self.plan.latent_dim)

    def latents(self, clips: Iterable[int], frames: int | None = None) -> Tensor:
        """Latents of clips, float16 `[B,d,t,h,w]`.

        Raises:
            CheckpointError: the cache holds bits alone.
        """
        if not self.plan.latents:
            raise CheckpointError(f"{self.folder}: latents: not stored, the cache holds bits alone")
        places = map(self._at, clips)
        return torch.stack([self._latents[shard][row, :, :frames] for shard, row in places])

    def _at(self, clip: int) -> tuple[int, int]:
        return self._places[clip]


def read_shard(
    folder: Path, number: int, plan: CachePlan
) -> tuple[dict[str, Tensor], list[dict[str, Any]], dict[str, str]]:
    """A shard's memory-mapped tensors, its rows, and why each failed file is not among them.

    Raises:
        CheckpointError: torn, or not of this plan.
    """
    path = shard_path(folder, number)
    try:
        with safe_open(path, framework="pt") as file:
            content = json.loads(file.metadata()["content"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        name, rows, failed = content["shard"], content["rows"], content["failed"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: no readable shard ({error})") from error
    expected = shard_shapes(plan, len(rows))
    found = {name: (tensor.dtype, list(tensor.shape)) for name, tensor in tensors.items()}
    if name != shard_name(plan, number) or found != expected:
        raise CheckpointError(f"{path}: is not shard {number} of this cache")
    return tensors, rows, failed


def shard_shapes(plan: CachePlan, rows: int) -> dict[str, tuple[torch.dtype, list[int]]]:
    """Data type and shape of each tensor of a shard of so many clips."""
    tokens, dim, frames = sum(h * w for h, w in plan.sizes), plan.latent_dim, plan.latent_frames
    shapes = {"words": (torch.int32, [rows, frames, tokens, -(-dim // WORD_BITS)])}
    if plan.latents:
        shapes["latents"] = (torch.float16, [rows, dim, frames, *plan.sizes[-1]])
    return shapes


class CacheSource(Source):
    """Batches from token caches.

    Args:
        caches: what to mix, each with its share of the steps.
        batch: clips a step, all ranks together.
        seed: of the order.
        frames: latent frames of each clip, from its start. As the tokenizer is causal, the first
            alone is what its first picture alone gives. Default: all.
        rank, world_size: this process among those that share a batch.

    Raises:
        ValueError: impossible weights, batches, ranks or frames.
    """

    def __init__(
        self,
        caches: Iterable[tuple[TokenCache, float]],
        batch: int,
        seed: int = 0,
        *,
        frames: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        pairs = list(caches)
        self.caches, self.frames = [cache for cache, _ in pairs], frames
        for cache in self.caches:
            stored = cache.plan.latent_frames
            if frames is not None and not 1 <= frames <= stored:
                raise ValueError(f"frames: {cache.folder} has 1 to {stored}, got {frames}")
        pools = [Pool(count=len(cache), batch=batch, weight=weight) for cache, weight in pairs]
        self.sampler = Sampler(pools, seed, rank=rank, world_size=world_size)

    def batch(self, step: int) -> dict[str, Any]:
        draws = self.sampler.draws(step)
        cache = self.caches[draws.pool]
        clips = [clip for clip, _ in draws.samples]
        tokens = {"bits": cache.bits(clips, self.frames)}
        if cache.plan.latents:
            tokens["latents"] = cache.latents(clips, self.frames)
        captions = [cache.rows[clip]["caption"] for clip in clips]
        return tokens | {
            "captions": captions,
            "classes": [cache.rows[clip]["class"] for clip in clips],
            "sizes": cache.plan.sizes,
        }
