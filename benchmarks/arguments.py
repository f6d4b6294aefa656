"""What command lines of benchmarks accept, as `type` of argparse: refused before anything runs."""

import argparse
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


def at_least(least: int) -> Callable[[str], int]:
    """An integer from `least` on."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            message = f"expected an integer of at least {least}, got {text!r}"
            raise argparse.ArgumentTypeError(message)
        return value

    return convert


def integers(text: str) -> list[int]:
    """Integers of at least 1, with commas."""
    return [at_least(1)(word) for word in text.split(",")]


def number(text: str, low: float, most: float, words: str, *, low_too: bool = False) -> float:
    """A finite number above `low`, or from it on, up to `most`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    above = value >= low if low_too else value > low
    if not (above and value <= most and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"expected {words}, got {text!r}")
    return value


def above_zero(text: str) -> float:
    """A finite number above 0."""
    return number(text, 0, math.inf, "a number above 0")


def not_negative(text: str) -> float:
    """A finite number of 0 or more."""
    return number(text, 0, math.inf, "a number of 0 or more", low_too=True)


def share(text: str) -> float:
    """Above 0 and at most 1."""
    return number(text, 0, 1, "a share above 0 and at most 1")


def output_file(text: str) -> Path:
    """A file that can be written."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file, {text!r} is a folder")
    _check_folder(path.absolute().parent, text)
    return path


def output_folder(text: str) -> Path:
    """A folder that is there or can be made."""
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a folder, {text!r} is a file")
    there = path.absolute()
    while not there.exists():
        there = there.parent
    _check_folder(there, text)
    return path


def _check_folder(folder: Path, text: str) -> None:
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(
            f"cannot write {text!r}: {folder} is no folder to write to"
        )


def end(program: str, reason: str) -> NoReturn:
    """Say why the program cannot run, and end it with status 2, as argparse does."""
    print(f"videoar.benchmarks.{program}: {reason}", file=sys.stderr)
    raise SystemExit(2)


def check_preset(program: str, name: str) -> None:
    """`end` where there is no such preset."""
    from videoar.runtime.presets import preset  # which imports torch

    try:
        preset(name)
    except ValueError as error:
        end(program, f"--{error}")


def check_device(program: str, device: str) -> None:
    """`end` where "cuda" is asked for and there is none."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        end(program, "--device cuda: there is no CUDA device")
