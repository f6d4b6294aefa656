"""Which models, batches and ways the suite runs, and how much memory they need."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from videoar.benchmarks.par_config import PAR_PRESETS, ParConfig
from videoar.benchmarks.suite_entry import WAYS
from videoar.runtime.cache import CacheLayout
from videoar.runtime.config import ModelConfig
from videoar.runtime.cost_decoder import clip_convs
from videoar.runtime.plan import EngineSettings, MemoryPlan, parameter_counts
from videoar.runtime.presets import PRESETS

MODELS = ("digits", "videoar-l", "videoar-xl", "videoar-4b", *PAR_PRESETS)
BATCHES = (1, 8, 64)
# What two cores run in less than ten minutes; more only where it is asked for. Inductor takes about
# 40 s of processor time for a decoder, and as long for the six scales of a model.
CPU_MODELS, CPU_BATCHES = ("digits", "videoar-l", "par-4x"), (1,)
# Those of one clip shape, 17 x 128 x 128, whose times may be divided by each other.
RIVALS = ("videoar-l", "videoar-xl", *PAR_PRESETS)
# Of the plain decoder at once: a map, normalised, its three taps, the result.
_LIVE_MAPS = 6
VIDEO_PARTS = ("transformer", "decoder", "clip", "first_frame", "steady_frame")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One entry of `bench_generate`."""

    model: str
    batch: int
    way: str
    part: str

    def __str__(self) -> str:
        return f"{self.model}-batch{self.batch}-{self.way}-{self.part}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What is run.

    Attributes:
        models, batches, ways: that are chosen.
        requested: whether someone asked for them, so that what cannot run is a failure.
        brief: whether what a CPU would compile for longer than it runs is left out.
    """

    models: Sequence[str]
    batches: Sequence[int]
    ways: Sequence[str]
    requested: bool
    brief: bool = False

    @classmethod
    def of(
        cls,
        device: str,
        models: Sequence[str] | None = None,
        batches: Sequence[int] | None = None,
        ways: Sequence[str] | None = None,
    ) -> "Selection":
        """From the command line; None: the default of the device, "cpu" or "cuda".

        Raises:
            ValueError: none, an unknown model or way, or a batch below 1.
        """
        for name, chosen in {"presets": models, "batches": batches, "ways": ways}.items():
            if chosen is not None and not chosen:
                raise ValueError(f"{name}: expected at least one")
        models, batches = (one and list(dict.fromkeys(one)) for one in (models, batches))
        for name, chosen, known in (("presets", models, MODELS), ("ways", ways, WAYS)):
            for one in chosen or ():
                if one not in known:
                    raise ValueError(f"{name}: no {one!r}, there are {', '.join(known)}")
        for batch in batches or ():
            if batch < 1:
                raise ValueError(f"batches: expected 1 or more, got {batch}")
        cpu = device == "cpu"
        return cls(
            models=models or (CPU_MODELS if cpu else MODELS),
            batches=batches or (CPU_BATCHES if cpu else BATCHES),
            ways=tuple(way for way in WAYS if way == WAYS[0] or ways is None or way in ways),
            requested=any(one is not None for one in (models, batches, ways)),
            brief=cpu and ways is None,
        )

    def cases(self) -> list[Case]:
        """Entries, those of one model and batch together."""
        return [
            Case(model=model, batch=batch, way=way, part=part)
            for batch in self.batches
            for model in self.models
            for way in self.ways_of(model)
            for part in self.parts_of(model, way)
        ]

    def ways_of(self, model: str) -> tuple[str, ...]:
        """In the order of `WAYS`."""
        short = self.brief and model == "digits"
        return tuple(way for way in self.ways if not (short and way == "compiled"))

    def parts_of(self, model: str, way: str) -> tuple[str, ...]:
        """Those that are run."""
        parts = parts_of(model, way)
        return parts[:1] if self.brief and way == "compiled" else parts

    def left_out(self) -> list[tuple[str, int, str, str, str]]:
        """What the suite has and does not run: model, batch, way, part, reason."""
        rows = [
            (model, batch, "all", "all", f"not selected: --presets {model} --batches {batch}")
            for model in MODELS
            for batch in BATCHES
            if model not in self.models or batch not in self.batches
        ]
        reason = "not selected, as it compiles for longer than it runs: --ways eager,compiled,bare"
        for model in self.models if "compiled" in self.ways else ():
            kept = self.parts_of(model, "compiled") if "compiled" in self.ways_of(model) else ()
            missing = [part for part in parts_of(model, "compiled") if part not in kept]
            rows += [(model, b, "compiled", part, reason) for b in self.batches for part in missing]
        return rows


def parts_of(model: str, way: str) -> tuple[str, ...]:
    """The parts that a way of running a model has."""
    if model in PAR_PRESETS:
        return VIDEO_PARTS[:1]
    return {"videoar": VIDEO_PARTS, "bare": VIDEO_PARTS[:2]}.get(way, VIDEO_PARTS[:3])


def races(
    models: Sequence[str], needed: Mapping[str, int], available: int
) -> list[tuple[str, ...]]:
    """Which models are timed in the same rounds: rivals, as long as all of them fit."""
    rivals = tuple(model for model in models if model in RIVALS)
    alone = [(model,) for model in models if model not in RIVALS]
    if sum(needed[model] for model in rivals) <= available:
        return [*alone, *([rivals] if rivals else [])]
    # The pair that the suite is about first, if it fits.
    pair = tuple(model for model in rivals if model in ("videoar-l", "par-4x"))
    if len(pair) == 2 and sum(needed[model] for model in pair) <= available:
        return [*alone, pair, *((model,) for model in rivals if model not in pair)]
    return [*alone, *((model,) for model in rivals)]


def needed_bytes(
    model: str, ways: Iterable[str], batch: int, dtype: torch.dtype, device: str
) -> dict[str, int]:
    """Memory that each way takes beside those in front of it; the runtime's own is always there."""
    count = _par_bytes if model in PAR_PRESETS else _video_bytes
    config = PAR_PRESETS.get(model) or PRESETS[model]
    ways = dict.fromkeys(("videoar", *ways))
    every = count(config, ways, batch, dtype, device)
    return {way: every[way] for way in ways}


