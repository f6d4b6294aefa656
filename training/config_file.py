"""Training configs: TOML files, and single values set on the command line."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from videoar.runtime.build_config import Config, build_config, plain_values
from videoar.runtime.errors import CheckpointError, MediaError
from videoar.runtime.toml_file import parse_value, read_toml

# One part of a path such as `stages[0].flip.p_max`, or one that it can begin with.
_PART = re.compile(r"([A-Za-z_]\w*)((?:\[\d+\])*)")


def set_value(values: dict[str, Any], setting: str) -> None:
    """Set one value in place, as in `stages[0].flip.p_max=0.1`.

    Tables that are missing on the way are made; an entry can be added behind the last one of an
    array. What is no TOML value is taken as text.

    Raises:
        ValueError: no such form, or a path through something else than a table or an array.
    """
    path, equals, text = setting.partition("=")
    parts = [_PART.fullmatch(part.strip()) for part in path.split(".")]
    if not equals or None in parts:
        raise ValueError(f"--set {setting}: expected PATH=VALUE, as in stages[0].steps=50")
    keys: list[str | int] = []
    for part in parts:
        keys += [part[1], *(int(index) for index in re.findall(r"\d+", part[2]))]
    place: Any = values
    for depth, key in enumerate(keys):
        if not _takes(place, key):
            raise ValueError(f"--set {setting}: {_joined(keys[: depth + 1])}: no such place")
        if depth == len(keys) - 1:
            _put(place, key, parse_value(text.strip()))
        elif key == len(place) if isinstance(key, int) else key not in place:
            _put(place, key, {} if isinstance(keys[depth + 1], str) else [])
        place = place[key]


def _takes(place: Any, key: str | int) -> bool:
    if isinstance(key, str):
        return isinstance(place, dict)
    return isinstance(place, list) and key <= len(place)


def _put(place: dict | list, key: str | int, value: Any) -> None:
    if isinstance(key, str):
        place[key] = value
    else:
        place[key : key + 1] = [value]


def _joined(keys: Sequence[str | int]) -> str:
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return text.removeprefix(".")


def load_config(
    recipe: Config,
    path: str | None = None,
    given: dict[str, Any] | None = None,
    settings: Sequence[str] = (),
) -> Config:
    """The config in a TOML file with values set on top.

    Args:
        recipe: what counts without a file; the result is of its class.
        given: top-level values instead of the file's; `data` is then that of all stages.
        settings: as `set_value` takes them.

    Raises:
        ValueError: naming the field's path, and the file.
    """
    values = plain_values(recipe) if path is None else read_toml(Path(path))
    values |= given or {}
    if "data" in (given or {}):
        for stage in values.get("stages", []):
            if isinstance(stage, dict):
                stage.pop("data", None)
    for setting in settings:
        set_value(values, setting)
    with within(path):
        return build_config(type(recipe), values)


@contextmanager
def within(where: str | None) -> Iterator[None]:
    """Errors from inside begin with `where`, a file or the path of a field; None: as they are."""
    try:
        yield
    except (ValueError, CheckpointError, MediaError) as error:
        kinds = (CheckpointError, MediaError, ValueError)
        kind = next(kind for kind in kinds if isinstance(error, kind))
        raise kind(f"{where}: {error}" if where else str(error)) from error
