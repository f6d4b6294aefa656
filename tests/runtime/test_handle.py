"""What a caller holds of a request: threads, event loops, and going away."""

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import pytest

from videoar.runtime.entry import Entry
from videoar.runtime.errors import Cancelled, NumericalError
from videoar.runtime.handle import Handle

FPS = 8
WAIT = 60  # seconds, for what takes a millisecond


@pytest.fixture
def entry(mock) -> Entry:
    return Entry(mock.job(5, 4), num_scales=2)


@pytest.fixture
def handle(entry) -> Handle:
    return Handle(entry, fps=FPS)


def frame(number: int) -> np.ndarray:
    return np.full((1, 1, 1, 3), number, dtype=np.uint8)


def fill(entry: Entry, count: int, error: Exception | None = None) -> None:
    for number in range(count):
        entry.deliver(frame(number))
    entry.finish(error)


def numbers(frames) -> list[int]:
    return [int(one[0, 0, 0, 0]) for one in frames]


class TestFrames:
    def test_in_order(self, entry, handle):
        fill(entry, 4)
        assert numbers(handle.frames()) == [0, 1, 2, 3]
        assert numbers(handle.frames()) == []

    def test_wait_for_a_frame(self, entry, handle):
        iterator = handle.frames()
        entry.deliver(frame(0))
        assert numbers([next(iterator)]) == [0]
        threading.Timer(0.02, fill, (entry, 2)).start()
        assert numbers(iterator) == [0, 1]

    def test_error_behind_the_frames(self, entry, handle):
        error = NumericalError("NaN")
        fill(entry, 2, error)
        iterator = handle.frames()
        assert numbers([next(iterator), next(iterator)]) == [0, 1]
        with pytest.raises(NumericalError) as caught:
            next(iterator)
        assert caught.value is error is handle.exception
        with pytest.raises(StopIteration):
            next(iterator)

    def test_cancelled_at_once(self, entry, handle):
        entry.deliver(frame(0))
        iterator = handle.frames()
        handle.cancel()
        with pytest.raises(Cancelled):
            next(iterator)
        assert not handle.done
        entry.finish(Cancelled("dropped"))
        with pytest.raises(Cancelled):
            next(handle.frames())

    def test_consumers_share_the_frames(self, entry, handle):
        count = 200
        with ThreadPoolExecutor(5) as pool:
            parts = [pool.submit(lambda: numbers(handle.frames())) for _ in range(4)]
            pool.submit(fill, entry, count).result(WAIT)
        taken = [part.result(WAIT) for part in parts]
        assert sorted(chain(*taken)) == list(range(count))
        assert all(part == sorted(part) for part in taken)

    def test_threads_may_share_an_iterator(self, entry, handle):
        count, iterator = 200, handle.frames()
        with ThreadPoolExecutor(5) as pool:
            parts = [pool.submit(lambda: numbers(iterator)) for _ in range(4)]
            pool.submit(fill, entry, count).result(WAIT)
        assert sorted(chain(*(part.result(WAIT) for part in parts))) == list(range(count))


class TestResult:
    def test_holds_everything(self, entry, handle):
        entry.timings["transformer"] = 2.0
        entry.steps = 8
        fill(entry, 3)
        result = handle.result()
        assert result.frames.shape == (1, 3, 1, 1, 3)
        assert result.frames.dtype == np.uint8
        assert numbers(result.frames[0][:, None]) == [0, 1, 2]
        assert result.seeds == (5,)
        assert result.fps == FPS
        assert result.timings["transformer"] == 2.0
        assert result.timings["steps"] == 8
        assert result.timings["total"] > 0

    def test_the_same_for_all_threads(self, entry, handle):
        with ThreadPoolExecutor(5) as pool:
            results = [pool.submit(handle.result, WAIT) for _ in range(4)]
            pool.submit(fill, entry, 3)
        assert len({id(result.result()) for result in results}) == 1
        assert handle.result() is results[0].result()

    def test_timeout_leaves_the_request_alone(self, entry, handle):
        entry.deliver(frame(9))
        with pytest.raises(TimeoutError, match=r"0\.01 s"):
            handle.result(timeout=0.01)
        fill(entry, 1)
        assert handle.result(timeout=0).frames.shape[1] == 2

    def test_error_each_time(self, entry, handle):
        fill(entry, 2, NumericalError("NaN"))
        for _ in range(2):
            with pytest.raises(NumericalError):
                handle.result()

    def test_not_behind_an_iterator(self, entry, handle):
        fill(entry, 2)
        next(handle.frames())
        with pytest.raises(RuntimeError, match="one by one"):
            handle.result()

    def test_no_iterator_behind_it(self, entry, handle):
        fill(entry, 2)
        handle.result()
        with pytest.raises(RuntimeError, match="has taken"):
            next(handle.frames())


