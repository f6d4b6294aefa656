"""The environment variables of the package, read here and nowhere else."""

import os


def debug() -> bool:
    """`VIDEOAR_DEBUG=1`: errors keep their traceback, and values on a device are checked too."""
    return os.environ.get("VIDEOAR_DEBUG", "") not in ("", "0")


def torchrun() -> tuple[int, int, int]:
    """`RANK`, `LOCAL_RANK` and `WORLD_SIZE` as torchrun sets them; one process without it."""
    names = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1}
    rank, local_rank, size = (int(os.environ.get(name, alone)) for name, alone in names.items())
    return rank, local_rank, size
