"""Frame-level continuous batching (DESIGN promise 5): which request has which slot, and when.

Pure logic, one thread at a time, no torch: what a frame is and where it is computed is the
executor's matter. A tick is one frame boundary and one frame: drop what was cancelled, fill free
slots in the order of arrival, launch the next latent frame of every slot, and hand out the frames
of the tick before, which a GPU finished meanwhile. So at most two frames are under way, and a slot
is started or cleared only when none of its own is.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from videoar.runtime.entry import Entry
from videoar.runtime.errors import Cancelled, HookError
from videoar.runtime.job import Executor, SlotFrame, Ticket


class _Run:
    """A request that has a slot.

    Attributes:
        shot: index of the shot under way.
        to_launch, to_land: latent frames of the shot still to be computed, to be handed out.
        made: latent frames given or made before the shot.
        tail: the last pixel frames so far, as many as the next shot starts with.
        failed: its hook raised; it gets no further frame, and ends when the last one has landed.
        ended: the caller has been told; the slot is still to be cleared.
    """

    def __init__(self, entry: Entry, slot: int, temporal_compression: int) -> None:
        self.entry, self.slot = entry, slot
        self.failed = self.ended = False
        history = entry.job.history
        given = 0 if history is None else 1 + (len(history) - 1) // temporal_compression
        self.tail = None if history is None else self._last(history)
        self._begin_shot(0, given)

    def _begin_shot(self, shot: int, made: int) -> None:
        self.shot, self.made = shot, made
        self.to_launch = self.to_land = self.entry.job.shots[shot].num_latent_frames

    def next_shot(self) -> bool:
        """Go on to the next shot, if there is one."""
        shots = self.entry.job.shots
        if self.shot + 1 == len(shots):
            return False
        self._begin_shot(self.shot + 1, self.made + shots[self.shot].num_latent_frames)
        return True

    @property
    def history(self) -> np.ndarray | None:
        """The pixel frames in front of the current shot."""
        return self.entry.job.history if self.shot == 0 else self.tail

    def keep(self, frames: np.ndarray) -> None:
        """Remember what the next shot will start with."""
        if self.entry.job.overlap and self.shot + 1 < len(self.entry.job.shots):
            before = [] if self.tail is None else [self.tail]
            self.tail = self._last(np.concatenate([*before, frames]))

    def _last(self, frames: np.ndarray) -> np.ndarray | None:
        overlap = self.entry.job.overlap
        return frames[-overlap:] if overlap else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Flight:
    """A latent frame under way, and by slot whose it is and what their hooks raised."""

    ticket: Ticket
    runs: dict[int, _Run]
    errors: dict[int, HookError]


class Scheduler:
    """Shares an executor's slots among requests: first come, first served, lowest slot first."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._waiting: deque[Entry] = deque()
        self._runs: dict[int, _Run] = {}
        self._flight: _Flight | None = None

    @property
    def busy(self) -> bool:
        """Whether a tick has anything to do."""
        return bool(self._waiting or self._runs)

    def add(self, entry: Entry) -> None:
        """Queue a request."""
        self._waiting.append(entry)

    def tick(self) -> bool:
        """Go over one frame boundary and compute one latent frame of every request in a slot.

        What an executor raises ends the requests it concerns. Anything else (an interrupt, a bug)
        ends all of them, and is raised.

        Returns:
            `busy`.
        """
        try:
            self.drop_cancelled()
            self._admit()
            before, self._flight = self._flight, self._launch()
            self._land(before)
            self._land_early()
            self._clear_ended()
        except BaseException as error:
            self.abort(error)
            raise
        return self.busy

    def drop_cancelled(self) -> None:
        """End cancelled requests and clear their slots, without another frame."""
        for entry in self._waiting:
            if entry.cancelled:
                entry.finish(Cancelled("the request was cancelled before it started"))
        self._waiting = deque(entry for entry in self._waiting if not entry.done)
        for run in self._runs.values():
            if run.entry.cancelled:
                self._end(run, Cancelled("the request was cancelled"))
        self._land_early()
        self._clear_ended()

    def abort(self, error: BaseException) -> None:
        """End every request with `error` and clear all slots; the scheduler can be used again."""
        for entry in self._waiting:
            entry.finish(error)
        self._waiting.clear()
        for run in self._runs.values():
            self._end(run, error)
        self._land_early()
        self._clear_ended()

    def _admit(self) -> None:
        for slot in range(self._executor.slots):
            while self._waiting and slot not in self._runs:
                entry = self._waiting.popleft()
                entry.timings["queued"] = time.perf_counter() - entry.submitted
                self._start(_Run(entry, slot, self._executor.temporal_compression))

    def _start(self, run: _Run) -> None:
        """Prefill a free slot with the run's current shot; if that fails, the slot stays free."""
        self._runs[run.slot] = run
        begin = time.perf_counter()
        try:
            self._executor.start(run.slot, run.entry.job, run.shot, run.history, run.made)
        except Exception as error:
            self._end(run, error)
            del self._runs[run.slot]
        run.entry.timings["prefill"] += time.perf_counter() - begin

    def _launch(self) -> _Flight | None:
        runs = {
            slot: run
            for slot, run in sorted(self._runs.items())
            if run.to_launch and not run.failed and not run.ended
        }
        errors: dict[int, HookError] = {}
        if not runs:
            return None
        for run in runs.values():
            run.to_launch -= 1
        try:
            ticket = self._executor.frame(list(runs), partial(_on_scale, runs, errors))
        except Exception as error:
            for run in runs.values():
                self._end(run, error)
            return None
        return _Flight(ticket=ticket, runs=runs, errors=errors)

    def _land_early(self) -> None:
        """Land the frame under way now if that costs no wait, or nobody wants it any more."""
        flight = self._flight
        if flight is None:
            return
        if flight.ticket.done or all(run.ended for run in flight.runs.values()):
            self._flight = None
            self._land(flight)

    def _land(self, flight: _Flight | None) -> None:
        """Wait for a frame under way, if there is one, and hand out what it gave."""
        if flight is None:
            return
        try:
            results = flight.ticket.wait()
        except Exception as error:
            results = {slot: SlotFrame(frames=None, error=error) for slot in flight.runs}
        for slot, run in flight.runs.items():
            if not run.ended:
                self._receive(run, results[slot], flight.errors.get(slot))

    def _receive(self, run: _Run, result: SlotFrame, error: HookError | None) -> None:
        entry, error = run.entry, error or result.error
        for name, seconds in result.seconds.items():
            entry.timings[name] = entry.timings.get(name, 0.0) + seconds
        run.to_land -= 1
        if entry.cancelled:
            self._end(run, Cancelled("the request was cancelled"))
        elif error is not None:
            self._end(run, error)
        else:
            entry.deliver(result.frames)
            run.keep(result.frames)
            if run.to_land == 0:
                self._finish_shot(run)

    def _finish_shot(self, run: _Run) -> None:
        if run.next_shot():
            self._executor.clear(run.slot)
            self._start(run)
        else:
            self._end(run, None)

    def _end(self, run: _Run, error: BaseException | None) -> None:
        if not run.ended:
            run.ended = True
            run.entry.finish(error)

    def _clear_ended(self) -> None:
        under_way = self._flight.runs if self._flight is not None else {}
        for slot, run in list(self._runs.items()):
            if run.ended and slot not in under_way:
                del self._runs[slot]
                self._executor.clear(slot)


