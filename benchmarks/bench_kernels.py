"""Every operation at the shapes of `videoar.benchmarks.kernels`, against its reference and torch's.

A variant is timed only if it agrees with a float64 reference.
"""

from functools import lru_cache

import pytest
import torch

from videoar.benchmarks.kernel_case import Case, Setting
from videoar.benchmarks.kernel_rows import OURS, failed, row_of
from videoar.benchmarks.kernels import (
    OPS,
    TIME_SEED,
    Plan,
    cases_of,
    check,
    forced,
    modes_of,
    variants_of,
)
from videoar.benchmarks.suite import Suite
from videoar.benchmarks.suite_entry import Entry, part_clock, replay
from videoar.benchmarks.timing import Clock, interleave, rounds_within

pytestmark = pytest.mark.benchmark(timer=part_clock)

# Of a case, for all its variants together.
_BUDGET_MS, _MOST_ROUNDS = 400.0, 30
_FOREVER = float("inf")
_TIMED = "the public function with its checks and allocations: warm calls, or a replayed CUDA graph"
_TINY = "tiny shapes that lie in the caches of a CPU, so more than all of a limit can be reached"


def setting_of(suite: Suite) -> Setting:
    """On a CPU tiny shapes in float32: they test the program."""
    cpu = suite.device == "cpu"
    dtype = torch.float32 if cpu else suite.dtype
    return Setting(device=torch.device(suite.device), dtype=dtype, small=cpu)


def bench_kernel(benchmark, suite: Suite, kernel: Case) -> None:
    device, name = suite.device, f"{kernel.op}: {kernel.name}"
    if suite.past():
        reason = f"not begun: {suite.seconds:.0f} s have passed"
        suite.cannot_run(name, "kernel", reason, requested=False)
    plan = Plan(
        quick=True, skip_compiled=device == "cpu", compile_until=_FOREVER, deadline=_FOREVER
    )
    good, reasons = check(kernel, device, plan)
    ours = OURS[device]
    for variant, reason in reasons.items():
        assert not failed(row_of(kernel, variant, "check", reason), ours), f"{variant}: {reason}"
    if ours not in good:
        suite.cannot_run(name, "kernel", reasons[ours], requested=False)
    samples = _seconds(kernel, _clock(device), good)
    replay(benchmark, samples["videoar"])
    entry = Entry(
        model=name,
        way="videoar",
        part="kernel",
        timed=_TIMED,
        num_bytes=kernel.num_bytes,
        flops=kernel.flops,
        limit_s=suite.limits.seconds(kernel.num_bytes, kernel.flops),
        limit_note=_TINY if device == "cpu" else suite.limit_note,
    )
    dtype = str(setting_of(suite).dtype).removeprefix("torch.")
    suite.describe(benchmark, entry, samples, dtype=dtype)


def _seconds(kernel: Case, clock: Clock, good: dict) -> dict[str, list[float]]:
    """Of every variant that is right; ours under "videoar", first."""
    mode = "graph" if kernel.launch_bound and clock.cuda else "warm"
    sets, ours = [kernel.make(TIME_SEED)], OURS[clock.device.type]
    variants, samplers = variants_of(kernel, clock.device.type), {}
    for variant in sorted(good, key=lambda one: one != ours):
        backend = variants[variant][0]
        prepare = modes_of(kernel, clock, good[variant], sets)[mode]
        samplers[variant] = forced(backend, forced(backend, prepare)())
    first = interleave(samplers, 1)
    round_ms = sum(times[0] for times in first.values())
    samples = interleave(samplers, rounds_within(_BUDGET_MS, round_ms, _MOST_ROUNDS, least=3))
    names = {variant: "videoar" if variant == ours else variant for variant in samples}
    return {names[variant]: [1e-3 * ms for ms in times] for variant, times in samples.items()}


@lru_cache
def _clock(device: str) -> Clock:
    return Clock(torch.device(device))


def cases(suite: Suite) -> list[Case]:
    """All cases of the device."""
    return list(cases_of(OPS, setting_of(suite)))
