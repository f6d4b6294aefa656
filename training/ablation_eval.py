"""How good one run of the ablation is: prompts shown and Fréchet distance, short and extended.

The extended clips are made shot by shot, each from the last frames of the one before
(arXiv 2601.05966, section 4).
"""

from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from videoar.runtime.pipeline import VideoAR
from videoar.runtime.requests import default_context
from videoar.training import digits
from videoar.training.evaluate import Prompt, draw_prompts
from videoar.training.fvd import clip_features, compare
from videoar.training.judge import Judge

# Shots of an extended clip: 17 + 6 x 8 = 65 frames.
SHOTS = 7
REFERENCE_SEED = 4
ASPECTS = {"short": ("digit", "colour", "direction"), "extended": ("digit", "colour")}


def extended_frames(model: VideoAR) -> int:
    """Pixel frames of a clip of `SHOTS` shots."""
    trained = model.config.num_frames
    return trained + (SHOTS - 1) * (trained - default_context(model.config, trained))


def reference_features(num: int, num_frames: int) -> Tensor:
    """Features of `num` held-out clips of `num_frames` frames, float32 `[num,d]`."""
    clips = (digits.clip("test", REFERENCE_SEED, i, num_frames)[0] for i in range(num))
    return clip_features(clips, total=num)


def make_clips(model: VideoAR, prompts: list[Prompt], shots: int, seed: int) -> np.ndarray:
    """One clip a prompt, uint8 `[N,T,H,W,3]`; clip i is generated with `seed + i`."""
    frames = []
    for start in tqdm(
        range(0, len(prompts), 10), desc=f"{shots} shots", unit="batch", disable=None
    ):
        texts = [prompt.text for prompt in prompts[start : start + 10]]
        seeds = [seed + start + i for i in range(len(texts))]
        frames.append(model.generate(texts, seed=seeds, shots=shots).frames)
    return np.concatenate(frames)


def shares(
    judge: Judge, prompts: list[Prompt], clips: np.ndarray, aspects: tuple[str, ...]
) -> dict[str, float]:
    """Shares of clips whose last 17 frames show what the prompt asks for, one by one and all."""
    verdicts = [judge(clip[-digits.NUM_FRAMES :]) for clip in clips]
    right = {
        aspect: np.array(
            [
                getattr(p.scene, aspect) == getattr(v, aspect)
                for p, v in zip(prompts, verdicts, strict=True)
            ]
        )
        for aspect in aspects
    }
    right["all"] = np.logical_and.reduce(list(right.values()))
    return {name: round(float(found.mean()), 4) for name, found in right.items()}


def evaluate_run(
    model: VideoAR, judge: Judge, references: dict[str, Tensor], num: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Scores of the clips of `num` prompts.

    Args:
        model: of the moving digits.
        references: `reference_features` of "short" clips (the trained length) and "extended" ones.
        seed: of sampling; the prompts are the same for every run.

    Returns:
        For "short" and "extended": shares of the last 17 frames, `digit`, `colour`, `all`, for
        "short" also `direction` (a longer clip turns round at the edges); and `tfvd`, the Fréchet
        distance of TransNetV2 features to held-out clips.
    """
    prompts = draw_prompts(num)
    scores = {}
    for name, shots in (("short", 1), ("extended", SHOTS)):
        clips = make_clips(model, prompts, shots, seed)
        distance = compare(references[name], clip_features(clips))["value"]
        scores[name] = {**shares(judge, prompts, clips, ASPECTS[name]), "tfvd": distance}
    return scores
