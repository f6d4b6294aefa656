"""Clocks for operations: warm, cold and graph-replayed calls, and the two ceilings of a device.

A `Clock` turns a callable into samplers, each of which gives one time in milliseconds; `interleave`
draws from the samplers of all variants in turn, so that a drift of the device meets all of them.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

Call = Callable[[], object]
Sampler = Callable[[], float]

# Read before a cold call. Far more than any L2, and long enough for the host to queue the call.
FLUSH_BYTES = {"cuda": 1 << 30, "cpu": 1 << 26}
COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 24}
MATMUL_SIZE = {"cuda": 8192, "cpu": 256}
# A warm sample repeats short calls until it lasts about this long, a graph holds so many.
SAMPLE_MS = 1.0
MAX_CALLS = 50
GRAPH_CALLS = 20
# Of a rotation whose input sets together exceed the L2 twice.
MAX_SETS = 64


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 .. 1) of `values` lie, interpolated linearly."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def interleave(samplers: Mapping[str, Sampler], rounds: int) -> dict[str, list[float]]:
    """Draw `rounds` samples of each: every round asks all once, each round another one first."""
    names = list(samplers)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % max(1, len(names))
        for name in names[first:] + names[:first]:
            samples[name].append(samplers[name]())
    return samples


def rounds_within(budget_ms: float, round_ms: float, most: int, least: int = 5) -> int:
    """How often a round fits into the budget, between `least` and `most`."""
    return max(least, min(most, int(budget_ms / max(round_ms, 1e-6))))


class Clock:
    """Times calls on one device: CUDA events there, `perf_counter` on a CPU.

    Attributes:
        device: of the calls' tensors.
        cache_bytes: of the L2 (0: not known).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cuda = device.type == "cuda"
        self.cache_bytes = 0
        if self.cuda:
            self.cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        words = FLUSH_BYTES[device.type] // 4
        self._flush = torch.zeros(words, device=device)
        self._sum = torch.zeros((), device=device)

    def flush(self) -> None:
        """Push everything out of the caches; by reading, as writes would be written back later."""
        torch.sum(self._flush, dim=0, out=self._sum)

    def measure(self, call: Call, calls: int = 1, before: Call | None = None) -> float:
        """Milliseconds of one of `calls` calls in a row; `before` runs first, untimed."""
        if before is not None:
            before()
        if not self.cuda:
            start = time.perf_counter()
            for _ in range(calls):
                call()
            return (time.perf_counter() - start) * 1e3 / calls
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / calls

    def warm(self, call: Call) -> Sampler:
        """A sampler over the same buffers, after warming up."""
        for _ in range(3):
            call()
        single = self.measure(call)
        calls = max(1, min(MAX_CALLS, math.ceil(SAMPLE_MS / max(single, 1e-6))))
        return lambda: self.measure(call, calls)

    def cold(self, call: Call) -> Sampler:
        """A sampler of single calls, each after a flush of the caches."""
        return lambda: self.measure(call, before=self.flush)

    def graph(self, calls: Sequence[Call]) -> Sampler:
        """A sampler over replays of a CUDA graph that holds `calls`, as the time of one.

        Raises:
            RuntimeError: the calls cannot be captured.
        """
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for call in calls[:2]:
                call()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        graph.replay()
        return lambda: self.measure(graph.replay) / len(calls)

    def sets_to_be_cold(self, num_bytes: int) -> int:
        """How many input sets of a case exceed the L2 twice; 1 if unknown or too many."""
        sets = math.ceil(2 * self.cache_bytes / max(1, num_bytes))
        return max(1, sets) if sets <= MAX_SETS else 1

    def copy_bandwidth(self) -> float:
        """Bytes a second of a large copy, read and written ones counted (median)."""
        source = torch.randn(COPY_BYTES[self.device.type] // 4, device=self.device)
        target = torch.empty_like(source)
        sampler = self.warm(lambda: target.copy_(source))
        return 2 * source.nbytes / (percentile([sampler() for _ in range(20)], 0.5) * 1e-3)

    def matmul_rate(self, dtype: torch.dtype) -> float:
        """FLOPs a second of a large square product of random matrices (median)."""
        size = MATMUL_SIZE[self.device.type]
        a, b = (torch.randn(size, size, device=self.device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        sampler = self.warm(lambda: torch.mm(a, b, out=out))
        return 2 * size**3 / (percentile([sampler() for _ in range(20)], 0.5) * 1e-3)


@contextmanager
def poisoned() -> Iterator[None]:
    """Inside, new tensors hold NaN or the largest integer until something is written.

    An operation that leaves out a part of its result is then always wrong; else it is right where
    its memory still holds an earlier result.
    """
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fills


# By dtype of a result: largest error over largest value, RMS of the error over RMS of the values.
TOLERANCES = {
    torch.float64: (1e-9, 1e-9),
    torch.float32: (2e-5, 2e-6),
    torch.float16: (2e-3, 1e-3),
    torch.bfloat16: (1.6e-2, 8e-3),
}


def compare(got: Sequence[Tensor], expected: Sequence[Tensor], ties: float = 0.0) -> str:
    """What is wrong with a result, or "".

    Floats are held to `TOLERANCES`. Everything else must be equal, but for a share of `ties`:
    decisions as close as rounding. What a leading index (clip, row) holds beyond an unequal
    decision follows from it, so its floats are then left out.
    """
    if len(got) != len(expected):
        return f"{len(got)} results, expected {len(expected)}"
    followers = None
    for place, (result, right) in enumerate(zip(got, expected, strict=True)):
        if result.shape != right.shape:
            return f"result {place}: shape {list(result.shape)}, expected {list(right.shape)}"
        result, right = result.detach(), right.detach().to(result.device)
        if not result.is_floating_point():
            unequal = result != right
            share = unequal.float().mean().item()
            if share > ties:
                where = unequal.nonzero()[0].tolist()
                return f"result {place}: a share of {share:.1e} is unequal, first at {where}"
            if share:
                rows = unequal.flatten(1).any(1)
                followers = rows if followers is None else followers | rows
            continue
        if followers is not None:
            result, right = result[~followers], right[~followers]
        problem = _distance(result, right)
        if problem:
            return f"result {place}: {problem}"
    return ""


def _distance(result: Tensor, right: Tensor) -> str:
    if not result.numel():
        return "nothing left to compare"
    limits = TOLERANCES[result.dtype]
    right = right.double()
    error = (result.double() - right).abs()
    worst = (error.max() / right.abs().max().clamp(min=1e-30)).item()
    rms = (error.square().mean() / right.square().mean().clamp(min=1e-60)).sqrt().item()
    # Written so that NaN fails.
    if worst <= limits[0] and rms <= limits[1]:
        return ""
    return f"max {worst:.1e}, RMS {rms:.1e} relative, allowed {limits[0]:.1e} and {limits[1]:.1e}"
