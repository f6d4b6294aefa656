"""Guidance strengths against the published numbers."""

from itertools import pairwise

import pytest

from videoar.runtime.guidance import GuidanceSchedule


def test_ucf101() -> None:
    schedule = GuidanceSchedule.parse("ucf101:1:5:10")
    first = [schedule.strength(t, 0, 5, 6) for t in range(5)]
    assert first == pytest.approx([1, 2, 3, 4, 5])
    inside = [schedule.strength(2, k, 5, 6) for k in range(6)]
    assert inside == pytest.approx([3, 4.4, 5.8, 7.2, 8.6, 10])
    assert [schedule.strength(t, 5, 5, 6) for t in range(5)] == pytest.approx([10] * 5)


def test_falling() -> None:
    schedule = GuidanceSchedule.parse("falling:5:3")
    values = [schedule.strength(t, k, 5, 4) for t in range(5) for k in range(4)]
    assert values[0] == 5
    assert values[-1] == pytest.approx(3)
    steps = [a - b for a, b in pairwise(values)]
    assert steps == pytest.approx([2 / 19] * 19)


def test_single_frame_single_scale_and_beyond() -> None:
    for text in ("ucf101:1:5:10", "falling:5:3", "4"):
        schedule = GuidanceSchedule.parse(text)
        assert schedule.strength(0, 0, 1, 1) == schedule.values[0]
        assert schedule.strength(9, 1, 5, 4) == schedule.strength(4, 1, 5, 4)


def test_parse_round_trip() -> None:
    for text in ("constant:2.5", "ucf101:1:5:10", "falling:5:3"):
        assert str(GuidanceSchedule.parse(text)) == text
    assert GuidanceSchedule.parse(3) == GuidanceSchedule.parse("3")
    assert GuidanceSchedule.parse(1).is_one()
    assert not GuidanceSchedule.parse("falling:1:2").is_one()


@pytest.mark.parametrize("bad", [-1, "constant:-2", "nan", "rising:1:2", "falling:1", "a", None])
def test_bad_values_name_guidance(bad: object) -> None:
    with pytest.raises(ValueError, match="guidance"):
        GuidanceSchedule.parse(bad)
