"""The arguments of every command. Light: what the commands do is in `cli_<command>.py`."""

import argparse
import re
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("cpu", "cuda")
# A cost card also knows devices that are not there.
COST_DEVICES = (*DEVICES, "h200")
SHIPPED = "digits"
# Public checkpoints that `videoar convert` reads.
CONVERTED = ("infinity-vae",)


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


def seed(text: str) -> int:
    """An argument that random numbers follow from: 0 to 2^63 - 1."""
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"expected 0 .. 2^63 - 1, got {value}")
    return value


def _most(limit: int) -> Callable[[str], int]:
    """`positive` of at most `limit`."""

    def convert(text: str) -> int:
        value = positive(text)
        if value > limit:
            text = f"must be {limit} or less, got {value}; nearest: {limit}"
            raise argparse.ArgumentTypeError(text)
        return value

    convert.__name__ = "int"  # argparse names it in errors
    return convert


def _above_zero(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def _grid(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9][0-9]*)(?:x([1-9][0-9]*))?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"a size such as 64x96 is needed, got {text!r}")
    return int(match[1]), int(match[2] or match[1])


def _grids(text: str) -> tuple[tuple[int, int], ...]:
    return tuple(_grid(part) for part in text.split(","))


def add_commands(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the runtime's own commands."""
    _add_generate(commands)
    _add_reconstruct(commands)
    _add_convert(commands)
    _add_inspect(commands)
    _add_demo(commands)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def add_compute(parser: argparse.ArgumentParser) -> None:
    """Add `--dtype`, `--device` and `--threads`."""
    _add_dtype_and_device(parser)
    text = "CPU threads (default: torch's choice)"
    parser.add_argument("--threads", type=_most(1024), metavar="N", help=text)


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
        text = "random weights of this preset's (or model file's, .toml) sizes, for measuring"
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
    parser.add_argument("--scale", type=_most(64), default=1, metavar="N", help=text)


def _add_num_frames(parser: argparse.ArgumentParser, otherwise: str, what: str = "") -> None:
    text = f"pixel frames{what}, 1 + n times the temporal compression (default: {otherwise})"
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
    more = (
        "Several prompts give several files: -1, -2 ... is put before the suffix. --image and "
        "--video put frames in front, --shots and --then go on beyond the trained length."
    )
    parser = _add_command(commands, "generate", "make videos from prompts or classes", more)
    parser.add_argument("prompt", nargs="*", metavar="PROMPT", help="text, one video each")
    parser.add_argument(
        "--class-id",
        action="extend",
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
    _add_given_frames(parser)
    _add_shots(parser)
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


def _add_given_frames(parser: Parser) -> None:
    front = parser.add_mutually_exclusive_group()
    front.add_argument(
        "--image", type=Path, metavar="FILE", help="picture that is the first frame of every video"
    )
    front.add_argument(
        "--video",
        type=Path,
        metavar="FILE",
        help="video whose last frames (see --context) every video begins with and goes on from; "
        "scaled, cropped and brought to the model's frame rate",
    )
    parser.add_argument(
        "--only-new",
        action="store_true",
        help="leave the frames of --image or --video out of the output",
    )


def _add_shots(parser: Parser) -> None:
    _add_num_frames(parser, "the trained length", " of a shot with those in front of it")
    shots = parser.add_mutually_exclusive_group()
    text = "shots of the same prompt, each made from the last frames of the one before"
    shots.add_argument("--shots", type=positive, default=1, metavar="N", help=text)
    shots.add_argument(
        "--then",
        action="extend",
        nargs="+",
        metavar="PROMPT",
        help="a further shot for each of these prompts (or classes), behind that of every PROMPT",
    )
    parser.add_argument(
        "--context",
        type=int,
        metavar="N",
        help="frames, 1 + n times the temporal compression, that a shot is made from: the last of "
        "--video or of the shot before (default: half of the trained length)",
    )


def _add_reconstruct(commands: "argparse._SubParsersAction[Any]") -> None:
    text = "encode a video or picture to bits and decode it again"
    more = (
        "It is scaled and cropped to the model's frame size; prints PSNR and bits a pixel. A "
        "tokenizer's own folder has no frame size: there it is that of the input."
    )
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
    _add_frame_size(parser)
    _add_num_frames(parser, "as many as the input has, rounded down")
    text = "frames a second to bring it to first, dropping or repeating some (default: its own)"
    parser.add_argument("--fps", type=_above_zero, metavar="R", help=text)
    add_compute(parser)
    _add_scale(parser)
    add_json(parser)


def _add_frame_size(parser: Parser) -> None:
    parser.add_argument(
        "--size",
        type=_grid,
        metavar="HxW",
        help="frame size instead of the model's (a tokenizer alone: instead of the input's)",
    )
    parser.add_argument(
        "--sizes",
        type=_grids,
        metavar="HxW,...",
        help="grids of the scales, coarse to fine, one number for a square; the last is the whole "
        "latent grid (default: the model's, or of the form 1,2,3,4,6,8,12 ... for another --size)",
    )


def _add_convert(commands: "argparse._SubParsersAction[Any]") -> None:
    text = "make a folder of this project from a public checkpoint"
    more = (
        "infinity-vae: the 2D tokenizers infinity_vae_d16, d24, d32 and d64 (.pth). Its pickle is "
        "read as tensors only, in a process of its own; nothing in it is run."
    )
    parser = _add_command(commands, "convert", text, more)
    parser.add_argument(
        "format", choices=CONVERTED, metavar="FORMAT", help=f"one of: {', '.join(CONVERTED)}"
    )
    parser.add_argument("source", type=Path, metavar="FILE", help="the public checkpoint")
    parser.add_argument(
        "output", type=Path, metavar="FOLDER", help="what to write; must be new or empty"
    )
    parser.add_argument(
        "--inflate",
        action="store_true",
        help="make the 3D video tokenizer, which equals the 2D one on a single frame",
    )
    add_json(parser)


def _add_inspect(commands: "argparse._SubParsersAction[Any]") -> None:
    text = "print a model's sizes and what a video costs, without its weights"
    more = "With --cost: an engine's memory, then FLOPs, bytes and the least time of every part."
    parser = _add_command(commands, "inspect", text, more)
    add_model(parser, presets=True)
    _add_num_frames(parser, "the trained length")
    parser.add_argument(
        "--slots", type=positive, default=1, metavar="N", help="videos made at once"
    )
    text = "earlier latent frames that stay visible (default: those of the trained length)"
    parser.add_argument("--window", type=int, metavar="N", help=text)
    text = "text tokens of a prompt (default: as many as the model knows)"
    parser.add_argument("--max-text", type=positive, metavar="N", help=text)
    text = "type of weights and cache (default: float32 on a CPU, else bfloat16)"
    parser.add_argument("--dtype", choices=DTYPES, help=text)
    text = "where it would be computed; limits of cpu and cuda are measured, 2 s"
    parser.add_argument("--device", choices=COST_DEVICES, default=DEVICES[0], help=text)
    parser.add_argument("--cost", action="store_true", help="print the cost card")
    text = "with --cost: the card of a training step, of transformer and tokenizer"
    parser.add_argument("--train", action="store_true", help=text)
    text = "with --train: clips of a process and step"
    parser.add_argument("--batch", type=positive, default=1, metavar="N", help=text)
    text = "with --train: layers keep their inputs only and are computed again"
    parser.add_argument("--checkpointing", action="store_true", help=text)
    text = "with --train: processes that share the weights (FSDP)"
    parser.add_argument("--processes", type=positive, default=1, metavar="N", help=text)
    text = "memory bandwidth instead of the device's"
    parser.add_argument("--bandwidth", type=_above_zero, metavar="GB/S", help=text)
    text = "rate of matrix products instead of the device's"
    parser.add_argument("--flops", type=_above_zero, metavar="TFLOP/S", help=text)
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
