"""The rows of `benchmarks/kernels.py`: limits, numbers, ratios, and how they are printed."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from videoar.benchmarks.kernel_case import Case

# The backend that the dispatch rule chooses, and so the variant that is ours.
OURS = {"cuda": "triton", "cpu": "cpp"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """The measured ceilings of the device: bytes and FLOPs a second."""

    copy_bandwidth: float
    matmul_rate: float

    def ms(self, num_bytes: int, flops: int) -> float:
        """The least time of an operation, in milliseconds."""
        return 1e3 * max(num_bytes / self.copy_bandwidth, flops / self.matmul_rate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One variant of one case in one mode; numbers are None where it was not timed.

    Attributes:
        op, case, variant: names.
        mode: "warm" (same buffers), "cold" (after a flush of the caches), "graph" (replayed, same
            buffers) or "graph cold" (replayed, rotating over more than the L2 holds).
        rounds: samples behind the numbers.
        ms, p10_ms, p90_ms: of a call: median and percentiles.
        gb_per_s, tflop_per_s: of the bytes and FLOPs that the case must cost, at the median.
        percent_of_limit: the limit's time over the median.
        vs_ours: this median over ours in the same mode: how many times as fast ours is.
        reason: why it was not timed, or "".
    """

    op: str
    case: str
    variant: str
    mode: str
    rounds: int | None = None
    ms: float | None = None
    p10_ms: float | None = None
    p90_ms: float | None = None
    gb_per_s: float | None = None
    tflop_per_s: float | None = None
    percent_of_limit: float | None = None
    vs_ours: float | None = None
    reason: str = ""


def timed_row(case: "Case", variant: str, mode: str, samples: Sequence[float], limit: Limit) -> Row:
    """The row of a variant from its samples in milliseconds."""
    from videoar.benchmarks.timing import percentile

    median = percentile(samples, 0.5)
    return Row(
        op=case.op,
        case=case.name,
        variant=variant,
        mode=mode,
        rounds=len(samples),
        ms=median,
        p10_ms=percentile(samples, 0.1),
        p90_ms=percentile(samples, 0.9),
        gb_per_s=case.num_bytes / median / 1e6,
        tflop_per_s=case.flops / median / 1e9,
        percent_of_limit=100 * limit.ms(case.num_bytes, case.flops) / median,
    )


def row_of(case: "Case", variant: str, mode: str, reason: str) -> Row:
    """The row of a variant that was not timed."""
    return Row(op=case.op, case=case.name, variant=variant, mode=mode, reason=reason)


def with_ratios(rows: Sequence[Row], ours: str) -> list[Row]:
    """The rows of one case with `vs_ours` where ours was timed in the same mode."""
    base = {row.mode: row.ms for row in rows if row.variant == ours and row.ms}
    return [
        replace(row, vs_ours=row.ms / base[row.mode]) if row.ms and row.mode in base else row
        for row in rows
    ]


def failed(row: Row, ours: str) -> bool:
    """Whether the row fails the run: ours or the reference wrong, or ours not there on a GPU."""
    if not row.reason or row.reason.startswith("not run"):
        return False
    if row.variant != ours and (row.variant, row.mode) != ("reference", "check"):
        return False
    # On a CPU the dispatch rule gives what the C++ kernels do not do, such as gradients, to the
    # reference; forced, they refuse it in these words.
    return f"{OURS['cpu']!r} backend" not in row.reason


def costs_of(case: "Case", limit: Limit) -> dict[str, object]:
    """A line of the cost card."""
    return {
        "op": case.op,
        "case": case.name,
        "num_bytes": case.num_bytes,
        "flops": case.flops,
        "limit_ms": limit.ms(case.num_bytes, case.flops),
        "bound": "memory" if limit.ms(case.num_bytes, 0) > limit.ms(0, case.flops) else "compute",
    }


def print_costs(costs: Sequence[Mapping[str, object]], limit: Limit) -> None:
    """The cost card: bytes, FLOPs and the least time of every case."""
    print(
        f"measured ceilings: copy {limit.copy_bandwidth / 1e9:.1f} GB/s, "
        f"matrix product {limit.matmul_rate / 1e12:.3f} TFLOP/s"
    )
    line = "{:<22}{:<58}{:>10}{:>10}{:>12}  {}"
    print(line.format("op", "case", "MB", "GFLOP", "limit us", "bound"))
    for cost in costs:
        print(
            line.format(
                cost["op"],
                cost["case"],
                f"{cost['num_bytes'] / 1e6:.3f}",
                f"{cost['flops'] / 1e9:.3f}",
                f"{1e3 * cost['limit_ms']:.2f}",
                cost["bound"],
            )
        )


TABLE = "{:<22}{:<16}{:<12}{:>11}{:>11}{:>11}{:>9}{:>9}{:>8}{:>9}"


def print_head() -> None:
    """The head of the table."""
    heads = ("op", "variant", "mode", "ms", "p10", "p90", "GB/s", "TFLOP/s", "% limit", "vs ours")
    print(TABLE.format(*heads), flush=True)


def print_rows(case: "Case", rows: Sequence[Row]) -> None:
    """The case's name, then a line a row; a reason stands in place of the numbers."""
    print(f"# {case.op}: {case.name}")
    for row in rows:
        if row.ms is None:
            print(f"{row.op:<22}{row.variant:<16}{row.mode:<12} {row.reason}")
            continue
        ratio = "-" if row.vs_ours is None else f"{row.vs_ours:.2f}x"
        times = [f"{ms:.5f}" for ms in (row.ms, row.p10_ms, row.p90_ms)]
        rates = f"{row.gb_per_s:.0f}", f"{row.tflop_per_s:.2f}", f"{row.percent_of_limit:.1f}"
        print(TABLE.format(row.op, row.variant, row.mode, *times, *rates, ratio))
    sys.stdout.flush()
