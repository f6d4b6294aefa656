"""Every operation against its reference, torch's best and its limit, in one run.

Run as `python -m videoar.benchmarks.kernels`. Prints what each case must cost, then a table, and as
the last line the same as JSON. A variant is timed only if its result agrees with a float64
reference; one that cannot run is a row with the reason. Exits with 1 if our own result is wrong or
missing, with 2 without a CUDA device (unless `--device cpu`). See docs/benchmarks.md.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # torch takes seconds to import, and `--help` needs none of it.
    from videoar.benchmarks.kernel_cases import Case, Setting
    from videoar.benchmarks.timing import Clock

OPS = (
    "chunk_attention",
    "cached_attention",
    "qk_norm_rope",
    "next_scale",
    "bsq_quantize",
    "rms_norm",
    "swiglu",
    "resample",
    "pack_bits",
    "bitwise_cross_entropy",
    "philox",
)
DTYPES = ("bfloat16", "float16", "float32")
# The backend that the dispatch rule chooses, and so the variant that is ours.
OURS = {"cuda": "triton", "cpu": "cpp"}
COMPILED = ("compiled", "flex_attention")
CHECK_SEED, TIME_SEED = 1, 2
ROUNDS = {False: 100, True: 20}
BUDGET_MS = {False: 4000.0, True: 600.0}


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured: `deadline` and `compile_until` are `time.monotonic()` values."""

    quick: bool
    skip_compiled: bool
    compile_until: float
    deadline: float


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
    # On a CPU an operation without a C++ kernel is served by its reference.
    return f"no {OURS['cpu']!r} backend" not in row.reason


def variants_of(case: "Case", device: str) -> dict[str, tuple[str | None, Callable[[], Callable]]]:
    """By name: the backend to force, and what builds the callable."""
    own = {name: (name, lambda: case.run) for name in (OURS[device], "reference")}
    # Inside of what torch compiles, an op that calls another must not reach our kernels.
    return own | {name: ("reference", build) for name, build in case.torch_best.items()}


