"""Turns: clips that are made side by side, a few steps of each at a time, and their clock.

A shared machine changes its pace for seconds at a time: its memory was seen to be half as fast
again for ten seconds. Clips made one behind the other then meet different machines; side by side
they meet the same.
"""

import time
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping
from itertools import starmap
from typing import Any, TypeVar

import torch

# Long enough that what other clips left in the caches does not count.
TURN_S = 0.2

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")
Turns = Generator[float, None, Result]
"""Something done in turns: gives the share of its decoding steps that are done whenever others may
go on, and returns its result."""


def result_of(turns: Generator[Any, None, Result]) -> Result:
    """Go through all turns at once."""
    while True:
        try:
            next(turns)
        except StopIteration as end:
            return end.value


class Laps:
    """Times between marks: events on a GPU's stream, the host's clock elsewhere.

    Args:
        device: where the work is done. A GPU works behind the host, so there a clip is one turn.
        host: by the host's clock on a GPU, too.
    """

    def __init__(
        self,
        device: torch.device,
        stream: "torch.cuda.Stream | None" = None,
        *,
        host: bool = False,
    ) -> None:
        self.cuda, self.stream = device.type == "cuda", stream
        self.events = self.cuda and not host
        self.pairs: list[tuple] = []
        if self.events:
            torch.cuda.synchronize(device)
        self.turn = time.perf_counter()
        self.begin()

    def _now(self) -> "float | torch.cuda.Event":
        if not self.events:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(self.stream)
        return event

    def begin(self) -> None:
        """Begin the coming lap now; what was done since the last mark belongs to none."""
        self.start = self._now()

    def mark(self) -> None:
        """End a lap and begin the next."""
        now = self._now()
        self.pairs.append((self.start, now))
        self.start = now

    def rest(self, share: float) -> Iterator[float]:
        """Give `share` if the turn has lasted long enough; what others do then is in no lap.

        To be called between laps, with `yield from`.
        """
        if self.cuda or time.perf_counter() - self.turn < TURN_S:
            return
        yield share
        self.turn = time.perf_counter()
        self.begin()

    def seconds(self) -> list[float]:
        """Of every lap."""
        if not self.events:
            return [end - begin for begin, end in self.pairs]
        if self.pairs:
            self.pairs[-1][1].synchronize()
        return [1e-3 * each for each in starmap(torch.cuda.Event.elapsed_time, self.pairs)]


def side_by_side(
    clips: Mapping[Key, Turns[Result]], between: Callable[[], None]
) -> Iterator[tuple[Key, Result | Exception]]:
    """Let the clip go on of which the least share is done, until all are.

    Args:
        between: called before every turn.

    Yields:
        A clip's key and its result, or what it raised, when it is there.
    """
    shares = dict.fromkeys(clips, 0.0)
    while shares:
        key = min(shares, key=shares.__getitem__)
        between()
        try:
            shares[key] = next(clips[key])
            continue
        except StopIteration as end:
            result = end.value
        except Exception as error:  # such as memory that ran out
            result = error
        del shares[key]
        yield key, result
