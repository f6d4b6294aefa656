"""Files that are written aside and renamed, so that half of one never lies under its name."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yields a name beside `path` to write to; renamed to it behind the block, removed on errors.

    The name keeps the suffix, which some writers choose their format by. Several processes may
    write the same file at once.
    """
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        # After the rename there is nothing left under this name.
        unfinished.unlink(missing_ok=True)
