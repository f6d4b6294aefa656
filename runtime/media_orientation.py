"""Mirror marks of pictures and videos; PyAV tells of a mark its rotation alone."""

import struct
from pathlib import Path

import av
import numpy as np

# Where the mark of a picture is: in front of its pixels.
_HEAD_BYTES = 1 << 16
_MARKS = (b"Exif\0\0", b"eXIf")
_ORIENTATION = 0x0112
_MIRRORED = (2, 4, 5, 7)


def is_mirrored(frame: av.VideoFrame, path: Path) -> bool:
    """Whether a frame is upright only when its stored rows are flipped and it is then rotated.

    Args:
        frame: as decoded from the file.
        path: of the file.
    """
    try:
        mark = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # FFmpeg 8 gives frames the whole EXIF as well, a kind that PyAV 18 does not know.
        with path.open("rb") as file:
            return exif_orientation(file.read(_HEAD_BYTES)) in _MIRRORED
    if mark is None:
        return False
    a, b, _, c, d = np.frombuffer(mark, dtype=np.int32)[:5].astype(float)
    return bool(a * d - b * c < 0)


def exif_orientation(head: bytes) -> int:
    """The orientation, 1 to 8, in the EXIF of a picture that begins with `head`; 1 without one."""
    places = [head.find(mark) + len(mark) for mark in _MARKS if mark in head]
    if not places:
        return 1
    tiff = head[min(places) :]
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (offset,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, offset)
        for entry in range(offset + 2, offset + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
            if tag == _ORIENTATION:
                return value if 1 <= value <= 8 else 1
    except struct.error:  # cut off
        pass
    return 1
