"""Checks of numbers that come from outside."""

from numbers import Integral, Real
from typing import Any

# Of strengths and temperatures: far beyond any use, and far from what overflows float32.
_MOST = 1e6


def is_whole(value: Any) -> bool:
    """An int of Python's or numpy's."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """A real number of Python's or numpy's."""
    return isinstance(value, Real) and not isinstance(value, bool)


def whole(name: str, value: Any) -> int:
    """`value` as an int; ValueError, naming it, for anything else."""
    if not is_whole(value):
        raise ValueError(f"{name}: expected an int, got {value!r}")
    return int(value)


def moderate(name: str, value: Any) -> float:
    """`value` as a float of 0 to a million; ValueError, naming it, for anything else."""
    if not is_number(value):
        raise ValueError(f"{name}: expected a number, got {value!r}")
    if not value >= 0:
        raise ValueError(f"{name}: must be 0 or more, got {value}; nearest: 0")
    if value > _MOST:
        raise ValueError(f"{name}: must be at most {_MOST:g}, got {value:.3g}; nearest: {_MOST:g}")
    return float(value)
