"""A run of the suite: its device, its selection, what could not run, and the recorded races."""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from videoar.benchmarks.environment import environment
from videoar.benchmarks.kernels import commit, first_line
from videoar.benchmarks.suite_entry import Entry, Samples, extra_info, replay
from videoar.benchmarks.suite_race import Runs, Setting, build, race
from videoar.benchmarks.suite_select import Selection, needed_bytes, races
from videoar.benchmarks.timing import interleave
from videoar.runtime.cost import Limits
from videoar.runtime.limits import measure_limits
from videoar.runtime.memory import available_bytes
from videoar.runtime.modules import DTYPES

# Of the memory that is there; plans of the other ways are estimates.
_USED = 0.9
# Of the seconds: the clips may take so much, the rest is for what comes behind them.
_CLIPS = 0.85
# The ceilings: seconds of the first measurement of each, of a later one, and from one to the next.
_FIRST_S, _LATER_S, _AGAIN_S = 0.5, 0.1, 8.0
_CEILINGS = ("bandwidth", "rate")
# Short clips are repeated for so long.
_SHORT_S = 5.0


class CannotRunError(RuntimeError):
    """Why an entry cannot be timed; it stands in the table of what was not run.

    Attributes:
        requested: whether someone asked for the entry.
    """

    def __init__(self, reason: str, requested: bool) -> None:
        super().__init__(reason)
        self.requested = requested


@dataclass(slots=True, kw_only=True)
class Recorded:
    """A race that was run.

    Attributes:
        runs: by model and way.
        reasons: why there are none, by model and way.
        compile_s: by model and way.
    """

    runs: Runs = field(default_factory=dict)
    reasons: dict[tuple[str, str], str] = field(default_factory=dict)
    compile_s: dict[tuple[str, str], float | None] = field(default_factory=dict)


