"""What the parts of a clip must cost: steps, bytes, FLOPs and the least time of a device."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from videoar.benchmarks.par_config import ParConfig
from videoar.benchmarks.par_cost import clip_steps as par_steps
from videoar.runtime.config import ModelConfig
from videoar.runtime.cost import Limits, StepCost, Work, clip_steps, frame_steps, prefill_cost
from videoar.runtime.cost_decoder import decoder_levels

# Tokens in front of the frames: the class, or a short prompt.
_TEXT = {"class": 1, "text": 6}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one part.

    Attributes:
        steps: decoding steps; 0 of a decoder.
        num_bytes, flops, seconds: what must be moved and computed, and the least time for it.
        step_s: the least time of every step.
    """

    steps: int
    num_bytes: int
    flops: int
    seconds: float
    step_s: tuple[float, ...] = ()

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            steps=self.steps + other.steps,
            num_bytes=self.num_bytes + other.num_bytes,
            flops=self.flops + other.flops,
            seconds=self.seconds + other.seconds,
        )

    def times(self, count: float) -> "Cost":
        """Of `count` such parts, one after the other."""
        return Cost(
            steps=round(self.steps * count),
            num_bytes=round(self.num_bytes * count),
            flops=round(self.flops * count),
            seconds=self.seconds * count,
            step_s=tuple(seconds * count for seconds in self.step_s),
        )


def _of(steps: Sequence[StepCost], limits: Limits) -> Cost:
    seconds = tuple(step.seconds(limits) for step in steps)
    return Cost(
        steps=len(steps),
        num_bytes=sum(step.num_bytes for step in steps),
        flops=sum(step.flops for step in steps),
        seconds=sum(seconds),
        step_s=seconds,
    )


def _decoder(config: ModelConfig, frames: int, limits: Limits, itemsize: int, batch: int) -> Cost:
    levels = decoder_levels(
        config.tokenizer,
        config.transformer.sizes[-1],
        frames,
        limits,
        itemsize=itemsize,
        requests=batch,
    )
    return Cost(
        steps=0,
        num_bytes=sum(level.num_bytes for level in levels),
        flops=sum(level.flops for level in levels),
        seconds=sum(level.seconds for level in levels),
    )


def video_costs(
    config: ModelConfig, limits: Limits, *, sequences: int, itemsize: int, batch: int, times: float
) -> dict[str, Cost]:
    """Of every part of `times` batches of clips, one batch after the other; steps are a clip's.

    Args:
        sequences: rows of a clip, 2 with guidance.
        batch: clips computed together.
        times: what is left of a whole number is a smaller batch, counted by its share.
    """
    transformer, frames = config.transformer, config.transformer.max_frames
    text = _TEXT[transformer.condition]
    work = Work(
        requests=batch, sequences=sequences, text=text, window=frames - 1, itemsize=itemsize
    )
    # The prefix without a condition is kept from an earlier clip.
    conditional = Work(requests=batch, sequences=1, text=text, window=0, itemsize=itemsize)
    prefill = _of([prefill_cost(transformer, conditional)], limits)
    prefill = Cost(
        steps=0, num_bytes=prefill.num_bytes, flops=prefill.flops, seconds=prefill.seconds
    )
    steps = _of(clip_steps(transformer, work, frames), limits)
    decoder = _decoder(config, frames, limits, itemsize, batch)
    first = _of(frame_steps(transformer, work, 0), limits)
    first_pixels = _decoder(config, 1, limits, itemsize, batch)
    costs = {
        "transformer": steps,
        "decoder": decoder,
        "clip": prefill + steps + decoder,
        "first_frame": prefill + first + first_pixels,
    }
    if frames > 1:
        later = steps + decoder + first.times(-1) + first_pixels.times(-1)
        costs["steady_frame"] = later.times(1 / (frames - 1))
    return {name: replace(cost.times(times), steps=cost.steps) for name, cost in costs.items()}


def par_costs(
    config: ParConfig, limits: Limits, *, sequences: int, itemsize: int
) -> dict[str, Cost]:
    """As `video_costs`, of all clips together; PAR has no decoder here.

    Args:
        sequences: rows of all clips.
    """
    return {"transformer": _of(par_steps(config, sequences=sequences, itemsize=itemsize), limits)}
