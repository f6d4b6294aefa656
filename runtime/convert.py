"""Public checkpoints of other projects as checkpoint folders of this one.

infinity-vae    the 2D image tokenizers of Infinity (arXiv 2412.04431), `infinity_vae_d*.pth`
"""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open

from videoar.runtime.checkpoint_read import WEIGHT_DTYPES, is_finite, refuse_difference
from videoar.runtime.config import TokenizerConfig
from videoar.runtime.convert_pickle import extract_tensors
from videoar.runtime.errors import CheckpointError
from videoar.runtime.model_folder import save_tokenizer
from videoar.runtime.video_tokenizer import VideoTokenizer, inflate

Shape = tuple[int, ...]

_ENTRY = "vae"
# Constants of the quantiser (powers of two), which this project computes where it needs them.
_MASKS = ("quantizer.lfq.mask", "quantize.lfq.mask")
_INTEGERS = ("I64", "I32", "I16", "I8", "U8")
# The first convolution tells the base width, the encoder's last one d.
_FIRST, _LAST = "encoder.conv_in.conv.weight", "encoder.conv_out.conv.weight"


def convert_infinity_vae(
    source: str | Path, folder: str | Path, *, inflated: bool = False
) -> VideoTokenizer:
    """Writes a public 2D tokenizer as a `video_tokenizer` folder, whole or not at all.

    Args:
        source: the `.pth` file. Its pickle is read as tensors only, in a process of its own.
        folder: what to write; it must not exist, or be empty.
        inflated: write the 3D form (`inflate`), which equals the 2D one on a single frame.

    Returns:
        The tokenizer that was written, float32 on the CPU.

    Raises:
        CheckpointError: `folder` is in use or cannot be written; `source` is missing, damaged or
            asks for more than tensors, or its keys, shapes, dtypes or values are not those of
            such a tokenizer. Names the file and the key.
    """
    source, folder = Path(source), Path(folder)
    _check_unused(folder)
    if not source.is_file():
        problem = "is not a file" if source.exists() else "does not exist"
        raise CheckpointError(f"{source}: {problem}")
    with tempfile.TemporaryDirectory(prefix="videoar-convert-") as temporary:
        tensors = Path(temporary) / "tensors.safetensors"
        extract_tensors(source, _ENTRY, tensors)
        config, tokenizer = _read_tokenizer(tensors, source)
    if inflated:
        tokenizer = inflate(tokenizer, config)
    save_tokenizer(folder, tokenizer)
    return tokenizer.eval().requires_grad_(False)


def infinity_config(shapes: Mapping[str, Shape], source: Path) -> TokenizerConfig:
    """The 3D form of the tokenizer whose 2D tensors have these shapes.

    Only d and the base width differ between the public files (arXiv 2601.05966, section 3).

    Raises:
        CheckpointError: the two convolutions that tell them are missing or of another kind.
    """
    values = []
    for key in (_FIRST, _LAST):
        shape = shapes.get(key, shapes.get(_old_name(key)))
        if shape is None:
            raise CheckpointError(f"{source}: {key}: missing, so the architecture is unknown")
        if len(shape) != 4 or min(shape) < 1:
            text = f"a 2D convolution is needed, got shape {list(shape)}"
            raise CheckpointError(f"{source}: {key}: {text}")
        values.append(shape[0])
    channels, latent_dim = values
    try:
        return replace(TokenizerConfig(), latent_dim=latent_dim, channels=channels)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error


def match_keys(
    shapes: Mapping[str, Shape], expected: Mapping[str, Shape], source: Path
) -> dict[str, str]:
    """Where every weight of the model is in the file.

    Older files leave the inner `.conv` or `.norm` out: `conv_in.weight` for `conv_in.conv.weight`.

    Args:
        shapes: of the file's tensors.
        expected: of the model's weights.

    Returns:
        The file's key for each of the model's.

    Raises:
        CheckpointError: missing, unexpected or doubled keys, or another shape.
    """
    places: dict[str, str] = {}
    for key in expected:
        names = [name for name in (key, _old_name(key)) if name in shapes]
        if len(names) > 1:
            raise CheckpointError(f"{source}: {key}: there twice, also as {names[1]}")
        if names:
            places[key] = names[0]
    others = shapes.keys() - set(places.values()) - set(_MASKS)
    which = "of a public 2D tokenizer"
    refuse_difference(source, expected.keys(), places.keys() | others, which)
    for key, name in places.items():
        if tuple(shapes[name]) != tuple(expected[key]):
            text = f"shape {list(expected[key])} is needed, got {list(shapes[name])}"
            raise CheckpointError(f"{source}: {name}: {text}")
    return places


def _check_unused(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder}: is not a folder")
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{folder}: is not empty, so nothing is written there")


def _old_name(key: str) -> str:
    stem, _, leaf = key.rsplit(".", 2)
    return f"{stem}.{leaf}"


def _read_tokenizer(tensors: Path, source: Path) -> tuple[TokenizerConfig, VideoTokenizer]:
    """The 3D config and the 2D model; errors name `source`, which `tensors` was made of."""
    with safe_open(tensors, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        shapes = {name: tuple(piece.get_shape()) for name, piece in slices.items()}
        config = infinity_config(shapes, source)
        with torch.device("meta"):
            tokenizer = VideoTokenizer(config.as_2d())
        expected = {key: tuple(tensor.shape) for key, tensor in tokenizer.state_dict().items()}
        places = match_keys(shapes, expected, source)
        for name, piece in slices.items():
            _check_kind(name, piece.get_dtype(), shapes[name], config.latent_dim, source)
        weights = {}
        for key, name in places.items():
            tensor = file.get_tensor(name)
            if not is_finite(tensor):
                raise CheckpointError(f"{source}: {name}: has NaN or Inf values")
            # A copy, because the stored tensor is the file's memory map.
            weights[key] = tensor.to(torch.float32, copy=True)
    tokenizer.load_state_dict(weights, assign=True)
    return config, tokenizer


def _check_kind(name: str, dtype: str, shape: Shape, latent_dim: int, source: Path) -> None:
    if name in _MASKS:
        if dtype not in _INTEGERS or shape != (latent_dim,):
            text = f"{latent_dim} whole numbers are needed, got {dtype} {list(shape)}"
            raise CheckpointError(f"{source}: {name}: {text}")
    elif dtype not in WEIGHT_DTYPES:
        raise CheckpointError(f"{source}: {name}: F32, F16 or BF16 is needed, got {dtype}")
