"""Which samples a step trains on: a pure function of (seed, step), so nothing has to be saved.

Samples come in pools: the clips of one folder and one shape. Pools take turns in proportion to
their weights; a pool goes through its samples in a new random order every epoch, and the batches
of all ranks follow each other in that order. So an epoch covers each sample exactly once,
whatever the batch and the number of ranks, and a step's samples do not depend on that number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import floor

import numpy as np

# Phases of the pools' turns are multiples of 1 / _PHASES.
_PHASES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Samples that can share a batch.

    Attributes:
        count: samples.
        batch: samples of a step, all ranks together.
        weight: share of the steps, relative to the other pools' weights.
    """

    count: int
    batch: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("count", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: at least 1, got {getattr(self, name)}")
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"weight: above 0, got {self.weight}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """What one rank trains on in one step.

    Attributes:
        pool: number of the pool.
        samples: `(sample, epoch)` pairs; the epoch counts how often the pool was gone through.
    """

    pool: int
    samples: tuple[tuple[int, int], ...]


class Sampler:
    """The draws of every step.

    Args:
        pools: what there is to draw from.
        seed: of the orders and of whose turn is first.
        rank, world_size: this process among those that share a batch.

    Raises:
        ValueError: no pool, a rank outside of the world, or a batch that the ranks cannot share.
    """

    def __init__(
        self, pools: Sequence[Pool], seed: int = 0, *, rank: int = 0, world_size: int = 1
    ) -> None:
        if not pools:
            raise ValueError("pools: at least one")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: 0 to {world_size - 1}, got {rank}")
        for pool in pools:
            if pool.batch % world_size:
                raise ValueError(f"batch: {pool.batch} is no multiple of {world_size} ranks")
        self.pools, self.seed = tuple(pools), seed
        self.rank, self.world_size = rank, world_size
        self._weights = [Fraction(pool.weight) for pool in pools]
        phases = np.random.default_rng([seed, len(pools)]).integers(_PHASES, size=len(pools))
        self._phases = [Fraction(int(phase), _PHASES) for phase in phases]

    def turn(self, step: int) -> tuple[int, int]:
        """The pool of a step, and how many earlier steps were that pool's.

        Turn j of pool b is due at time (j + phase_b) / weight_b; step n is the n-th turn in order
        of time, the lower pool first where two are due at once.
        """
        if len(self.pools) == 1:
            return 0, step
        # At this time at most `step` turns are over, and fewer than B of those are missing.
        late = step - len(self.pools) + sum(self._phases)
        time = late / sum(self._weights)
        counts = [
            max(0, floor(time * weight - phase) + 1) if time > 0 else 0
            for weight, phase in zip(self._weights, self._phases, strict=True)
        ]
        while True:
            due = [
                (count + phase) / weight
                for count, phase, weight in zip(counts, self._phases, self._weights, strict=True)
            ]
            pool = due.index(min(due))
            if sum(counts) == step:
                return pool, counts[pool]
            counts[pool] += 1

    def draws(self, step: int) -> Draws:
        """The samples of this rank in `step` (from 0)."""
        if step < 0:
            raise ValueError(f"step: at least 0, got {step}")
        number, turn = self.turn(step)
        pool = self.pools[number]
        share = pool.batch // self.world_size
        first = turn * pool.batch + self.rank * share
        return Draws(
            pool=number,
            samples=tuple(self._sample(number, place) for place in range(first, first + share)),
        )

    def _sample(self, number: int, place: int) -> tuple[int, int]:
        epoch, within = divmod(place, self.pools[number].count)
        order = _order(self.seed, number, epoch, self.pools[number].count)
        return int(order[within]), epoch


@lru_cache(maxsize=16)
def _order(seed: int, pool: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, pool, epoch]).permutation(count)
