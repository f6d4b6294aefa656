"""The static memory of decoding: all that one latent frame of every slot reads and writes.

Everything lies on the device and is written in place, positions included, so that one captured
graph serves every frame of every request.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from videoar.runtime.cache import CacheLayout, StaticCache
from videoar.runtime.config import TransformerConfig
from videoar.runtime.positions import frame_cells, frame_stride


@dataclass(slots=True, kw_only=True)
class FrameState:
    """State of R slots; a slot has g rows, the conditional one and with guidance (g = 2) another.

    Attributes:
        cache: keys and values of all rows; those of slot r are g r .. g r + g - 1.
        text_lengths: int64 `[g R]`.
        frames: int64 `[R]`, the coming latent frame's position behind its text.
        draws: int64 `[R]`, the number of the coming frame that keys its random numbers.
        seeds: int64 `[R]`.
        temperature: float32 `[R]`.
        guidance: float32 `[R,K]`, strengths of the coming frame.
        inputs: float32 `[R,n_1,d]`, next-scale input of the coming frame.
        latents: float32 `[R,d,H,W]`, the last frame.
        bits: bool `[R,N,d]`, those of the last frame.
        failed: bool `[R]`, whether any logit was not finite; set by `decode_frame`, never cleared.
        cells: int64 `[N,3]`, positions of the tokens of frame 0 behind its text.
        stride: int64 `[3]`, what every frame adds to them.
        starts: int64 `[K,P]`, first cache row of each chunk, for the P = 2 F places that a frame
            can have in a ring of F: filling it, and going round.
        segments: int32 `[K,P,3,2]`, what each chunk sees there behind a text of length 0.
    """

    cache: StaticCache
    text_lengths: Tensor
    frames: Tensor
    draws: Tensor
    seeds: Tensor
    temperature: Tensor
    guidance: Tensor
    inputs: Tensor
    latents: Tensor
    bits: Tensor
    failed: Tensor
    cells: Tensor
    stride: Tensor
    starts: Tensor
    segments: Tensor

    @classmethod
    def create(
        cls,
        config: TransformerConfig,
        layout: CacheLayout,
        slots: int,
        *,
        rows_per_slot: int = 2,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> "FrameState":
        """Memory for `slots` requests, all of it.

        Raises:
            CapacityError: it does not fit into the device's memory.
        """
        cache = StaticCache(config, layout, rows_per_slot * slots, dtype, device)
        starts, segments = _places(config, layout)
        buffers = {
            name: torch.zeros(shape, dtype=kind, device=device)
            for name, (shape, kind) in _shapes(config, slots, rows_per_slot).items()
        }
        return cls(
            cache=cache,
            cells=frame_cells(config).to(device),
            stride=torch.tensor(frame_stride(config), device=device),
            starts=starts.to(device),
            segments=segments.to(device),
            **buffers,
        )

    @staticmethod
    def num_bytes(
        config: TransformerConfig, layout: CacheLayout, slots: int, rows_per_slot: int = 2
    ) -> int:
        """Bytes of all buffers but the cache."""
        shapes = _shapes(config, slots, rows_per_slot).values()
        buffers = sum(torch.Size(shape).numel() * kind.itemsize for shape, kind in shapes)
        # A place of a chunk: its start, and three segments of two int32.
        places = 2 * layout.ring_frames * len(config.sizes)
        return buffers + 8 * 3 * (config.tokens_per_frame + 1) + (8 + 24) * places

    @property
    def slots(self) -> int:
        return len(self.frames)

    @property
    def rows_per_slot(self) -> int:
        return len(self.text_lengths) // len(self.frames)

    @property
    def num_scales(self) -> int:
        return len(self.starts)

    def view(self, first: int, count: int = 1) -> "FrameState":
        """The state of `count` slots from `first` on, in the same memory."""
        rows = self.rows_per_slot
        own = {name: getattr(self, name) for name in ("cells", "stride", "starts", "segments")}
        own["cache"] = self.cache.rows(rows * first, rows * count)
        own["text_lengths"] = self.text_lengths[rows * first : rows * (first + count)]
        for field in fields(self):
            if field.name not in own:
                own[field.name] = getattr(self, field.name)[first : first + count]
        return FrameState(**own)

    def unguided(self) -> "FrameState":
        """The slots without their unconditional rows, in the same memory."""
        rows = self.rows_per_slot
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        own["cache"] = self.cache.rows(0, rows * self.slots, rows)
        own["text_lengths"] = self.text_lengths[::rows]
        return FrameState(**own)


def _places(config: TransformerConfig, layout: CacheLayout) -> tuple[Tensor, Tensor]:
    """`starts` and `segments` of a state."""
    sizes = torch.tensor([h * w for h, w in config.sizes])
    filled, frames = sizes.cumsum(0), torch.arange(2 * layout.ring_frames)
    starts = layout.start(frames) + (filled - sizes)[:, None]
    return starts, layout.segments(torch.zeros_like(frames), frames, filled)


def _shapes(
    config: TransformerConfig, slots: int, rows_per_slot: int
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every buffer whose size grows with the slots."""
    (first_h, first_w), (height, width) = config.sizes[0], config.sizes[-1]
    bits = config.latent_dim
    return {
        "text_lengths": ((rows_per_slot * slots,), torch.int64),
        "frames": ((slots,), torch.int64),
        "draws": ((slots,), torch.int64),
        "seeds": ((slots,), torch.int64),
        "temperature": ((slots,), torch.float32),
        "guidance": ((slots, len(config.sizes)), torch.float32),
        "inputs": ((slots, first_h * first_w, bits), torch.float32),
        "latents": ((slots, bits, height, width), torch.float32),
        "bits": ((slots, config.tokens_per_frame, bits), torch.bool),
        "failed": ((slots,), torch.bool),
    }