@dataclass(kw_only=True, eq=False)
class Suite:
    """What all entries share.

    Attributes:
        device: "cpu" or "cuda".
        dtype_name: of weights, cache and activations.
        selection: models, batches, ways.
        rounds: of clips, at most.
        short_rounds: the same, as long as they have not taken `_SHORT_S` together.
        stride: of PAR's timed steps, for all but this runtime.
        seconds: after which nothing more is begun; None: no bound.
        not_run: what could not run and what was left out, with the reason.
    """

    device: str
    dtype_name: str
    selection: Selection
    rounds: int
    stride: int
    short_rounds: int = 0
    seconds: float | None = None
    not_run: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._began, self._races = time.monotonic(), {}
        self._measured: list[Limits] = []
        self._measured_at = self._began

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.dtype_name]

    @property
    def limits(self) -> Limits:
        """The two ceilings of the device, each the median of those measured so far."""
        if not self._measured:
            self._measure(_FIRST_S)
        first, times = self._measured[0], len(self._measured)
        source = f"{first.source}, the median of {times}" if times > 1 else first.source
        return replace(
            first, source=source, **{name: median(self._seen(name)) for name in _CEILINGS}
        )

    def _seen(self, ceiling: str) -> list[float]:
        return [getattr(each, ceiling) for each in self._measured]

    @property
    def limit_note(self) -> str:
        """The ceilings in words."""
        now = self.limits
        return f"{now.source}: {now.bandwidth / 1e9:.1f} GB/s, {now.rate / 1e12:.3f} TFLOP/s"

    def _measure(self, budget_s: float) -> None:
        self._measured.append(measure_limits(self.device, self.dtype, budget_s))
        self._measured_at = time.monotonic()

    def _measure_again(self) -> None:
        """On a CPU, whose memory and cores others use, too, if it is some time ago."""
        if self.device == "cpu" and time.monotonic() - self._measured_at > _AGAIN_S:
            self._measure(_LATER_S)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What every entry says about where it ran."""
        found = environment()
        names = ("videoar", "python", "torch", "cuda", "triton", "numpy", "pybind11")
        return {
            "device": self.limits.name if self.device == "cuda" else f"CPU {_processor()}",
            "dtype": self.dtype_name,
            "threads": found["threads"],
            "versions": {name: found[name] for name in names},
            "commit": commit(),
        }

    def document(self) -> dict[str, Any]:
        """What the JSON says about the whole run."""
        return {
            **self.facts,
            "limits": asdict(self.limits),
            "ceilings": {
                name: [min(self._seen(name)), max(self._seen(name))] for name in _CEILINGS
            },
            "selection": asdict(self.selection),
            "rounds": self.rounds,
            "stride": self.stride,
            "seconds": time.monotonic() - self._began,
        }

    def past(self, share: float = 1.0) -> bool:
        """Whether this share of the seconds is over."""
        return self.seconds is not None and self.spent() > share * self.seconds

    def spent(self) -> float:
        """Seconds since the suite began."""
        return time.monotonic() - self._began

    def cannot_run(
        self,
        model: str,
        part: str,
        reason: str,
        *,
        batch: int = 1,
        way: str = "videoar",
        requested: bool | None = None,
    ) -> None:
        """Note what cannot be timed, and why.

        Args:
            requested: whether someone asked for the entry; None: as for the models.

        Raises:
            CannotRunError: always; the entry is skipped, or has failed if it was asked for.
        """
        if requested is None:
            requested = self.selection.requested
        self.note(model, part, reason, batch=batch, way=way, requested=requested)
        raise CannotRunError(reason, requested)

    def note(
        self, model: str, part: str, reason: str, *, batch: int, way: str, requested: bool
    ) -> None:
        """A row of the table of what was not run."""
        row = {"model": model, "batch": batch, "way": way, "part": part, "reason": reason}
        self.not_run.append({"name": None, **row, "requested": requested})

    def require(self, model: str, part: str, *, needed: int, **options: object) -> None:
        """`cannot_run` unless so many bytes are free, or where the seconds are over.

        Args:
            options: as in `cannot_run`.
        """
        if self.past():
            reason = f"not begun: {self.seconds:.0f} s have passed"
            self.cannot_run(model, part, reason, **options)
        available = available_bytes(self.device)
        if needed > available:
            reason = f"needs {_gib(needed)}, {_gib(available)} of memory are free"
            self.cannot_run(model, part, reason, **options)

    def race(
        self, benchmark: Any, runs: Mapping[str, Callable[[], object]], rounds: int | None = None
    ) -> dict[str, list[float]]:
        """Time calls one after the other in every round, each round another one first.

        Args:
            benchmark: the entry, which takes the times of the first.
            runs: by name; each is called once before.

        Returns:
            Seconds by name.
        """
        for run in runs.values():
            run()
        samplers = {name: partial(self._seconds, run) for name, run in runs.items()}
        samples = interleave(samplers, rounds or self.rounds)
        replay(benchmark, samples[next(iter(samples))])
        return samples

    def _seconds(self, run: Callable[[], object]) -> float:
        wait = torch.cuda.synchronize if self.device == "cuda" else lambda: None
        wait()
        begin = time.perf_counter()
        run()
        wait()
        return time.perf_counter() - begin

    def describe(
        self,
        benchmark: Any,
        entry: Entry,
        samples: Samples,
        **facts: Any,
    ) -> None:
        """Write the entry's `extra_info` and its group in the table.

        Args:
            facts: what is not as in the rest of the suite, such as the dtype.
        """
        benchmark.group = f"{entry.model}, {entry.part}, batch {entry.batch}"
        benchmark.extra_info.update(extra_info(entry, samples, self.facts | facts))

    def recorded(self, model: str, batch: int) -> Recorded:
        """The race of a model, which runs when its first entry asks for it."""
        if (model, batch) not in self._races:
            dtype, device, chosen = self.dtype, self.device, self.selection
            needed = {
                one: needed_bytes(one, chosen.ways_of(one), batch, dtype, device)
                for one in dict.fromkeys((*chosen.models, model))
            }
            available = int(_USED * available_bytes(device))
            sums = {one: sum(each.values()) for one, each in needed.items()}
            members = next(
                group for group in races(list(needed), sums, available) if model in group
            )
            members = [one for one in members if (one, batch) not in self._races]
            result = self._run(members, batch, needed, available)
            self._races |= {(one, batch): result for one in members}
        return self._races[model, batch]

    def _run(
        self, models: Sequence[str], batch: int, needed: Mapping[str, Mapping], available: int
    ) -> Recorded:
        result, ways = Recorded(), {}
        for model in models:
            ways[model], available = self._fitting(result, model, needed[model], available)
        setting = Setting(
            batch=batch,
            dtype=self.dtype_name,
            device=self.device,
            stride=self.stride,
            compile_decoder=not self.selection.brief,
        )

        def give_up(model: str, way: str, error: Exception) -> None:
            result.reasons[model, way] = first_line(error)

        contenders = build(models, ways, setting, give_up)
        result.compile_s = {key: one.compile_s for key, one in contenders.items()}
        began = self.spent()

        def go_on(done: int) -> bool:
            spent = self.spent() - began
            if done > self.rounds and spent > _SHORT_S:
                return False
            # Not begun if it would end too late.
            return self.seconds is None or self.spent() + spent / done < _CLIPS * self.seconds

        rounds = max(self.rounds, self.short_rounds)
        result.runs = race(contenders, rounds, go_on, give_up, self._measure_again)
        del contenders
        gc.collect()
        return result

    def _fitting(
        self, result: Recorded, model: str, needed: Mapping[str, int], available: int
    ) -> tuple[list[str], int]:
        """The ways that fit, in order, and the memory that is left."""
        fitting = []
        for way, count in needed.items():
            if self.past(_CLIPS):
                result.reasons[model, way] = f"not begun: {self.spent():.0f} s have passed"
            elif count > available or (fitting == [] and way != "videoar"):
                result.reasons[model, way] = f"needs {_gib(count)}, {_gib(available)} are left"
            else:
                fitting.append(way)
                available -= count
        return fitting, available


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def _processor() -> str:
    """The model's name where Linux tells it."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return str(environment()["name"])
