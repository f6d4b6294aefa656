"""The JSON side of a checkpoint: configs as dataclasses and the model index, read strictly."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from videoar.runtime.aside import unique_suffix
from videoar.runtime.build_config import Config, build_config, kind_name
from videoar.runtime.errors import CheckpointError

CONFIG_NAME = "config.json"
INDEX_NAME = "model_index.json"
WEIGHTS_NAME = "model.safetensors"
SHARD_INDEX_NAME = "model.safetensors.index.json"
_INDEX_FORMAT = "videoar-1"
_COMPONENT = re.compile(r"[a-z0-9_]+")


def read_config(
    folder: str | os.PathLike, cls: type[Config], *, component: str | None = None
) -> Config:
    """Reads a component's `config.json` into the dataclass `cls`.

    Args:
        folder: the component's folder.
        cls: a keyword-only dataclass; fields may be bool, int, float, str, `Literal`, tuples,
            other such dataclasses and unions of these with None. JSON lists become tuples.
        component: the component that the file's `format` must name. Default: any.

    Raises:
        CheckpointError: missing or broken file, another format, an unknown or missing field,
            a value of the wrong type or one that `cls` refuses. Names the file and the field.
    """
    path = existing_folder(folder) / CONFIG_NAME
    values = read_json(path)
    found = values.pop("format", None)
    wanted = _format(component) if component else "videoar-<component>-1"
    match = isinstance(found, str) and re.fullmatch(r"videoar-([a-z0-9_]+)-1", found)
    if not match or component not in (None, match[1]):
        raise CheckpointError(f'{path}: format: "{wanted}" is needed, got {found!r}')
    try:
        return build_config(cls, values)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def config_text(component: str, config: Any) -> str:
    """The `config.json` of a dataclass instance, fields in their order."""
    assert not hasattr(config, "format"), "the field `format` is the file's own"
    values = {"format": _format(component)} | asdict(config)
    return json.dumps(values, indent=2, allow_nan=False) + "\n"


def read_model_index(folder: str | os.PathLike) -> dict[str, Any]:
    """Reads `model_index.json`: `{"format": "videoar-1", "components": {name: anything}, ...}`.

    Raises:
        CheckpointError: `folder` is missing or no folder, or the file is missing or broken.
    """
    path = existing_folder(folder) / INDEX_NAME
    index = read_json(path)
    if index.get("format") != _INDEX_FORMAT:
        found = index.get("format")
        raise CheckpointError(f'{path}: format: "{_INDEX_FORMAT}" is needed, got {found!r}')
    if not isinstance(index.get("components"), dict):
        raise CheckpointError(f"{path}: components: an object is needed")
    return index


def write_model_index(folder: str | os.PathLike, index: Mapping[str, Any]) -> None:
    """Writes `model_index.json`, whole or not at all; makes the folder.

    Args:
        folder: the checkpoint's folder.
        index: `components` as an object, and whatever else JSON can hold; `format` is added.

    Raises:
        ValueError: no `components`, another `format`, or a value that JSON has no form for.
        CheckpointError: the file could not be written.
    """
    if index.get("format", _INDEX_FORMAT) != _INDEX_FORMAT:
        raise ValueError(f'index: format: must be "{_INDEX_FORMAT}", got {index["format"]!r}')
    if not isinstance(index.get("components"), Mapping):
        raise ValueError("index: components: an object is needed")
    text = json.dumps({"format": _INDEX_FORMAT} | dict(index), indent=2, allow_nan=False) + "\n"
    folder = Path(folder)
    unfinished = folder / f".{INDEX_NAME}.{unique_suffix()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            unfinished.write_text(text, encoding="utf-8")
            os.replace(unfinished, folder / INDEX_NAME)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder / INDEX_NAME}: could not be written ({error})") from error


def existing_folder(folder: str | os.PathLike) -> Path:
    """`folder` as a path, or CheckpointError when it is missing or something else."""
    folder = Path(folder)
    if not folder.exists():
        raise CheckpointError(f"{folder}: does not exist")
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is not a folder")
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; CheckpointError for anything else and for repeated keys."""
    try:
        values = json.loads(
            path.read_text(encoding="utf-8"),
            object_pairs_hook=_unrepeated,
            parse_constant=_refuse_constant,
        )
    except FileNotFoundError:
        raise CheckpointError(f"{path}: does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: no readable JSON ({error})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: a JSON object is needed, got {kind_name(values)}")
    return values


def _format(component: str) -> str:
    if not _COMPONENT.fullmatch(component):
        raise ValueError(f"component: small letters, digits and _ are needed, got {component!r}")
    return f"videoar-{component}-1"


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"repeated key {next(key for key in keys if keys.count(key) > 1)!r}")
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
