"""The static key-value cache and where in it a decoding step reads and writes.

One tensor `[2, layers, slots, kv_heads, capacity, head_dim]`: text in a fixed region in front, a
ring of latent frames behind it. Nothing grows; what is valid is a list of segments.
"""

from dataclasses import dataclass

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
    def of(cls, config: TransformerConfig, num_latent_frames: int | None = None) -> "CacheLayout":
        """Room for the trained window, or for fewer frames where fewer are wanted."""
        frames = min(num_latent_frames or config.max_frames, config.max_frames)
        return cls(
            max_text=config.max_text,
            tokens_per_frame=config.tokens_per_frame,
            ring_frames=frames,
        )

    @property
    def capacity(self) -> int:
        """Tokens a slot holds."""
        return self.max_text + self.ring_frames * self.tokens_per_frame

    def start(self, frame: int) -> int:
        """First row of latent frame `frame`: its place in the ring."""
        return self.max_text + (frame % self.ring_frames) * self.tokens_per_frame

    def segments(self, text_lengths: Tensor, frame: int, filled: int) -> Tensor:
        """What the tokens of `frame` may see once `filled` of its tokens are written.

        Args:
            text_lengths: int `[B]`.

        Returns:
            int32 `[B,3,2]` of `(start, length)`: the text, then the ring up to and with the
            current frame, then the older frames behind it.
        """
        place = frame % self.ring_frames
        size = self.tokens_per_frame
        behind = 0 if frame < self.ring_frames else (self.ring_frames - 1 - place) * size
        segments = torch.zeros(len(text_lengths), 3, 2, dtype=torch.int32)
        segments[:, 0, 1] = text_lengths
        segments[:, 1, 0] = self.max_text
        segments[:, 1, 1] = place * size + filled
        segments[:, 2, 0] = self.max_text + (place + 1) * size
        segments[:, 2, 1] = behind
        return segments.to(text_lengths.device)

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

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, `[slots,kv_heads,capacity,head_dim]` each."""
        return self.data[0, index], self.data[1, index]
