"""What the files of a folder hold, probed once and kept in an index file beside them.

The index is JSON: `{"format": "videoar-index-1", "files": {relative path: {...}}}`. An entry
counts for as long as its file keeps its size and time of change; broken files are entries too.
"""

import json
import os
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from videoar.runtime.errors import MediaError
from videoar.runtime.media_read import list_media
from videoar.training.clips import MediaInfo, probe

INDEX_NAME = ".videoar-index.json"
_FORMAT = "videoar-index-1"
# Decoding waits for the disk, and PyAV lets other threads run meanwhile.
_THREADS = min(16, 2 * (os.cpu_count() or 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """A folder as it was found.

    Attributes:
        media: what each readable file holds, by path relative to the folder, in sorted order.
        skipped: why each other file is left out.
        probed: files that had to be opened; the others were known from the index.
    """

    media: dict[str, MediaInfo]
    skipped: dict[str, str]
    probed: int


def scan_folder(folder: Path, index: Path | None = None) -> Scan:
    """Probe the media of `folder` and below that the index does not know yet.

    Args:
        index: the index file. Default: `.videoar-index.json` in the folder. Where it cannot be
            written, a warning says so and the scan goes on.

    Raises:
        MediaError: no such folder, or not one readable video or picture in it.
    """
    folder = Path(folder)
    index = folder / INDEX_NAME if index is None else Path(index)
    paths = {path.relative_to(folder).as_posix(): path for path in list_media(folder)}
    known = _read(index)
    stamps = {name: _stamp(path) for name, path in paths.items()}
    entries = {name: known[name] for name in paths if _matches(known.get(name), stamps[name])}
    missing = [name for name in paths if name not in entries]
    try:
        for name, found in _probe_all(paths, missing):
            entries[name] = stamps[name] | found
    finally:
        # Also when the scan is broken off: what was probed need not be probed again.
        if missing or entries.keys() != known.keys():
            _write(index, entries)
    return _scan(folder, {name: entries[name] for name in paths}, len(missing))


def _scan(folder: Path, entries: dict[str, dict[str, Any]], probed: int) -> Scan:
    media = {
        name: MediaInfo(**{key: entry[key] for key in MediaInfo.__slots__})
        for name, entry in entries.items()
        if "error" not in entry
    }
    skipped = {name: entry["error"] for name, entry in entries.items() if "error" in entry}
    if not media:
        name, reason = next(iter(skipped.items()))
        raise MediaError(f"{folder}: none of {len(skipped)} files is readable; {name}: {reason}")
    return Scan(media=media, skipped=skipped, probed=probed)


def _probe_all(paths: dict[str, Path], names: list[str]) -> Iterable[tuple[str, dict[str, Any]]]:
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda name: _probed(paths[name]), names)
        try:
            bar = tqdm(found, desc="scan", total=len(names), unit="file", disable=None)
            yield from zip(names, bar, strict=True)
        finally:
            pool.shutdown(cancel_futures=True)


def _probed(path: Path) -> dict[str, Any]:
    try:
        return asdict(probe(path))
    except MediaError as error:
        return {"error": str(error).removeprefix(f"{path}: ")}


def _stamp(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _matches(entry: dict[str, Any] | None, stamp: dict[str, int]) -> bool:
    return entry is not None and all(entry.get(key) == value for key, value in stamp.items())


def _read(index: Path) -> dict[str, dict[str, Any]]:
    """The entries of an index; none of a file that is missing, torn or of another form."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        entries = content["files"] if content["format"] == _FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    wanted = set(MediaInfo.__slots__)
    return {name: e for name, e in entries.items() if "error" in e or wanted <= e.keys()}


def _write(index: Path, entries: dict[str, dict[str, Any]]) -> None:
    """Write the index aside, then rename it; several processes may do so at once."""
    text = json.dumps({"format": _FORMAT, "files": dict(sorted(entries.items()))}, indent=0)
    unfinished = index.with_name(f".{index.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, index)
    except OSError as error:
        text = f"{index}: cannot be written ({error.strerror}), so every start probes all files"
        warnings.warn(text, stacklevel=2)
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
