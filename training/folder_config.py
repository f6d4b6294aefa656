"""What a training config says about its data, and whether samples suit a model."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from tokenizers import Tokenizer

from videoar.runtime.config import ModelConfig
from videoar.runtime.text import encode_prompt
from videoar.training.video_folder import ClipConfig, VideoFolder

SOURCES = ("digits", "folder", "cache")


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderConfig:
    """How training takes clips out of a folder.

    Attributes:
        split: list of the files to use, such as UCF-101's trainlist01.txt (default: all).
        class_index: the classes' numbers, such as UCF-101's classInd.txt (default: sorted by name).
        index: where the folder's scan is kept (default: in the folder).
        fps: frames a second of a clip, 0 for each video's own rate (default: the preset's).
        crop: "random", or "centre" of what covers the frame size.
        mirror: share of the clips with left and right swapped.
    """

    split: str | None = None
    class_index: str | None = None
    index: str | None = None
    fps: float | None = None
    crop: str = "random"
    mirror: float = 0.0

    def __post_init__(self) -> None:
        ClipConfig(fps=self.fps or 0.0, crop=self.crop, mirror=self.mirror)

    def clip(self, fps: float) -> ClipConfig:
        """How clips are drawn; `fps` is the rate where none is given."""
        fps = fps if self.fps is None else self.fps
        return ClipConfig(fps=fps, crop=self.crop, mirror=self.mirror)

    def scan(self, path: str | Path) -> VideoFolder:
        """The folder at `path`, with its labels; errors as `VideoFolder` has them."""
        names = ("split", "class_index", "index")
        options = {name: getattr(self, name) for name in names}
        given = {name: Path(value) for name, value in options.items() if value}
        return VideoFolder(Path(path), **given)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig(FolderConfig):
    """One source of a mix; the settings of folders are for folders alone.

    Attributes:
        source: "digits", a "folder" of videos and pictures, or a token "cache".
        path: the folder; for digits, where encoded clips are kept (default: the run's folder).
        share: of the batches, relative to the other sources' (default: as it has files or clips).
        count: digits alone: clips to draw from, encoded once (default: endless, encoded anew).
    """

    source: str = "digits"
    path: str | None = None
    share: float | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        FolderConfig.__post_init__(self)
        if self.source not in SOURCES:
            raise ValueError(f"source: one of {', '.join(SOURCES)}, got {self.source!r}")
        if self.path is None and self.source != "digits":
            raise ValueError(f"path: missing, a {self.source} needs one")
        if self.share is not None and not 0 < self.share < float("inf"):
            raise ValueError(f"share: above 0, got {self.share}")
        if self.count is not None and (self.source != "digits" or self.count < 1):
            raise ValueError(f"count: at least 1 and for digits alone, got {self.count}")
        for field in fields(FolderConfig) if self.source != "folder" else ():
            if getattr(self, field.name) != field.default:
                raise ValueError(f"{field.name}: for folders alone, the source is {self.source}")


def check_labels(
    items: Iterable[tuple[Path, str | None, int | None]],
    model: ModelConfig,
    text_tokenizer: Tokenizer | None,
) -> None:
    """Check that every sample has what the model is conditioned on.

    Args:
        items: a path to name, the caption and the class of each sample.

    Raises:
        ValueError: no caption or class, words that the text tokenizer does not know, more of them
            than the model takes, or a class that the model does not know; names the file.
    """
    architecture, checked = model.transformer, set()
    for path, caption, class_id in items:
        name = "caption" if architecture.condition == "text" else "class"
        value = caption if name == "caption" else class_id
        if value is None:
            raise ValueError(f"{path}: {name}: missing, the model is trained on it")
        if name == "caption" and value not in checked:
            try:
                encode_prompt(text_tokenizer, value, architecture.max_text)
            except ValueError as error:
                raise ValueError(f"{path}: caption: {error}") from error
            checked.add(value)
        if name == "class" and value >= architecture.vocab_size:
            known = f"the model knows 0 to {architecture.vocab_size - 1}"
            raise ValueError(f"{path}: class: {value}, {known}")