def _on_scale(
    runs: dict[int, _Run],
    errors: dict[int, HookError],
    slot: int,
    frame: int,
    scale: int,
    seconds: float,
) -> None:
    """Count a step of a launched frame and tell the hook; what that raises ends the request."""
    run = runs[slot]
    entry = run.entry
    if run.ended or run.failed:
        return
    entry.steps += 1
    if entry.on_step is None or entry.cancelled:
        return
    try:
        entry.on_step(frame, scale, seconds)
    except BaseException as error:
        run.failed = True
        errors[slot] = HookError(f"on_step raised {error!r} at frame {frame}, scale {scale}")
        errors[slot].__cause__ = error


def run_inline(scheduler: Scheduler, entry: Entry) -> Iterator[np.ndarray]:
    """Drive the scheduler in the caller's thread until one request is done, yielding its frames.

    Closing the iterator early cancels the request. Other requests of the scheduler go on meanwhile.

    Raises:
        Exception: what ended the request.
    """
    scheduler.add(entry)
    try:
        # Others may drive the scheduler between two frames, so the queue decides and not `done`.
        while (frames := entry.drain()) or not entry.done:
            yield from frames
            if not frames:
                scheduler.tick()
    finally:
        entry.cancel()
        scheduler.drop_cancelled()
    _raise_error(entry)


def run_all(scheduler: Scheduler, entries: Sequence[Entry]) -> list[np.ndarray]:
    """Drive the scheduler in the caller's thread until these requests are done.

    Returns:
        The frames of each, uint8 `[T,H,W,3]`.

    Raises:
        Exception: what ended the first request that failed; the others are cancelled.
    """
    for entry in entries:
        scheduler.add(entry)
    try:
        while not all(entry.done for entry in entries):
            scheduler.tick()
            for entry in entries:
                _raise_error(entry)
    finally:
        for entry in entries:
            entry.cancel()
        scheduler.drop_cancelled()
    return [np.concatenate(entry.drain()) for entry in entries]


def _raise_error(entry: Entry) -> None:
    error = entry.error
    if isinstance(error, HookError) and not isinstance(error.__cause__, Exception):
        raise error.__cause__  # an interrupt that came while the hook ran
    if error is not None:
        raise error
