"""`VideoAR`: a transformer and a video tokenizer that turn prompts or classes into video."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from videoar.runtime.config import ModelConfig
from videoar.runtime.guidance import GuidanceSchedule
from videoar.runtime.modules import random_modules
from videoar.runtime.pixels import to_pixels
from videoar.runtime.presets import preset
from videoar.runtime.sampling import SamplingParams, StepHook, decode_latents, prepare
from videoar.runtime.text import byte_tokenizer, check_class, encode_prompt
from videoar.runtime.transformer import Transformer
from videoar.runtime.video_tokenizer import VideoTokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """One video to make, checked: prefix tokens, its unconditional form, seed."""

    prefix: list[int]
    null_prefix: list[int] | None
    seed: int
    params: SamplingParams
    num_latent_frames: int


def _check_seed(seed: object) -> int:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise ValueError(f"seed: expected an int, got {seed!r}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed: expected 0 .. 2^63 - 1, got {seed}")
    return int(seed)


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

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, dtype: str = "float32", device: str = "cpu"
    ) -> "VideoAR":
        """Load a checkpoint folder (DESIGN promise 6), checking all of it first.

        Args:
            folder: a path, or "digits" for the shipped demo model.
            dtype: "float32", "bfloat16" or "float16": of weights and cache.

        Raises:
            CheckpointError: anything missing, damaged or of another architecture.
            ValueError: an unknown dtype.
        """
        from videoar.runtime.model_folder import load_model

        return load_model(folder, dtype=_dtype(dtype), device=device)

    @classmethod
    def preset(
        cls, name: str, *, dtype: str = "float32", device: str = "cpu", seed: int = 0
    ) -> "VideoAR":
        """A model of a preset's sizes with random weights, for measuring.

        Raises:
            ValueError: an unknown preset or dtype.
        """
        config = preset(name)
        kind = _dtype(dtype)
        transformer, tokenizer = random_modules(config, kind, device, seed)
        return cls(config, transformer, tokenizer, _preset_text_tokenizer(name, config))

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
        on_step: StepHook | None = None,
    ) -> VideoResult:
        """Make one video for each prompt or class.

        A video depends on its own prompt and seed only, not on what else the call makes.

        Args:
            prompt, prompts: a text or a sequence of texts (text-conditional models).
            class_id: a class or a sequence of classes (class-conditional models).
            num_frames: pixel frames, 1 + tau n; None: the trained length.
            seed: 0 .. 2^63 - 1. One number for several videos: video i takes `seed + i`.
            guidance: a number, a text as in `videoar.runtime.guidance`, None: the model's own.
            temperature: 0 is greedy, None: the model's own.
            on_step: called with (frame, scale) behind every decoding step.

        Raises:
            ValueError: a bad argument, naming it and the nearest valid value.
        """
        requests = self._requests(
            prompt, prompts, class_id, num_frames, seed, guidance, temperature
        )
        begin = time.perf_counter()
        timings = {"prefill": 0.0, "transformer": 0.0, "decoder": 0.0, "steps": 0}
        videos = [
            np.concatenate(list(self._stream(request, on_step, timings))) for request in requests
        ]
        timings["total"] = time.perf_counter() - begin
        seeds = tuple(request.seed for request in requests)
        return VideoResult(
            frames=np.stack(videos), seeds=seeds, fps=self.config.fps, timings=timings
        )

    def stream(
        self,
        prompt: str | None = None,
        *,
        class_id: int | None = None,
        num_frames: int | None = None,
        seed: int = 0,
        guidance: float | str | GuidanceSchedule | None = None,
        temperature: float | None = None,
        on_step: StepHook | None = None,
    ) -> Iterator[np.ndarray]:
        """Make one video, yielding pixel frames uint8 `[n,H,W,3]` as they become final.

        Arguments and errors as in `generate`; errors in them are raised by the call itself.
        """
        requests = self._requests(prompt, None, class_id, num_frames, seed, guidance, temperature)
        if len(requests) != 1:
            raise ValueError(f"prompt: stream makes one video, got {len(requests)} prompts")
        timings = {"prefill": 0.0, "transformer": 0.0, "decoder": 0.0, "steps": 0}
        return self._stream(requests[0], on_step, timings)

    def _requests(
        self,
        prompt: str | Sequence[str] | None,
        prompts: Sequence[str] | None,
        class_id: int | Sequence[int] | None,
        num_frames: int | None,
        seed: int | Sequence[int],
        guidance: float | str | GuidanceSchedule | None,
        temperature: float | None,
    ) -> list[_Request]:
        schedule = GuidanceSchedule.parse(self.config.guidance if guidance is None else guidance)
        params = SamplingParams(
            guidance=schedule,
            temperature=self.config.temperature if temperature is None else temperature,
        )
        prefixes, null = self._prefixes(prompt, prompts, class_id)
        seeds = _seeds(seed, len(prefixes))
        num_frames = self.config.num_frames if num_frames is None else num_frames
        frames = self.config.tokenizer.latent_frames(num_frames)
        return [
            _Request(
                prefix=prefix,
                null_prefix=None if schedule.is_one() else null,
                seed=one,
                params=params,
                num_latent_frames=frames,
            )
            for prefix, one in zip(prefixes, seeds, strict=True)
        ]

    def _prefixes(
        self,
        prompt: str | Sequence[str] | None,
        prompts: Sequence[str] | None,
        class_id: int | Sequence[int] | None,
    ) -> tuple[list[list[int]], list[int]]:
        config = self.config.transformer
        if prompt is not None and prompts is not None:
            raise ValueError("prompt: give prompt or prompts, not both")
        texts = prompts if prompt is None else prompt
        if config.condition == "class":
            if texts is not None or class_id is None:
                raise ValueError("class_id: this model takes a class_id and no prompt")
            ids = [class_id] if isinstance(class_id, (int, str)) else list(class_id)
            prefixes = [check_class(one, config) for one in ids]
            return _not_empty(prefixes, "class_id"), [config.vocab_size]
        if class_id is not None or texts is None:
            raise ValueError("prompt: this model takes a prompt and no class_id")
        texts = [texts] if isinstance(texts, str) else list(texts)
        encode = [encode_prompt(self.text_tokenizer, one, config.max_text) for one in texts]
        empty = encode_prompt(self.text_tokenizer, "", config.max_text)
        return _not_empty(encode, "prompts"), empty

    @torch.inference_mode()
    def _stream(
        self, request: _Request, on_step: StepHook | None, timings: dict[str, float]
    ) -> Iterator[np.ndarray]:
        clock = _Clock(self.device, timings)
        frames = request.num_latent_frames
        state = prepare(
            self.transformer, [request.prefix], request.null_prefix, [request.seed], frames
        )
        clock.lap("prefill")
        decoder_state = None
        dtype = self.tokenizer.decoder.conv_in.conv.weight.dtype
        for latents, _ in decode_latents(self.transformer, state, request.params, frames, on_step):
            timings["steps"] += len(self.config.transformer.sizes)
            clock.lap("transformer")
            pixels, decoder_state = self.tokenizer.decoder.step(
                latents[:, :, None].to(dtype), decoder_state
            )
            array = to_pixels(pixels)[0]
            clock.lap("decoder")
            yield array
            clock.skip()


class _Clock:
    """Adds the time between laps to `timings`, waiting for the device first."""

    def __init__(self, device: torch.device, timings: dict[str, float]) -> None:
        self.device, self.timings = device, timings
        self.skip()

    def skip(self) -> None:
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.timings[name] += now - self.last
        self.last = now


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]


def _seeds(seed: int | Sequence[int], count: int) -> list[int]:
    if isinstance(seed, (int, np.integer)) and not isinstance(seed, bool):
        first = _check_seed(seed)
        return [_check_seed(first + i) for i in range(count)]
    if isinstance(seed, (str, bool)) or not isinstance(seed, Sequence):
        raise ValueError(f"seed: expected an int or a sequence of them, got {seed!r}")
    if len(seed) != count:
        raise ValueError(f"seed: expected {count}, one a video, got {len(seed)}")
    return [_check_seed(one) for one in seed]


def _not_empty(prefixes: list[list[int]], name: str) -> list[list[int]]:
    if not prefixes:
        raise ValueError(f"{name}: expected at least one")
    return prefixes


def _preset_text_tokenizer(name: str, config: ModelConfig) -> Tokenizer | None:
    """That of the shipped model where there is one, else plain bytes."""
    from videoar.runtime.model_folder import SHIPPED, read_text_tokenizer, resolve_folder

    if config.transformer.condition != "text":
        return None
    if name in SHIPPED:
        return read_text_tokenizer(resolve_folder(name), config.transformer)
    return byte_tokenizer()
