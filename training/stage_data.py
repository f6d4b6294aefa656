"""A stage's data, opened from its config before the first step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer

from videoar.runtime.config import ModelConfig
from videoar.runtime.errors import MediaError
from videoar.runtime.video_tokenizer import VideoTokenizer
from videoar.training import digits
from videoar.training.config_file import within
from videoar.training.digit_sources import DigitFrames, DigitLatents
from videoar.training.folder_config import DataConfig, check_labels
from videoar.training.loader import Loader
from videoar.training.sources import EncodedSource, FolderSource, MixedSource, Part, Shape, Source
from videoar.training.stages import Stage, Training, fitted, sizes_of, stage_seed
from videoar.training.token_cache import CacheSource, TokenCache
from videoar.training.video_folder import Bucket, VideoFolder
from videoar.training.world import ALONE, World

DIGIT_SIZE = (digits.SIZE, digits.SIZE)


@dataclass(kw_only=True)
class StageData:
    """Makes the sources of a run's stages; every folder is scanned and every cache opened once.

    Attributes:
        model: whose frame size and rate clips have where the config leaves them open.
        folder: the run's, for what is encoded on the way.
        tokenizer: encodes clips, and must be the one of the caches; None: frames are trained on,
            whatever their captions.
        text_tokenizer: what the captions must suit.
        report: called with each folder that was scanned, by rank 0.
        world: the processes that share a batch.
    """

    model: ModelConfig
    folder: Path
    tokenizer: VideoTokenizer | None = None
    text_tokenizer: Tokenizer | None = None
    report: Callable[[VideoFolder], None] = lambda folder: None
    world: World = ALONE
    _folders: dict[DataConfig, VideoFolder] = field(default_factory=dict)
    _caches: dict[str, TokenCache] = field(default_factory=dict)

    def open(self, config: Training, stage: Stage, number: int) -> Source:
        """The source of stage `number`, whose batches have the shapes and shares of the config.

        Raises:
            ValueError: data that does not suit the model, a missing or unknown caption or class.
            MediaError: a folder without readable media, or nothing that fills a shape.
            CheckpointError: a cache that is unfinished, or of another tokenizer.
        """
        entries, places = _entries(config, stage, number)
        shares = self._shares(entries, places)
        seed, opened, weights = stage_seed(config.seed, number), [], []
        for shapes in _by_frames(fitted(stage, self.model)):
            found: list[tuple[Source, float]] = []
            for entry, place, share in zip(entries, places, shares, strict=True):
                with within(place):
                    source = self._source(entry, shapes, seed + len(opened) + len(found))
                found += [(source, share)] if source is not None else []
            if not found:
                raise MediaError(f"stages[{number}].shapes: {self._too_short(entries, shapes)}")
            total = sum(share for _, share in found)
            opened += [source for source, _ in found]
            weights += [sum(s.share for s in shapes) * share / total for _, share in found]
        source = opened[0] if len(opened) == 1 else MixedSource(opened, weights, seed)
        if any(entry.source == "folder" for entry in entries):
            source = Loader(source, config.workers)
        return source if self.tokenizer is None else EncodedSource(source, self.tokenizer)

    @property
    def _ranks(self) -> dict[str, int]:
        return {"rank": self.world.rank, "world_size": self.world.size}

    def _shares(self, entries: Sequence[DataConfig], places: Sequence[str]) -> list[float]:
        """The sources' shares: all given, or all as they have files or clips."""
        given = [entry.share is not None for entry in entries]
        if all(given) or len(entries) == 1:
            return [entry.share or 1.0 for entry in entries]
        missing = given.index(False)
        if any(given) or any(entry.source == "digits" for entry in entries):
            text = "missing, give one to each source of a mix with others that have one or digits"
            raise ValueError(f"{places[missing]}.share: {text}")
        counts = []
        for entry, place in zip(entries, places, strict=True):
            with within(place):
                folder = entry.source == "folder"
                counts.append(len(self._scan(entry).items if folder else self._cache(entry)))
        return [float(count) for count in counts]

    def _source(self, entry: DataConfig, shapes: Sequence[Shape], seed: int) -> Source | None:
        """The source of one entry for shapes of one length; None where nothing fills them."""
        if entry.source == "digits":
            return self._digits(entry, shapes, seed)
        if entry.source == "cache":
            return self._cached(entry, shapes, seed)
        folder = self._scan(entry)
        buckets = tuple(
            Bucket(frames=s.frames, height=s.height, width=s.width, batch=s.batch) for s in shapes
        )
        clip = entry.clip(self.model.fps)
        if not any(folder.split(buckets, clip.fps)):
            return None
        return FolderSource([Part(folder=folder, buckets=buckets)], clip, seed, **self._ranks)

    def _digits(self, entry: DataConfig, shapes: Sequence[Shape], seed: int) -> Source:
        text = self.tokenizer is None or self.model.transformer.condition == "text"
        if not text or any((s.height, s.width) != DIGIT_SIZE for s in shapes):
            size = "x".join(map(str, DIGIT_SIZE))
            raise ValueError(f"source: the moving digits are {size} with captions; give other data")
        (shape,) = shapes
        args = (shape.frames, shape.batch, seed, self.world)
        if entry.count is None or self.tokenizer is None:
            return DigitFrames(*args)
        return DigitLatents(Path(entry.path or self.folder), self.tokenizer, entry.count, *args)

    def _cached(self, entry: DataConfig, shapes: Sequence[Shape], seed: int) -> Source | None:
        cache = self._cache(entry)
        plan = cache.plan
        fit = [s for s in shapes if (s.height, s.width) == (plan.height, plan.width)]
        frames = self.tokenizer.config.latent_frames(shapes[0].frames)
        if not fit or plan.latent_frames < frames:
            return None
        source = [(cache, 1.0)]
        return CacheSource(source, fit[0].batch, seed, frames=frames, **self._ranks)

    def _scan(self, entry: DataConfig) -> VideoFolder:
        if entry not in self._folders:
            folder = self._folders[entry] = entry.scan(entry.path)
            if self.world.main:
                self.report(folder)
            if self.tokenizer is not None:
                rows = ((folder.path / i.name, i.caption, i.class_id) for i in folder.items)
                check_labels(rows, self.model, self.text_tokenizer)
        return self._folders[entry]

    def _cache(self, entry: DataConfig) -> TokenCache:
        if self.tokenizer is None:
            raise ValueError("source: a cache holds no frames, which a tokenizer is trained on")
        if entry.path not in self._caches:
            cache = TokenCache(Path(entry.path), self.tokenizer)
            sizes = sizes_of(cache.plan.sizes[-1], self.model.transformer.sizes)
            if cache.plan.sizes != sizes:
                text = f"{cache.plan.sizes}, the model's are {sizes}"
                raise ValueError(f"{cache.folder}: sizes: {text}")
            rows = ((cache.folder / r["file"], r["caption"], r["class"]) for r in cache.rows)
            check_labels(rows, self.model, self.text_tokenizer)
            self._caches[entry.path] = cache
        return self._caches[entry.path]

    def bits_alone(self, config: Training, stage: Stage, number: int) -> str | None:
        """The path of a cache without latents among the data of stage `number`."""
        for entry, place in zip(*_entries(config, stage, number), strict=True):
            if entry.source == "cache":
                with within(place):
                    if not self._cache(entry).plan.latents:
                        return entry.path
        return None

    def _too_short(self, entries: Sequence[DataConfig], shapes: Sequence[Shape]) -> str:
        longest = []
        for entry in entries:
            if entry.source == "folder":
                folder = self._scan(entry)
                longest.append(f"{entry.path} {folder.longest(entry.clip(self.model.fps).fps)}")
            else:
                plan = self._cache(entry).plan
                longest.append(f"{entry.path} {plan.num_frames}x{plan.height}x{plan.width}")
        wanted = ", ".join(f"{s.frames}x{s.height}x{s.width}" for s in shapes)
        text = "frames of the longest file"
        return f"nothing fills a clip of {wanted}; {text}: {', '.join(longest)}"


def _entries(config: Training, stage: Stage, number: int) -> tuple[Sequence[DataConfig], list[str]]:
    """The sources of a stage, and where in the config each of them is."""
    own = stage.data is not None
    entries, prefix = (stage.data, f"stages[{number}].") if own else (config.data, "")
    return entries, [f"{prefix}data[{index}]" for index in range(len(entries))]


def _by_frames(shapes: Sequence[Shape]) -> list[list[Shape]]:
    """Shapes of one length together, in the order of the config."""
    groups: dict[int, list[Shape]] = {}
    for shape in shapes:
        groups.setdefault(shape.frames, []).append(shape)
    return list(groups.values())