class TestGoingAway:
    def test_dropped_handle_cancels(self, entry):
        handle = Handle(entry, fps=FPS)
        del handle
        assert entry.cancelled

    def test_handle_in_a_cycle_cancels(self, entry):
        cycle = [Handle(entry, fps=FPS)]
        cycle.append(cycle)
        del cycle
        gc.collect()
        assert entry.cancelled

    def test_iterator_keeps_the_handle(self, entry):
        iterator = Handle(entry, fps=FPS).frames()
        assert not entry.cancelled
        fill(entry, 2)
        assert numbers(iterator) == [0, 1]

    def test_broken_loop_cancels(self, entry, handle):
        entry.deliver(frame(0))
        for _ in handle.frames():
            break
        assert entry.cancelled

    def test_raising_consumer_cancels(self, entry, handle):
        entry.deliver(frame(0))

        def consume() -> None:
            for _ in handle.frames():
                raise KeyError("the consumer's own")

        with pytest.raises(KeyError):
            consume()
        assert entry.cancelled

    def test_closed_iterator_cancels(self, entry, handle):
        entry.deliver(frame(0))
        iterator = handle.frames()
        next(iterator)
        iterator.close()
        assert entry.cancelled
        with pytest.raises(StopIteration):
            next(iterator)

    def test_unused_iterator_does_not_cancel(self, entry, handle):
        handle.frames().close()
        assert not entry.cancelled

    def test_nothing_is_cancelled_at_the_end(self, entry):
        handle = Handle(entry, fps=FPS)
        fill(entry, 2)
        list(handle.frames())
        del handle
        assert not entry.cancelled

    def test_cancel_takes_no_lock(self, entry, handle):
        with entry.changed:
            thread = threading.Thread(target=handle.cancel)
            thread.start()
            thread.join(WAIT)
            assert not thread.is_alive()
        assert entry.cancelled


class TestProgress:
    def test_counts(self, entry, handle):
        assert handle.progress == (0, 8)
        entry.steps = 6
        assert handle.progress.fraction == 0.75
        assert repr(handle) == "<Handle running, 6 of 8 steps>"


class TestAsyncio:
    def test_async_for(self, entry, handle):
        async def consume() -> list[int]:
            threading.Timer(0.02, fill, (entry, 3)).start()
            return numbers([one async for one in handle])

        assert asyncio.run(consume()) == [0, 1, 2]

    def test_several_event_loops(self, entry, handle):
        async def consume() -> list[int]:
            return numbers([one async for one in handle])

        count = 200
        with ThreadPoolExecutor(4) as pool:
            parts = [pool.submit(asyncio.run, consume()) for _ in range(3)]
            pool.submit(fill, entry, count).result(WAIT)
        assert sorted(chain(*(part.result(WAIT) for part in parts))) == list(range(count))

    def test_several_tasks(self, entry, handle):
        async def consume() -> list[int]:
            return numbers([one async for one in handle])

        async def main() -> list[list[int]]:
            threading.Timer(0.02, fill, (entry, 50)).start()
            return await asyncio.gather(consume(), consume(), consume())

        assert sorted(chain(*asyncio.run(main()))) == list(range(50))

    def test_a_timeout_loses_nothing(self, entry, handle):
        async def consume() -> list[int]:
            iterator = aiter(handle)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(anext(iterator), 0.01)
            assert not entry.cancelled
            fill(entry, 2)
            return numbers([one async for one in iterator])

        assert asyncio.run(consume()) == [0, 1]

    def test_a_cancelled_task_cancels(self, entry, handle):
        async def consume() -> None:
            async for _ in handle:
                pass

        async def main() -> None:
            entry.deliver(frame(0))
            task = asyncio.create_task(consume())
            await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait([task])

        asyncio.run(main())
        assert entry.cancelled

    def test_a_broken_loop_cancels(self, entry, handle):
        async def consume() -> None:
            entry.deliver(frame(0))
            async for _ in handle:
                break

        asyncio.run(consume())
        assert entry.cancelled

    def test_error(self, entry, handle):
        async def consume() -> None:
            threading.Timer(0.02, fill, (entry, 1, NumericalError("NaN"))).start()
            async for _ in handle:
                pass

        with pytest.raises(NumericalError):
            asyncio.run(consume())

    def test_await(self, entry, handle):
        async def consume():
            threading.Timer(0.02, fill, (entry, 3)).start()
            return await handle

        assert asyncio.run(consume()) is handle.result()
        assert handle.result().frames.shape[1] == 3

    def test_await_gives_up_without_cancelling(self, entry, handle):
        async def consume() -> None:
            await asyncio.wait_for(handle, 0.01)

        with pytest.raises(asyncio.TimeoutError):
            asyncio.run(consume())
        assert not entry.cancelled

    def test_a_closed_event_loop_disturbs_nobody(self, entry, handle):
        async def watch() -> None:
            with entry.changed:
                entry.watch()

        asyncio.run(watch())
        fill(entry, 2)
        assert handle.done
