"""Contact sheets: the frames of one or several clips side by side in one picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np

_BACKGROUND = 24
_INK = 235
_GAP = 2
_GLYPH_WIDTH, _GLYPH_HEIGHT, _GLYPH_SCALE = 3, 5, 2
# A character and its five rows of three pixels, one octal digit a row.
_FONT = (
    "A25755 B65656 C34443 D65556 E74647 F74644 G34553 H55755 I72227 J11152 "
    "K55655 L44447 M57755 N65555 O25552 P65644 Q25563 R65655 S34216 T72222 "
    "U55557 V55552 W55775 X55255 Y55222 Z71247 075557 126227 271747 371317 "
    "455711 574717 674757 771111 875757 975717 .00002 ,00024 -00700 _00007 "
    ":02020 /11244 =07070 +02720 (12221 )42224 '22000 !22202 ?71202 %51245 "
    "#57575 *05250 "
)
_GLYPHS = {glyph[0]: glyph[1:] for glyph in _FONT.split()}


def to_frames(frames: Any) -> np.ndarray:
    """Checks one clip and returns it as a contiguous array.

    Args:
        frames: uint8 `[T,H,W,3]` RGB, an array, a torch tensor on any device or a list of frames.

    Returns:
        uint8 `[T,H,W,3]`, C-contiguous.

    Raises:
        ValueError: another dtype or shape, or an empty clip.
    """
    if hasattr(frames, "detach"):
        frames = frames.detach().cpu().numpy()
    array = np.asarray(frames)
    if array.dtype != np.uint8:
        raise ValueError(f"frames: uint8 is needed, got {array.dtype}")
    if array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        raise ValueError(f"frames: a non-empty [T,H,W,3] is needed, got {list(array.shape)}")
    return np.ascontiguousarray(array)


def enlarge(frames: np.ndarray, scale: int) -> np.ndarray:
    """Repeats every pixel of `frames [...,H,W,3]` `scale` times along H and W."""
    if isinstance(scale, bool) or not isinstance(scale, int) or scale < 1:
        raise ValueError(f"scale: a whole number of at least 1 is needed, got {scale!r}")
    return frames if scale == 1 else frames.repeat(scale, axis=-3).repeat(scale, axis=-2)


def contact_sheet(
    clips: Any,
    columns: int | None = None,
    scale: int = 1,
    labels: Sequence[str] | None = None,
) -> np.ndarray:
    """Lays the frames of clips out in rows; every clip starts a new row.

    Args:
        clips: uint8 `[B,T,H,W,3]`, or a list of `[T,H,W,3]` whose T may differ.
        columns: frames in a row; a longer clip wraps. Default: the longest clip's frames.
        scale: every pixel becomes `scale x scale` pixels.
        labels: one line of text a clip, drawn above its first row and cut at the right edge.

    Returns:
        uint8 `[H,W,3]`.

    Raises:
        ValueError: no clip, clips of different height or width, `columns` or `scale` below 1,
            or another number of labels than of clips.
    """
    clips = [enlarge(to_frames(clip), scale) for clip in clips]
    if not clips:
        raise ValueError("clips: at least one is needed")
    if len({clip.shape[1:] for clip in clips}) > 1:
        sizes = sorted({clip.shape[1:3] for clip in clips})
        raise ValueError(f"clips: all must have one height and width, got {sizes}")
    columns = max(len(clip) for clip in clips) if columns is None else columns
    if columns < 1:
        raise ValueError(f"columns: at least 1 is needed, got {columns}")
    if labels is not None and len(labels) != len(clips):
        raise ValueError(f"labels: {len(clips)} are needed, one a clip, got {len(labels)}")
    width = columns * (clips[0].shape[2] + _GAP) + _GAP
    bands = []
    for index, clip in enumerate(clips):
        if labels is not None:
            bands.append(_text_band(labels[index], width))
        bands += [_frame_band(clip[i : i + columns], width) for i in range(0, len(clip), columns)]
    bands.append(_blank(_GAP, width))
    return np.concatenate(bands)


def _blank(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), _BACKGROUND, np.uint8)


def _frame_band(frames: np.ndarray, width: int) -> np.ndarray:
    _, frame_height, frame_width, _ = frames.shape
    band = _blank(frame_height + _GAP, width)
    for column, frame in enumerate(frames):
        left = _GAP + column * (frame_width + _GAP)
        band[_GAP:, left : left + frame_width] = frame
    return band


def _text_band(text: str, width: int) -> np.ndarray:
    """One line of text in a 3x5 pixel font, doubled; small letters are drawn as capitals."""
    ink = np.zeros((_GLYPH_HEIGHT, (_GLYPH_WIDTH + 1) * max(1, len(text))), bool)
    for index, char in enumerate(text.upper()[: len(text)]):
        rows = "00000" if char.isspace() else _GLYPHS.get(char, _GLYPHS["?"])
        for y, row in enumerate(rows):
            for x in range(_GLYPH_WIDTH):
                ink[y, index * (_GLYPH_WIDTH + 1) + x] = int(row) >> (_GLYPH_WIDTH - 1 - x) & 1
    ink = ink.repeat(_GLYPH_SCALE, 0).repeat(_GLYPH_SCALE, 1)[:, : max(0, width - 2 * _GAP)]
    band = _blank(ink.shape[0] + 2 * _GAP, width)
    band[_GAP : _GAP + ink.shape[0], _GAP : _GAP + ink.shape[1]][ink] = _INK
    return band
