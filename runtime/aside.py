"""Files that are written aside and renamed, so that half of one never lies under its name."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

_NUMBERS = count()


def unique_suffix() -> str:
    """Of a name that no other process or thread writes to: `PID-NUMBER`."""
    return f"{os.getpid()}-{next(_NUMBERS)}"


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yields a name beside `path` to write to; renamed to it behind the block, removed on errors.

    The name keeps the suffix, which some writers choose their format by. Several processes and
    threads may write the same file at once.
    """
    unfinished = path.with_name(f".{path.stem}.{unique_suffix()}.tmp{path.suffix}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        # After the rename there is nothing left under this name.
        unfinished.unlink(missing_ok=True)
