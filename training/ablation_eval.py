"""How good one run of the ablation is: prompts shown and Fréchet distance, short and extended.

The extended clips are made shot by shot, each from the last frames of the one before
(arXiv 2601.05966, section 4).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from videoar.runtime.config import ModelConfig
from videoar.runtime.pipeline import VideoAR
from videoar.runtime.requests import default_context
from videoar.training import digits
from videoar.training.eval_clips import generated
from videoar.training.evaluate import agreement, draw_prompts, share
from videoar.training.features import TransNet, clip_features
from videoar.training.frechet import compare
from videoar.training.judge import Judge

# Shots of an extended clip: 17 + 6 x 8 = 65 frames.
SHOTS = {"short": 1, "extended": 7}
# What the last 17 frames can show: a clip that is longer turns round at the edges.
ASPECTS = {"short": ("digit", "colour", "direction"), "extended": ("digit", "colour")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Clips:
    """Clips of both lengths, uint8 `[N,T,H,W,3]`, and the scenes they should show."""

    frames: dict[str, np.ndarray]
    scenes: list[digits.Scene]


def clip_lengths(config: ModelConfig) -> dict[str, int]:
    """Pixel frames of a short and of an extended clip."""
    trained = config.num_frames
    new = trained - default_context(config, trained)
    return {name: trained + (shots - 1) * new for name, shots in SHOTS.items()}


def real_clips(lengths: dict[str, int], num: int, seed: int) -> Clips:
    """Held-out clips."""
    frames, scenes = {}, []
    for name, count in lengths.items():
        drawn = [digits.clip("test", seed, i, count) for i in range(num)]
        frames[name] = np.stack([clip for clip, _, _ in drawn])
        scenes = [scene for _, _, scene in drawn]
    return Clips(frames=frames, scenes=scenes)


def generated_clips(model: VideoAR, num: int, seed: int) -> Clips:
    """Clips of the same prompts for every model; clip i is generated with `seed + i`."""
    prompts, frames = draw_prompts(num), {}
    texts = [prompt.text for prompt in prompts]
    for name, shots in SHOTS.items():
        made = generated(model, texts, seed=seed, shots=shots)
        frames[name] = np.stack(list(tqdm(made, desc=name, total=num, unit="clip", disable=None)))
    return Clips(frames=frames, scenes=[prompt.scene for prompt in prompts])


def scores(
    clips: Clips, judge: Judge, network: TransNet, references: dict[str, Tensor]
) -> dict[str, dict[str, Any]]:
    """What clips show, and how far they are from real ones.

    Args:
        network: of the Fréchet distance's features.
        references: features of real clips of both lengths.

    Returns:
        For "short" and "extended": shares of clips whose last 17 frames show what they should, by
        aspect and `all` of them; `tfvd`, the Fréchet distance of TransNetV2 features.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, frames in clips.frames.items():
        verdicts = [judge(clip[-digits.NUM_FRAMES :]) for clip in frames]
        right = agreement(clips.scenes, verdicts, ASPECTS[name])
        shares = {aspect: share(values) for aspect, values in right.items()}
        tfvd = compare(references[name], clip_features(frames, network), resamples=0)["value"]
        found[name] = {**shares, "tfvd": round(tfvd, 4)}
    return found
