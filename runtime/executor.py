"""A model on a device: what the scheduler drives, one latent frame at a time.

All memory is created in the constructor, from the plan of `videoar.runtime.plan`. A CPU computes
slot after slot: a product's sums depend on its number of rows, so rows of their own make a
request's frames the same whatever runs beside it (docs/decisions.md).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from videoar.runtime.cache import CacheLayout
from videoar.runtime.config import ModelConfig
from videoar.runtime.cpu_layers import CpuLayers
from videoar.runtime.errors import NumericalError
from videoar.runtime.fast_decoder import FastDecoder
from videoar.runtime.frame_state import FrameState
from videoar.runtime.history import encode_history, prefill_history
from videoar.runtime.job import Executor, Job, ScaleHook, Shot, SlotFrame
from videoar.runtime.modules import DTYPES
from videoar.runtime.packed import PackedLinear, pack_linears
from videoar.runtime.plan import ROWS_PER_SLOT, EngineSettings, MemoryPlan, check, decoder_dtype
from videoar.runtime.prefixes import PrefixStore
from videoar.runtime.sampling import decode_frame
from videoar.runtime.transformer import Transformer
from videoar.runtime.video_tokenizer import VideoTokenizer

if TYPE_CHECKING:
    from videoar.runtime.pipeline import VideoAR


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

    def strengths(self) -> list[float]:
        """Of guidance, over the scales of the coming frame."""
        return self.job.params.guidance.of_frame(self.frame, self.total, self.state.num_scales)


def not_finite(frame: int) -> NumericalError:
    """The error of a slot whose logits were NaN or infinite."""
    return NumericalError(f"latent frame {frame}: logits are not finite")


class ModelExecutor:
    """`Executor` of `videoar.runtime.job` for two networks. See `make_executor`."""

    def __init__(
        self,
        config: ModelConfig,
        transformer: Transformer,
        tokenizer: VideoTokenizer,
        layout: CacheLayout,
        slots: int,
    ) -> None:
        self.config, self.transformer, self.tokenizer = config, transformer, tokenizer
        self.slots, self.max_text = slots, layout.max_text
        self.num_scales = len(config.transformer.sizes)
        self.temporal_compression = config.tokenizer.temporal_compression
        self.running: dict[int, _Running] = {}
        self.spoiled: set[int] = set()
        with torch.inference_mode(False), torch.no_grad():
            self._create(layout)

    def _create(self, layout: CacheLayout) -> None:
        """All memory."""
        config, transformer, tokenizer = self.config, self.transformer, self.tokenizer
        slots, weight = self.slots, transformer.embed_bits.weight
        memory = {"dtype": weight.dtype, "device": weight.device}
        self.state = FrameState.create(config.transformer, layout, slots, **memory)
        self.prefixes = PrefixStore(transformer, slots, layout.max_text, **memory)
        height, width = config.transformer.sizes[-1]
        memory["dtype"] = decoder_dtype(weight.dtype, weight.device.type)
        self.decoder = FastDecoder(tokenizer.decoder, **memory, height=height, width=width)
        self.layers = None
        if CpuLayers.serves(transformer):
            self.layers = CpuLayers(transformer, ROWS_PER_SLOT * height * width)
        self.decoder_states = [self.decoder.new_state() for _ in range(slots)]

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
        state = self.state.view(slot) if guided else self.state.view(slot).unguided()
        prefixes = [shot.prefix, shot.null_prefix] if guided else [shot.prefix]
        limit = state.cache.layout.max_text
        for row, prefix in enumerate(prefixes):
            if len(prefix) > limit:
                raise ValueError(f"prompt: this engine takes {limit} tokens, got {len(prefix)}")
            self.prefixes.write(prefix, state.cache.rows(row, 1))
            state.text_lengths[row] = len(prefix)
        return state

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

    @torch.inference_mode()
    def frame(self, slots: Sequence[int], on_scale: ScaleHook) -> DoneTicket:
        return DoneTicket({slot: self._frame(slot, on_scale) for slot in slots})

    def _frame(self, slot: int, on_scale: ScaleHook) -> SlotFrame:
        run, begin = self.running[slot], time.perf_counter()
        run.state.guidance.copy_(torch.tensor(run.strengths()))
        lap = begin

        def report(k: int) -> None:
            nonlocal lap
            now = time.perf_counter()
            on_scale(slot, run.first + run.frame, k, now - lap)
            lap = now

        decode_frame(self.transformer, run.state, layers=self.layers, on_scale=report)
        run.frame += 1
        if run.state.failed.item():
            self.spoiled.add(slot)
            return SlotFrame(frames=None, error=not_finite(run.first + run.frame - 1))
        decoded = time.perf_counter()
        frames = self.decoder.step(run.state.latents[0], self.decoder_states[slot]).numpy().copy()
        seconds = {"transformer": decoded - begin, "decoder": time.perf_counter() - decoded}
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


def make_executor(
    model: VideoAR,
    *,
    slots: int = 1,
    max_text: int | None = None,
    window: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> Executor:
    """An executor with all the memory that it will ever need.

    The linear layers of `model` are packed in place (`videoar.runtime.packed`).

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
    target = torch.device(device or own.device)
    kind = DTYPES[dtype] if dtype else own.dtype
    settings = EngineSettings(
        config=model.config,
        slots=slots,
        window=window,
        max_text=max_text,
        dtype=kind,
        device=target.type,
    )
    loaded = (target, kind) == (own.device, own.dtype)
    check(MemoryPlan.of(settings), target, loaded=loaded)
    transformer, tokenizer = model.transformer, model.tokenizer
    if not loaded:
        transformer, tokenizer = (_copied(one, target, kind) for one in (transformer, tokenizer))
    weight, layout = transformer.embed_bits.weight, settings.layout
    pack_linears(transformer.layers)
    if weight.device.type == "cuda":
        from videoar.runtime.cuda_executor import CudaExecutor

        return CudaExecutor(model.config, transformer, tokenizer, layout, slots)
    return ModelExecutor(model.config, transformer, tokenizer, layout, slots)


def _copied(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    if any(isinstance(child, PackedLinear) for child in module.modules()):
        raise RuntimeError("the model is packed already: load it anew for another dtype or device")
    return copy.deepcopy(module).to(device, dtype)
