"""Which request has which slot, and when: with a model that computes nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from videoar.runtime.entry import Entry
from videoar.runtime.errors import Cancelled, HookError, NumericalError
from videoar.runtime.scheduler import Scheduler, run_all, run_inline

pytestmark = pytest.mark.parametrize(
    "deferred", [False, True, "eager"], ids=["cpu", "gpu", "eager-gpu"]
)
NAN = NumericalError("NaN in the logits")


def entry_of(job, on_step=None) -> Entry:
    return Entry(job, num_scales=2, on_step=on_step)


def run(scheduler: Scheduler, *jobs, ticks: int = 100) -> list[Entry]:
    """Add the jobs and tick until nothing is left."""
    entries = [entry_of(job) for job in jobs]
    for entry in entries:
        scheduler.add(entry)
    for _ in range(ticks):
        if not scheduler.tick():
            return entries
    raise AssertionError("the scheduler does not come to an end")


def assert_gave(entry: Entry, frames: list[np.ndarray]) -> None:
    assert entry.error is None
    assert entry.done
    np.testing.assert_array_equal(np.concatenate(entry.drain()), np.concatenate(frames))


class TestSlots:
    def test_first_come_first_served(self, mock, deferred):
        executor = mock.Executor(2, deferred=deferred)
        jobs = [mock.job(seed, 2) for seed in range(5)]
        entries = run(Scheduler(executor), *jobs)
        starts = [event[1:] for event in executor.log if event[0] == "start"]
        assert starts == [(0, 0, 0), (1, 1, 0), (0, 2, 0), (1, 3, 0), (0, 4, 0)]
        assert not executor.jobs
        for entry, job in zip(entries, jobs, strict=True):
            assert_gave(entry, mock.frames(job))

    def test_joins_and_leaves_at_frame_boundaries(self, mock, deferred):
        executor = mock.Executor(2, deferred=deferred)
        scheduler = Scheduler(executor)
        long, short = entry_of(mock.job(1, 6)), entry_of(mock.job(2, 1))
        scheduler.add(long)
        scheduler.tick()
        scheduler.tick()
        scheduler.add(short)
        while scheduler.tick():
            pass
        launches = [event[1:] for event in executor.log if event[0] == "launch"]
        assert launches == [(0,), (0,), (0, 1), (0,), (0,), (0,)]
        assert_gave(long, mock.frames(long.job))
        assert_gave(short, mock.frames(short.job))

    def test_one_frame_ahead_of_a_gpu(self, mock, deferred):
        executor = mock.Executor(1, deferred=deferred)
        run(Scheduler(executor), mock.job(1, 3))
        order = [event[0] for event in executor.log if event[0] in ("launch", "land")]
        ahead = ["launch", "launch", "land", "launch", "land", "land"]
        assert order == (ahead if deferred else ["launch", "land"] * 3)

    def test_a_finished_ticket_is_delivered_before_the_next_launch(self, mock, deferred):
        executor = mock.Executor(1, deferred=deferred)
        scheduler = Scheduler(executor)
        entry = entry_of(mock.job(1, 2))
        scheduler.add(entry)
        scheduler.tick()
        for ticket in executor.under_way:
            ticket.done = True
        scheduler.tick()
        landed = executor.log.index(("land", 0))
        assert executor.log[landed:][:2] == [("land", 0), ("launch", 0)]
        while scheduler.tick():
            pass
        assert_gave(entry, mock.frames(entry.job))

    def test_timings_and_steps(self, mock, deferred):
        (entry,) = run(Scheduler(mock.Executor(deferred=deferred)), mock.job(1, 3))
        assert entry.progress == (6, 6)
        assert entry.progress.fraction == 1
        assert entry.timings["transformer"] == 3.0
        assert entry.timings["decoder"] == 0.0
        assert entry.timings["steps"] == 6
        assert 0 < entry.timings["prefill"] <= entry.timings["total"]
        assert 0 < entry.timings["queued"] <= entry.timings["total"]

    def test_idle(self, mock, deferred):
        executor = mock.Executor(deferred=deferred)
        scheduler = Scheduler(executor)
        assert not scheduler.busy
        assert not scheduler.tick()
        assert not executor.log


class TestCancel:
    def test_waiting(self, mock, deferred):
        executor = mock.Executor(1, deferred=deferred)
        scheduler = Scheduler(executor)
        first, second, third = (entry_of(mock.job(seed, 2)) for seed in range(3))
        for entry in (first, second, third):
            scheduler.add(entry)
        second.cancel()
        while scheduler.tick():
            pass
        assert isinstance(second.error, Cancelled)
        assert ("start", 0, 1, 0) not in executor.log
        assert_gave(first, mock.frames(first.job))
        assert_gave(third, mock.frames(third.job))

    def test_frees_the_slot_within_one_frame(self, mock, deferred):
        executor = mock.Executor(2, deferred=deferred)
        scheduler = Scheduler(executor)
        gone, stays, waits = (entry_of(mock.job(seed, 9)) for seed in range(3))
        for entry in (gone, stays, waits):
            scheduler.add(entry)
        scheduler.tick()
        scheduler.tick()
        gone.cancel()
        launched = sum(event[0] == "launch" for event in executor.log)
        scheduler.tick()
        assert isinstance(gone.error, Cancelled)
        assert not gone.drain()
        while ("start", 0, 2, 0) not in executor.log:
            scheduler.tick()
        before = executor.log[: executor.log.index(("start", 0, 2, 0))]
        assert sum(event[0] == "launch" for event in before) - launched <= 1
        while scheduler.tick():
            pass
        assert_gave(stays, mock.frames(stays.job))
        assert_gave(waits, mock.frames(waits.job))

    @pytest.mark.parametrize("frames", [1, 4])
    def test_by_its_own_hook(self, mock, deferred, frames):
        scheduler = Scheduler(mock.Executor(1, deferred=deferred))
        steps = []
        entry = entry_of(mock.job(1, frames), lambda *step: (steps.append(step), entry.cancel()))
        scheduler.add(entry)
        while scheduler.tick():
            pass
        assert isinstance(entry.error, Cancelled)
        assert not entry.drain()
        assert len(steps) == 1

    def test_at_the_end_changes_nothing(self, mock, deferred):
        (entry,) = run(Scheduler(mock.Executor(deferred=deferred)), mock.job(1, 2))
        entry.cancel()
        assert not entry.cancelled
        assert_gave(entry, mock.frames(entry.job))


class TestFaults:
    """One request ends with its error; the others, before, beside and behind it, are unchanged."""

    @pytest.mark.parametrize("bad", [0, 1, 2, 3])
    def test_start_raises(self, mock, deferred, bad):
        executor = mock.Executor(2, deferred=deferred)
        executor.bad_starts[bad, 0] = NAN
        self.check(mock, executor, bad, NAN)

    @pytest.mark.parametrize("bad", [0, 1, 2, 3])
    @pytest.mark.parametrize("frame", [0, 1, 2])
    def test_a_slot_fails(self, mock, deferred, bad, frame):
        executor = mock.Executor(2, deferred=deferred)
        executor.bad_frames[bad, frame] = NAN
        self.check(mock, executor, bad, NAN, frames=frame)

    @pytest.mark.parametrize("failure", [KeyError("mine"), SystemExit(1)])
    def test_a_hook_raises(self, mock, deferred, failure):
        def hook(frame, scale, seconds):
            steps.append((frame, scale))
            if (frame, scale) == (1, 0):
                raise failure

        steps, executor = [], mock.Executor(2, deferred=deferred)
        error = self.check(mock, executor, 1, frames=1, hook=hook)
        assert steps == [(0, 0), (0, 1), (1, 0)]
        launches = [event for event in executor.log if event[0] == "launch" and 1 in event[1:]]
        # Its own, and those of whom had the slot next. A GPU was a frame ahead of the bad news.
        assert len(launches) == (3 if deferred is True else 2) + 3
        assert isinstance(error, HookError)
        assert error.__cause__ is failure
        assert "frame 1, scale 0" in str(error)

    def check(self, mock, executor, bad, error=None, *, frames=0, hook=None):
        jobs = [mock.job(seed, 3) for seed in range(4)]
        entries = [entry_of(job, hook if seed == bad else None) for seed, job in enumerate(jobs)]
        scheduler = Scheduler(executor)
        for entry in entries:
            scheduler.add(entry)
        while scheduler.tick():
            pass
        failed = entries.pop(bad)
        made = mock.frames(jobs.pop(bad))[:frames]
        assert failed.done
        assert failed.error is error or error is None
        assert [one.tolist() for one in failed.drain()] == [one.tolist() for one in made]
        for entry, job in zip(entries, jobs, strict=True):
            assert_gave(entry, mock.frames(job))
        assert not executor.jobs
        return failed.error

    @pytest.mark.parametrize("where", ["bad_launches", "bad_landings"])
    def test_the_device_fails(self, mock, deferred, where):
        executor = mock.Executor(2, deferred=deferred)
        scheduler = Scheduler(executor)
        entries = [entry_of(mock.job(seed, 3)) for seed in range(4)]
        for entry in entries:
            scheduler.add(entry)
        scheduler.tick()
        getattr(executor, where).append(NAN)
        while scheduler.tick():
            pass
        assert [entry.error for entry in entries] == [NAN, NAN, None, None]
        for entry in entries[2:]:
            assert_gave(entry, mock.frames(entry.job))
        assert not executor.jobs

    @pytest.mark.parametrize("where", ["bad_launches", "bad_starts"])
    def test_an_interrupt_ends_all_and_is_raised(self, mock, deferred, where):
        executor = mock.Executor(2, deferred=deferred)
        scheduler = Scheduler(executor)
        entries = [entry_of(mock.job(seed, 4)) for seed in range(4)]
        scheduler.add(entries[0])
        scheduler.tick()
        for entry in entries[1:]:
            scheduler.add(entry)
        stop = KeyboardInterrupt()
        if where == "bad_launches":
            executor.bad_launches.append(stop)
        else:
            executor.bad_starts[1, 0] = stop
        with pytest.raises(KeyboardInterrupt):
            scheduler.tick()
        assert [entry.error for entry in entries] == [stop] * 4
        assert not scheduler.busy
        assert not executor.jobs
        assert not executor.under_way


class TestShots:
    def pixels(self, mock, job) -> np.ndarray:
        given = [] if job.history is None else [job.history]
        return np.concatenate(given + mock.frames(job))

    def test_overlap_goes_into_the_next_shot(self, mock, deferred):
        executor = mock.Executor(2, deferred=deferred)
        job, other = mock.job(1, 3, 2, 4, overlap=3), mock.job(2, 12)
        entry, beside = run(Scheduler(executor), job, other)
        assert_gave(entry, mock.frames(job))
        assert_gave(beside, mock.frames(other))
        pixels = self.pixels(mock, job)
        assert len(pixels) == 5 + 4 + 8
        assert executor.histories[1, 0] is None
        np.testing.assert_array_equal(executor.histories[1, 1], pixels[2:5])
        np.testing.assert_array_equal(executor.histories[1, 2], pixels[6:9])

    def test_history_is_not_delivered(self, mock, deferred):
        executor = mock.Executor(1, deferred=deferred)
        history = np.arange(5 * 3, dtype=np.uint8).reshape(5, 1, 1, 3)
        job = mock.job(1, 2, history=history)
        (entry,) = run(Scheduler(executor), job)
        assert executor.histories[1, 0] is history
        frames = mock.frames(job)
        assert frames[0].tolist() == [[[[1, 3, 0]]]] * 2  # 3 latent frames were given
        assert_gave(entry, frames)

    def test_overlap_reaches_into_the_history(self, mock, deferred):
        executor = mock.Executor(1, deferred=deferred)
        history = np.arange(5 * 3, dtype=np.uint8).reshape(5, 1, 1, 3)
        job = mock.job(1, 1, 1, 1, history=history, overlap=5)
        (entry,) = run(Scheduler(executor), job)
        pixels = self.pixels(mock, job)
        np.testing.assert_array_equal(executor.histories[1, 1], pixels[2:7])
        np.testing.assert_array_equal(executor.histories[1, 2], pixels[4:9])
        assert_gave(entry, mock.frames(job))

    def test_without_overlap(self, mock, deferred):
        executor = mock.Executor(1, deferred=deferred)
        (entry,) = run(Scheduler(executor), mock.job(1, 2, 2))
        assert executor.histories[1, 1] is None
        assert_gave(entry, mock.frames(entry.job))

    def test_a_later_shot_fails_to_start(self, mock, deferred):
        executor = mock.Executor(1, deferred=deferred)
        executor.bad_starts[1, 1] = NAN
        job, behind = mock.job(1, 2, 2, overlap=1), mock.job(2, 2)
        entry, other = run(Scheduler(executor), job, behind)
        assert entry.error is NAN
        assert len(entry.drain()) == 2
        assert_gave(other, mock.frames(behind))


class TestInline:
    def test_frames(self, mock, deferred):
        job = mock.job(1, 3)
        scheduler = Scheduler(mock.Executor(1, deferred=deferred))
        frames = list(run_inline(scheduler, entry_of(job)))
        assert [one.tolist() for one in frames] == [one.tolist() for one in mock.frames(job)]

    def test_error_comes_behind_the_frames(self, mock, deferred):
        executor = mock.Executor(1, deferred=deferred)
        executor.bad_frames[1, 2] = NAN
        iterator = run_inline(Scheduler(executor), entry_of(mock.job(1, 5)))
        assert [next(iterator)[0, 0, 0, 1] for _ in range(2)] == [0, 1]
        with pytest.raises(NumericalError):
            next(iterator)

    def test_closed_early(self, mock, deferred):
        executor = mock.Executor(1, deferred=deferred)
        scheduler = Scheduler(executor)
        iterator = run_inline(scheduler, entry_of(mock.job(1, 5)))
        next(iterator)
        iterator.close()
        assert not executor.jobs
        job = mock.job(2, 2)
        assert len(list(run_inline(Scheduler(executor), entry_of(job)))) == 2
        assert not executor.jobs

    def test_two_iterators_share_a_slot(self, mock, deferred):
        scheduler = Scheduler(mock.Executor(1, deferred=deferred))
        jobs = mock.job(1, 4), mock.job(2, 2)
        first, second = (run_inline(scheduler, entry_of(job)) for job in jobs)
        got = [next(first)]
        assert [one[0, 0, 0, 0] for one in second] == [2, 2]
        got.extend(first)
        assert [one.tolist() for one in got] == [one.tolist() for one in mock.frames(jobs[0])]

    def test_all(self, mock, deferred):
        executor = mock.Executor(2, deferred=deferred)
        jobs = [mock.job(seed, 4 - seed) for seed in range(3)]
        videos = run_all(Scheduler(executor), [entry_of(job) for job in jobs])
        for video, job in zip(videos, jobs, strict=True):
            np.testing.assert_array_equal(video, np.concatenate(mock.frames(job)))

    def test_all_or_an_error(self, mock, deferred):
        executor = mock.Executor(2, deferred=deferred)
        executor.bad_frames[1, 1] = NAN
        entries = [entry_of(mock.job(seed, 4)) for seed in range(3)]
        with pytest.raises(NumericalError):
            run_all(Scheduler(executor), entries)
        assert [type(entry.error) for entry in entries] == [Cancelled, NumericalError, Cancelled]
        assert not executor.jobs

    def test_interrupt_in_a_hook(self, mock, deferred):
        def hook(frame, scale, seconds):
            raise KeyboardInterrupt

        scheduler = Scheduler(mock.Executor(1, deferred=deferred))
        with pytest.raises(KeyboardInterrupt):
            list(run_inline(scheduler, entry_of(mock.job(1, 2), hook)))


# What may happen to one of the requests: it arrives before tick `arrives` and is cancelled before
# tick `cancelled`, its shot fails to start, a frame of it fails, its hook raises.
requests = st.fixed_dictionaries(
    {
        "sizes": st.lists(st.integers(1, 4), min_size=1, max_size=3),
        "overlap": st.sampled_from([0, 1, 3]),
        "given": st.sampled_from([0, 1, 5]),
        "arrives": st.integers(0, 8),
        "cancelled": st.none() | st.integers(0, 20),
        "bad_start": st.none() | st.integers(0, 3),
        "bad_frame": st.none() | st.integers(0, 12),
        "bad_step": st.none() | st.integers(0, 12),
    }
)


@given(
    requests=st.lists(requests, min_size=1, max_size=7),
    slots=st.integers(1, 3),
    early=st.sets(st.integers(0, 30)),
)
def test_every_request_ends_with_its_own_frames_or_error(mock, deferred, requests, slots, early):
    """`early`: ticks before which the device is done with what is under way."""
    executor = mock.Executor(slots, deferred=deferred)
    scheduler = Scheduler(executor)
    entries, own_errors = [], []
    for seed, request in enumerate(requests):
        history = np.full((request["given"], 1, 1, 3), seed, np.uint8) if request["given"] else None
        job = mock.job(seed, *request["sizes"], history=history, overlap=request["overlap"])
        start, frame = NumericalError(f"start {seed}"), NumericalError(f"frame {seed}")
        if request["bad_start"] is not None:
            executor.bad_starts[seed, request["bad_start"]] = start
        if request["bad_frame"] is not None:
            executor.bad_frames[seed, request["bad_frame"]] = frame

        def hook(frame, scale, seconds, bad=request["bad_step"]):
            if frame == bad:
                raise KeyError(bad)

        entries.append(entry_of(job, hook))
        own_errors.append((start, frame))
    for tick in range(21 + sum(sum(request["sizes"]) for request in requests) * 2):
        for entry, request in zip(entries, requests, strict=True):
            if request["arrives"] == tick:
                scheduler.add(entry)
            if request["cancelled"] == tick:
                entry.cancel()
        for ticket in executor.under_way:
            ticket.done |= tick in early
        scheduler.tick()
    assert not scheduler.busy
    assert not executor.jobs
    assert not executor.under_way
    for entry, request, own in zip(entries, requests, own_errors, strict=True):
        assert entry.done
        expected = [one.tolist() for one in mock.frames(entry.job)]
        got = [one.tolist() for one in entry.drain()]
        assert got == expected[: len(got)]
        if entry.error is None:
            assert len(got) == len(expected)
        elif isinstance(entry.error, Cancelled):
            assert request["cancelled"] is not None
        elif isinstance(entry.error, HookError):
            assert entry.error.__cause__.args == (request["bad_step"],)
        else:
            assert any(entry.error is error for error in own)
