"""The static key-value cache and where in it a decoding step reads and writes.

One tensor `[2, layers, slots, kv_heads, capacity, head_dim]`: text in a fixed region in front, a
ring of latent frames behind it. Nothing grows; what is valid is a list of segments.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from videoar.runtime.config import TransformerConfig
from videoar.runtime.memory import check_fits


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLayout:
    """Sizes of a cache.

    Attributes:
        max_text: text tokens in front.
        tokens_per_frame: N.
        ring_frames: latent frames the ring holds, the current one included.
    """

    max_text: int
    tokens_per_frame: int
    ring_frames: int

    @classmethod
    def of(
        cls, config: TransformerConfig, *, window: int | None = None, max_text: int | None = None
    ) -> "CacheLayout":
        """Room for the current frame and `window` earlier ones.

        Args:
            window: latent frames; None: as many as the model was trained with.
            max_text: None: the model's.

        Raises:
            ValueError: a negative window, or more text than the model knows.
        """
        window = config.max_frames - 1 if window is None else window
        max_text = config.max_text if max_text is None else max_text
        if window < 0:
            raise ValueError(f"window: expected 0 or more latent frames, got {window}; nearest: 0")
        if not 1 <= max_text <= config.max_text:
            raise ValueError(f"max_text: expected 1 .. {config.max_text}, got {max_text}")
        size = config.tokens_per_frame
        return cls(max_text=max_text, tokens_per_frame=size, ring_frames=window + 1)

    @classmethod
    def of_text(cls, max_text: int) -> "CacheLayout":
        """Room for a text and no frames."""
        return cls(max_text=max_text, tokens_per_frame=0, ring_frames=0)

    @property
    def capacity(self) -> int:
        """Tokens a slot holds."""
        return self.max_text + self.ring_frames * self.tokens_per_frame

    def start(self, frames: Tensor) -> Tensor:
        """First row of latent frames `frames`: their places in the ring."""
        return self.max_text + (frames % self.ring_frames) * self.tokens_per_frame

    def segments(self, text_lengths: Tensor, frames: Tensor, filled: Tensor) -> Tensor:
        """What the tokens of the coming frames may see, computed on the device of its arguments.

        Args:
            text_lengths: int64 `[B]`.
            frames: int64 `[B]`, frame each row is at.
            filled: int64 `[K]`, tokens of this frame that are written, the own chunk included.

        Returns:
            int32 `[K,B,3,2]` of `(start, length)`: the text, then the ring up to and with the
            current frame, then the older frames behind it.
        """
        size, place = self.tokens_per_frame, frames % self.ring_frames
        behind = (self.ring_frames - 1 - place) * size * (frames >= self.ring_frames)
        text = torch.stack([torch.zeros_like(text_lengths), text_lengths], dim=-1)
        older = torch.stack([self.max_text + (place + 1) * size, behind], dim=-1)
        first, count = torch.full_like(place, self.max_text), len(filled)
        recent = torch.stack([first.expand(count, -1), place * size + filled[:, None]], dim=-1)
        parts = [text.expand(count, -1, -1), recent, older.expand(count, -1, -1)]
        return torch.stack(parts, dim=2).int()

    def num_bytes(self, config: TransformerConfig, slots: int, dtype: torch.dtype) -> int:
        """Bytes of the whole cache."""
        row = 2 * config.layers * config.kv_heads * config.head_dim
        return row * slots * self.capacity * dtype.itemsize


class StaticCache:
    """The cache tensor with per-layer views; created once, zeroed, then only written in place.

    Raises:
        CapacityError: it does not fit into the device's memory.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layout: CacheLayout,
        slots: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.layout = layout
        needed = layout.num_bytes(config, slots, dtype)
        check_fits(f"a cache of {layout.capacity} tokens in {slots} rows", needed, device)
        shape = (2, config.layers, slots, config.kv_heads, layout.capacity, config.head_dim)
        self.data = torch.zeros(shape, dtype=dtype, device=device)

    def rows(self, first: int, count: int, step: int = 1) -> "StaticCache":
        """The cache of every `step`-th of `count` rows from `first` on, in the same memory."""
        part = object.__new__(StaticCache)
        part.layout, part.data = self.layout, self.data[:, :, first : first + count : step]
        return part

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, `[slots,kv_heads,capacity,head_dim]` each."""
        return self._layers[index]

    @cached_property
    def _layers(self) -> list[tuple[Tensor, Tensor]]:
        # Made once: a decoding step asks every layer for its own.
        return list(zip(*(part.unbind(0) for part in self.data), strict=True))
