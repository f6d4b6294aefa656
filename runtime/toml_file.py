"""Reading TOML files."""

from pathlib import Path
from typing import Any

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file.

    Raises:
        ValueError: missing or broken; names the file, line and column.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: does not exist") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: no readable TOML ({error})") from error


def parse_value(text: str) -> Any:
    """A value as it would stand in a TOML file; what is none is taken as text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
