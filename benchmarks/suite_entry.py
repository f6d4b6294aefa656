"""What every entry of the suite says about itself, and the clock that its times are read from.

pytest-benchmark times what it calls. Here opponents must be interleaved, and the parts of a clip
are wanted from one and the same clip; so the suite records times first, and an entry then replays
its own: `part_clock` advances by one recorded time in every round.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from videoar.benchmarks.floor import ratio

Samples = Mapping[str, Sequence[float]]
"""Seconds by name, a sample a round; what stands at the same place was timed in one round."""

PARTS = ("transformer", "decoder", "clip", "first_frame", "steady_frame", "kernel", "load", "train")
WAYS = ("videoar", "eager", "compiled", "bare")
UNKNOWN_LIMIT = "not known"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One timed thing.

    Attributes:
        model: such as "videoar-l"; of a kernel, the operation.
        way: who runs it, of `WAYS`.
        part: of `PARTS`.
        timed: one sentence, what is inside of the timer.
        batch: clips decoded together.
        steps: decoding or training steps inside of the timer.
        num_bytes, flops: that must be moved and computed; None: not counted.
        limit_s: the least seconds that the device allows; None: `limit_note` says why.
        limit_note: what to know about the limit.
        step_s, step_limit_s: seconds and limit of every timed step of the last round.
        scaled: None, or how many steps were `timed` and stand `of` how many: from step `first`
            (counted from 0) on every `stride`-th.
        compile_s: seconds of compiling, outside of the timer.
    """

    model: str
    way: str
    part: str
    timed: str
    batch: int = 1
    steps: int | None = None
    num_bytes: int | None = None
    flops: int | None = None
    limit_s: float | None = None
    limit_note: str | None = None
    step_s: Sequence[float] = ()
    step_limit_s: Sequence[float] = ()
    scaled: Mapping[str, int] | None = None
    compile_s: float | None = None

    def __post_init__(self) -> None:
        for name, known in (("way", WAYS), ("part", PARTS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {known}, got {getattr(self, name)!r}")


def extra_info(
    entry: Entry,
    samples: Samples,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """The entry's `extra_info`.

    Args:
        samples: of the entry, which comes first, and of its opponents.
        facts: device, dtype, threads, versions and commit.
    """
    own, *others = samples
    times = samples[own]
    return {
        "model": entry.model,
        "way": entry.way,
        "part": entry.part,
        "batch": entry.batch,
        "steps": entry.steps,
        "bytes": entry.num_bytes,
        "flops": entry.flops,
        "limit_s": entry.limit_s,
        "limit_note": entry.limit_note or (UNKNOWN_LIMIT if entry.limit_s is None else None),
        "share": entry.limit_s / median(times) if entry.limit_s else None,
        **facts,
        "timed": entry.timed,
        "opponents": {
            name: {"samples": list(samples[name]), "ratio": ratio(samples, name, own)}
            for name in others
        },
        "rounds": len(times),
        "step_s": list(entry.step_s),
        "step_limit_s": list(entry.step_limit_s),
        "scaled": entry.scaled,
        "compile_s": entry.compile_s,
    }


class _Recorded:
    """Seconds of all recorded times that were replayed so far."""

    seconds = 0.0


def part_clock() -> float:
    """A timer for pytest-benchmark that stands still but for `replay`."""
    return _Recorded.seconds


def replay(benchmark: Any, seconds: Sequence[float]) -> None:
    """Let an entry whose timer is `part_clock` have these times, a round each."""
    left = iter(seconds)

    def advance() -> None:
        _Recorded.seconds += next(left)

    # A round too many would end the iterator, so none can be added unnoticed.
    benchmark.pedantic(advance, rounds=len(seconds), iterations=1, warmup_rounds=0)