def first_line(error: BaseException) -> str:
    """The error in one short line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:160]


def check(case: "Case", device: str, plan: Plan) -> tuple[dict[str, Callable], dict[str, str]]:
    """Build and check every variant: those that are right, and the reasons of the others."""
    from videoar.benchmarks.timing import compare
    from videoar.kernels import use_backend

    good, reasons = {}, {}
    with use_backend("reference"):
        expected = case.expected(*case.make(CHECK_SEED))
    for name, (backend, build) in variants_of(case, device).items():
        if name in COMPILED and plan.skip_compiled:
            reasons[name] = "not run: --quick compiles nothing on a CPU"
            continue
        if name in COMPILED and time.monotonic() > plan.compile_until:
            reasons[name] = "not run: half of --seconds has passed"
            continue
        try:
            with use_backend(backend):
                run = build()
                problem = compare(run(*case.make(CHECK_SEED)), expected, case.ties)
        except Exception as error:  # whatever a variant raises is its row
            problem = first_line(error)
        if problem:
            reasons[name] = problem
        else:
            good[name] = run
    return good, reasons


def modes_of(
    case: "Case", clock: "Clock", run: Callable, sets: Sequence[tuple]
) -> dict[str, Callable[[], Callable[[], float]]]:
    """What prepares the sampler of each mode; only "graph cold" uses more than the first inputs."""
    from videoar.benchmarks.timing import GRAPH_CALLS

    calls = [partial(run, *inputs) for inputs in sets]
    modes = {"warm": lambda: clock.warm(calls[0]), "cold": lambda: clock.cold(calls[0])}
    if case.launch_bound and clock.cuda:
        modes["graph"] = lambda: clock.graph(calls[:1] * GRAPH_CALLS)
        if len(calls) > 1:
            modes["graph cold"] = lambda: clock.graph(calls)
    return modes


def forced(backend: str, function: Callable) -> Callable:
    """`function` under a backend; around a whole sample, since entering takes a microsecond."""
    from videoar.kernels import use_backend

    def inside() -> object:
        with use_backend(backend):
            return function()

    return inside


def measure(case: "Case", clock: "Clock", limit: Limit, plan: Plan) -> list[Row]:
    """All rows of one case."""
    from videoar.benchmarks.timing import interleave, rounds_within

    device = clock.device.type
    good, reasons = check(case, device, plan)
    rows = [row_of(case, name, "check", reason) for name, reason in reasons.items()]
    count = clock.sets_to_be_cold(case.num_bytes) if case.launch_bound else 1
    sets = [case.make(TIME_SEED + i) for i in range(count)]
    modes: dict[str, dict[str, Callable[[], float]]] = {}
    for name, run in good.items():
        backend = variants_of(case, device)[name][0]
        for mode, prepare in modes_of(case, clock, run, sets).items():
            try:
                sampler = forced(backend, forced(backend, prepare)())
                modes.setdefault(mode, {})[name] = sampler
            except Exception as error:  # its row says why
                rows.append(row_of(case, name, mode, first_line(error)))
    for mode, samplers in modes.items():
        try:
            began = time.monotonic()
            interleave(samplers, 1)
            round_ms = 1e3 * (time.monotonic() - began)
            rounds = rounds_within(BUDGET_MS[plan.quick], round_ms, ROUNDS[plan.quick])
            samples = interleave(samplers, rounds)
        except Exception as error:  # a device error meets all that are interleaved
            rows += [row_of(case, name, mode, first_line(error)) for name in samplers]
            continue
        rows += [timed_row(case, name, mode, times, limit) for name, times in samples.items()]
    return with_ratios(rows, OURS[device])


def cases_of(ops: Sequence[str], setting: "Setting") -> Iterator["Case"]:
    """The cases of these operations, built one after the other."""
    from videoar.benchmarks.kernel_cases import CASES

    for op in ops:
        yield from CASES[op](setting)


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


def commit() -> str | None:
    """The commit of the source, "+" for changes on top of it; None outside of a repository."""
    command = ["git", "-C", str(Path(__file__).resolve().parent)]
    try:
        git = {"capture_output": True, "text": True, "check": True, "timeout": 10}
        name = subprocess.run([*command, "rev-parse", "HEAD"], **git).stdout.strip()
        changes = subprocess.run([*command, "status", "--porcelain", "-uno"], **git).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return name + "+" * bool(changes.strip())


def method(clock: "Clock", plan: Plan) -> dict[str, object]:
    """What is inside of the timer, for the JSON."""
    from videoar.benchmarks import timing

    return {
        "clock": "cuda events" if clock.cuda else "perf_counter",
        "rounds": ROUNDS[plan.quick],
        "round_budget_ms": BUDGET_MS[plan.quick],
        "statistics": "median, p10, p90 over the rounds; variants interleaved in every round",
        "inside": "the public function: its checks, allocations and launches",
        "outside": "inputs, first calls (compilation), correctness check, mask of the references",
        "warm": f"same buffers, calls repeated to {timing.SAMPLE_MS} ms a sample",
        "cold": f"one call after reading {timing.FLUSH_BYTES[clock.device.type]} bytes",
        "graph": f"{timing.GRAPH_CALLS} calls in one CUDA graph, same buffers",
        "graph cold": "one call on each of several input sets, together twice the L2",
    }


def save(path: Path, document: Mapping[str, object]) -> None:
    """Write the JSON beside the file and rename it, so that half of one never lies there."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(document) + "\n")
    os.replace(part, path)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="videoar.benchmarks.kernels", description=__doc__)
    parser.add_argument("--op", action="append", choices=OPS, help="repeatable; else all")
    parser.add_argument("--device", choices=tuple(OURS), default="cuda")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="default: bfloat16, on a CPU float32 (shapes are tiny there)",
    )
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--seconds", type=float, default=3600, help="start no case after this")
    parser.add_argument("--out", type=Path, help="also write the JSON here, after every case")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Print costs, table and JSON; the exit status is that of the file's head."""
    options = parse(arguments)
    began = time.monotonic()
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("videoar.benchmarks.kernels: no CUDA device; --device cpu runs it", file=sys.stderr)
        return 2
    from videoar.benchmarks.environment import environment
    from videoar.benchmarks.kernel_cases import Setting
    from videoar.benchmarks.timing import Clock

    device, cpu = torch.device(options.device), options.device == "cpu"
    dtype = options.dtype or ("float32" if cpu else "bfloat16")
    setting = Setting(device=device, dtype=getattr(torch, dtype), small=cpu)
    plan = Plan(
        quick=options.quick,
        skip_compiled=options.quick and cpu,
        compile_until=began + options.seconds / 2,
        deadline=began + options.seconds,
    )
    ops = options.op or OPS
    clock = Clock(device)
    limit = Limit(
        copy_bandwidth=clock.copy_bandwidth(), matmul_rate=clock.matmul_rate(setting.dtype)
    )
    costs = [costs_of(case, limit) for case in cases_of(ops, setting)]
    print_costs(costs, limit)
    print_head()
    document = {
        **environment(),
        "device": options.device,
        "commit": commit(),
        "dtype": dtype,
        "ours": OURS[options.device],
        "method": method(clock, plan),
        "ceilings": asdict(limit),
        "cases": costs,
    }
    rows: list[Row] = []
    for case in cases_of(ops, setting):
        if not plan.skip_compiled:
            # One function compiled for many shapes would end at torch's limit of recompilations.
            torch.compiler.reset()
        rows += (made := rows_of(case, clock, limit, plan))
        print_rows(case, made)
        document["rows"] = [asdict(row) for row in rows]
        document["ok"] = not any(failed(row, OURS[options.device]) for row in rows)
        if options.out:
            save(options.out, document)
    print(json.dumps(document))
    return 0 if document["ok"] else 1


def rows_of(case: "Case", clock: "Clock", limit: Limit, plan: Plan) -> list[Row]:
    """The rows of a case, or one that says why there are none."""
    ours = OURS[clock.device.type]
    if time.monotonic() > plan.deadline:
        return [row_of(case, ours, "check", "not run: --seconds have passed")]
    try:
        return measure(case, clock, limit, plan)
    except Exception as error:  # such as too little memory for the float64 reference
        return [row_of(case, ours, "check", first_line(error))]


if __name__ == "__main__":
    sys.exit(main())
