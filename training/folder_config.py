"""The data that a training command's flags describe, checked before the first step."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer

from videoar.runtime.config import ModelConfig
from videoar.runtime.text import encode_prompt
from videoar.runtime.video_tokenizer import VideoTokenizer
from videoar.training.loader import Loader
from videoar.training.sources import (
    EncodedSource,
    FolderSource,
    Part,
    Shape,
    Source,
    SourceOf,
    refuse_short,
)
from videoar.training.token_cache import CacheSource, TokenCache
from videoar.training.video_folder import Bucket, ClipConfig, VideoFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderConfig:
    """How training takes clips out of folders.

    Attributes:
        weights: share of the steps of each folder or cache (default: as it has files or clips).
        split: list of the files to use, such as UCF-101's trainlist01.txt (default: all).
        class_index: the classes' numbers, such as UCF-101's classInd.txt (default: sorted by name).
        index: where the folder's scan is kept (default: in the folder).
        fps: frames a second of a clip, 0 for each video's own rate (default: the preset's).
        crop: "random", or "centre" of what covers the frame size.
        mirror: share of the clips with left and right swapped.
        workers: processes that decode videos.
    """

    weights: tuple[float, ...] | None = None
    split: str | None = None
    class_index: str | None = None
    index: str | None = None
    fps: float | None = None
    crop: str = "random"
    mirror: float = 0.0
    workers: int = 2

    def clip(self, model: ModelConfig) -> ClipConfig:
        """How clips are drawn for a model."""
        fps = model.fps if self.fps is None else self.fps
        return ClipConfig(fps=fps, crop=self.crop, mirror=self.mirror)

    def scan(self, path: str | Path) -> VideoFolder:
        """The folder at `path`, with its labels; errors as `VideoFolder` has them."""
        names = ("split", "class_index", "index")
        options = {name: getattr(self, name) for name in names}
        given = {name: Path(value) for name, value in options.items() if value}
        return VideoFolder(Path(path), **given)


def folder_sources(
    paths: Sequence[str],
    config: FolderConfig,
    model: ModelConfig,
    tokenizer: VideoTokenizer | None = None,
    text_tokenizer: Tokenizer | None = None,
    report: Callable[[VideoFolder], None] = lambda folder: None,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> SourceOf:
    """Scan folders for a model; see `training_data`.

    Args:
        report: called with each folder that was scanned.
        rank, world_size: this process among those that share a batch.

    Raises:
        ValueError: a missing caption or class, an unknown one, or other counts of weights.
        MediaError: a folder without readable media.
    """
    if len(paths) > 1 and (config.split or config.class_index or config.index):
        raise ValueError(f"split, class_index, index: are of one folder, got {len(paths)} folders")
    folders = [config.scan(path) for path in paths]
    for folder in folders:
        report(folder)
        if tokenizer is not None:
            rows = ((folder.path / i.name, i.caption, i.class_id) for i in folder.items)
            check_labels(rows, model, text_tokenizer)
    weights = _weights(config, [len(folder.items) for folder in folders])
    clip = config.clip(model)

    def source_of(shapes: Sequence[Shape], seed: int) -> Source:
        pairs = list(zip(folders, weights, strict=True))
        parts = [part for shape in shapes for part in _parts(pairs, shape, model, clip.fps)]
        share = FolderSource(parts, clip, seed, rank=rank, world_size=world_size)
        source = Loader(share, config.workers)
        return source if tokenizer is None else EncodedSource(source, tokenizer)

    # Refused here, not after the stages in front of the one that needs them.
    source_of([Shape(frames=model.num_frames, batch=world_size)], 0)
    return source_of


def _parts(
    folders: Sequence[tuple[VideoFolder, float]], shape: Shape, model: ModelConfig, fps: float
) -> list[Part]:
    """The folders with files that are long enough for a shape, its share divided among them."""
    bucket = Bucket(frames=shape.frames, height=model.height, width=model.width, batch=shape.batch)
    parts = [Part(folder=folder, buckets=(bucket,), weight=w) for folder, w in folders]
    filled = [part for part in parts if any(part.folder.split([bucket], fps))]
    if not filled:
        refuse_short(parts, fps)
    total = sum(part.weight for part in filled)
    return [replace(part, weight=shape.share * part.weight / total) for part in filled]


def check_labels(
    items: Iterable[tuple[Path, str | None, int | None]],
    model: ModelConfig,
    text_tokenizer: Tokenizer | None,
) -> None:
    """Check that every sample has what the model is conditioned on.

    Args:
        items: a path to name, the caption and the class of each sample.

    Raises:
        ValueError: no caption or class, words that the text tokenizer does not know, more of them
            than the model takes, or a class that the model does not know; names the file.
    """
    architecture, checked = model.transformer, set()
    for path, caption, class_id in items:
        name = "caption" if architecture.condition == "text" else "class"
        value = caption if name == "caption" else class_id
        if value is None:
            raise ValueError(f"{path}: {name}: missing, the model is trained on it")
        if name == "caption" and value not in checked:
            try:
                encode_prompt(text_tokenizer, value, architecture.max_text)
            except ValueError as error:
                raise ValueError(f"{path}: caption: {error}") from error
            checked.add(value)
        if name == "class" and value >= architecture.vocab_size:
            known = f"the model knows 0 to {architecture.vocab_size - 1}"
            raise ValueError(f"{path}: class: {value}, {known}")


def cache_sources(
    paths: Sequence[str],
    config: FolderConfig,
    model: ModelConfig,
    tokenizer: VideoTokenizer,
    text_tokenizer: Tokenizer | None = None,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> SourceOf:
    """Open token caches for a model; see `training_data`.

    Raises:
        ValueError: clips of other scales than the model's, or what `check_labels` refuses.
        CheckpointError: a cache that is missing, unfinished, torn or of another tokenizer.
    """
    if config != FolderConfig(weights=config.weights):
        raise ValueError("--cache: clips are as they were cached, only --data-weights goes with it")
    caches = [TokenCache(Path(path), tokenizer) for path in paths]
    for cache in caches:
        if cache.plan.sizes != model.transformer.sizes:
            text = f"{cache.plan.sizes}, the model's are {model.transformer.sizes}"
            raise ValueError(f"{cache.folder}: sizes: {text}")
        rows = ((cache.folder / r["file"], r["caption"], r["class"]) for r in cache.rows)
        check_labels(rows, model, text_tokenizer)
    weights = _weights(config, [len(cache) for cache in caches])

    def source_of(shapes: Sequence[Shape], seed: int) -> Source:
        (shape,) = shapes
        frames = tokenizer.config.latent_frames(shape.frames)
        pairs = list(zip(caches, weights, strict=True))
        long = [pair for pair in pairs if pair[0].plan.latent_frames >= frames]
        if not long:
            longest = max(cache.plan.num_frames for cache in caches)
            raise ValueError(f"--cache: {shape.frames} frames needed, the longest has {longest}")
        ranks = {"rank": rank, "world_size": world_size}
        return CacheSource(long, shape.batch, seed, frames=frames, **ranks)

    source_of([Shape(frames=model.num_frames, batch=world_size)], 0)
    return source_of


def _weights(config: FolderConfig, counts: list[int]) -> list[float]:
    if config.weights is None:
        return [float(count) for count in counts]
    if len(config.weights) != len(counts):
        raise ValueError(f"weights: one for each of {len(counts)}, got {len(config.weights)}")
    if min(config.weights) <= 0:
        raise ValueError(f"weights: above 0, got {config.weights}")
    return list(config.weights)
