"""The environment variables of the runtime, read here and nowhere else."""

import os


def debug() -> bool:
    """`VIDEOAR_DEBUG=1`: the command line lets errors through with their traceback."""
    return os.environ.get("VIDEOAR_DEBUG", "") not in ("", "0")
