"""Figures of matplotlib as PNG files, without a display.

matplotlib belongs to the extra `train`; it is imported when a picture is drawn.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from videoar.runtime.aside import written_aside
from videoar.runtime.errors import MediaError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 100


def new_figure(width: float, height: float) -> "Figure":
    """A figure of so many inches; MediaError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MediaError("pictures need matplotlib: pip install 'videoar[train]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", output: str | Path) -> None:
    """Write a figure aside, then rename it.

    Raises:
        ValueError: another suffix than .png.
        MediaError: the file cannot be written.
    """
    output = Path(output)
    if output.suffix.lower() != ".png":
        raise ValueError(f"output: {output}: .png is needed")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(output) as unfinished:
            figure.savefig(unfinished, dpi=_DPI)
    except OSError as error:
        raise MediaError(f"{output}: could not be written ({error})") from error
