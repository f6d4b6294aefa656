"""CUDA graphs: a call is captured once, with the memory it reads and writes, and then replayed.

A captured call must read every changing value from the device. All graphs share one memory pool,
so the largest is to be captured first; two of them must not run at the same time unless they were
given separate sets.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor

# Calls before the capture: Triton compiles in the first, libraries choose in it.
_WARM_UP = 2
# torch captures one graph at a time.
_CAPTURING = Lock()


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: "torch.cuda.CUDAGraph"
    buffers: dict[str, tuple[tuple[int, ...], torch.dtype, int]]


class GraphSet:
    """Captured calls by name, on one stream.

    Args:
        stream: where they are captured and replayed.
    """

    def __init__(self, stream: "torch.cuda.Stream") -> None:
        self.stream = stream
        self._pool: tuple[int, int] | None = None
        self._captured: dict[object, _Captured] = {}

    def capture(
        self, name: object, call: Callable[[], object], buffers: Mapping[str, Tensor]
    ) -> None:
        """Run `call` a few times, then record it.

        Args:
            buffers: the static tensors that it reads and writes, by the names errors give them.
        """
        assert name not in self._captured, f"{name} is captured already"
        with torch.cuda.stream(self.stream):
            for _ in range(_WARM_UP):
                call()
        self.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on with what a capture forbids, such as waiting for their events.
        mode = {"capture_error_mode": "thread_local"}
        with _CAPTURING, torch.cuda.graph(graph, pool=self._pool, stream=self.stream, **mode):
            call()
        self._pool = graph.pool()
        self._captured[name] = _Captured(graph, {key: _key(t) for key, t in buffers.items()})

    def replay(self, name: object, buffers: Mapping[str, Tensor]) -> None:
        """Run a captured call again, on the set's stream.

        Args:
            buffers: what the caller thinks that the graph reads and writes.

        Raises:
            ValueError: never captured, or a buffer of another shape, dtype or address.
        """
        if name not in self._captured:
            raise ValueError(f"graph: {name} was not captured, there are {list(self._captured)}")
        captured = self._captured[name]
        for key, expected in captured.buffers.items():
            if key not in buffers or _key(buffers[key]) != expected:
                got = _key(buffers[key]) if key in buffers else None
                raise ValueError(f"{key}: graph {name} was captured with {expected}, got {got}")
        with torch.cuda.stream(self.stream):
            captured.graph.replay()

    def close(self) -> None:
        """Free the graphs and their pool."""
        self._captured.clear()
        self._pool = None


def buckets(slots: int) -> list[int]:
    """Slot counts that get a graph of their own: 1, 2, 4, 8, then every eighth, and `slots`."""
    steps = [n for n in (1, 2, 4) if n < slots]
    return [*steps, *range(8, slots, 8), slots]


def _key(tensor: Tensor) -> tuple[tuple[int, ...], torch.dtype, int]:
    return tuple(tensor.shape), tensor.dtype, tensor.data_ptr()
