"""Predictions against measurements, at points that this machine can run.

Two numbers a part are taken from the first two points of a group: the share of the limit that is
reached, and seconds of a pass (a layer of a step, a
latent frame) whatever its size. They predict the
other points, whose measured times they have never seen. Rounds go over all points in turn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from videoar.benchmarks.floor_parts import OurClip
from videoar.benchmarks.simulate_points import Point, predict
from videoar.benchmarks.timing import interleave
from videoar.runtime.cost import Limits
from videoar.runtime.model_folder import preset_text_tokenizer
from videoar.runtime.modules import random_modules
from videoar.runtime.pipeline import VideoAR

PARTS = ("transformer", "decoder")
CALIBRATING = 2

GROUPS = {
    "digits": (
        Point.of("digits"),
        Point.of("digits", height=128, width=128),
        Point.of("digits", num_frames=33),
        Point.of("digits", num_frames=33, window=1),
        Point.of("digits", height=96, width=96),
    ),
    "videoar-l": (
        Point.of("videoar-l", layers=4, height=64, width=64, num_frames=5),
        Point.of("videoar-l", layers=4, height=96, width=96, num_frames=5),
        Point.of("videoar-l", layers=4, height=64, width=64, num_frames=9),
        Point.of("videoar-l", layers=8, height=64, width=64, num_frames=5),
        Point.of("videoar-xl", layers=4, height=64, width=64, num_frames=5),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A part of a point.

    Attributes:
        point, part: that was run.
        predicted_s, measured_s: of one clip; the measured one is the median of the rounds.
        calibrates: it is one of the points that the two numbers are from.
    """

    point: Point
    part: str
    predicted_s: float
    measured_s: float
    calibrates: bool

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted_s / self.measured_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Seconds of a part: its limit over `share`, and `pass_s` for every pass."""

    share: float
    pass_s: float

    def seconds(self, limit_s: float, passes: int) -> float:
        return limit_s / self.share + self.pass_s * passes

    @classmethod
    def through(cls, one: tuple[float, int, float], other: tuple[float, int, float]) -> "Fit":
        """Through two points of (limit, passes, measured seconds).

        Without a pass's own seconds where they came out negative, or where the two points have the
        same limits a pass: then by the first point alone.
        """
        (limit, passes, seconds), (limit_2, passes_2, seconds_2) = one, other
        determinant = limit * passes_2 - limit_2 * passes
        if abs(determinant) > 1e-9 * limit * passes_2:
            inverse = (seconds * passes_2 - seconds_2 * passes) / determinant
            pass_s = (limit * seconds_2 - limit_2 * seconds) / determinant
            if inverse > 0 and pass_s >= 0:
                return cls(share=1 / inverse, pass_s=pass_s)
        return cls(share=limit / seconds, pass_s=0.0)


def run(
    points: Sequence[Point], limits: Limits, dtype: torch.dtype, device: str, rounds: int
) -> tuple[list[Checked], dict[str, Fit]]:
    """Measure the points of a group; predict all but the first two from these."""
    samples: dict[str, list[dict[str, float]]] = {str(point): [] for point in points}
    clips = {point: OurClip(_model(point, dtype, device)) for point in points}

    def sample(point: Point) -> float:
        times = clips[point].run(num_frames=point.num_frames)
        samples[str(point)].append(times)
        return times["total"]

    interleave({str(p): lambda p=p: sample(p) for p in points}, rounds)
    measured = {
        (point, part): median(times[part] for times in samples[str(point)]) / 1e3
        for point in points
        for part in PARTS
    }
    return compare(measured, points, limits, dtype, device)


def compare(
    measured: Mapping[tuple[Point, str], float],
    points: Sequence[Point],
    limits: Limits,
    dtype: torch.dtype,
    device: str,
) -> tuple[list[Checked], dict[str, Fit]]:
    """Every point's parts beside their prediction, and the two numbers of each part."""
    costs = {point: predict(point, limits, dtype=dtype, device=device) for point in points}
    rows, fits = [], {}
    for part in PARTS:
        known = {p: (getattr(costs[p], f"{part}_s"), passes_of(p, part)) for p in points}
        first = [(*known[point], measured[point, part]) for point in points[:CALIBRATING]]
        fits[part] = Fit.through(*first)
        rows += [
            Checked(
                point=point,
                part=part,
                predicted_s=fits[part].seconds(*known[point]),
                measured_s=measured[point, part],
                calibrates=point in points[:CALIBRATING],
            )
            for point in points
        ]
    return rows, fits


def passes_of(point: Point, part: str) -> int:
    """Decoding steps times layers, or latent frames of the decoder."""
    if part == "decoder":
        return point.latent_frames
    config = point.config.transformer
    return point.latent_frames * len(config.sizes) * config.layers


def _model(point: Point, dtype: torch.dtype, device: str) -> VideoAR:
    config = point.config
    modules = random_modules(config, dtype, device, 0)
    return VideoAR(config, *modules, preset_text_tokenizer(point.model, config))
