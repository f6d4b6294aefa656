"""Perceptual distance of two videos in the features of VGG16 (LPIPS, arXiv 1801.03924, Eq. 1).

    d(x, y) = sum_l mean_hw sum_c w_lc (f_lchw(x) - f_lchw(y))^2

f_l: what the last ReLU of the network's stage l = 1..5 gives, each position's vector scaled to
unit length; w_l >= 0: a learned weight for each of its channels (w_l^2 in Eq. 1). Every frame is
compared by itself. The weights are safetensors named as in their public files:
`features.N.{weight,bias}` (VGG16, arXiv 1409.1556) and `lin{0..4}.model.1.weight` (LPIPS 0.1), in
one file or in two.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from videoar.runtime.errors import CheckpointError

# Convolutions of each stage by their number in VGG16's feature list, and the stages' widths.
STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
WIDTHS = (64, 128, 256, 512, 512)
# Mean and deviation of the network's training images, for pixels in [-1,1].
MEAN = (-0.030, -0.088, -0.188)
DEVIATION = (0.458, 0.448, 0.450)
# Four poolings by 2 come before the last stage.
MIN_SIDE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PerceptualConfig:
    """The perceptual term of tokenizer training (arXiv 2601.05966, Eq. 4).

    Attributes:
        path: safetensors file of the feature network; without one the term is off.
        heads: file of the learned channel weights where they are not in `path`.
        weight: of the term.
    """

    path: str | None = None
    heads: str | None = None
    weight: float = 0.1

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"weight: at least 0, got {self.weight}")
        if self.heads is not None and self.path is None:
            raise ValueError("heads: given without path, the feature network's weights")

    @property
    def enabled(self) -> bool:
        """Whether there is anything to compute."""
        return self.path is not None and self.weight > 0


def _shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor that the distance needs."""
    shapes: dict[str, tuple[int, ...]] = {}
    width_in = 3
    for stage, (numbers, width) in enumerate(zip(STAGES, WIDTHS, strict=True)):
        for number in numbers:
            shapes[f"features.{number}.weight"] = (width, width_in, 3, 3)
            shapes[f"features.{number}.bias"] = (width,)
            width_in = width
        shapes[f"lin{stage}.model.1.weight"] = (1, width, 1, 1)
    return shapes


class Perceptual(nn.Module):
    """The distance with given weights, which are buffers: nothing here is trained.

    Args:
        weights: float32, by the names of the module's docstring.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        for name in _shapes():
            self.register_buffer(name.replace(".", "_"), weights[name])
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(3, 1, 1))

    def features(self, frames_NCHW: Tensor) -> list[Tensor]:
        """Unit feature vectors of the five stages, float32 `[N,c,h,w]`; frames in [-1,1]."""
        x, features = (frames_NCHW - self.mean) / self.deviation, []
        for stage, numbers in enumerate(STAGES):
            x = F.max_pool2d(x, 2) if stage else x
            for number in numbers:
                kernel = getattr(self, f"features_{number}_weight")
                x = F.relu(F.conv2d(x, kernel, getattr(self, f"features_{number}_bias"), padding=1))
            features.append(F.normalize(x.float(), dim=1, eps=1e-10))
        return features

    def forward(self, video: Tensor, target: Tensor) -> Tensor:
        """Mean distance of the frames, a scalar; only `video` receives a gradient.

        Args:
            video, target: `[B,3,T,H,W]` in [-1,1], sides of at least 16.

        Raises:
            ValueError: frames that are too small, or two shapes.
        """
        if video.shape != target.shape or min(video.shape[-2:]) < MIN_SIDE:
            got = f"got {list(video.shape)} and {list(target.shape)}"
            raise ValueError(f"video: one shape with sides of at least {MIN_SIDE}, {got}")
        with torch.no_grad():
            wanted = self.features(target.transpose(1, 2).flatten(0, 1))
        distance = video.new_zeros((), dtype=torch.float32)
        for stage, x in enumerate(self.features(video.transpose(1, 2).flatten(0, 1))):
            weight = getattr(self, f"lin{stage}_model_1_weight")
            distance = distance + ((x - wanted[stage]).square() * weight).sum(1).mean()
        return distance


def load_perceptual(path: str | Path, heads: str | Path | None = None) -> Perceptual:
    """Read the weights; VGG16's classifier may be in the file and is left out.

    Args:
        path: safetensors with `features.N.{weight,bias}`.
        heads: safetensors with `lin{0..4}.model.1.weight` where `path` has none.

    Raises:
        CheckpointError: no such file, keys that are missing or unknown, other shapes, or values
            that are not finite.
    """
    files = [Path(path)] if heads is None else [Path(path), Path(heads)]
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= _read(file)
    names, shapes = " and ".join(map(str, files)), _shapes()
    for problem, keys in (
        ("missing", shapes.keys() - weights.keys()),
        ("unknown", weights.keys() - shapes.keys()),
    ):
        if keys:
            raise CheckpointError(f"{names}: {problem} keys: {', '.join(sorted(keys))}")
    for name, shape in shapes.items():
        if tuple(weights[name].shape) != shape:
            got = list(weights[name].shape)
            raise CheckpointError(f"{names}: {name}: expected {list(shape)}, got {got}")
        if not weights[name].isfinite().all():
            raise CheckpointError(f"{names}: {name}: not finite")
    return Perceptual(weights)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if not name.startswith("classifier.")]  # noqa: SIM118
            return {name: file.get_tensor(name).float() for name in names}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: no readable safetensors file: {error}") from error
