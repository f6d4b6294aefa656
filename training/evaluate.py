"""Evaluation: does a model show what its prompts ask for, and how well does a tokenizer restore.

Prompts come from the digits' grammar, from random streams that no training clip uses; what is
generated is judged from its pixels (`training/judge.py`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from videoar.runtime.pipeline import VideoAR
from videoar.runtime.requests import default_context
from videoar.runtime.schedule import Sizes
from videoar.runtime.video_tokenizer import VideoTokenizer
from videoar.training import digits
from videoar.training.eval_clips import Sample, generated
from videoar.training.judge import Judge, Verdict
from videoar.training.restoration import mean_scores, restorations

# The streams of training and held-out clips begin with 0 and 1 (`digits.clip`).
_PROMPT_STREAM = 2
PROMPT_SEED = 10_000
ASPECTS = ("digit", "colour", "direction", "speed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt, and the scene it asks for."""

    text: str
    scene: digits.Scene


def check_num(num: int) -> None:
    """ValueError for fewer than one sample."""
    if num < 1:
        raise ValueError(f"num: at least 1, got {num}")


def draw_prompts(num: int, seed: int = PROMPT_SEED) -> list[Prompt]:
    """`num` prompts in the grammar's variants, the ten digits in turn; all tell the speed.

    Raises:
        ValueError: `num` below 1.
    """
    check_num(num)
    prompts = []
    for index in range(num):
        rng = np.random.default_rng([_PROMPT_STREAM, seed, index])
        scene = replace(digits.random_scene(rng), digit=index % 10)
        text = digits.caption(scene, rng)
        if scene.speed is not None and scene.speed not in text:
            text = digits.caption(scene)
        prompts.append(Prompt(text=text, scene=scene))
    return prompts


def eval_prompts(
    model: VideoAR,
    judge: Judge,
    num: int,
    *,
    seed: int = PROMPT_SEED,
    batch: int = 8,
    **sampling: Any,
) -> dict[str, Any]:
    """Generate a clip for each of `num` prompts and judge it from its pixels.

    Args:
        model: of the moving digits; its `generate` is called with a list of prompts.
        judge: as `load_judge` gives it.
        seed: of the prompts; clip i is generated with `seed + i`.
        batch: prompts a call.
        sampling: `guidance`, `temperature`, `num_frames` or `shots` for `generate`.

    Returns:
        Shares that are right: `digit`, `colour`, `direction`, `speed` (of the prompts that ask
        for motion; None where there are none), `all` (everything asked for); `digits`, a share
        for each digit; `judge_accuracy`, the judge's own on held-out clips; `num`, `num_moving`.
        Clips longer than the trained length are judged by that many frames at their beginning,
        and have `parts`: for each `frames` (first, last), `digit`, `colour` and `both` of them.

    Raises:
        ValueError: `num` below 1, or what `generate` refuses.
    """
    prompts = draw_prompts(num, seed)
    texts = [prompt.text for prompt in prompts]
    made = generated(model, texts, seed=seed, batch=batch, **sampling)
    bar = tqdm(made, desc="generate", total=num, unit="clip", disable=None)
    verdicts: list[list[Verdict]] = []
    for frames in bar:
        bounds = _part_bounds(len(frames), model.config.num_frames)
        verdicts.append([judge(frames[start:end]) for start, end in bounds])
    scenes = [prompt.scene for prompt in prompts]
    result = _score(scenes, [found[0] for found in verdicts])
    if len(bounds) > 1:
        result["parts"] = [
            _part_scores(scenes, found, part)
            for found, part in zip(zip(*verdicts, strict=True), bounds, strict=True)
        ]
    return result | {"judge_accuracy": judge.config.accuracy, "num": num}


def _part_bounds(frames: int, trained: int) -> list[tuple[int, int]]:
    """The trained length, then parts of one frame less, as shots add; two frames at least."""
    starts = [0, *range(trained, frames - 1, trained - 1)]
    return list(zip(starts, [*starts[1:], frames], strict=True))


def _part_scores(
    scenes: Sequence[digits.Scene], verdicts: Sequence[Verdict], part: tuple[int, int]
) -> dict[str, Any]:
    """Shares of a part that show the digit, the colour and `both`; a long clip turns round."""
    right = agreement(scenes, verdicts, ("digit", "colour"))
    right["both"] = right.pop("all")
    return {"frames": [part[0], part[1] - 1]} | {name: share(v) for name, v in right.items()}


