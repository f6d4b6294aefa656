"""Writing a component folder: `config.json` and safetensors, whole or not at all."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from videoar.runtime.aside import unique_suffix
from videoar.runtime.checkpoint_json import (
    CONFIG_NAME,
    SHARD_INDEX_NAME,
    WEIGHTS_NAME,
    config_text,
    existing_folder,
)
from videoar.runtime.checkpoint_read import WEIGHT_DTYPES, check_dtype, is_finite
from videoar.runtime.errors import CheckpointError


def write_component(
    folder: str | os.PathLike,
    component: str,
    config: Any,
    state_dict: Mapping[str, torch.Tensor],
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 4 << 30,
) -> None:
    """Writes a component folder, whole or not at all; the same input gives the same bytes.

    Everything is written into a folder beside `folder`, which then takes its name. An existing
    component is replaced; a folder that holds anything else is left alone and refused.

    Args:
        folder: the component's own folder, such as `checkpoint/transformer`.
        component: the name in the config's `format`, such as `transformer`.
        config: a dataclass instance that `read_config` can read back.
        state_dict: float32, float16 or bfloat16 tensors on any device.
        dtype: what to convert the tensors to. Default: as they are.
        max_shard_bytes: more than this is split; a tensor is never split.

    Raises:
        ValueError: a tensor that `read_weights` would refuse (dtype, NaN, Inf), naming its key,
            or a bad `component`, `dtype` or `max_shard_bytes`.
        CheckpointError: `folder` holds something else or could not be written.
    """
    check_dtype(dtype)
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes: at least 1 is needed, got {max_shard_bytes}")
    text = config_text(component, config)
    shards = _split(state_dict, dtype, max_shard_bytes)
    target = Path(os.path.realpath(folder))
    unfinished = target.with_name(f".{target.name}.{unique_suffix()}.tmp")
    try:
        _check_replaceable(target)
        try:
            # A killed run may have left one; process ids come again, in containers at once.
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            (unfinished / CONFIG_NAME).write_text(text, encoding="utf-8")
            _write_shards(unfinished, shards, state_dict, dtype)
            _exchange(unfinished, target)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{target}: could not be written ({error})") from error


def _split(
    state_dict: Mapping[str, torch.Tensor], dtype: torch.dtype | None, max_shard_bytes: int
) -> list[list[str]]:
    """The keys, sorted, in groups of at most `max_shard_bytes`; checks every tensor."""
    shards: list[list[str]] = [[]]
    used = 0
    for key in sorted(state_dict):
        tensor = state_dict[key]
        if (dtype or tensor.dtype) not in WEIGHT_DTYPES.values() or not tensor.is_floating_point():
            raise ValueError(f"state_dict: {key}: cannot be stored as {dtype or tensor.dtype}")
        if not is_finite(tensor) or (dtype and not is_finite(tensor.to(dtype))):
            raise ValueError(f"state_dict: {key}: has NaN or Inf as {dtype or tensor.dtype}")
        size = tensor.numel() * (dtype or tensor.dtype).itemsize
        if shards[-1] and used + size > max_shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(key)
        used += size
    return shards


def _write_shards(
    folder: Path,
    shards: list[list[str]],
    state_dict: Mapping[str, torch.Tensor],
    dtype: torch.dtype | None,
) -> None:
    weight_map: dict[str, str] = {}
    total = 0
    for number, keys in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        name = name if len(shards) > 1 else WEIGHTS_NAME
        tensors = {key: _copied(state_dict[key], dtype) for key in keys}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        # Safetensors makes files for their owner alone; others should be able to load them.
        shutil.copymode(folder / CONFIG_NAME, folder / name)
        weight_map |= dict.fromkeys(keys, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / SHARD_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _copied(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    # Safetensors refuses tensors that share memory or are not contiguous.
    return torch.empty(tensor.shape, dtype=dtype or tensor.dtype).copy_(tensor.detach())


def _check_replaceable(target: Path) -> None:
    if not target.exists():
        return
    ours = {CONFIG_NAME, SHARD_INDEX_NAME}
    for path in existing_folder(target).iterdir():
        shard = path.name.startswith("model") and path.suffix == ".safetensors"
        if path.name not in ours and not shard:
            text = f"holds {path.name}, so it is no component and is not replaced"
            raise CheckpointError(f"{target}: {text}")


def _exchange(unfinished: Path, target: Path) -> None:
    """Renames `unfinished` to `target`; what was there is removed last, or put back."""
    if not target.exists():
        os.replace(unfinished, target)
        return
    replaced = target.with_name(f".{target.name}.{unique_suffix()}.old")
    shutil.rmtree(replaced, ignore_errors=True)
    os.replace(target, replaced)
    try:
        os.replace(unfinished, target)
    except BaseException:
        os.replace(replaced, target)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
