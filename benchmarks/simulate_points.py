"""What a clip would cost somewhere else: the cost card as a function of a point.

A prediction is the limit of every part (see `videoar.runtime.cost`) over the share of it that is
reached. With shares of 1 it is the limit itself: no machine is faster, and none has to get there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil

import torch

from videoar.runtime.config import ModelConfig
from videoar.runtime.cost import Limits, Work, clip_steps, prefill_cost
from videoar.runtime.cost_decoder import decoder_levels
from videoar.runtime.guidance import GuidanceSchedule
from videoar.runtime.plan import EngineSettings, MemoryPlan
from videoar.runtime.presets import preset
from videoar.runtime.schedule import default_sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A model, a clip, and how many of them at once.

    Attributes:
        model: preset.
        num_frames: pixel frames of a clip.
        height, width: pixels; scales follow `default_sizes` where they are not the preset's.
        window: earlier latent frames that stay visible; None: all of the clip's.
        slots: clips at a time.
        layers: of the transformer; None: the preset's.
    """

    model: str
    num_frames: int
    height: int
    width: int
    window: int | None = None
    slots: int = 1
    layers: int | None = None

    @classmethod
    def of(cls, model: str, **changes: int | None) -> "Point":
        """The preset's own clip, but for the changes that are not None."""
        config = preset(model)
        own = {"num_frames": config.num_frames, "height": config.height, "width": config.width}
        return cls(model=model, **own | {n: x for n, x in changes.items() if x is not None})

    @property
    def config(self) -> ModelConfig:
        """The model, its context as long as the window.

        Raises:
            ValueError: a size that the tokenizer cannot divide.
        """
        base = preset(self.model)
        grid = base.tokenizer.latent_size(self.height, self.width)
        own = base.transformer
        transformer = replace(
            own,
            sizes=own.sizes if own.sizes[-1] == grid else default_sizes(*grid),
            max_frames=1 + self.seen,
            layers=own.layers if self.layers is None else self.layers,
        )
        return replace(base, height=self.height, width=self.width, transformer=transformer)

    @property
    def latent_frames(self) -> int:
        return preset(self.model).tokenizer.latent_frames(self.num_frames)

    @property
    def seen(self) -> int:
        """Earlier latent frames that stay visible."""
        return self.latent_frames - 1 if self.window is None else self.window


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Of the limit that is reached, above 0; 1 is the limit itself."""

    transformer: float = 1.0
    decoder: float = 1.0

    def __post_init__(self) -> None:
        for name in ("transformer", "decoder"):
            if not getattr(self, name) > 0:
                raise ValueError(f"share of the {name}: above 0, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a point costs on a device.

    Attributes:
        point: that it is for.
        text_s, transformer_s, decoder_s: of all slots: text in front, decoding steps, decoder.
        bound: what most of the last step's time goes to: "weights", "cache" or "compute".
        flops: of the three parts, all slots.
        memory: bytes by purpose, as `MemoryPlan.parts`.
        memory_limit: bytes of the device.
        fps: frames a second that the clip is shown at.
    """

    point: Point
    text_s: float
    transformer_s: float
    decoder_s: float
    bound: str
    flops: int
    memory: dict[str, int]
    memory_limit: int
    fps: int

    @property
    def seconds(self) -> float:
        """Until all slots have their clip."""
        return self.text_s + self.transformer_s + self.decoder_s

    @property
    def clips_per_second(self) -> float:
        return self.point.slots / self.seconds

    @property
    def real_time(self) -> float:
        """Seconds of video a second of computing, all slots together."""
        return self.clips_per_second * self.point.num_frames / self.fps

    @property
    def total_bytes(self) -> int:
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.memory_limit


def predict(
    point: Point,
    limits: Limits,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cuda",
    shares: Shares | None = None,
) -> Prediction:
    """The cost of a point on a device with these limits.

    Args:
        device: "cuda" computes all slots together, "cpu" as many as `EngineSettings.together` says.

    Raises:
        ValueError: a size out of range.
    """
    config, shares = point.config, shares or Shares()
    settings = EngineSettings(config=config, slots=point.slots, dtype=dtype, device=device)
    work = Work(
        requests=settings.together,
        sequences=1 if GuidanceSchedule.parse(config.guidance).is_one() else 2,
        text=settings.layout.max_text,
        window=point.seen,
        itemsize=dtype.itemsize,
    )
    batches = point.slots / settings.together
    text = prefill_cost(config.transformer, work)
    steps = clip_steps(config.transformer, work, point.latent_frames)
    levels = decoder_levels(
        config.tokenizer,
        config.transformer.sizes[-1],
        point.latent_frames,
        limits,
        itemsize=dtype.itemsize,
        requests=work.requests,
    )
    flops = text.flops + sum(s.flops for s in steps) + sum(level.flops for level in levels)
    return Prediction(
        point=point,
        text_s=batches * text.seconds(limits) / shares.transformer,
        transformer_s=batches * sum(s.seconds(limits) for s in steps) / shares.transformer,
        decoder_s=batches * sum(level.seconds for level in levels) / shares.decoder,
        bound=steps[-1].bound(limits),
        flops=round(batches * flops),
        memory=MemoryPlan.of(settings).parts(),
        memory_limit=limits.memory,
        fps=config.fps,
    )


# What each axis runs through; edges of pixels are times the base's.
FRAMES = (17, 33, 65, 129, 257)
WINDOWS = (0, 1, 2, 4, 8, 16)
SLOTS = (1, 2, 3, 4, 6, 8, 16)
EDGES = (0.5, 0.75, 1.0, 1.5, 2.0)
MODELS = ("videoar-l", "videoar-xl", "videoar-4b")
SHORT_WINDOW = 4


def axes_of(base: Point) -> dict[str, list[Point]]:
    """Points that differ from the base in one thing; two lines over the frames."""
    compression = preset(base.model).tokenizer.spatial_compression
    sizes = [
        tuple(compression * max(1, round(edge * side / compression)) for side in base_size)
        for edge in EDGES
        for base_size in [(base.height, base.width)]
    ]
    return {
        "frames, all earlier ones seen": _changed(
            base, ({"num_frames": count, "window": None} for count in FRAMES)
        ),
        f"frames, window of {SHORT_WINDOW}": _changed(
            base, ({"num_frames": count, "window": SHORT_WINDOW} for count in FRAMES)
        ),
        "resolution": _changed(base, ({"height": h, "width": w} for h, w in sizes)),
        "window": _changed(
            base, ({"window": count} for count in WINDOWS if count < base.latent_frames)
        ),
        "slots": _changed(base, ({"slots": count} for count in SLOTS)),
        "model": _changed(base, ({"model": name} for name in MODELS)),
    }


def _changed(base: Point, changes: Iterable[dict[str, object]]) -> list[Point]:
    return [replace(base, **change) for change in changes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """How many devices serve a demand with a number of slots each.

    Attributes:
        prediction: of one device.
        devices: that reach the demand; None: the slots do not fit.
    """

    prediction: Prediction
    devices: int | None


def fleet(predictions: Sequence[Prediction], clips_per_second: float) -> list[Fleet]:
    """The devices for a demand, for every number of slots."""
    return [
        Fleet(
            prediction=one,
            # The smallest count that is enough, but for rounding.
            devices=ceil(clips_per_second / one.clips_per_second - 1e-9) if one.fits else None,
        )
        for one in predictions
    ]
