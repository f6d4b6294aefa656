"""Search the tiles of the Triton kernels on the device at hand.

Run as `python -m videoar.benchmarks.tune`. From the tiles of today, one number after the other is
changed for as long as that helps. A candidate is timed only if its result agrees with the
reference; the winner is then timed beside the tiles of today, in turns, and that ratio is printed.
The table is to be pasted, with its device and date, beside a change of the function it names.
Exit status: 0; 1 if today's tiles give a wrong result; 2 without a CUDA device. `--interpret` runs
tiny shapes in Triton's interpreter: that tests the program, its times mean nothing.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from statistics import median
from typing import TYPE_CHECKING, Any

from videoar.benchmarks.arguments import above_zero, output_file
from videoar.benchmarks.kernels import OPS, commit, first_line, publish

if TYPE_CHECKING:
    # torch takes seconds to import, and `--help` needs none of it; Triton reads TRITON_INTERPRET
    # when it is imported.
    from videoar.benchmarks.kernel_case import Case, Setting
    from videoar.benchmarks.timing import Clock, Sampler
    from videoar.benchmarks.tune_kernels import Choice, Tunable

SEED = 1
# Below this share of the best time a candidate counts as better; less is noise.
BETTER = 0.98
PASSES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is tried and timed.

    Attributes:
        values: of every axis; None: all.
        samples: of a candidate.
        rounds: of the winner beside today's.
    """

    values: int | None = None
    samples: int = 7
    rounds: int = 15


# The interpreter takes seconds a call.
LEAST = Effort(values=2, samples=1, rounds=1)


@dataclass(slots=True, kw_only=True)
class Tuned:
    """What was found for one kernel in one case.

    Attributes:
        op, kernel, function, case: names.
        fields: of the tiles.
        today, best: tiles.
        today_ms, best_ms: medians, in turns of one run; None: not timed.
        ratio: median over the rounds of today's time over the best's.
        tried: candidates that were timed.
        refused: by candidate, why it was not timed.
        reason: why nothing was tuned, or "".
    """

    op: str
    kernel: str
    function: str
    case: str
    fields: tuple[str, ...]
    today: tuple[int, ...] = ()
    best: tuple[int, ...] = ()
    today_ms: float | None = None
    best_ms: float | None = None
    ratio: float | None = None
    tried: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    reason: str = ""


class Search:
    """One kernel in one case: checks, times and compares choices.

    Args:
        backend: forced around every call; None: the dispatch rule's.
    """

    def __init__(
        self,
        tunable: "Tunable",
        case: "Case",
        clock: "Clock",
        backend: str | None = None,
        effort: Effort | None = None,
    ) -> None:
        from videoar.kernels import use_backend

        self.tunable, self.case, self.clock, self.backend = tunable, case, clock, backend
        self.effort = effort or Effort()
        self.axes = {place: axis[: self.effort.values] for place, axis in tunable.axes.items()}
        self.inputs = case.make(SEED)
        with use_backend("reference"):
            self.expected = case.expected(*self.inputs)

    def call(self) -> tuple:
        """The public operation; what it writes into its inputs it writes again in every call."""
        from videoar.kernels import use_backend

        with use_backend(self.backend):
            return self.case.run(*self.inputs)

    def sampler(self, choice: "Choice") -> tuple["Sampler", tuple[int, ...]]:
        """What times a choice, and its tiles.

        Raises:
            ValueError: its result is wrong, with the difference.
            Exception: whatever compiling or launching it raises.
        """
        from videoar.benchmarks.timing import GRAPH_CALLS, compare, poisoned
        from videoar.benchmarks.tune_kernels import forced

        with forced(self.tunable, choice) as taken:
            with poisoned():
                problem = compare(self.call(), self.expected, self.case.ties)
            if not taken:
                raise RuntimeError(f"{self.tunable.function} was not asked for tiles")
            if problem:
                raise ValueError(f"wrong: {problem}")
            if self.clock.cuda and self.case.launch_bound:
                return self.clock.graph([self.call] * GRAPH_CALLS), taken[0]

        def sample() -> float:
            with forced(self.tunable, choice):
                return self.clock.measure(self.call)

        return sample, taken[0]

    def run(self, deadline: float) -> Tuned:
        """Find the best choice before `deadline`, a `time.monotonic()`."""
        from videoar.benchmarks.timing import interleave

        found = empty_row(self.tunable, self.case.name)
        try:
            today, found.today = self.sampler({})
        except Exception as error:  # today's tiles are wrong or do not run: nothing to tune
            found.reason = first_line(error)
            return found
        best, found.best = self.sampler(self.climb(self.time(today), found, deadline))
        samples = interleave({"today": today, "best": best}, self.effort.rounds)
        found.today_ms, found.best_ms = (median(samples[name]) for name in ("today", "best"))
        pairs = zip(samples["today"], samples["best"], strict=True)
        found.ratio = median(one / other for one, other in pairs)
        return found

    def climb(self, best_ms: float, found: Tuned, deadline: float) -> dict[int, int]:
        """Change one number after the other, for as long as that helps."""
        best: dict[int, int] = {}
        seen = {found.today}
        for _ in range(PASSES):
            before = best
            for place, axis in self.axes.items():
                for value in axis:
                    if time.monotonic() > deadline:
                        return best
                    candidate = {**best, place: value}
                    tiles = tuple(candidate.get(i, x) for i, x in enumerate(found.today))
                    if tiles in seen:
                        continue
                    seen.add(tiles)
                    ms = self.attempt(candidate, found)
                    if ms is not None and ms < BETTER * best_ms:
                        best, best_ms = candidate, ms
            if best == before:
                break
        return best

    def attempt(self, choice: "Choice", found: Tuned) -> float | None:
        """Milliseconds of a candidate; None where it is refused."""
        try:
            sampler, _ = self.sampler(choice)
        except Exception as error:  # too much shared memory, a wrong result: the row says so
            fields = self.tunable.fields
            name = ", ".join(f"{fields[place]} {value}" for place, value in sorted(choice.items()))
            found.refused[name] = first_line(error)
            return None
        found.tried += 1
        return self.time(sampler)

    def time(self, sampler: "Sampler") -> float:
        """Median milliseconds of a few samples; checking the candidate has warmed it up."""
        return median(sampler() for _ in range(self.effort.samples))


