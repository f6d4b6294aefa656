"""Mirrored photographs.

FFmpeg makes a matrix of the orientation that a JPEG's EXIF names, of which PyAV tells the rotation
alone; asking a frame for its side data crashes PyAV 18 (its garbage collection behind an ICC
profile, and on the EXIF that FFmpeg 8 adds). So the orientation is read from the file.
"""

import struct
from pathlib import Path

_JPEG = b"\xff\xd8"
# EXIF is in front of the pixels, in a segment of at most this size.
_HEAD_BYTES = 1 << 17
_EXIF = b"Exif\0\0"
_ORIENTATION = 0x0112
_MIRRORED = (2, 4, 5, 7)


def is_mirrored(path: Path) -> bool:
    """Whether a picture is upright only when its stored rows are flipped and it is then rotated."""
    with path.open("rb") as file:
        return exif_orientation(file.read(_HEAD_BYTES)) in _MIRRORED


def exif_orientation(head: bytes) -> int:
    """The orientation, 1 to 8, in the EXIF of a JPEG that begins with `head`; 1 without one."""
    if not head.startswith(_JPEG) or _EXIF not in head:
        return 1
    tiff = head[head.index(_EXIF) + len(_EXIF) :]
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
