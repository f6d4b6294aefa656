"""Clips side by side: whose turn it is, and a clock that stands still meanwhile."""

from types import SimpleNamespace

import pytest
import torch

from videoar.benchmarks import suite_turns
from videoar.benchmarks.suite_turns import Laps, Turns, result_of, side_by_side

CPU = torch.device("cpu")


def clip(name: str, steps: int, log: list[str], fails_at: int | None = None) -> Turns[str]:
    for step in range(steps):
        log.append(f"{name}{step}")
        if step == fails_at:
            raise MemoryError(name)
        yield (step + 1) / steps
    return name


class TestSideBySide:
    def test_the_least_share_goes_on(self):
        log: list[str] = []
        clips = {"a": clip("a", 4, log), "b": clip("b", 2, log), "c": clip("c", 4, log)}
        assert [*side_by_side(clips, lambda: None)] == [(name, name) for name in "abc"]
        assert log == ["a0", "b0", "c0", "a1", "c1", "a2", "b1", "c2", "a3", "c3"]

    def test_what_fails_ends_alone(self):
        log: list[str] = []
        clips = {"a": clip("a", 3, log, fails_at=1), "b": clip("b", 3, log)}
        (first, error), second = side_by_side(clips, lambda: None)
        assert (first, second) == ("a", ("b", "b"))
        assert isinstance(error, MemoryError)
        assert log == ["a0", "b0", "a1", "b1", "b2"]

    def test_between_turns(self):
        turns: list[int] = []
        clips = {"a": clip("a", 3, []), "b": clip("b", 1, [])}
        list(side_by_side(clips, lambda: turns.append(len(turns))))
        # A last turn finds out that a clip has ended.
        assert len(turns) == 4 + 2

    def test_an_interrupt_ends_all(self):
        def interrupted() -> Turns[str]:
            yield 0.5
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            list(side_by_side({"a": interrupted()}, lambda: None))


class TestLaps:
    @pytest.fixture
    def clock(self, monkeypatch) -> SimpleNamespace:
        clock = SimpleNamespace(now=0.0)
        monkeypatch.setattr(suite_turns.time, "perf_counter", lambda: clock.now)
        return clock

    def test_the_others_time_is_in_no_lap(self, clock):
        def steps(laps: Laps) -> Turns[None]:
            for step, seconds in enumerate((0.15, 0.15, 0.1, 0.3)):
                clock.now += seconds
                laps.mark()
                yield from laps.rest(step / 4)

        laps = Laps(CPU)
        rests = []
        for share in steps(laps):
            rests.append(share)
            clock.now += 100
        # Turns of at least 0.2 s: behind the second and the fourth step.
        assert rests == [0.25, 0.75]
        assert laps.seconds() == pytest.approx([0.15, 0.15, 0.1, 0.3])

    def test_begin_leaves_out_what_was_before(self, clock):
        laps = Laps(CPU)
        clock.now += 5
        laps.begin()
        clock.now += 1
        laps.mark()
        clock.now += 2
        laps.mark()
        assert laps.seconds() == [1, 2]

    def test_a_gpu_is_not_left_to_others_in_a_clip(self, clock):
        laps = Laps(torch.device("cuda"), host=True)
        clock.now += 1000
        laps.mark()
        assert list(laps.rest(0.5)) == []
        assert laps.seconds() == [1000]

    def test_events_of_a_gpu(self, monkeypatch):
        """With stand-ins, as on a GPU: milliseconds between the two events of every lap."""
        stream, seen = object(), []

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self, on: object) -> None:
                assert on is stream
                self.at = 10.0 * len(seen)
                seen.append(self)

            def synchronize(self) -> None:
                assert self is seen[-1]

            def elapsed_time(self, end: "Event") -> float:
                return end.at - self.at

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
        laps = Laps(torch.device("cuda"), stream)
        assert laps.seconds() == []
        laps.mark()
        laps.begin()
        laps.mark()
        assert laps.seconds() == pytest.approx([0.01, 0.01])
        assert len(seen) == 4


def test_result_of():
    assert result_of(clip("a", 3, [])) == "a"