def empty_row(tunable: "Tunable", case: str, reason: str = "") -> Tuned:
    """A row without numbers."""
    return Tuned(
        op=tunable.op,
        kernel=tunable.kernel,
        function=f"{tunable.module}.{tunable.function}",
        case=case,
        fields=tunable.fields,
        reason=reason,
    )


def tune(
    ops: Sequence[str], setting: "Setting", clock: "Clock", deadline: float
) -> Iterator[Tuned]:
    """A row for every kernel of these operations in every case; small: one case of each."""
    from videoar.benchmarks.kernel_cases import CASES
    from videoar.benchmarks.tune_kernels import TUNABLES

    backend, effort = ("triton", LEAST) if setting.small else (None, Effort())
    for tunable in (one for one in TUNABLES if one.op in ops):
        cases = [case for case in CASES[tunable.op](setting) if tunable.serves(case)]
        for case in cases[: 1 if setting.small else None]:
            if time.monotonic() > deadline:
                yield empty_row(tunable, case.name, "not run: --seconds have passed")
                continue
            yield Search(tunable, case, clock, backend, effort).run(deadline)


def table(rows: Sequence[Tuned], title: str) -> list[str]:
    """What to paste: a title with device and date, and a line for every kernel and case."""
    from videoar.benchmarks.report_tables import table as markdown

    heads = ("function", "kernel", "case", "numbers", "today", "best", "us", "today / best")
    heads = (*heads, "tried", "refused")
    lines = []
    for row in rows:
        if row.ratio is None:
            numbers = ("-", "-", row.reason)
        else:
            best = "as today" if row.best == row.today else _numbers(row.best)
            numbers = (best, f"{1e3 * row.best_ms:.2f}", f"{row.ratio:.3f}")
        place = (f"`{row.function}`", row.kernel, row.case, ", ".join(row.fields))
        lines.append((*place, _numbers(row.today), *numbers, row.tried, len(row.refused)))
    return [title, "", *markdown(heads, lines)]


def _numbers(tiles: Sequence[int]) -> str:
    return ", ".join(map(str, tiles)) or "-"


def title_of(facts: dict[str, Any], dtype: str) -> str:
    """Device, date, dtype and versions."""
    capability = facts["capability"]
    device = f"{facts['name']} (sm_{capability.replace('.', '')})" if capability else ""
    where = device or "Triton's interpreter, tiny shapes: the times mean nothing"
    versions = f"torch {facts['torch']}, triton {facts['triton']}, commit {facts['commit']}"
    return f"Tiles searched on {where}, {facts['date']}, {dtype}, {versions}."


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="videoar.benchmarks.tune", description=__doc__)
    parser.add_argument("--op", action="append", choices=OPS, help="repeatable; else all")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument(
        "--seconds", type=above_zero, default=3600, help="try nothing new after this"
    )
    parser.add_argument("--interpret", action="store_true", help="tiny shapes, no GPU: a test")
    parser.add_argument("--out", type=output_file, help="also write the JSON here")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Print the table and the JSON; the exit status is that of the file's head."""
    options = parse(arguments)
    deadline = time.monotonic() + options.seconds
    if options.interpret:
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    if not options.interpret and not torch.cuda.is_available():
        print("videoar.benchmarks.tune: no CUDA device; --interpret tests it", file=sys.stderr)
        return 2
    from videoar.benchmarks.environment import environment
    from videoar.benchmarks.kernel_case import Setting
    from videoar.benchmarks.timing import Clock

    device = torch.device("cpu" if options.interpret else "cuda")
    dtype = "float32" if options.interpret else options.dtype
    setting = Setting(device=device, dtype=getattr(torch, dtype), small=options.interpret)
    facts = {**environment(), "commit": commit(), "date": date.today().isoformat()}
    if options.interpret:
        facts |= {"device": "interpreter", "capability": None}
    rows = []
    for row in tune(options.op or OPS, setting, Clock(device), deadline):
        rows.append(row)
        print(f"{row.op}, {row.kernel}: {row.tried} tried", file=sys.stderr, flush=True)
    title = title_of(facts, dtype)
    print("\n".join(table(rows, title)))
    document = {**facts, "dtype": dtype, "title": title, "rows": [asdict(row) for row in rows]}
    publish(document, options.out)
    wrong = [row for row in rows if row.reason and not row.reason.startswith("not run")]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
