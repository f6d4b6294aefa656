"""A model on a device: what the scheduler drives, one latent frame at a time.

All memory is created in the constructor, from the plan of `videoar.runtime.plan`. A CPU decodes
neighbouring slots together where a row's sums do not depend on the other rows, and slot after slot
where they do, so a request's frames are the same whatever runs beside it (docs/decisions.md).
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from videoar.runtime.cpu_layers import CpuLayers
from videoar.runtime.errors import NumericalError
from videoar.runtime.fast_decoder import FastDecoder
from videoar.runtime.frame_state import FrameState
from videoar.runtime.history import encode_history, prefill_history
from videoar.runtime.isolation import isolated
from videoar.runtime.job import Executor, Job, ScaleHook, Shot, SlotFrame
from videoar.runtime.modules import checked_device, checked_dtype
from videoar.runtime.packed import PackedLinear, pack_linears
from videoar.runtime.plan import EngineSettings, MemoryPlan, check, decoder_dtype
from videoar.runtime.prefixes import PrefixStore
from videoar.runtime.sampling import decode_frame
from videoar.runtime.transformer import Transformer
from videoar.runtime.video_tokenizer import VideoTokenizer

if TYPE_CHECKING:
    from videoar.runtime.pipeline import VideoAR

_MAKING = threading.Lock()


@dataclass(slots=True)
class DoneTicket:
    """A frame that is computed already."""

    results: dict[int, SlotFrame]
    done: bool = True

    def wait(self) -> dict[int, SlotFrame]:
        return self.results


@dataclass(slots=True)
class _Running:
    """The shot in a slot.

    Attributes:
        job: the request.
        state: the slot's part of the static memory, with or without its unconditional row.
        first: latent frames of the job in front of position 0 of this shot.
        frame: position of the coming frame.
        total: latent frames of the shot, those given in front included.
    """

    job: Job
    state: FrameState
    first: int
    frame: int
    total: int

    @property
    def guided(self) -> bool:
        """Whether the slot's unconditional row counts."""
        return self.state.rows_per_slot > 1

    def strengths(self) -> list[float]:
        """Of guidance, over the scales of the coming frame."""
        return self.job.params.guidance.of_frame(self.frame, self.total, self.state.num_scales)


def not_finite(frame: int) -> NumericalError:
    """The error of a slot whose logits were NaN or infinite."""
    return NumericalError(f"latent frame {frame}: logits are not finite")


