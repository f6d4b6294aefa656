"""Plain values, of JSON or TOML, as dataclasses: strict, and errors that name the field."""

import sys
import types
from dataclasses import MISSING, asdict, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Config = TypeVar("Config")


def build_config(cls: type[Config], values: dict[str, Any], prefix: str = "") -> Config:
    """An instance of the dataclass `cls`.

    Args:
        cls: a keyword-only dataclass; fields may be bool, int, float, str, `Literal`, tuples,
            other such dataclasses and unions of these with None. Lists become tuples.
        values: its fields by name.
        prefix: in front of the fields' names in errors.

    Raises:
        ValueError: an unknown or missing field, a value of the wrong type or one that `cls`
            refuses. Names the field, as in `stages[1].flip.p_max`.
    """
    hints = get_type_hints(cls)
    known = {field.name: field for field in fields(cls)}
    for name in values:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{prefix}{name}: unknown field{hint}")
    for name, field in known.items():
        required = field.default is MISSING and field.default_factory is MISSING
        if required and name not in values:
            raise ValueError(f"{prefix}{name}: missing field")
    arguments = {
        name: _convert(value, hints[name], prefix + name) for name, value in values.items()
    }
    try:
        return cls(**arguments)
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from error


def plain_values(config: Any) -> dict[str, Any]:
    """A dataclass instance as what a TOML file gives; fields that are None are left out."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items() if item is not None}
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    return plain(asdict(config))


def _convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint` says, or ValueError naming the field."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        if is_dataclass(option) and isinstance(value, dict):
            return build_config(option, value, f"{where}.")
        if _is_tuple(option) and isinstance(value, list):
            return _convert_list(value, option, where)
        if get_origin(option) is Literal:
            choices = [choice for choice in get_args(option) if type(choice) is type(value)]
            if value in choices:
                return value
        elif option is float:
            if type(value) in (int, float) and abs(value) <= sys.float_info.max:
                return float(value)
        elif type(value) is option:
            return value
    wanted = " or ".join(_hint_name(option) for option in options)
    raise ValueError(f"{where}: {wanted} is needed, got {kind_name(value)}")


def _convert_list(values: list, hint: Any, where: str) -> tuple:
    hints = get_args(hint)
    if len(hints) == 2 and hints[1] is Ellipsis:
        hints = (hints[0],) * len(values)
    if len(hints) != len(values):
        raise ValueError(f"{where}: {len(hints)} values are needed, got {len(values)}")
    return tuple(
        _convert(value, item, f"{where}[{index}]")
        for index, (value, item) in enumerate(zip(values, hints, strict=True))
    )


def _is_tuple(hint: Any) -> bool:
    return get_origin(hint) is tuple


def _hint_name(hint: Any) -> str:
    if _is_tuple(hint):
        return "a list"
    if hint is type(None):
        return "null"
    if get_origin(hint) is Literal:
        return " or ".join(repr(choice) for choice in get_args(hint))
    return getattr(hint, "__name__", str(hint))


def kind_name(value: Any) -> str:
    """What a plain value is, in words."""
    names = {dict: "an object", list: "a list", type(None): "null"}
    return names.get(type(value)) or f"{type(value).__name__} {value!r:.60}"
