"""Requests: what a caller asks for, checked and turned into jobs. For users: docs/generation.md.

A shot is `num_frames` pixel frames long, those in front of it included; every shot behind the
first opens with the last `context` frames of the one before (arXiv 2601.05966, section 4). So a
clip has num_frames + (shots - 1) (num_frames - context) frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from videoar.runtime.config import ModelConfig
from videoar.runtime.given_frames import given_image, given_video
from videoar.runtime.guidance import GuidanceSchedule
from videoar.runtime.job import Job, Shot
from videoar.runtime.sampling import SamplingParams
from videoar.runtime.text import check_class, encode_prompt
from videoar.runtime.values import is_whole, whole

if TYPE_CHECKING:
    # Models of classes need no tokenizer of texts.
    from tokenizers import Tokenizer


def make_jobs(
    config: ModelConfig,
    text_tokenizer: Tokenizer | None,
    *,
    prompt: str | Sequence[str] | None = None,
    prompts: Sequence[str] | None = None,
    class_id: int | Sequence[int] | None = None,
    seed: int | Sequence[int] = 0,
    image: Any = None,
    video: Any = None,
    video_fps: float | None = None,
    **options: Any,
) -> list[Job]:
    """One job for each prompt or class; files are read once.

    Args:
        prompt, prompts, class_id: one or several, as in `make_job`.
        seed: one number: video i takes `seed + i`; or a sequence, one a video.
        options: further arguments of `make_job`.

    Raises:
        ValueError: a bad argument, naming it and the nearest valid value.
        MediaError: `image` or `video` cannot be read.
    """
    if prompt is not None and prompts is not None:
        raise ValueError("prompt: give prompt or prompts, not both")
    texts = _listed("prompts", prompts if prompt is None else prompt)
    ids = _listed("class_id", class_id)
    # One of them is [None] unless both were given, which `make_job` refuses.
    pairs = [(text, one) for text in texts for one in ids]
    jobs: list[Job] = []
    for (text, one), number in zip(pairs, _seeds(seed, len(pairs)), strict=True):
        job = make_job(
            config,
            text_tokenizer,
            prompt=text,
            class_id=one,
            seed=number,
            image=image,
            video=video,
            video_fps=video_fps,
            **options,
        )
        if image is not None:
            image = job.history[0]
        if video is not None:
            video, video_fps = job.history, None
        jobs.append(job)
    return jobs


def make_job(
    config: ModelConfig,
    text_tokenizer: Tokenizer | None,
    *,
    prompt: str | None = None,
    class_id: int | None = None,
    num_frames: int | None = None,
    seed: int = 0,
    guidance: float | str | GuidanceSchedule | None = None,
    temperature: float | None = None,
    image: Any = None,
    video: Any = None,
    video_fps: float | None = None,
    shots: int | Sequence[str | int] = 1,
    context: int | None = None,
) -> Job:
    """Check one request and turn it into a job.

    Args:
        prompt: what to show (text-conditional models).
        class_id: what to show (class-conditional models).
        num_frames: pixel frames of a shot, 1 + tau n, those in front of it included; None: the
            trained length; 1: a picture.
        seed: 0 .. 2^63 - 1.
        guidance: a number, a text as in `videoar.runtime.guidance`, None: the model's own.
        temperature: 0 is greedy, None: the model's own.
        image: the first frame, as in `given_image`.
        video: a clip that the new one goes on from, as in `given_video`.
        video_fps: frames a second of `video`; None: as its file says, of an array the model's.
        shots: how many, all of `prompt` or `class_id`; or the prompt or class of each shot in
            order, instead of those two.
        context: pixel frames, 1 + tau n, at the end of `video` and of every shot that the next
            is made from; None: those of `default_context`.

    Raises:
        ValueError: a bad argument, naming it and the nearest valid value.
        MediaError: `image` or `video` cannot be read.
    """
    schedule = GuidanceSchedule.parse(config.guidance if guidance is None else guidance)
    temperature = config.temperature if temperature is None else temperature
    conditions = _conditions(config, prompt, class_id, shots)
    prefixes = [_prefix(config, text_tokenizer, condition) for condition in conditions]
    null = None if schedule.is_one() else _null_prefix(config, text_tokenizer)
    num_frames = config.num_frames if num_frames is None else whole("num_frames", num_frames)
    latent_frames = config.tokenizer.latent_frames
    length = latent_frames(num_frames)
    continued = not (image is None and video is None and len(conditions) == 1)
    context = _check_context(config, num_frames, context, continued)
    history = _history(config, image, video, video_fps, context)
    overlap = context if len(conditions) > 1 else 0
    in_front = [0 if history is None else len(history), *[overlap] * (len(conditions) - 1)]
    return Job(
        shots=tuple(
            Shot(
                prefix=prefix,
                null_prefix=null,
                num_latent_frames=length - (latent_frames(front) if front else 0),
            )
            for prefix, front in zip(prefixes, in_front, strict=True)
        ),
        params=SamplingParams(guidance=schedule, temperature=temperature),
        seed=_check_seed(seed),
        history=history,
        overlap=overlap,
    )


def default_context(config: ModelConfig, num_frames: int) -> int:
    """Frames that a continuation is made from: half of the trained length, but room for new ones.

    Measured on moving digits (docs/generation.md): more keeps the motion, less leaves more to make.
    """
    tau = config.tokenizer.temporal_compression
    half = 1 + tau * ((config.transformer.max_frames - 1) // 2)
    return max(1, min(half, num_frames - tau))


def _check_context(
    config: ModelConfig, num_frames: int, context: int | None, continued: bool
) -> int:
    """The frames a shot may open with; ValueError where nothing new would follow them."""
    tau = config.tokenizer.temporal_compression
    most = min(num_frames - tau, config.num_frames)
    if continued and most < 1:
        raise ValueError(
            f"num_frames: {num_frames} leaves nothing to make behind the frames in front; "
            f"nearest: {1 + tau}"
        )
    if context is None:
        return default_context(config, num_frames)
    context = whole("context", context)
    try:
        config.tokenizer.latent_frames(context)
    except ValueError as error:
        raise ValueError(str(error).replace("num_frames", "context")) from None
    if continued and context > most:
        raise ValueError(f"context: at most {most} of {num_frames} frames, got {context}")
    return context


def _history(
    config: ModelConfig, image: Any, video: Any, video_fps: float | None, context: int
) -> np.ndarray | None:
    """The frames in front of the first shot, uint8 `[T,H,W,3]`."""
    if image is not None and video is not None:
        raise ValueError("image: give image or video, not both")
    if video is None and video_fps is not None:
        raise ValueError("video_fps: there is no video that it could belong to")
    if image is not None:
        return given_image(image, config)
    if video is not None:
        return given_video(video, config, fps=video_fps, most=context)
    return None


def _conditions(
    config: ModelConfig, prompt: str | None, class_id: int | None, shots: int | Sequence[str | int]
) -> list[str | int]:
    """The prompt or class of each shot."""
    name, other = ("prompt", "class_id")
    single, unused = prompt, class_id
    if config.transformer.condition == "class":
        name, other, single, unused = other, name, unused, single
    counted = is_whole(shots)
    if counted and shots < 1:
        raise ValueError(f"shots: at least 1, got {shots}; nearest: 1")
    if unused is not None or (single is None and counted):
        raise ValueError(f"{name}: this model takes a {name} and no {other}")
    if counted:
        return [single] * int(shots)
    if isinstance(shots, (str, bytes)) or not isinstance(shots, Sequence) or not shots:
        raise ValueError(f"shots: expected a number or one {name} a shot, got {shots!r}")
    if single is not None:
        raise ValueError(f"{name}: the shots bring their own; give {name} or a list of shots")
    return list(shots)


def _prefix(
    config: ModelConfig, text_tokenizer: Tokenizer | None, condition: str | int
) -> tuple[int, ...]:
    transformer = config.transformer
    if transformer.condition == "class":
        return tuple(check_class(condition, transformer))
    return tuple(encode_prompt(text_tokenizer, condition, transformer.max_text))


def _null_prefix(config: ModelConfig, text_tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """The prefix of nothing in particular: the class behind the last, or the empty prompt."""
    if config.transformer.condition == "class":
        return (config.transformer.vocab_size,)
    return _prefix(config, text_tokenizer, "")


def _listed(name: str, values: Any) -> list[Any]:
    """One value (None as well) or several, as a list."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        return [values]
    values = list(values)
    if not values:
        raise ValueError(f"{name}: expected at least one")
    return values


def _seeds(seed: int | Sequence[int], count: int) -> list[int]:
    if is_whole(seed):
        return [_check_seed(int(seed) + i) for i in range(count)]
    if isinstance(seed, (str, bool)) or not isinstance(seed, Sequence):
        raise ValueError(f"seed: expected an int or a sequence of them, got {seed!r}")
    if len(seed) != count:
        raise ValueError(f"seed: expected {count}, one a video, got {len(seed)}")
    return [_check_seed(one) for one in seed]


def _check_seed(seed: Any) -> int:
    seed = whole("seed", seed)
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed: expected 0 .. 2^63 - 1, got {seed}")
    return seed
