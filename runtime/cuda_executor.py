"""The executor on a GPU: one graph a latent frame, the decoder on a stream of its own.

    main stream      guidance, wait for `taken`, frame graph (all slots, all scales), `computed`
    decoder stream   wait for `computed`, take latents, `taken`, decoder graphs, copies, `landed`

So frame n + 1 is computed while frame n becomes pixels; the host only waits for `landed`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from videoar.runtime.cache import CacheLayout, StaticCache
from videoar.runtime.executor import ModelExecutor, not_finite
from videoar.runtime.frame_state import FrameState
from videoar.runtime.graphs import GraphSet, buckets
from videoar.runtime.isolation import isolated
from videoar.runtime.job import Job, ScaleHook, SlotFrame
from videoar.runtime.plan import EngineSettings
from videoar.runtime.sampling import decode_frame, prefill_tokens

# A ticket may be under way while the next one is launched.
_TICKETS = 2


@dataclass(slots=True, kw_only=True)
class _Landing:
    """Pinned host memory and events of one frame under way."""

    frames: Tensor
    failed: Tensor
    guidance: Tensor
    started: "torch.cuda.Event" = field(default_factory=lambda: torch.cuda.Event(True))
    computed: "torch.cuda.Event" = field(default_factory=lambda: torch.cuda.Event(True))
    landed: "torch.cuda.Event" = field(default_factory=lambda: torch.cuda.Event(True))


@dataclass(slots=True, kw_only=True)
class _CudaTicket:
    """A latent frame on its way to the host.

    Attributes:
        numbers: of each slot, the latent frame of its job and the pixel frames it gives.
        num_scales: steps to report for each slot.
        spoiled: where slots with logits that are not finite are noted.
    """

    landing: _Landing
    numbers: dict[int, tuple[int, int]]
    num_scales: int
    on_scale: ScaleHook
    spoiled: set[int]

    @property
    def done(self) -> bool:
        return self.landing.landed.query()

    def wait(self) -> dict[int, SlotFrame]:
        landing = self.landing
        landing.landed.synchronize()
        # All slots are one launch, of which each has an equal share.
        each = 1e3 * len(self.numbers)
        seconds = {
            "transformer": landing.started.elapsed_time(landing.computed) / each,
            "decoder": landing.computed.elapsed_time(landing.landed) / each,
        }
        results = {}
        for slot, (number, count) in self.numbers.items():
            for k in range(self.num_scales):
                # So are the scales.
                self.on_scale(slot, number, k, seconds["transformer"] / self.num_scales)
            if landing.failed[slot]:
                self.spoiled.add(slot)
                results[slot] = SlotFrame(frames=None, error=not_finite(number))
            else:
                frames = landing.frames[slot, :count].numpy().copy()
                results[slot] = SlotFrame(frames=frames, seconds=seconds)
        return results


class CudaExecutor(ModelExecutor):
    """`ModelExecutor` that replays graphs, all captured in the constructor."""

    def _create(self, settings: EngineSettings) -> None:
        device = self.transformer.sos.device
        self.stream = torch.cuda.Stream(device)
        self.decoder_stream = torch.cuda.Stream(device)
        self.graphs = GraphSet(self.stream)
        # The two streams run at the same time, so their graphs must not share memory.
        self.decoder_graphs = GraphSet(self.decoder_stream)
        super()._create(settings)
        config = self.config
        tau = self.temporal_compression
        pixels = (self.slots, tau, config.height, config.width, 3)
        self.latents = torch.zeros_like(self.state.latents)
        self.pixels = torch.zeros(pixels, dtype=torch.uint8, device=device)
        self.failed = torch.zeros_like(self.state.failed)
        self.taken = torch.cuda.Event()
        self.landings = [
            _Landing(
                frames=_pinned(self.pixels),
                failed=_pinned(self.failed),
                guidance=_pinned(self.state.guidance),
            )
            for _ in range(_TICKETS)
        ]
        # What the lines above fill runs on another stream than the graphs.
        torch.cuda.synchronize(device)
        self._capture(settings.layout)

    def _capture(self, layout: CacheLayout) -> None:
        """Every graph that a request can need, the largest first."""
        for count in reversed(buckets(self.slots)):
            view = self.state.view(0, count)
            self.graphs.capture(
                count, lambda view=view: decode_frame(self.transformer, view), _buffers(view)
            )
        self._capture_prefill(layout)
        for slot in range(self.slots):
            state = self.decoder_states[slot]
            for first in (False, True):
                state.started = not first
                call = partial(self._decode_pixels, slot, first)
                self.decoder_graphs.capture((slot, first), call, {})
        for view in (self.state.frames, self.state.draws, self.state.failed):
            view.zero_()
        torch.cuda.synchronize(self.transformer.sos.device)

    def _capture_prefill(self, layout: CacheLayout) -> None:
        """A graph for each length of text, rounded up; padding behind a text is never seen."""
        weight = self.transformer.embed_bits.weight
        row = CacheLayout.of_text(layout.max_text)
        memory = (weight.dtype, weight.device)
        self.text_row = StaticCache(self.transformer.config, row, 1, *memory)
        self.text = torch.zeros(1, layout.max_text, dtype=torch.int64, device=weight.device)
        # Both are filled on another stream than the graphs'.
        torch.cuda.synchronize(weight.device)
        for length in reversed(_lengths(layout.max_text)):
            tokens = self.text[:, :length]
            self.graphs.capture(
                ("text", length),
                lambda tokens=tokens: prefill_tokens(self.transformer, tokens, self.text_row),
                {"tokens": tokens, "cache": self.text_row.data},
            )
        self.prefixes.prefill = self._prefill_text

    def _prefill_text(self, tokens: Sequence[int], cache: StaticCache) -> None:
        if not tokens:
            return
        length = next(n for n in _lengths(self.text.shape[1]) if n >= len(tokens))
        padded = [*tokens, *[0] * (length - len(tokens))]
        self.text[0, :length] = torch.tensor(padded, device=self.text.device)
        buffers = {"tokens": self.text[:, :length], "cache": self.text_row.data}
        self.graphs.replay(("text", length), buffers)
        cache.data.copy_(self.text_row.data)

    def start(
        self, slot: int, job: Job, shot: int, history: np.ndarray | None, first_frame: int
    ) -> None:
        with torch.cuda.stream(self.stream):
            super().start(slot, job, shot, history, first_frame)

    def _prime_decoder(self, slot: int, latents: Tensor) -> None:
        self.decoder_stream.wait_stream(self.stream)
        latents.record_stream(self.decoder_stream)
        with torch.cuda.stream(self.decoder_stream):
            super()._prime_decoder(slot, latents)

    @isolated
    @torch.inference_mode()
    def frame(self, slots: Sequence[int], on_scale: ScaleHook) -> _CudaTicket:
        landing = self.landings.pop(0)
        self.landings.append(landing)
        self._compute(slots, landing)
        numbers = {slot: self._number(slot) for slot in slots}
        with torch.cuda.stream(self.decoder_stream):
            self.decoder_stream.wait_event(landing.computed)
            self.latents.copy_(self.state.latents)
            self.failed.copy_(self.state.failed)
            self.taken.record()
            for slot in slots:
                state = self.decoder_states[slot]
                self.decoder_graphs.replay((slot, not state.started), {})
                state.started = True
            landing.frames.copy_(self.pixels, non_blocking=True)
            landing.failed.copy_(self.failed, non_blocking=True)
            landing.landed.record()
        for slot in slots:
            self.running[slot].frame += 1
        return _CudaTicket(
            landing=landing,
            numbers=numbers,
            num_scales=self.num_scales,
            on_scale=on_scale,
            spoiled=self.spoiled,
        )

    def _compute(self, slots: Sequence[int], landing: _Landing) -> None:
        """The frame of all slots up to the highest, on the main stream."""
        count = next(n for n in buckets(self.slots) if n > max(slots))
        for slot in slots:
            landing.guidance[slot] = torch.tensor(
                self.running[slot].strengths(), dtype=torch.float32
            )
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(self.taken)
            self.state.guidance.copy_(landing.guidance, non_blocking=True)
            landing.started.record()
            self.graphs.replay(count, _buffers(self.state.view(0, count)))
            landing.computed.record()

    def _number(self, slot: int) -> tuple[int, int]:
        """Latent frame of the job that comes now, and its pixel frames."""
        run, started = self.running[slot], self.decoder_states[slot].started
        return run.first + run.frame, self.temporal_compression if started else 1

    def _decode_pixels(self, slot: int, first: bool) -> None:
        """What a decoder graph holds; the flag decides on the host which of two forms it is."""
        self.decoder_states[slot].started = not first
        frames = self.decoder.step(self.latents[slot], self.decoder_states[slot])
        self.pixels[slot, : len(frames)].copy_(frames)

    def clear(self, slot: int) -> None:
        with torch.cuda.stream(self.stream):
            super().clear(slot)

    def close(self) -> None:
        torch.cuda.synchronize(self.transformer.sos.device)
        self.graphs.close()
        self.decoder_graphs.close()
        super().close()


def _pinned(like: Tensor) -> Tensor:
    """Host memory that a stream can copy from and to while the host goes on."""
    return torch.zeros(like.shape, dtype=like.dtype, device="cpu").pin_memory()


def _buffers(state: FrameState) -> dict[str, Tensor]:
    names = ("text_lengths", "frames", "draws", "seeds", "guidance", "inputs", "latents")
    return {"cache": state.cache.data, **{name: getattr(state, name) for name in names}}


def _lengths(max_text: int) -> list[int]:
    """Text lengths that get a graph: powers of two, and the longest."""
    return [*(1 << i for i in range((max_text - 1).bit_length())), max_text]
