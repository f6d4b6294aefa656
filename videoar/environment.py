"""The environment variables of the package, read here and nowhere else."""

import os


def debug() -> bool:
    """`VIDEOAR_DEBUG=1`: errors keep their traceback, and values on a device are checked too."""
    return os.environ.get("VIDEOAR_DEBUG", "") not in ("", "0")