class ModelExecutor:
    """`Executor` of `videoar.runtime.job` for two networks. See `make_executor`."""

    @isolated
    def __init__(
        self, transformer: Transformer, tokenizer: VideoTokenizer, settings: EngineSettings
    ) -> None:
        self.transformer, self.tokenizer, config = transformer, tokenizer, settings.config
        self.config, self.slots, self.together = config, settings.slots, settings.together
        self.max_text = settings.layout.max_text
        self.num_scales = len(config.transformer.sizes)
        self.temporal_compression = config.tokenizer.temporal_compression
        self.running: dict[int, _Running] = {}
        self.spoiled: set[int] = set()
        with torch.inference_mode(False), torch.no_grad():
            self._create(settings)

    def _create(self, settings: EngineSettings) -> None:
        """All memory."""
        config, transformer, tokenizer = self.config, self.transformer, self.tokenizer
        slots, layout, weight = self.slots, settings.layout, transformer.embed_bits.weight
        memory = {"dtype": weight.dtype, "device": weight.device}
        self.state = FrameState.create(config.transformer, layout, slots, **memory)
        self.prefixes = PrefixStore(transformer, slots, layout.max_text, **memory)
        height, width = config.transformer.sizes[-1]
        memory["dtype"] = decoder_dtype(weight.dtype, weight.device.type)
        self.decoder = FastDecoder(tokenizer.decoder, **memory, height=height, width=width)
        self.layers = None
        if CpuLayers.serves(transformer):
            self.layers = CpuLayers(transformer, settings.rows)
        self.decoder_states = [self.decoder.new_state() for _ in range(slots)]

    @isolated
    @torch.inference_mode()
    def start(
        self, slot: int, job: Job, shot: int, history: np.ndarray | None, first_frame: int
    ) -> None:
        assert slot not in self.running, f"slot {slot} is not free"
        state, one = self._prefill(slot, job.shots[shot]), job.shots[shot]
        state.seeds.fill_(job.seed)
        state.temperature.fill_(job.params.temperature)
        state.failed.fill_(False)
        state.inputs.zero_()
        self.decoder.reset(self.decoder_states[slot])
        given = 0 if history is None else self._prefill_history(slot, state, history)
        state.frames.fill_(given)
        state.draws.fill_(first_frame)
        self.running[slot] = _Running(
            job=job,
            state=state,
            first=first_frame - given,
            frame=given,
            total=given + one.num_latent_frames,
        )

    def _prefill(self, slot: int, shot: Shot) -> FrameState:
        """Write the texts of a shot into the rows of a slot."""
        guided = shot.null_prefix is not None
        state = self._state(slot, 1, guided)
        prefixes = [shot.prefix, shot.null_prefix] if guided else [shot.prefix]
        limit = state.cache.layout.max_text
        for row, prefix in enumerate(prefixes):
            if len(prefix) > limit:
                raise ValueError(f"prompt: this engine takes {limit} tokens, got {len(prefix)}")
            self.prefixes.write(prefix, state.cache.rows(row, 1))
            state.text_lengths[row] = len(prefix)
        return state

    def _state(self, first: int, count: int, guided: bool) -> FrameState:
        state = self.state.view(first, count)
        return state if guided else state.unguided()

    def _prefill_history(self, slot: int, state: FrameState, history: np.ndarray) -> int:
        """Write the bits of given frames into the cache and prime the decoder; their number."""
        sizes = self.config.transformer.sizes
        bits = encode_history(self.tokenizer, history, sizes)
        latents = self.tokenizer.dequantize(bits[None], sizes)[0]
        self._prime_decoder(slot, latents)
        visible = bits[-state.cache.layout.ring_frames :]
        state.inputs.copy_(
            prefill_history(self.transformer, state.cache, state.text_lengths, visible)
        )
        return len(visible)

    def _prime_decoder(self, slot: int, latents: Tensor) -> None:
        """Decode `[d,t,H,W]` for what the decoder carries; the pixels are known already."""
        for frame in range(latents.shape[1]):
            self.decoder.step(latents[:, frame], self.decoder_states[slot])

    @isolated
    @torch.inference_mode()
    def frame(self, slots: Sequence[int], on_scale: ScaleHook) -> DoneTicket:
        results = {}
        for batch in self._batches(slots):
            share = self._decode(batch, on_scale)
            results |= {slot: self._land(slot, share) for slot in batch}
        return DoneTicket(results)

    def _batches(self, slots: Sequence[int]) -> Iterator[Sequence[int]]:
        """Neighbours among these slots, those with guidance and those without apart."""
        batch: list[int] = []
        for slot in sorted(slots):
            follows = batch and slot == batch[-1] + 1 and len(batch) < self.together
            if follows and self.running[slot].guided == self.running[batch[-1]].guided:
                batch.append(slot)
                continue
            if batch:
                yield batch
            batch = [slot]
        if batch:
            yield batch

    def _decode(self, slots: Sequence[int], on_scale: ScaleHook) -> float:
        """The coming latent frame of neighbouring slots; seconds, in equal shares."""
        runs = [self.running[slot] for slot in slots]
        state = self._state(slots[0], len(slots), runs[0].guided)
        begin = lap = time.perf_counter()
        strengths = [run.strengths() for run in runs]
        state.guidance.copy_(torch.tensor(strengths, dtype=torch.float32))

        def report(k: int) -> None:
            nonlocal lap
            now = time.perf_counter()
            for slot, run in zip(slots, runs, strict=True):
                on_scale(slot, run.first + run.frame, k, (now - lap) / len(slots))
            lap = now

        decode_frame(self.transformer, state, layers=self.layers, on_scale=report)
        return (time.perf_counter() - begin) / len(slots)

    def _land(self, slot: int, share: float) -> SlotFrame:
        """The pixels of the latent frame that was decoded in `share` seconds."""
        run = self.running[slot]
        run.frame += 1
        if run.state.failed.item():
            self.spoiled.add(slot)
            return SlotFrame(frames=None, error=not_finite(run.first + run.frame - 1))
        begin = time.perf_counter()
        frames = self.decoder.step(run.state.latents[0], self.decoder_states[slot]).numpy().copy()
        seconds = {"transformer": share, "decoder": time.perf_counter() - begin}
        return SlotFrame(frames=frames, seconds=seconds)

    def clear(self, slot: int) -> None:
        self.running.pop(slot, None)
        if slot in self.spoiled:
            # What a later request does not see may be multiplied by 0, so it must be finite.
            self.spoiled.remove(slot)
            self.state.view(slot).cache.data.zero_()

    def close(self) -> None:
        self.running.clear()
        del self.state, self.prefixes, self.decoder, self.decoder_states, self.layers


@isolated
def make_executor(
    model: VideoAR,
    *,
    slots: int = 1,
    max_text: int | None = None,
    window: int | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> Executor:
    """An executor with all the memory that it will ever need.

    The linear layers of `model` are packed in place (`videoar.runtime.packed`). One thread at a
    time makes one: so nobody copies a model that is half packed, or counts on the same memory.

    Args:
        slots: requests at a time.
        max_text: text tokens of a request; None: as many as the model knows.
        window: earlier latent frames that stay visible; None: those of the trained length.
        device, dtype: None: the model's own.

    Raises:
        CapacityError: the plan does not fit, with the largest setting that does.
        ValueError: a setting out of range.
    """
    own = model.transformer.embed_bits.weight
    target = own.device if device is None else checked_device(device)
    kind = own.dtype if dtype is None else checked_dtype(dtype)
    settings = EngineSettings(
        config=model.config,
        slots=slots,
        window=window,
        max_text=max_text,
        dtype=kind,
        device=target.type,
    )
    loaded = (target, kind) == (own.device, own.dtype)
    with _MAKING:
        check(MemoryPlan.of(settings), target, loaded=loaded)
        transformer, tokenizer = model.transformer, model.tokenizer
        if not loaded:
            parts = (transformer, tokenizer)
            transformer, tokenizer = (_copied(part, target, kind) for part in parts)
        pack_linears(transformer.layers)
        if target.type == "cuda":
            from videoar.runtime.cuda_executor import CudaExecutor

            return CudaExecutor(transformer, tokenizer, settings)
        return ModelExecutor(transformer, tokenizer, settings)


def _copied(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    if any(isinstance(child, PackedLinear) for child in module.modules()):
        raise RuntimeError("the model is packed already: load it anew for another dtype or device")
    return copy.deepcopy(module).to(device, dtype)
