"""All memory of an engine, known before any of it is created (DESIGN promises 3 and 8).

Weights, cache, buffers and decoder state are exact; workspaces, what one step needs in passing, are
an upper estimate. Everything is arithmetic on the configuration: no tensor is made.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from videoar.runtime.cache import CacheLayout
from videoar.runtime.config import ModelConfig
from videoar.runtime.cpu_layers import layers_bytes, one_call
from videoar.runtime.errors import CapacityError
from videoar.runtime.folded_plan import decoder_memory
from videoar.runtime.frame_state import FrameState
from videoar.runtime.memory import available_bytes
from videoar.runtime.modules import describe
from videoar.runtime.prefixes import prefix_bytes
from videoar.runtime.values import is_whole
from videoar.runtime.video_tokenizer import VideoTokenizer

# With its condition and without: a request may ask for guidance at any time.
ROWS_PER_SLOT = 2
# Tokens of a step that a CPU computes together. With more, products are bound by compute in every
# scale, so nothing is gained for the memory they take (docs/engine.md).
MOST_ROWS = 2048
# Of an encoder's residual block at once: residual, normalised, its three taps, result.
_LIVE_MAPS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What the memory of an engine follows from.

    Attributes:
        config: of the model.
        slots: requests at a time.
        window: earlier latent frames that stay visible; None: those of the trained length.
        max_text: text tokens of a request; None: as many as the model knows.
        dtype: of weights, cache and activations.
        device: "cpu" or "cuda".

    Raises:
        ValueError: a setting out of range.
    """

    config: ModelConfig
    slots: int = 1
    window: int | None = None
    max_text: int | None = None
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("slots", "window", "max_text"):
            value = getattr(self, name)
            if not (is_whole(value) or (value is None and name != "slots")):
                raise ValueError(f"{name}: expected an int, got {value!r}")
        if self.slots < 1:
            raise ValueError(f"slots: expected 1 or more, got {self.slots}; nearest: 1")
        # Checks the other two.
        assert self.layout.capacity > 0

    @property
    def layout(self) -> CacheLayout:
        """Of one row of the cache."""
        return CacheLayout.of(self.config.transformer, window=self.window, max_text=self.max_text)

    @property
    def together(self) -> int:
        """Slots that are decoded in one batch, at most; the batches come one after the other.

        A GPU takes all. A CPU takes what `MOST_ROWS` allows, but one by one where a request's sums
        would depend on its neighbours (docs/decisions.md).
        """
        if self.device != "cpu":
            return self.slots
        transformer = self.config.transformer
        if not one_call(transformer, self.dtype):
            return 1
        height, width = transformer.sizes[-1]
        return min(self.slots, max(1, MOST_ROWS // (ROWS_PER_SLOT * height * width)))

    @property
    def rows(self) -> int:
        """Tokens of the largest step."""
        height, width = self.config.transformer.sizes[-1]
        return ROWS_PER_SLOT * self.together * height * width


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Bytes by purpose.

    Attributes:
        settings: that they are for.
        weights: of both networks.
        decoder_kernels: of the streaming decoder, upsamples folded in; biases left out.
        cache: keys and values of all slots, and those of the texts kept between requests.
        buffers: positions, random keys, inputs, latents and bits of all slots.
        decoder_state: frames that the decoder's convolutions carry over, of all slots.
        workspaces: the decoder's maps, and what a pass of the transformer or encoder takes.
    """

    settings: EngineSettings
    weights: int
    decoder_kernels: int
    cache: int
    buffers: int
    decoder_state: int
    workspaces: int

    @classmethod
    def of(cls, settings: EngineSettings) -> "MemoryPlan":
        """The plan of an engine with these settings."""
        config, slots, dtype = settings.config, settings.slots, settings.dtype
        transformer, layout = config.transformer, settings.layout
        kind = decoder_dtype(dtype, settings.device)
        decoder = decoder_memory(config.tokenizer, *transformer.sizes[-1], kind)
        passing = max(_transformer_workspace(settings), _encoder_workspace(settings))
        if settings.device == "cpu":
            passing += layers_bytes(transformer, settings.rows, dtype)
        rows = layout.num_bytes(transformer, ROWS_PER_SLOT * slots, dtype)
        buffers = FrameState.num_bytes(transformer, layout, slots, ROWS_PER_SLOT)
        if settings.device != "cpu":
            buffers += _in_flight_bytes(settings)
        return cls(
            settings=settings,
            weights=sum(parameter_counts(config).values()) * dtype.itemsize,
            decoder_kernels=decoder.weights,
            cache=rows + prefix_bytes(transformer, slots, layout.max_text, dtype),
            buffers=buffers,
            decoder_state=slots * decoder.state,
            workspaces=decoder.workspace + passing,
        )

    @property
    def total(self) -> int:
        return self.weights + self.created

    @property
    def created(self) -> int:
        """What an engine creates: all but the weights, which the model has already."""
        parts = (self.decoder_kernels, self.cache, self.buffers, self.decoder_state)
        return sum(parts) + self.workspaces

    def parts(self) -> dict[str, int]:
        """Bytes by name, in the order of the attributes."""
        names = ("weights", "decoder_kernels", "cache", "buffers", "decoder_state", "workspaces")
        return {name: getattr(self, name) for name in names}


def decoder_dtype(dtype: torch.dtype, device: str) -> torch.dtype:
    """What the tokenizer's decoder computes in: CPUs have no float16 convolutions."""
    return torch.float32 if device == "cpu" and dtype == torch.float16 else dtype


@lru_cache
def parameter_counts(config: ModelConfig) -> dict[str, int]:
    """Elements of the weights of both networks."""
    with torch.device("meta"):
        tokenizer = sum(p.numel() for p in VideoTokenizer(config.tokenizer).parameters())
    return {"transformer": describe(config.transformer)["parameters"], "tokenizer": tokenizer}


def _in_flight_bytes(settings: EngineSettings) -> int:
    """What a GPU needs to go on while a frame is fetched: latents, pixels, a row for texts."""
    config, transformer = settings.config, settings.config.transformer
    (height, width), tau = transformer.sizes[-1], config.tokenizer.temporal_compression
    latents = 4 * transformer.latent_dim * height * width
    pixels = 3 * tau * config.height * config.width
    text = CacheLayout.of_text(settings.layout.max_text)
    slots = settings.slots
    return slots * (latents + pixels + 1) + text.num_bytes(transformer, 1, settings.dtype)


def _transformer_workspace(settings: EngineSettings) -> int:
    """Activations of one layer for the longest pass: given frames are prefilled all at once."""
    config, layout = settings.config.transformer, settings.layout
    rows = max(ROWS_PER_SLOT * layout.capacity, settings.rows)
    heads = (config.heads + 2 * config.kv_heads) * config.head_dim
    channels = 4 * config.width + 2 * heads + 3 * config.mlp_width + 2 * config.latent_dim
    return rows * channels * settings.dtype.itemsize


def _encoder_workspace(settings: EngineSettings) -> int:
    """The largest maps while given frames are encoded, a latent frame at a time."""
    tokenizer, config = settings.config.tokenizer, settings.config
    cells = config.height * config.width // tokenizer.patch_size**2
    frames, largest = tokenizer.temporal_compression, 0
    for level, width in enumerate(tokenizer.widths):
        largest = max(largest, frames * cells * width)
        cells //= 4
        frames //= 2 if level in tokenizer.temporal_levels else 1
    return _LIVE_MAPS * largest * settings.dtype.itemsize


def check(plan: MemoryPlan, device: torch.device | str, *, loaded: bool = True) -> None:
    """Refuse an engine whose memory is not there, before any of it is created.

    Args:
        device: whose free memory counts.
        loaded: the weights are there already.

    Raises:
        CapacityError: with the bytes needed and available, and in its text the most slots that
            fit, or else the longest window that fits with one slot.
    """
    available = available_bytes(device)
    needed = plan.created if loaded else plan.total
    if needed > available:
        settings = plan.settings
        slots = f"{settings.slots} slot{'s' * (settings.slots > 1)}"
        what = f"{slots} with a window of {settings.layout.ring_frames - 1} frames"
        hint = largest_fit(settings, available, loaded=loaded)
        raise CapacityError(f"{what} on {device}; {hint}", needed=needed, available=available)


def fitting_slots(settings: EngineSettings, available: int) -> int:
    """As many of `settings.slots` as fit beside the loaded weights, but 1 if none do."""
    fits = _fits(available, loaded=True)
    return _largest(lambda n: fits(replace(settings, slots=n)), 1, settings.slots) or 1


def largest_fit(settings: EngineSettings, available: int, *, loaded: bool = True) -> str:
    """The largest setting that fits, in words: slots first, then the window of a single slot."""

    fits = _fits(available, loaded=loaded)
    single = replace(settings, slots=1)
    slots = _largest(lambda n: fits(replace(settings, slots=n)), 1, settings.slots)
    if slots is not None:
        return f"largest that fits: {slots} slot{'s' * (slots > 1)} with this window"
    asked = settings.layout.ring_frames - 1
    window = _largest(lambda n: fits(replace(single, window=n)), 0, asked)
    if window is not None:
        return f"largest that fits: 1 slot with a window of {window} frame{'s' * (window != 1)}"
    weights = MemoryPlan.of(single).weights
    if not loaded and weights > available:
        return "the weights alone do not fit"
    return "not even 1 slot without a window fits"


def _fits(available: int, *, loaded: bool) -> Callable[[EngineSettings], bool]:
    def fits(settings: EngineSettings) -> bool:
        plan = MemoryPlan.of(settings)
        return (plan.created if loaded else plan.total) <= available

    return fits


def _largest(fits: Callable[[int], bool], low: int, high: int) -> int | None:
    """The largest of low .. high that fits, given that whatever is smaller fits then too."""
    if not fits(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