def _video_bytes(
    config: ModelConfig, ways: Iterable[str], batch: int, dtype: torch.dtype, device: str
) -> dict[str, int]:
    settings = EngineSettings(config=config, slots=batch, dtype=dtype, device=device)
    plan, size = MemoryPlan.of(settings), dtype.itemsize
    cache = CacheLayout.of(config.transformer).num_bytes(config.transformer, 2 * batch, dtype)
    grid, frames = config.transformer.sizes[-1], config.transformer.max_frames
    convs = clip_convs(config.tokenizer, grid, 1, folded=False)
    later = clip_convs(config.tokenizer, grid, 2, folded=False)[len(convs) :]
    largest = max(
        first.width_out * (first.outputs + (frames - 1) * other.outputs)
        for first, other in zip(convs, later, strict=True)
    )
    decoding = _LIVE_MAPS * largest * batch * size
    weights = sum(parameter_counts(config).values()) * size
    # What grows by concatenation is there twice for a moment.
    eager = weights + cache + cache // config.transformer.layers + decoding
    compiled = cache + (0 if "eager" in ways else weights + decoding)
    return {
        "videoar": plan.total,
        "eager": eager,
        "compiled": compiled,
        "bare": plan.decoder_kernels if device == "cpu" else 0,
    }


def _par_bytes(
    config: ParConfig, ways: Iterable[str], batch: int, dtype: torch.dtype, device: str
) -> dict[str, int]:
    size = dtype.itemsize
    row = 2 * config.layers * config.width * config.num_tokens * size
    per_layer = config.width * (4 * config.width + 3 * config.mlp_width)
    weights = size * (config.layers * per_layer + 2 * config.codebook * config.width)
    cache = 2 * batch * row
    return {
        "videoar": weights + cache,
        "eager": weights + cache + cache // config.layers,
        "compiled": cache + (0 if "eager" in ways else weights),
        "bare": 0,
    }
