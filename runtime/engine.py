"""`Engine`: a model that serves requests from any thread or event loop.

One daemon thread drives the scheduler; it sleeps while there is nothing to do. The thread holds the
scheduler and an inbox, never the engine, so an engine that nobody holds is collected, which ends
its thread. The inbox is a `SimpleQueue` and not a list under a condition variable: the garbage
collector may run that finaliser anywhere, and only a `SimpleQueue` may be interrupted by itself.
"""

import os
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import torch

from videoar.runtime.entry import Entry, StepHook
from videoar.runtime.errors import EngineClosed
from videoar.runtime.guidance import GuidanceSchedule
from videoar.runtime.handle import Handle
from videoar.runtime.job import Executor, Job
from videoar.runtime.scheduler import Scheduler

if TYPE_CHECKING:
    from videoar.runtime.pipeline import VideoAR

# At interpreter exit a frame under way is waited for: a thread stopped inside C++ takes the process
# down with it. A hook that never returns must not keep the process alive, though.
EXIT_SECONDS = 30.0


class _Inbox:
    """What other threads have for the worker: requests, and None for the end."""

    def __init__(self) -> None:
        self.closed = False
        self._lock = threading.Lock()
        self._queue: SimpleQueue[Entry | None] = SimpleQueue()

    def put(self, entry: Entry) -> None:
        """Hand in a request.

        Raises:
            EngineClosed: nobody will look at it.
        """
        with self._lock:
            if self.closed:
                raise EngineClosed("the engine is closed")
            self._queue.put(entry)

    def close(self) -> None:
        """Refuse requests from now on, and let the worker end."""
        with self._lock:
            self.closed = True
        self._queue.put(None)

    def take(self, wait: bool) -> list[Entry]:
        """All requests in it; `wait` for a message if there is none."""
        messages = [self._queue.get()] if wait else []
        while not self._queue.empty():
            messages.append(self._queue.get())
        return [entry for entry in messages if entry is not None]


class Engine:
    """Serves requests that share the slots of one model (DESIGN promises 3 and 5).

    All device memory is created here, and requests join and leave at frame boundaries. Use it as a
    context manager or call `close`. Submitting, and every method of a handle, is safe from any
    thread and any event loop. It does not survive `os.fork`.

    The worker computes with as many CPU threads as the constructing thread would
    (`torch.get_num_threads()`, which is a setting of each thread).

    Args:
        model: stays usable beside the engine.
        slots: requests computed together; more wait in line.
        max_text: longest prefix in tokens; None: the model's.
        window: latent frames a frame looks back on; None: the model's.
        device, dtype: where and in what to compute; None: as the model is.
        executor: computes frames, in place of the model's own.

    Raises:
        ValueError: a bad argument.
        CapacityError: the memory plan does not fit.
    """

    def __init__(
        self,
        model: "VideoAR",
        *,
        slots: int = 1,
        max_text: int | None = None,
        window: int | None = None,
        device: str | torch.device | None = None,
        dtype: str | None = None,
        executor: Executor | None = None,
    ) -> None:
        if executor is None:
            from videoar.runtime.executor import make_executor

            executor = make_executor(
                model, slots=slots, max_text=max_text, window=window, device=device, dtype=dtype
            )
        self._config, self._text_tokenizer = model.config, model.text_tokenizer
        self._max_text, self._num_scales = executor.max_text, executor.num_scales
        self._inbox = _Inbox()
        self._process = os.getpid()
        self._thread = threading.Thread(
            target=_work,
            args=(executor, self._inbox, torch.get_num_threads()),
            name="videoar-engine",
            daemon=True,
        )
        self._thread.start()
        self._stop = weakref.finalize(self, _stop, self._inbox, self._thread)

    def submit(
        self,
        prompt: str | None = None,
        *,
        class_id: int | None = None,
        num_frames: int | None = None,
        seed: int = 0,
        guidance: float | str | GuidanceSchedule | None = None,
        temperature: float | None = None,
        image: Any = None,
        video: Any = None,
        video_fps: float | None = None,
        shots: int | Sequence[str | int] = 1,
        context: int | None = None,
        on_step: StepHook | None = None,
    ) -> Handle:
        """Queue one video and return at once; arguments as in `requests.make_job`.

        A file is read here, in the caller's thread.

        Args:
            on_step: called with (latent frame, scale, seconds) behind every decoding step, in the
                engine's thread, which waits for it. What it raises ends this request only.

        Raises:
            ValueError: a bad argument, naming it and the nearest valid value.
            MediaError: `image` or `video` cannot be read.
            EngineClosed: after `close`.
        """
        from videoar.runtime.requests import make_job

        job = make_job(
            self._config,
            self._text_tokenizer,
            prompt=prompt,
            class_id=class_id,
            num_frames=num_frames,
            seed=seed,
            guidance=guidance,
            temperature=temperature,
            image=image,
            video=video,
            video_fps=video_fps,
            shots=shots,
            context=context,
        )
        return self.submit_job(job, on_step=on_step)

    def submit_job(self, job: Job, *, on_step: StepHook | None = None) -> Handle:
        """`submit` for a request that is checked and tokenised already; errors as there."""
        if os.getpid() != self._process:
            raise RuntimeError("Engine: made before os.fork(); make one in the new process")
        longest = max(len(shot.prefix) for shot in job.shots)
        if longest > self._max_text:
            raise ValueError(f"prompt: {longest} tokens, this engine takes {self._max_text}")
        entry = Entry(job, num_scales=self._num_scales, on_step=on_step)
        handle = Handle(entry, fps=self._config.fps)
        self._inbox.put(entry)
        return handle

    def close(self) -> None:
        """End what is running with `EngineClosed`, free all memory, and wait for that.

        May be called again, and from any thread; from a step hook it does not wait.
        """
        self._stop()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _work(executor: Executor, inbox: _Inbox, num_threads: int) -> None:
    """The thread's body: serve until the inbox is closed, then end what is left."""
    torch.get_num_threads()  # the first call in a thread takes the process's latest setting over
    torch.set_num_threads(num_threads)
    scheduler = Scheduler(executor)
    try:
        while not inbox.closed:
            _serve(scheduler, inbox)
    finally:
        inbox.close()
        for entry in inbox.take(wait=False):
            scheduler.add(entry)
        try:
            scheduler.abort(EngineClosed("the engine was closed before the request ended"))
        finally:
            executor.close()


def _serve(scheduler: Scheduler, inbox: _Inbox) -> None:
    """One tick if there is work; sleep while there is none."""
    for entry in inbox.take(wait=not scheduler.busy):
        scheduler.add(entry)
    # What a tick raises has ended its requests, whose handles raise it; later ones may be fine.
    with suppress(BaseException):
        scheduler.tick()


def _stop(inbox: _Inbox, thread: threading.Thread) -> None:
    """The engine was collected, or the interpreter exits: then its main thread counts as ended."""
    inbox.close()
    if not threading.main_thread().is_alive():
        thread.join(EXIT_SECONDS)