def eval_continuation(
    model: VideoAR,
    judge: Judge,
    num: int,
    *,
    seed: int = PROMPT_SEED,
    context: int | None = None,
    **sampling: Any,
) -> dict[str, Any]:
    """Continue held-out clips and judge whether what they show is kept.

    The model is given the first `context` frames of a clip and its caption and makes the rest of
    the trained length. The judge sees the frames that the model made, and no others.

    Args:
        model: of the moving digits; its `generate` is called with one prompt and `video`.
        judge: as `load_judge` gives it.
        seed: of the held-out clips; clip i is continued with `seed + i`.
        context: frames that are given; None: the model's default.
        sampling: `guidance` and `temperature` for `generate`.

    Returns:
        Shares that are right, as in `eval_prompts`; `unprompted`, the same for the empty prompt;
        `real`, the same for the held-out clips' own frames in the place of the made ones; `num`,
        `num_moving`, `given_frames` and `made_frames` of each clip.

    Raises:
        ValueError: `num` below 1, a `context` that leaves the judge less than two frames, or what
            `generate` refuses.
    """
    check_num(num)
    num_frames = model.config.num_frames
    given = default_context(model.config, num_frames) if context is None else context
    if not 1 <= given <= num_frames - 2:
        raise ValueError(f"context: expected 1 .. {num_frames - 2}, got {given}")
    scenes: list[digits.Scene] = []
    verdicts: dict[str, list[Verdict]] = {"prompted": [], "unprompted": [], "real": []}
    for index in tqdm(range(num), desc="continue", unit="clip", disable=None):
        clip, caption, scene = digits.clip("test", seed, index, num_frames)
        scenes.append(scene)
        verdicts["real"].append(judge(clip[given:]))
        for name, prompt in (("prompted", caption), ("unprompted", "")):
            options = {"video": clip[:given], "context": given, "seed": seed + index, **sampling}
            result = model.generate(prompt, num_frames=num_frames, only_new=True, **options)
            verdicts[name].append(judge(result.frames[0]))
    scores = {name: _score(scenes, found) for name, found in verdicts.items()}
    counts = {"num": num, "given_frames": given, "made_frames": num_frames - given}
    return scores.pop("prompted") | scores | counts


def agreement(
    scenes: Sequence[digits.Scene], verdicts: Sequence[Verdict], aspects: Sequence[str] = ASPECTS
) -> dict[str, np.ndarray]:
    """Whether each clip shows what its scene asks for, bool `[N]` by aspect; `all` of them."""
    pairs = list(zip(scenes, verdicts, strict=True))
    right = {a: np.array([getattr(s, a) == getattr(v, a) for s, v in pairs]) for a in aspects}
    return right | {"all": np.logical_and.reduce(list(right.values()))}


def _score(scenes: list[digits.Scene], verdicts: list[Verdict]) -> dict[str, Any]:
    right = agreement(scenes, verdicts)
    moving = np.array([scene.speed is not None for scene in scenes])
    asked = np.array([scene.digit for scene in scenes])
    return {
        **{aspect: share(right[aspect]) for aspect in ("digit", "colour", "direction")},
        "speed": share(right["speed"][moving]),
        "all": share(right["all"]),
        "digits": {str(d): share(right["digit"][asked == d]) for d in sorted(set(asked.tolist()))},
        "num_moving": int(moving.sum()),
    }


def share(right: np.ndarray) -> float | None:
    """The share that is right; None of nothing."""
    return round(float(right.mean()), 4) if right.size else None


def eval_tokenizer(
    tokenizer: VideoTokenizer, sizes: Sizes, clips: Iterable[np.ndarray], total: int | None = None
) -> dict[str, Any]:
    """Encode, quantise and decode clips, and compare what comes back with what went in.

    Args:
        sizes: the quantiser's scales.
        clips: uint8 `[T,H,W,3]` each, of sizes that the tokenizer can compress.
        total: how many, for the progress bar.

    Returns:
        `psnr` (dB, mean over clips, 100 for an exact one), `ssim` (mean), `bits_per_pixel` (bits
        of all latent frames over the clip's pixels), `num`.

    Raises:
        ValueError: no clips, or a size that cannot be compressed.
    """
    samples = (Sample(name="", frames=clip) for clip in clips)
    return mean_scores(list(restorations(tokenizer, sizes, samples, total)))
