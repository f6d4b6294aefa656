"""Schedules: order, coverage, step counts, positions, and the default scale sets."""

from itertools import pairwise

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from videoar.runtime.schedule import Chunk, ChunkSchedule, default_sizes

UCF = default_sizes(8, 8)


def test_published_step_counts() -> None:
    video = ChunkSchedule.video(5, UCF)
    assert (video.num_steps, video.num_tokens, video.num_frames) == (30, 650, 5)
    steps = {g: ChunkSchedule.grouped(5, (16, 16), g).num_steps for g in (1, 4, 16)}
    assert steps == {1: 1280, 4: 323, 16: 95}
    assert ChunkSchedule.image(UCF).num_steps == 6


def test_default_sizes() -> None:
    assert default_sizes(8, 8) == ((1, 1), (2, 2), (3, 3), (4, 4), (6, 6), (8, 8))
    assert default_sizes(4, 4) == ((1, 1), (2, 2), (3, 3), (4, 4))
    assert default_sizes(16, 16)[-2:] == ((12, 12), (16, 16))
    assert default_sizes(1, 1) == ((1, 1),)
    assert default_sizes(24, 42)[-3:] == ((14, 24), (18, 32), (24, 42))


@given(st.integers(1, 70), st.integers(1, 70))
def test_default_sizes_grow_to_the_grid(height: int, width: int) -> None:
    sizes = default_sizes(height, width)
    assert sizes[-1] == (height, width)
    assert sizes[0] == (1, 1) or max(height, width) == 1 or sizes[0][0] == 1
    for small, large in pairwise(sizes):
        assert small != large
        assert small[0] <= large[0]
        assert small[1] <= large[1]
    for h, w in sizes[:-1]:
        assert abs(h / height - w / width) <= 1 / min(height, width)


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4),
)
def test_ids_and_positions(frames: int, sizes: list[tuple[int, int]]) -> None:
    schedule = ChunkSchedule.video(frames, tuple(sizes))
    expected = [
        (t * len(sizes) + k, t, k, row, column)
        for t in range(frames)
        for k, (h, w) in enumerate(sizes)
        for row in range(h)
        for column in range(w)
    ]
    table = torch.stack(
        [
            schedule.chunk_ids(),
            schedule.frame_ids(),
            schedule.scale_ids(),
            schedule.positions()[:, 1],
            schedule.positions()[:, 2],
        ],
        dim=1,
    )
    assert [tuple(row) for row in table.tolist()] == expected
    assert torch.equal(schedule.positions()[:, 0], schedule.frame_ids())


@pytest.mark.parametrize("group", [1, 4, 16])
def test_groups_visit_every_cell_once(group: int) -> None:
    schedule = ChunkSchedule.grouped(2, (8, 4), group)
    positions = [tuple(p) for p in schedule.positions().tolist()]
    assert sorted(positions) == [(t, i, j) for t in range(2) for i in range(8) for j in range(4)]
    lengths = [chunk.length for chunk in schedule.chunks]
    assert lengths[:group] == [1] * group
    assert set(lengths[group:]) <= {group}


def test_groups_hold_one_cell_of_each_region() -> None:
    schedule = ChunkSchedule.grouped(1, (4, 4), 4)
    assert schedule.chunks[4].cells == ((0, 1), (0, 3), (2, 1), (2, 3))


def test_bad_arguments_name_the_field() -> None:
    with pytest.raises(ValueError, match="num_latent_frames"):
        ChunkSchedule.video(0, UCF)
    with pytest.raises(ValueError, match="sizes"):
        ChunkSchedule.video(1, ((0, 1),))
    with pytest.raises(ValueError, match="group: 3"):
        ChunkSchedule.grouped(1, (4, 4), 3)
    with pytest.raises(ValueError, match="group: 4"):
        ChunkSchedule.grouped(1, (3, 4), 4)
    one = Chunk(offset=0, length=1, frame=0, scale=0, grid=(1, 1))
    with pytest.raises(ValueError, match=r"chunks\[1\]"):
        ChunkSchedule(chunks=(one, one))
    with pytest.raises(ValueError, match="latent grid"):
        default_sizes(0, 4)
