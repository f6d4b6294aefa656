"""Judging clips of moving digits from their pixels alone: digit, colour, direction, speed.

The digit is what a small network, trained on the training digits (`train_judge`), sees in a few
frames; the rest is measured: the mean colour of the bright pixels, and the straight line that
their centre follows.
"""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoar.runtime.checkpoint import read_config, read_weights
from videoar.training.digits import COLOURS, DIGIT, DIRECTIONS, NUM_FRAMES, SIZE

# Of full brightness; what is darker is background, or what a decoder leaves there.
BACKGROUND = 0.3
# Least brightness above the background, in full pixels, for a digit to be there.
LEAST_MASS = 5.0
# Half-way between the speeds that there are: 0, 1 and 2 pixels a frame.
MOVING, QUICKLY = 0.5, 1.5
# Beyond this angle no colour's name fits. The two most alike, blue and cyan, are 25 degrees apart.
MAX_COLOUR_ANGLE = 20.0
LOOKS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a clip shows; everything is None where no digit is to be seen.

    Attributes:
        digit: 0 .. 9.
        colour: a key of `digits.COLOURS`; None as well where no name fits.
        direction: a key of `digits.DIRECTIONS`.
        speed: "slowly" or "quickly"; None as well for "still".
        velocity: (down, right) in pixels a frame.
    """

    digit: int | None = None
    colour: str | None = None
    direction: str | None = None
    speed: str | None = None
    velocity: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeConfig:
    """Sizes of the digit network, and how well it reads digits that it was not trained on.

    Attributes:
        widths: channels of its convolutions.
        hidden: width of its last hidden layer.
        accuracy: share of held-out clips (`digits.clip("test", ...)`) whose digit it names.
        num_held_out: how many clips that is measured on.
        image_accuracy: the same on the held-out images themselves.
    """

    widths: tuple[int, int, int] = (16, 32, 64)
    hidden: int = 128
    accuracy: float = 0.0
    num_held_out: int = 0
    image_accuracy: float = 0.0


class DigitNet(nn.Module):
    """Three convolutions and two linear layers: `[B,28,28]` in [0,1] -> logits `[B,10]`."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        first, second, third = config.widths
        self.conv_1 = nn.Conv2d(1, first, 5, padding=2)
        self.conv_2 = nn.Conv2d(first, second, 3, padding=1)
        self.conv_3 = nn.Conv2d(second, third, 3, padding=1)
        self.hidden = nn.Linear(third * (DIGIT // 8) ** 2, config.hidden)
        self.out = nn.Linear(config.hidden, 10)

    def forward(self, images_BHW: Tensor) -> Tensor:
        x = images_BHW[:, None]
        for conv in (self.conv_1, self.conv_2, self.conv_3):
            x = F.max_pool2d(F.relu(conv(x)), 2)
        return self.out(F.relu(self.hidden(x.flatten(1))))


class Judge:
    """Reads clips; `judge(clip)` gives a `Verdict`."""

    def __init__(self, config: JudgeConfig, net: DigitNet) -> None:
        self.config, self.net = config, net.eval().requires_grad_(False)

    def __call__(self, clip: np.ndarray) -> Verdict:
        """Judge the first 17 frames; what comes later may have turned round at an edge.

        Args:
            clip: uint8 `[T,64,64,3]` RGB, T at least 2.

        Raises:
            ValueError: another dtype or shape.
        """
        if clip.dtype != np.uint8 or clip.shape[1:] != (SIZE, SIZE, 3) or len(clip) < 2:
            expected = f"uint8 [T,{SIZE},{SIZE},3] with at least 2 frames"
            raise ValueError(f"clip: expected {expected}, got {clip.dtype} {list(clip.shape)}")
        clip = clip[:NUM_FRAMES]
        grey_THW = clip.max(axis=-1).astype(np.float32) / 255
        mass_THW = _digit_mass(grey_THW)
        seen = np.flatnonzero(mass_THW.sum(axis=(1, 2)) >= LEAST_MASS)
        if 2 * len(seen) < len(clip):
            return Verdict()
        centres = _centres(mass_THW[seen])
        velocity = _slope(seen, centres)
        direction, speed = _name_motion(velocity)
        looks = np.linspace(0, len(seen) - 1, LOOKS).round().astype(int)
        crops = np.stack([crop_digit(grey_THW[seen[i]], centres[i]) for i in looks])
        return Verdict(
            digit=self.read_digit(crops),
            colour=_name_colour(clip, mass_THW),
            direction=direction,
            speed=speed,
            velocity=velocity,
        )

    @torch.no_grad()
    def read_digit(self, crops: np.ndarray) -> int:
        """The digit that several views, float32 `[n,28,28]` in [0,1], show together."""
        scores = F.log_softmax(self.net(torch.from_numpy(crops)), dim=-1)
        return int(scores.mean(dim=0).argmax())


def _digit_mass(grey_THW: np.ndarray) -> np.ndarray:
    """Brightness above the background, near its centre only: stray bright spots are left out."""
    mass = np.maximum(grey_THW - BACKGROUND, 0)
    cells, reach = np.arange(SIZE), DIGIT // 2 + 2
    for _ in range(2):
        near = np.abs(cells - _centres(mass)[:, :, None]) <= reach
        mass = mass * near[:, 0, :, None] * near[:, 1, None, :]
    return mass


def _centres(mass_THW: np.ndarray) -> np.ndarray:
    """Centre (row, column) of the brightness of every frame, `[T,2]`."""
    total = np.maximum(mass_THW.sum(axis=(1, 2)), 1e-6)
    cells = np.arange(SIZE)
    rows, columns = mass_THW.sum(axis=2) @ cells, mass_THW.sum(axis=1) @ cells
    return np.stack([rows / total, columns / total], axis=1)


def _slope(times: np.ndarray, centres: np.ndarray) -> tuple[float, float]:
    """Least-squares velocity (down, right) in pixels a frame."""
    centred = times - times.mean()
    down, right = centred @ centres / max(1e-6, float(centred @ centred))
    return float(down), float(right)


def _name_motion(velocity: tuple[float, float]) -> tuple[str, str | None]:
    pixels = max(map(abs, velocity))
    if pixels < MOVING:
        return "still", None
    steps = {name: step for name, step in DIRECTIONS.items() if any(step)}
    direction = max(steps, key=lambda name: np.dot(steps[name], velocity))
    return direction, "quickly" if pixels >= QUICKLY else "slowly"


def _name_colour(clip: np.ndarray, mass_THW: np.ndarray) -> str | None:
    mean = np.tensordot(mass_THW, clip.astype(np.float32), axes=3)
    names, table = list(COLOURS), np.array(list(COLOURS.values()), np.float32)
    cosines = table @ mean / (np.linalg.norm(table, axis=1) * np.linalg.norm(mean))
    best = int(cosines.argmax())
    return names[best] if cosines[best] >= np.cos(np.radians(MAX_COLOUR_ANGLE)) else None


def crop_digit(grey_HW: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """The 28x28 pixels around `centre` (row, column), the brightest at 1, black beyond edges."""
    top, left = np.rint(np.asarray(centre) - (DIGIT - 1) / 2).astype(int) + DIGIT
    padded = np.pad(grey_HW, DIGIT)
    crop = padded[top : top + DIGIT, left : left + DIGIT]
    return crop / max(BACKGROUND, float(crop.max()))


def load_judge(folder: str | Path = "digits") -> Judge:
    """The judge of a `judge` folder or of a run's folder; the text "digits" is the shipped one.

    Raises:
        CheckpointError: anything missing or damaged.
    """
    if folder == "digits":
        folder = Path(str(resources.files("videoar.assets"))) / "judge"
    elif (Path(folder) / "judge").exists():
        folder = Path(folder) / "judge"
    config = read_config(folder, JudgeConfig, component="judge")
    with torch.device("meta"):
        net = DigitNet(config)
    shapes = {name: tensor.shape for name, tensor in net.state_dict().items()}
    net.load_state_dict(read_weights(folder, shapes, dtype=torch.float32), assign=True)
    return Judge(config, net)
