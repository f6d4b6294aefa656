"""The command line `videoar`: which commands there are, and how each of them ends.

Nothing here imports torch, so that help is quick: a command's module is loaded when it runs. The
commands of other packages (`train`, `eval`) are the entry points of the group `videoar.commands`,
each a function that adds its parser to the subparsers and sets `run`.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

from videoar import __version__
from videoar.environment import debug
from videoar.runtime.cli_arguments import Parser, add_commands
from videoar.runtime.errors import CapacityError, CheckpointError, MediaError

PLUGINS = "videoar.commands"
# What a user can cause; everything else is a bug and keeps its traceback.
_FAILURES = (CheckpointError, MediaError, CapacityError, OSError, ImportError, FloatingPointError)
_EXPECTED = (ValueError, *_FAILURES)
_BAD_ARGUMENT, _FAILED, _INTERRUPTED = 2, 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line, by default that of the process.

    Errors become one line on stderr, unless `VIDEOAR_DEBUG=1`.

    Returns:
        The exit status: 0, 2 for a bad argument, 1 for what failed otherwise, 130 for Ctrl-C.

    Raises:
        SystemExit: status 0, behind `--help` and `--version`.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        args = build_parser(_command(argv)).parse_args(argv)
        status = args.run(args) or 0
        # Here and not at exit, so that a closed pipe is met inside of this block.
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("videoar: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # Python flushes once more when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED
    except _EXPECTED as error:
        if debug():
            raise
        print("videoar: error:", " ".join(str(error).split()), file=sys.stderr)
        return _BAD_ARGUMENT if isinstance(error, ValueError) else _FAILED
    return status


def build_parser(command: str | None = None) -> Parser:
    """The parser of `videoar`.

    Args:
        command: the one that will be asked for; of the plug-ins only this one is imported.
            None: all, for the full help.

    Raises:
        ImportError: `command` is a plug-in that cannot be imported.
    """
    parser = Parser(
        prog="videoar",
        description="Autoregressive video generation by next frame and next scale prediction.",
    )
    parser.add_argument("--version", action="version", version=f"videoar {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    add_commands(commands)
    _add_plugins(commands, command)
    return parser


def _command(argv: Sequence[str]) -> str | None:
    """The chosen command: no option in front of it takes a value."""
    return next((word for word in argv if not word.startswith("-")), None)


def _add_plugins(commands: "argparse._SubParsersAction[Any]", chosen: str | None) -> None:
    for point in sorted(entry_points(group=PLUGINS), key=lambda point: point.name):
        if chosen not in (None, point.name):
            commands.add_parser(point.name)
            continue
        try:
            point.load()(commands)
        except Exception as error:  # a module may raise anything while it is imported
            reason = f"{type(error).__name__}: {error}"
            if chosen == point.name:
                raise ImportError(f"{chosen}: cannot be loaded ({reason})") from error
            commands.add_parser(point.name, help=f"cannot be loaded ({reason})".replace("%", "%%"))
