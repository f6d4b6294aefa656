"""`Handle`: what a caller holds of a submitted request."""

import asyncio
import weakref
from collections.abc import Generator
from typing import TYPE_CHECKING

import numpy as np

from videoar.runtime.entry import Entry, Progress

if TYPE_CHECKING:
    from videoar.runtime.pipeline import VideoResult


class Frames:
    """The pixel frames of one handle, for `for` and for `async for`.

    Closing or dropping it after its first and before its last frames cancels the request.
    """

    def __init__(self, handle: "Handle", entry: Entry) -> None:
        self._handle, self._entry = handle, entry  # the handle must not be dropped meanwhile
        self._begun = self._ended = False

    def __iter__(self) -> "Frames":
        return self

    def __aiter__(self) -> "Frames":
        return self

    def __next__(self) -> np.ndarray:
        if self._ended:
            raise StopIteration
        self._begun = True
        with self._entry.changed:
            self._entry.changed.wait_for(self._entry.ready)
            return self._pop(StopIteration)

    async def __anext__(self) -> np.ndarray:
        if self._ended:
            raise StopAsyncIteration
        self._begun = True
        while True:
            with self._entry.changed:
                if self._entry.ready():
                    return self._pop(StopAsyncIteration)
                change = self._entry.watch()
            await _until(change, self._entry)

    def close(self) -> None:
        """Take no more frames; the request is cancelled unless it was never begun or has ended."""
        if self._begun and not self._ended:
            self._entry.cancel()
        self._ended = True

    __del__ = close

    def _pop(self, end: type[Exception]) -> np.ndarray:
        try:
            frames = self._entry.pop()
        except BaseException:
            self._ended = True
            raise
        if frames is None:
            self._ended = True
            raise end
        return frames


async def _until(change: "asyncio.Future[None]", entry: Entry) -> None:
    try:
        await change
    finally:
        entry.unwatch(change)


class Handle:
    """A submitted request. Every method may be called from any thread.

    The frames are taken once: either one by one (`frames`, `async for`; several consumers share
    them) or together (`result`, `await`). Drop the handle, or leave its loop early, and the
    request is cancelled.
    """

    def __init__(self, entry: Entry, *, fps: int) -> None:
        self._entry, self._fps = entry, fps
        self._result: VideoResult | None = None
        weakref.finalize(self, entry.cancel).atexit = False

    def frames(self) -> Frames:
        """Iterate over pixel frames, uint8 `[n,H,W,3]` arrays, as they become final.

        Raises (while iterating, behind the frames that were made before):
            Cancelled, EngineClosed, HookError, NumericalError, ...: what ended the request.
            RuntimeError: `result` has taken the frames.
        """
        return Frames(self, self._entry)

    def __aiter__(self) -> Frames:
        return self.frames()

    def result(self, timeout: float | None = None) -> "VideoResult":
        """Wait for the end; `frames` of the result is `[1,T,H,W,3]`. May be called again.

        Raises:
            TimeoutError: not done within `timeout` seconds; the request goes on.
            RuntimeError: frames of this request were taken one by one already.
            Exception: what ended the request.
        """
        from videoar.runtime.pipeline import VideoResult

        entry = self._entry
        with entry.changed:
            if not entry.changed.wait_for(lambda: entry.done, timeout):
                raise TimeoutError(f"the request is not done after {timeout} s")
            if entry.error is not None:
                raise entry.error
            if entry.streamed:
                raise RuntimeError("result: frames of this request were taken one by one")
            if self._result is None:
                entry.collected = True
                self._result = VideoResult(
                    frames=np.concatenate(entry.drain())[None],
                    seeds=(entry.job.seed,),
                    fps=self._fps,
                    timings=self.timings,
                )
            return self._result

    def __await__(self) -> "Generator[object, None, VideoResult]":
        """`result` for a coroutine; cancelling the task does not cancel the request."""
        return self._finished().__await__()

    async def _finished(self) -> "VideoResult":
        while True:
            with self._entry.changed:
                if self._entry.done:
                    return self.result()
                change = self._entry.watch()
            await _until(change, self._entry)

    def cancel(self) -> None:
        """End the request with `Cancelled`; its slot is free within one latent frame."""
        self._entry.cancel()

    @property
    def done(self) -> bool:
        """Whether it ended, well or not."""
        return self._entry.done

    @property
    def exception(self) -> BaseException | None:
        """What ended the request; None while it runs and when it ended well."""
        return self._entry.error

    @property
    def progress(self) -> Progress:
        return self._entry.progress

    @property
    def timings(self) -> dict[str, float]:
        """As in `VideoResult`, so far, and `queued`: the wait for a slot. `total` ends them."""
        return dict(self._entry.timings)

    def __repr__(self) -> str:
        state = "done" if self.done else "running"
        return f"<Handle {state}, {self.progress.done} of {self.progress.total} steps>"
