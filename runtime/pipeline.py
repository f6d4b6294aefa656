"""`VideoAR`: a transformer and a video tokenizer that turn prompts or classes into video."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from videoar.runtime.config import ModelConfig
from videoar.runtime.entry import Entry, StepHook
from videoar.runtime.guidance import GuidanceSchedule
from videoar.runtime.job import Executor, Job
from videoar.runtime.modules import checked_device, checked_dtype, random_modules
from videoar.runtime.presets import preset
from videoar.runtime.requests import make_job, make_jobs
from videoar.runtime.scheduler import Scheduler, run_all, run_inline
from videoar.runtime.transformer import Transformer
from videoar.runtime.video_tokenizer import VideoTokenizer

if TYPE_CHECKING:
    # Models of classes need no tokenizer of texts.
    from tokenizers import Tokenizer

# Videos that one call of `generate` decodes together, if their memory is there.
MAX_SLOTS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoResult:
    """What `generate` gives.

    Attributes:
        frames: uint8 numpy `[B,T,H,W,3]`, RGB.
        seeds: the seed of each video.
        fps: frames a second.
        timings: seconds: `prefill`, `transformer`, `decoder`, `total`, and `steps` (a count).
    """

    frames: np.ndarray
    seeds: tuple[int, ...]
    fps: int
    timings: dict[str, float]

    @property
    def seed(self) -> int:
        """Seed of the first video."""
        return self.seeds[0]

    def save(self, path: str | Path, index: int = 0) -> None:
        """Write video `index` as .mp4, .gif or .png (a contact sheet).

        Raises:
            ValueError: an unknown suffix.
            MediaError: the file could not be written.
        """
        from videoar.runtime.media import write_video

        write_video(path, self.frames[index], self.fps)


class VideoAR:
    """The model of one checkpoint folder or preset. See `generate` and `stream`."""

    def __init__(
        self,
        config: ModelConfig,
        transformer: Transformer,
        tokenizer: VideoTokenizer,
        text_tokenizer: Tokenizer | None,
    ) -> None:
        self.config = config
        self.transformer = transformer.eval().requires_grad_(False)
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.text_tokenizer = text_tokenizer
        self._idle: list[Executor] = []
        self._users: list[object] = []

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, dtype: str = "float32", device: str = "cpu"
    ) -> VideoAR:
        """Load a checkpoint folder (DESIGN promise 6), checking all of it first.

        Args:
            folder: a path, or "digits" for the shipped demo model.
            dtype: "float32", "bfloat16" or "float16": of weights and cache.
            device: "cpu", or a GPU as torch names it.

        Raises:
            CheckpointError: anything missing, damaged or of another architecture.
            ValueError: an unknown dtype or device, or a GPU that is not there.
        """
        from videoar.runtime.model_folder import load_model

        return load_model(folder, dtype=checked_dtype(dtype), device=checked_device(device))

    @classmethod
    def preset(
        cls,
        name: str | PathLike[str],
        *,
        dtype: str = "float32",
        device: str = "cpu",
        seed: int = 0,
    ) -> VideoAR:
        """A model of a preset's sizes with random weights, for measuring.

        Args:
            name: of a preset, or the path of a model file (`model_file.py`), ending with ".toml".

        Raises:
            ValueError: an unknown preset or dtype, or a file that describes no model.
            CheckpointError: the text tokenizer that a file names cannot be read.
        """
        from videoar.runtime.model_folder import preset_text_tokenizer

        config = preset(name)
        kind, where = checked_dtype(dtype), checked_device(device)
        transformer, tokenizer = random_modules(config, kind, where, seed)
        return cls(config, transformer, tokenizer, preset_text_tokenizer(name, config))

    @property
    def device(self) -> torch.device:
        return self.transformer.sos.device

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        prompts: Sequence[str] | None = None,
        class_id: int | Sequence[int] | None = None,
        num_frames: int | None = None,
        seed: int | Sequence[int] = 0,
        guidance: float | str | GuidanceSchedule | None = None,
        temperature: float | None = None,
        image: Any = None,
        video: Any = None,
        video_fps: float | None = None,
        shots: int | Sequence[str | int] = 1,
        context: int | None = None,
        only_new: bool = False,
        on_step: StepHook | None = None,
    ) -> VideoResult:
        """Make one video for each prompt or class.

        A video depends on its own arguments only, not on what else the call makes. Frames that
        were given, with `image` or `video`, are the first of the result.

        Args:
            prompt, prompts: a text or a sequence of texts (text-conditional models).
            class_id: a class or a sequence of classes (class-conditional models).
            num_frames: pixel frames of a shot, 1 + tau n; None: the trained length; 1: a picture.
            seed: 0 .. 2^63 - 1. One number for several videos: video i takes `seed + i`.
            guidance: a number, a text as in `videoar.runtime.guidance`, None: the model's own.
            temperature: 0 is greedy, None: the model's own.
            image: the first frame: a file, or uint8 `[H,W,3]`.
            video: a clip to continue: a file, or uint8 `[T,H,W,3]`; `video_fps`: its rate.
            shots: how many, or the prompt or class of each; `context`: frames that link them.
                As in `videoar.runtime.requests.make_job`.
            only_new: leave the given frames out.
            on_step: called with (latent frame, scale, seconds) behind every decoding step.

        Raises:
            ValueError: a bad argument, naming it and the nearest valid value.
            MediaError: `image` or `video` cannot be read.
            CapacityError: the memory of decoding does not fit.
            HookError: `on_step` raised.
        """
        begin = time.perf_counter()
        jobs = make_jobs(
            self.config,
            self.text_tokenizer,
            prompt=prompt,
            prompts=prompts,
            class_id=class_id,
            num_frames=num_frames,
            seed=seed,
            guidance=guidance,
            temperature=temperature,
            image=image,
            video=video,
            video_fps=video_fps,
            shots=shots,
            context=context,
        )
        entries = [self._entry(job, on_step) for job in jobs]
        with self._executor(len(jobs)) as executor:
            videos = run_all(Scheduler(executor), entries)
        if not only_new:
            videos = [_behind(job.history, video) for job, video in zip(jobs, videos, strict=True)]
        timings = {
            name: sum(entry.timings[name] for entry in entries)
            for name in ("prefill", "transformer", "decoder", "steps")
        }
        return VideoResult(
            frames=np.stack(videos),
            seeds=tuple(job.seed for job in jobs),
            fps=self.config.fps,
            timings=timings | {"total": time.perf_counter() - begin},
        )

    def stream(
        self,
        prompt: str | None = None,
        *,
        class_id: int | None = None,
        on_step: StepHook | None = None,
        **options: Any,
    ) -> Iterator[np.ndarray]:
        """Make one video, yielding its new pixel frames uint8 `[n,H,W,3]` as they become final.

        Arguments and errors as in `generate`; errors in them are raised by the call itself.
        """
        if prompt is not None and not isinstance(prompt, str):
            raise ValueError(f"prompt: stream makes one video, got {prompt!r}")
        job = make_job(
            self.config, self.text_tokenizer, prompt=prompt, class_id=class_id, **options
        )
        return self._stream(self._entry(job, on_step))

    def _stream(self, entry: Entry) -> Iterator[np.ndarray]:
        with self._executor(1) as executor:
            yield from run_inline(Scheduler(executor), entry)

    def _entry(self, job: Job, on_step: StepHook | None) -> Entry:
        return Entry(job, num_scales=len(self.config.transformer.sizes), on_step=on_step)

    @contextmanager
    def _executor(self, count: int) -> Iterator[Executor]:
        """An executor that nobody else uses meanwhile, kept for the next call.

        Streams may be interleaved and calls come from several threads, so there can be several. As
        many are kept as are in use, and at least one.
        """
        slots, user = min(count, MAX_SLOTS), object()
        self._users.append(user)
        executor = None
        try:
            idle = self._take_idle(slots)
            enough = idle is not None and idle.slots >= slots
            executor = idle if enough else self._larger(idle, slots)
            yield executor
        finally:
            if executor is not None:
                self._idle.append(executor)
            self._users.remove(user)
            while len(self._idle) > max(1, len(self._users)):
                if surplus := self._take_idle(0):
                    surplus.close()

    def _take_idle(self, slots: int) -> Executor | None:
        """The smallest of the idle executors that has so many slots, else the largest.

        Without a lock: the end of a stream that nobody holds may interrupt this very method.
        """
        while self._idle:
            by_size = sorted(self._idle, key=lambda one: one.slots)
            chosen = next((one for one in by_size if one.slots >= slots), by_size[-1])
            with suppress(ValueError):  # another call took it
                self._idle.remove(chosen)
                return chosen
        return None

    def _larger(self, executor: Executor | None, slots: int) -> Executor:
        """One of so many slots, or of as many as fit, in place of a smaller one."""
        from videoar.runtime.executor import make_executor
        from videoar.runtime.memory import available_bytes
        from videoar.runtime.plan import EngineSettings, MemoryPlan, fitting_slots

        weight = self.transformer.embed_bits.weight
        settings = EngineSettings(
            config=self.config, slots=slots, dtype=weight.dtype, device=weight.device.type
        )
        available = available_bytes(weight.device)
        if executor is not None:
            available += MemoryPlan.of(replace(settings, slots=executor.slots)).created
        slots = fitting_slots(settings, available)
        if executor is not None:
            if slots <= executor.slots:
                return executor
            executor.close()
        return make_executor(self, slots=slots)


def _behind(history: np.ndarray | None, video: np.ndarray) -> np.ndarray:
    return video if history is None else np.concatenate([history, video])
