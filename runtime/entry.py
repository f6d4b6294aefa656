"""`Entry`: one request as the scheduler knows it, with the frames that wait to be taken.

A scheduler knows entries only, not the caller's `Handle`: a handle that nobody holds is collected,
and that cancels its request. Cancelling only sets a flag, which the scheduler reads at every frame
boundary: a finaliser runs wherever the garbage collector does, so it must not take a lock.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from videoar.runtime.errors import Cancelled
from videoar.runtime.job import Job

StepHook = Callable[[int, int, float], None]
"""Called with (latent frame, scale, seconds) behind every decoding step of one request."""


class Progress(NamedTuple):
    """Decoding steps done, and of how many. Text and frames that were given cost none."""

    done: int
    total: int

    @property
    def fraction(self) -> float:
        """0 .. 1"""
        return self.done / self.total


class Entry:
    """One request on its way through a scheduler. Thread-safe.

    Args:
        job: what to compute.
        num_scales: decoding steps of a latent frame.
        on_step: called in the scheduler's thread.

    Attributes:
        changed: held for every change; notified when there are frames or the end.
        done: nothing more will come.
        error: what ended the request; None while it runs and when it ended well.
        cancelled: the scheduler is to drop it.
        steps: decoding steps done, written by the scheduler.
        timings: as in `VideoResult`, and `queued`: seconds before the first slot.

    Raises:
        ValueError: `on_step` cannot be called.
    """

    def __init__(self, job: Job, *, num_scales: int, on_step: StepHook | None = None) -> None:
        if not (on_step is None or callable(on_step)):
            raise ValueError(f"on_step: expected a function, got {on_step!r}")
        self.job, self.on_step, self.num_scales = job, on_step, num_scales
        self.changed = threading.Condition()
        self.done = self.cancelled = self.streamed = self.collected = False
        self.error: BaseException | None = None
        self.steps = 0
        self.timings = {"queued": 0.0, "prefill": 0.0, "transformer": 0.0, "decoder": 0.0}
        self.submitted = time.perf_counter()
        self._frames: deque[np.ndarray] = deque()
        self._watchers: set[asyncio.Future[None]] = set()

    @property
    def progress(self) -> Progress:
        latent_frames = sum(shot.num_latent_frames for shot in self.job.shots)
        return Progress(done=self.steps, total=latent_frames * self.num_scales)

    def cancel(self) -> None:
        """Ask the scheduler to drop the request; nothing happens if it has ended."""
        if not self.done:
            self.cancelled = True

    def deliver(self, frames: np.ndarray) -> None:
        """Queue the next pixel frames, uint8 `[n,H,W,3]`."""
        with self.changed:
            self._frames.append(frames)
            self._notify()

    def finish(self, error: BaseException | None = None) -> None:
        """Nothing more comes; frames in the queue may still be taken, unless it was cancelled."""
        with self.changed:
            self.timings |= {"total": time.perf_counter() - self.submitted, "steps": self.steps}
            self.error, self.done = error, True
            if isinstance(error, Cancelled):
                self._frames.clear()
            self._notify()

    def ready(self) -> bool:
        """Whether `pop` has an answer; called with `changed` held."""
        return bool(self._frames) or self.done or self.cancelled

    def pop(self) -> np.ndarray | None:
        """The next frames, or None behind the last; called with `changed` held, when `ready`.

        Raises:
            Cancelled: also when the scheduler has not come to dropping it yet.
            Exception: what ended the request, behind the frames made before.
        """
        if self.cancelled and not self.done:
            raise Cancelled("the request was cancelled")
        if self._frames:
            self.streamed = True
            return self._frames.popleft()
        if self.error is not None:
            raise self.error
        if self.collected:
            raise RuntimeError("frames: result() has taken the frames of this request")
        return None

    def drain(self) -> list[np.ndarray]:
        """All frames in the queue, which is empty afterwards."""
        with self.changed:
            frames = list(self._frames)
            self._frames.clear()
        return frames

    def watch(self) -> "asyncio.Future[None]":
        """A future of the running event loop that the next change ends; `changed` held."""
        future = asyncio.get_running_loop().create_future()
        self._watchers.add(future)
        return future

    def unwatch(self, future: "asyncio.Future[None]") -> None:
        with self.changed:
            self._watchers.discard(future)

    def _notify(self) -> None:
        self.changed.notify_all()
        for future in self._watchers:
            with suppress(RuntimeError):  # that event loop is closed, so nobody waits in it
                future.get_loop().call_soon_threadsafe(_wake_watcher, future)
        self._watchers.clear()


def _wake_watcher(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
