"""Flags made from the fields of dataclasses, so that the two cannot drift apart."""

import argparse
import types
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, Union, get_args, get_origin, get_type_hints

from videoar.runtime.cli_arguments import Parser

Subparsers = argparse._SubParsersAction
Run = Callable[[argparse.Namespace], int | None]


class LazyParser(Parser):
    """A parser that adds its flags when it is used, so that help elsewhere stays fast.

    Args:
        populate: called once with the parser before it parses.
    """

    def __init__(
        self, *, populate: Callable[["LazyParser"], None] | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self._populate = populate

    def populate(self) -> None:
        """Add the flags now; does nothing the second time."""
        populate, self._populate = self._populate, None
        if populate is not None:
            populate(self)

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        self.populate()
        return super().parse_known_args(*args, **kwargs)


def add_kind(
    kinds: Subparsers, name: str, text: str, run: Run, more: str = "", **options: Any
) -> argparse.ArgumentParser:
    """Add the parser of one kind of a command: its help `text`, and `more` to say."""
    description = f"{text[0].upper()}{text[1:]}. {more}".strip()
    parser = kinds.add_parser(name, help=text, description=description, **options)
    parser.set_defaults(run=run)
    return parser


def described(cls: type) -> dict[str, str]:
    """What the "Attributes:" lines of a dataclass say of each field."""
    texts: dict[str, str] = {}
    names: list[str] = []
    lines = (cls.__doc__ or "").partition("Attributes:\n")[2].splitlines()
    base = len(lines[0]) - len(lines[0].lstrip()) if lines else 0
    for line in lines:
        head, colon, text = line.strip().partition(": ")
        indent = len(line) - len(line.lstrip())
        if not line.strip() or indent < base:
            break
        if indent == base and colon:
            names = [name.strip() for name in head.split(",")]
            texts |= dict.fromkeys(names, text)
        else:
            texts |= {name: f"{texts[name]} {line.strip()}" for name in names}
    return {name: text.rstrip(".") for name, text in texts.items()}


def field_help(cls: type, name: str) -> str:
    """Help of one flag: the dataclass's own line, else the name in words."""
    return described(cls).get(name) or name.replace("_", " ")


def add_fields(parser: argparse.ArgumentParser, cls: type, *, skip: tuple[str, ...] = ()) -> None:
    """Add a flag `--field-name` for every field of the dataclass `cls`, but those to `skip`.

    Numbers, texts, bools and tuples of numbers become flags.
    """
    hints = get_type_hints(cls)
    for field in fields(cls):
        if field.name in skip:
            continue
        hint = _plain(hints[field.name])
        kinds: dict[str, Any] = {"type": hint}
        if hint is bool:
            kinds = {"action": argparse.BooleanOptionalAction}
        elif get_origin(hint) is tuple:
            parts = get_args(hint)
            kinds = {"type": parts[0], "nargs": "+" if Ellipsis in parts else len(parts)}
        shown = "" if field.default in (None, MISSING) else f" (default: {_show(field.default)})"
        text = (field_help(cls, field.name) + shown).replace("%", "%%")
        metavar = {} if hint is bool else {"metavar": {int: "N", float: "X"}.get(hint, "VALUE")}
        # No default here: one that is not given stays the dataclass's own.
        name = "--" + field.name.replace("_", "-")
        parser.add_argument(
            name, dest=field.name, help=text, default=argparse.SUPPRESS, **metavar, **kinds
        )


def values_of(args: argparse.Namespace, cls: type, *, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values that were given for the flags of `add_fields`, as arguments of `cls`."""
    names = [field.name for field in fields(cls) if field.name not in skip]
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}


def _plain(hint: Any) -> Any:
    """The type of a flag's value: `X` for `X | None`."""
    if get_origin(hint) in (Union, types.UnionType):
        return next(option for option in get_args(hint) if option is not type(None))
    return hint


def _show(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
