"""Reading the weights of a component: everything is checked before a tensor is used.

Weights are one file, `model.safetensors`, or shards `model-00001-of-0000N.safetensors` that
`model.safetensors.index.json` maps keys to. Pickles are never read.
"""

import json
import os
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from videoar.runtime.checkpoint_json import (
    SHARD_INDEX_NAME,
    WEIGHTS_NAME,
    existing_folder,
    read_json,
)
from videoar.runtime.errors import CheckpointError

WEIGHT_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
# The safetensors format itself allows no longer header.
_MAX_HEADER = 100_000_000
_SHOWN = 5


def read_weights(
    folder: str | os.PathLike,
    expected: Mapping[str, torch.Size | tuple[int, ...]],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, torch.Tensor]:
    """Reads all weights of a component; returns only when every check has passed.

    Args:
        folder: the component's folder.
        expected: the shape of every key there must be, and of no other.
        dtype: float32, float16 or bfloat16 to convert to. Default: as stored.
        device: where the tensors go.

    Returns:
        The tensors by key, in the order of `expected`, in memory of their own.

    Raises:
        ValueError: a `dtype` that weights cannot have.
        CheckpointError: missing, renamed, extra, truncated or damaged files, pickles, missing or
            unexpected keys, another shape or dtype, NaN or Inf. Names the file and the key.
    """
    check_dtype(dtype)
    folder = existing_folder(folder)
    listed = _listed_keys(folder)
    places: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path, keys in listed.items():
        _check_length(path)
        found = _stored_shapes(path)
        if keys is not None:
            refuse_difference(path, keys, found.keys(), "that the index places here")
        places |= dict.fromkeys(found, path)
        shapes |= found
    refuse_difference(folder, expected.keys(), shapes.keys(), "of the model")
    for key, shape in expected.items():
        if shapes[key] != tuple(shape):
            text = f"shape {list(shape)} is needed, got {list(shapes[key])}"
            raise CheckpointError(f"{places[key]}: {key}: {text}")
    weights: dict[str, torch.Tensor] = {}
    for path in listed:
        keys = [key for key in expected if places[key] == path]
        weights |= _load(path, keys, dtype, device)
    return {key: weights[key] for key in expected}


def check_dtype(dtype: torch.dtype | None) -> None:
    """ValueError for a `dtype` that weights cannot have."""
    if dtype is not None and dtype not in WEIGHT_DTYPES.values():
        raise ValueError(f"dtype: float32, float16 or bfloat16 is needed, got {dtype}")


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    return bool(torch.isfinite(tensor).all())


def _listed_keys(folder: Path) -> dict[Path, set[str] | None]:
    """The safetensors files with the keys that the index places in each, None without an index."""
    present = {path.name for path in folder.glob("*.safetensors")}
    index_path = folder / SHARD_INDEX_NAME
    if index_path.exists():
        listed = _index_files(index_path)
        for name in sorted(listed.keys() - present):
            raise CheckpointError(f"{folder / name}: does not exist, but the index lists it")
        for name in sorted(present - listed.keys()):
            raise CheckpointError(f"{folder / name}: is not listed in {SHARD_INDEX_NAME}")
        return {folder / name: keys for name, keys in sorted(listed.items())}
    for name in sorted(present - {WEIGHTS_NAME}):
        problem = f"is beside {WEIGHTS_NAME}" if WEIGHTS_NAME in present else "has no index"
        raise CheckpointError(f"{folder / name}: a shard that {problem}")
    if not present:
        for path in sorted(folder.iterdir()):
            if path.suffix in _PICKLES:
                raise CheckpointError(f"{path}: pickles are not read, {WEIGHTS_NAME} is needed")
        raise CheckpointError(f"{folder / WEIGHTS_NAME}: does not exist")
    return {folder / WEIGHTS_NAME: None}


def _index_files(path: Path) -> dict[str, set[str]]:
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: weight_map: an object with keys is needed")
    files: dict[str, set[str]] = {}
    for key, name in weight_map.items():
        # A plain name keeps the loader inside its folder.
        plain = isinstance(name, str) and not {"/", "\\"} & set(name)
        if not plain or not name.endswith(".safetensors"):
            raise CheckpointError(f"{path}: {key}: the name of a .safetensors is needed: {name!r}")
        files.setdefault(name, set()).add(key)
    return files


def _check_length(path: Path) -> None:
    """Compares the file's length with what its header says, so that a cut is called a cut."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) == 8 and length > _MAX_HEADER:
                pickled = prefix.startswith(_PICKLE_STARTS)
                problem = "is a pickle, pickles are not read" if pickled else "is no safetensors"
                raise CheckpointError(f"{path}: {problem}")
            header = file.read(min(length, size))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if len(prefix) < 8 or len(header) < length:
        text = f"{size} bytes end within the header"
        raise CheckpointError(f"{path}: truncated, {text}")
    try:
        entries = json.loads(header)
        ends = [entry["data_offsets"][1] for key, entry in entries.items() if key != "__metadata__"]
        declared = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: no safetensors header ({error!r})") from error
    if size < declared:
        raise CheckpointError(f"{path}: truncated, {size} bytes of {declared} are there")
    if size > declared:
        raise CheckpointError(f"{path}: damaged, {size} bytes where the header says {declared}")


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: no readable safetensors file ({error})") from error


def _stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    shapes = {}
    with _opened(path) as file:
        for key in file.keys():  # noqa: SIM118
            piece = file.get_slice(key)
            if piece.get_dtype() not in WEIGHT_DTYPES:
                text = f"F32, F16 or BF16 is needed, got {piece.get_dtype()}"
                raise CheckpointError(f"{path}: {key}: {text}")
            shapes[key] = tuple(piece.get_shape())
    return shapes


def refuse_difference(where: Path, wanted: Set[str], found: Set[str], which: str) -> None:
    """CheckpointError naming the first keys that are missing or too many, if any are."""
    for problem, keys in (("missing", wanted - found), ("unexpected", found - wanted)):
        if keys:
            names = ", ".join(sorted(keys)[:_SHOWN])
            more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
            of = f" {which}" if problem == "missing" else ""
            raise CheckpointError(f"{where}: {len(keys)} {problem} keys{of}: {names}{more}")


def _load(
    path: Path, keys: list[str], dtype: torch.dtype | None, device: torch.device | str
) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = {}
    with _opened(path) as file:
        for key in keys:
            stored = file.get_tensor(key)
            if not is_finite(stored):
                raise CheckpointError(f"{path}: {key}: has NaN or Inf values")
            # A copy, because the stored tensor is the file's memory map.
            weights[key] = stored.to(device, dtype, copy=True)
            if stored.dtype != weights[key].dtype and not is_finite(weights[key]):
                raise CheckpointError(f"{path}: {key}: has values beyond the range of {dtype}")
    return weights
