"""Fréchet distances of videos: FVD with a given I3D, TFVD with TransNetV2.

TFVD is not FVD and is comparable with nothing but TFVD: same network, same preparation of frames,
same number of clips. What it is good for is comparing models on one data set, offline.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor

from videoar.training.features import I3D, Network, TransNet, clip_features, load_transnet
from videoar.training.frechet import compare

__all__ = ["FORMS", "clip_features", "compare", "frechet_video", "tfvd"]

# What stands for a model's clips, and the letter in front of the distance's name.
FORMS = {"generated": "g", "restored": "r"}


def tfvd(videos_a: np.ndarray, videos_b: np.ndarray, network: TransNet | None = None) -> float:
    """TFVD of two sets of clips, uint8 `[N,T,H,W,3]` each, N at least 2.

    Take `clip_features` and `compare` where one of the sets is used again.

    Raises:
        ValueError: other dtypes or shapes, or fewer than two clips or frames.
        CheckpointError: the package with the network's weights is not there.
    """
    network = network or load_transnet()
    features = [clip_features(videos, network) for videos in (videos_a, videos_b)]
    return compare(*features, resamples=0)["value"]


def frechet_video(
    reference: Tensor,
    made: Iterable[np.ndarray],
    network: Network,
    *,
    form: str = "generated",
    resamples: int = 100,
    batch: int = 8,
    total: int | None = None,
) -> dict[str, Any]:
    """The Fréchet video distance of a model's clips to real ones.

    Args:
        reference: features of the real clips (`clip_features` with the same network).
        made: what the model made, uint8 `[T,H,W,3]` each.
        network: a `TransNet` or an `I3D`.
        form: "generated", or "restored" (by a tokenizer); decides the name only.
        resamples: for the interval, see `compare`.
        batch: clips that are computed together.
        total: clips in `made`, for the progress bar.

    Returns:
        `metric` ("gFVD", "rTFVD" ...), what `compare` gives, and `num` and `num_reference`
        instead of `num_a` and `num_b`.

    Raises:
        ValueError: another form, fewer than two clips, or what the network refuses.
    """
    if form not in FORMS:
        raise ValueError(f"form: one of {', '.join(FORMS)}, got {form!r}")
    assert isinstance(network, TransNet | I3D)
    features = clip_features(made, network, batch=batch, total=total)
    result = compare(reference, features, resamples=resamples)
    counts = {"num": result.pop("num_b"), "num_reference": result.pop("num_a")}
    return {"metric": FORMS[form] + network.name} | result | counts
