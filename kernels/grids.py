"""Grids as arguments: the size of a map, and the scales of a frame from coarse to fine."""

from collections.abc import Sequence

Sizes = Sequence[tuple[int, int]]


def is_grid(size: object) -> bool:
    """Whether `size` is (h, w), integers of at least 1; True and 1.0 are none."""
    if not isinstance(size, tuple | list) or len(size) != 2:
        return False
    height, width = size
    return type(height) is type(width) is int and min(height, width) > 0


def check_sizes(sizes: Sizes) -> None:
    """Refuse scales that are no grids or reach beyond the last one, the latent grid.

    A cache would take 1.0 for the 1 it has seen; the check costs 2 microseconds.

    Raises:
        ValueError: naming `sizes`.
    """
    grids = isinstance(sizes, tuple | list) and sizes and all(map(is_grid, sizes))
    if not grids or any(h > sizes[-1][0] or w > sizes[-1][1] for h, w in sizes):
        text = "expected grids (h, w) of at least 1 x 1, none larger than the last"
        raise ValueError(f"sizes: {text}, got {sizes}")
