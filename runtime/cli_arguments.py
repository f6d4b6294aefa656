"""The arguments of every command. Light: what the commands do is in `cli_<command>.py`."""

import argparse
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("cpu", "cuda")
SHIPPED = "digits"


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        # The help text itself says what happens without such an argument.
        if action.default in (None, False) or action.nargs == "*":
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Shows defaults, takes no abbreviations, and leaves errors to `main` as `ValueError`s."""

    def __init__(self, **options: Any) -> None:
        defaults = {"formatter_class": _Formatter, "allow_abbrev": False}
        super().__init__(**(defaults | options))

    def error(self, message: str) -> NoReturn:
        """Raise `ValueError`."""
        raise ValueError(f"{message} (see {self.prog} --help)")


def positive(text: str) -> int:
    """An argument that counts something: a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}; nearest: 1")
    return value


def add_commands(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the runtime's own commands."""
    _add_generate(commands)
    _add_reconstruct(commands)
    _add_inspect(commands)
    _add_demo(commands)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def add_compute(parser: argparse.ArgumentParser) -> None:
    """Add `--dtype`, `--device` and `--threads`."""
    _add_dtype_and_device(parser)
    text = "CPU threads (default: torch's choice)"
    parser.add_argument("--threads", type=positive, metavar="N", help=text)


def add_model(parser: argparse.ArgumentParser, *, presets: bool) -> None:
    """Add `--model`, and `--preset` where random weights do."""
    group = parser.add_mutually_exclusive_group() if presets else parser
    group.add_argument(
        "--model",
        default=SHIPPED,
        metavar="FOLDER",
        help=f'checkpoint folder, or "{SHIPPED}" for the shipped model',
    )
    if presets:
        text = "random weights of this preset's sizes instead, for measuring"
        group.add_argument("--preset", metavar="NAME", help=text)


def _add_dtype_and_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype", choices=DTYPES, default=DTYPES[0], help="type of weights and cache"
    )
    parser.add_argument("--device", choices=DEVICES, default=DEVICES[0], help="where to compute")


def _add_seed(parser: argparse.ArgumentParser) -> None:
    text = "of the first video; each further one has 1 more"
    parser.add_argument("--seed", type=int, default=0, metavar="N", help=text)


def _add_scale(parser: argparse.ArgumentParser) -> None:
    text = "write each pixel as N x N pixels"
    parser.add_argument("--scale", type=positive, default=1, metavar="N", help=text)


def _add_num_frames(parser: argparse.ArgumentParser, otherwise: str) -> None:
    text = f"pixel frames, 1 + n times the temporal compression (default: {otherwise})"
    parser.add_argument("--num-frames", type=int, metavar="N", help=text)


def _add_command(
    commands: "argparse._SubParsersAction[Any]", name: str, text: str, more: str = ""
) -> Parser:
    description = f"{text[0].upper()}{text[1:]}. {more}".strip()
    parser = commands.add_parser(name, help=text, description=description)
    parser.set_defaults(run=partial(_run, f"videoar.runtime.cli_{name}"))
    return parser


def _run(module: str, args: argparse.Namespace) -> None:
    import_module(module).run(args)


def _add_generate(commands: "argparse._SubParsersAction[Any]") -> None:
    several = "Several prompts give several files: -1, -2 ... is put before the suffix."
    parser = _add_command(commands, "generate", "make videos from prompts or classes", several)
    parser.add_argument("prompt", nargs="*", metavar="PROMPT", help="text, one video each")
    parser.add_argument(
        "--class-id",
        nargs="+",
        type=int,
        metavar="N",
        help="class instead of a text (class-conditional models), one video each",
    )
    add_model(parser, presets=True)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("out.mp4"),
        metavar="FILE",
        help=".mp4, .gif or .png (a contact sheet); "
        "of several videos, number i goes to FILE with -i before the suffix",
    )
    _add_num_frames(parser, "the trained length")
    _add_seed(parser)
    parser.add_argument(
        "--guidance",
        metavar="G",
        help="strength (1: none) or schedule: constant:S, ucf101:A:B:C, falling:A:B "
        "(default: the model's own)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="of sampling, 0 is greedy (default: the model's own)",
    )
    add_compute(parser)
    _add_scale(parser)
    add_json(parser)


def _add_reconstruct(commands: "argparse._SubParsersAction[Any]") -> None:
    text = "encode a video or picture to bits and decode it again"
    more = "It is scaled and cropped to the model's frame size; prints PSNR and bits a pixel."
    parser = _add_command(commands, "reconstruct", text, more)
    parser.add_argument("input", type=Path, metavar="INPUT", help="video or picture")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help=".mp4, .gif or .png (a contact sheet)",
    )
    add_model(parser, presets=False)
    _add_num_frames(parser, "as many as the input has, rounded down")
    add_compute(parser)
    _add_scale(parser)
    add_json(parser)


def _add_inspect(commands: "argparse._SubParsersAction[Any]") -> None:
    text = "print a model's sizes and what a video costs, without its weights"
    parser = _add_command(commands, "inspect", text)
    add_model(parser, presets=True)
    _add_num_frames(parser, "the trained length")
    parser.add_argument(
        "--slots", type=positive, default=1, metavar="N", help="videos made at once"
    )
    _add_dtype_and_device(parser)
    add_json(parser)


def _add_demo(commands: "argparse._SubParsersAction[Any]") -> None:
    text = "make a few videos with the shipped model"
    more = "Writes demo.mp4 and demo.gif (all side by side) and demo.png (their frames)."
    parser = _add_command(commands, "demo", text, more)
    parser.add_argument(
        "--out", type=Path, default=Path("out"), metavar="FOLDER", help="where the files go"
    )
    add_model(parser, presets=False)
    _add_seed(parser)
    add_compute(parser)
    add_json(parser)
