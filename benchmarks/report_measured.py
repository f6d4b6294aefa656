"""One timed entry of the suite, as a report reads it from `pytest benchmarks --benchmark-json`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

OURS = "videoar"
WAYS = (OURS, "compiled", "eager")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One timed entry of the suite.

    Attributes:
        name: of the benchmark.
        model, way, part: such as "videoar-l", "videoar", "transformer".
        batch: clips decoded together.
        steps: decoding steps inside of the timer; None where that has no meaning.
        seconds: median over the rounds.
        samples: seconds of every round.
        limit_s: the least time the device allows; None: not known, `limit_note` says why.
        device, dtype, threads: that it ran on.
        timed: one sentence, what is inside of the timer.
        opponents: by name `samples` of the same rounds, and `ratio`, the median over the rounds of
            theirs over ours.
        step_s, step_limit_s: seconds and limit of every decoding step of one run.
        bytes, flops: that must be moved and computed.
        scaled: of how many steps (`of`) how many were timed (`timed`) and scaled, from step `first`
            (counted from 0) on every `stride`-th; None: all.
        compile_s: seconds of compiling, outside of the timer.
        commit: of the source; "+" for changes on top of it.
        versions: of packages.
    """

    name: str
    model: str
    way: str
    part: str
    batch: int | None
    steps: int | None
    seconds: float
    samples: tuple[float, ...] = ()
    limit_s: float | None = None
    limit_note: str | None = None
    device: str | None = None
    dtype: str | None = None
    threads: int | None = None
    timed: str | None = None
    opponents: Mapping[str, Any] = field(default_factory=dict)
    step_s: tuple[float, ...] = ()
    step_limit_s: tuple[float, ...] = ()
    bytes: int | None = None
    flops: int | None = None
    scaled: Mapping[str, int] | None = None
    compile_s: float | None = None
    commit: str | None = None
    versions: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str | int | None, ...]:
        """What makes it the same entry in another run."""
        return self.name, self.model, self.way, self.part, self.batch, self.dtype, self.threads

    @property
    def times_limit(self) -> float | None:
        """How many times as long as the limit it takes."""
        return self.seconds / self.limit_s if self.limit_s else None

    @classmethod
    def of(cls, benchmark: Mapping[str, Any]) -> "Measured":
        """From an element of `benchmarks` in the suite's JSON.

        Raises:
            ValueError: a field is missing.
        """
        facts, stats = benchmark.get("extra_info", {}), benchmark["stats"]
        if missing := [name for name in ("model", "way", "part") if name not in facts]:
            raise ValueError(f"benchmarks[{benchmark['name']}].extra_info: no {missing[0]!r}")
        optional = set(cls.__dataclass_fields__) & set(facts) - {"name", "seconds", "samples"}
        return cls.from_dict(
            {"batch": None, "steps": None}
            | {name: facts[name] for name in optional}
            | {
                "name": benchmark["name"],
                "seconds": stats["median"],
                "samples": stats.get("data", ()),
            }
        )

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "Measured":
        """The inverse of `asdict`, also behind JSON; fields of other versions are left out."""
        lists = ("samples", "step_s", "step_limit_s")
        known = {name: facts[name] for name in cls.__dataclass_fields__ if name in facts}
        return cls(**{**known, **{name: tuple(facts.get(name) or ()) for name in lists}})


def find(
    entries: Sequence[Measured], model: str, way: str, part: str, batch: int = 1
) -> Measured | None:
    """The entry of this model, way, part and batch, if there is one."""
    for entry in entries:
        if (entry.model, entry.way, entry.part) == (model, way, part) and entry.batch == batch:
            return entry
    return None


def kind_of(device: str | None) -> str:
    """ "cpu" or "cuda"."""
    return "cpu" if device is None or "cpu" in device.lower() else "cuda"
