"""Every operation against its reference, torch's best and its limit, in one run.

Run as `python -m videoar.benchmarks.kernels`. Prints what each case must cost, then a table, and as
the last line the same as JSON. A variant is timed only if its result agrees with a float64
reference; one that cannot run is a row with the reason. Exits with 1 if our own result is wrong or
missing, with 2 without a CUDA device (unless `--device cpu`). See docs/benchmarks.md.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from videoar.benchmarks.arguments import above_zero, output_file
from videoar.benchmarks.kernel_rows import (
    OURS,
    Limit,
    Row,
    costs_of,
    failed,
    print_costs,
    print_head,
    print_rows,
    row_of,
    timed_row,
    with_ratios,
)
from videoar.runtime.aside import written_aside

if TYPE_CHECKING:
    # torch takes seconds to import, and `--help` needs none of it.
    from videoar.benchmarks.kernel_case import Case, Setting
    from videoar.benchmarks.timing import Clock

OPS = (
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
    # Last: its FlexAttention compiles for long, and what is left of --seconds may go into that.
    "chunk_attention",
)
DTYPES = ("bfloat16", "float16", "float32")
COMPILED = ("compiled", "flex_attention")
PAST = "not run: --seconds have passed"
CHECK_SEED, TIME_SEED = 1, 2
ROUNDS = {False: 100, True: 20}
BUDGET_MS = {False: 4000.0, True: 600.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured: `deadline` and `compile_until` are `time.monotonic()` values."""

    quick: bool
    skip_compiled: bool
    compile_until: float
    deadline: float


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
    from videoar.benchmarks.timing import compare, poisoned
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
                run, inputs = build(), case.make(CHECK_SEED)
                # Poisoning would compile once more, and inductor writes what it allocates.
                with nullcontext() if name in COMPILED else poisoned():
                    problem = compare(run(*inputs), expected, case.ties)
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
        if time.monotonic() > plan.deadline:
            rows += [row_of(case, name, mode, PAST) for name in samplers]
            continue
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
    with written_aside(path) as unfinished:
        unfinished.write_text(json.dumps(document) + "\n")


def publish(document: Mapping[str, object], path: Path | None) -> None:
    """Save the JSON where a path was given, and print it as the last line."""
    if path is not None:
        save(path, document)
    print(json.dumps(document))


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
    parser.add_argument(
        "--seconds", type=above_zero, default=3600, help="start no timing after this"
    )
    parser.add_argument(
        "--out", type=output_file, help="also write the JSON here, after every case"
    )
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
    from videoar.benchmarks.kernel_case import Setting
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
        return [row_of(case, ours, "check", PAST)]
    try:
        return measure(case, clock, limit, plan)
    except Exception as error:  # such as too little memory for the float64 reference
        return [row_of(case, ours, "check", first_line(error))]


if __name__ == "__main__":
    sys.exit(main())
