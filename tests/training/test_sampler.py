"""The sampler is a pure function of the step, covers every epoch once and keeps the mix."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videoar.training.sampler import Pool, Sampler

POOLS = st.lists(
    st.builds(
        Pool,
        count=st.integers(1, 12),
        batch=st.sampled_from([2, 4, 6]),
        weight=st.sampled_from([1e-9, 0.01, 0.3, 1.0, 2.0, 3.7, 50.0]),
    ),
    min_size=1,
    max_size=5,
)


@given(POOLS, st.integers(0, 2**40))
def test_turns_follow_each_other(pools: list[Pool], seed: int) -> None:
    sampler, turns = Sampler(pools, seed), Counter()
    steps = 200
    for step in range(steps):
        pool, turn = sampler.turn(step)
        assert turn == turns[pool], f"step {step}"
        turns[pool] += 1
    total = sum(pool.weight for pool in pools)
    for number, pool in enumerate(pools):
        # Never off by more than a turn of each other pool.
        assert abs(turns[number] - steps * pool.weight / total) <= len(pools)


@given(POOLS, st.integers(0, 2**40), st.sampled_from([1, 2]))
def test_every_epoch_holds_each_sample_once(pools: list[Pool], seed: int, world: int) -> None:
    ranks = [Sampler(pools, seed, rank=rank, world_size=world) for rank in range(world)]
    drawn: dict[int, list[tuple[int, int]]] = {number: [] for number in range(len(pools))}
    for step in range(60):
        draws = [sampler.draws(step) for sampler in ranks]
        assert len({draw.pool for draw in draws}) == 1
        for draw in draws:
            assert len(draw.samples) == pools[draw.pool].batch // world
            drawn[draw.pool] += draw.samples
    for number, samples in drawn.items():
        count = pools[number].count
        assert [epoch for _, epoch in samples] == [i // count for i in range(len(samples))]
        for epoch in range(len(samples) // count):
            part = samples[epoch * count : (epoch + 1) * count]
            assert sorted(sample for sample, _ in part) == list(range(count))


@given(POOLS, st.integers(0, 2**40), st.integers(0, 10**9))
def test_a_step_needs_no_past(pools: list[Pool], seed: int, step: int) -> None:
    fresh, used = Sampler(pools, seed), Sampler(pools, seed)
    for earlier in range(5):
        used.draws(earlier)
    assert fresh.draws(step) == used.draws(step)
    halves = [Sampler(pools, seed, rank=rank, world_size=2).draws(step) for rank in (0, 1)]
    assert halves[0].samples + halves[1].samples == fresh.draws(step).samples


def test_orders_differ_by_seed_pool_and_epoch() -> None:
    pools = [Pool(count=50, batch=50), Pool(count=50, batch=50)]
    orders = {
        tuple(sample for sample, _ in Sampler(pools, seed).draws(step).samples)
        for seed in (0, 1)
        for step in range(4)
    }
    assert len(orders) == 8


@pytest.mark.parametrize(
    ("pools", "options", "message"),
    [
        ([], {}, "pools"),
        ([Pool(count=3, batch=3)], {"world_size": 2}, "batch: 3"),
        ([Pool(count=3, batch=2)], {"rank": 2, "world_size": 2}, "rank"),
    ],
)
def test_bad_arguments(pools: list[Pool], options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampler(pools, **options)
    for values in ({"count": 0}, {"batch": 0}, {"weight": 0.0}, {"weight": float("inf")}):
        with pytest.raises(ValueError, match=next(iter(values))):
            Pool(**({"count": 1, "batch": 1} | values))
    with pytest.raises(ValueError, match="step"):
        Sampler([Pool(count=1, batch=1)]).draws(-1)
