"""What the commands of `videoar eval` share: their flags, and the held-out clips these name."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from videoar.runtime.cli_arguments import add_compute, add_json, add_model, positive, seed
from videoar.runtime.errors import MediaError

if TYPE_CHECKING:
    from videoar.runtime.schedule import Sizes
    from videoar.runtime.video_tokenizer import VideoTokenizer
    from videoar.training.eval_clips import Sample


@dataclass
class LeftOut:
    """Files that could not be read; calling it names one more on stderr, unless silent."""

    errors: list[MediaError] = field(default_factory=list)
    silent: bool = False

    def __call__(self, error: MediaError) -> None:
        from videoar.training.eval_clips import report

        self.errors.append(error)
        if not self.silent:
            report(error)


def add_common(parser: argparse.ArgumentParser, num: int, first: int, seed_help: str) -> None:
    """Add `--model`, `--num`, `--seed`, `--dtype`, `--device`, `--threads` and `--json`."""
    add_model(parser, presets=False)
    parser.add_argument("--num", type=positive, default=num, metavar="N", help="how many clips")
    parser.add_argument("--seed", type=seed, default=first, metavar="N", help=seed_help)
    add_compute(parser)
    add_json(parser)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add `--guidance` and `--temperature`."""
    parser.add_argument("--guidance", metavar="G", help="guidance (default: the model's own)")
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="temperature (default: the model's own)"
    )


def sampling(args: argparse.Namespace) -> dict:
    """What `add_sampling` added, as arguments of `generate`."""
    return {"guidance": args.guidance, "temperature": args.temperature}


def add_held_out(parser: argparse.ArgumentParser) -> None:
    """Add `--data`, `--split`, `--fps`, `--size` and `--num-frames`."""
    text = "videos to use (default: held-out moving digits)"
    parser.add_argument("--data", metavar="FOLDER", help=text)
    text = "list of the files of --data to use, such as UCF-101's testlist01.txt (default: all)"
    parser.add_argument("--split", metavar="FILE", help=text)
    text = "frames a second of clips of --data, 0: each video's own (default: the model's)"
    parser.add_argument("--fps", type=float, metavar="X", help=text)
    text = "height and width of clips (default: the model's)"
    parser.add_argument("--size", nargs=2, type=positive, metavar=("H", "W"), help=text)
    text = "frames of a clip (default: the trained length)"
    parser.add_argument("--num-frames", type=positive, metavar="N", help=text)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipShape:
    """Pixel frames, height, width and rate of the clips that a model is evaluated with."""

    frames: int
    height: int
    width: int
    fps: float


def clip_shape(args: argparse.Namespace) -> ClipShape:
    """The shape that the flags of `add_held_out` ask for, else the model's.

    The folder of a tokenizer alone does not tell it: there it is the digits'.

    Raises:
        CheckpointError: no such folder, or one with a broken configuration.
    """
    from videoar.runtime.model_folder import read_model_config, resolve_folder
    from videoar.runtime.presets import preset

    folder = resolve_folder(args.model)
    whole = (folder / "model_index.json").exists()
    alone = not whole and any((folder / n).exists() for n in ("config.json", "video_tokenizer"))
    config = preset("digits") if alone else read_model_config(folder)
    height, width = args.size or (config.height, config.width)
    frames = config.num_frames if args.num_frames is None else args.num_frames
    fps = config.fps if args.fps is None else args.fps
    return ClipShape(frames=frames, height=height, width=width, fps=fps)


def held_out(args: argparse.Namespace, shape: ClipShape, left_out: LeftOut) -> Iterator["Sample"]:
    """The clips that `--data` names, else held-out moving digits.

    Raises:
        ValueError: a size, rate or split without `--data`, or one that is not understood.
        MediaError: a folder without media, or with none that are long enough.
    """
    from pathlib import Path

    from videoar.training.digits import SIZE
    from videoar.training.eval_clips import digit_samples, folder_samples
    from videoar.training.video_folder import Bucket, VideoFolder

    if args.data is None:
        if args.split is not None or args.fps is not None:
            raise ValueError("--data: missing, --split and --fps are for it")
        if (shape.height, shape.width) != (SIZE, SIZE):
            asked = f"the clips asked for have {shape.height}x{shape.width}"
            raise ValueError(f"--data: missing, moving digits are {SIZE}x{SIZE} and {asked}")
        return digit_samples(args.num, args.seed, shape.frames)
    folder = VideoFolder(Path(args.data), split=args.split and Path(args.split))
    for name, reason in folder.skipped.items():
        left_out(MediaError(f"{name}: {reason}"))
    bucket = Bucket(frames=shape.frames, height=shape.height, width=shape.width)
    options = {"fps": shape.fps, "seed": args.seed, "on_unreadable": left_out}
    return folder_samples(folder, args.num, bucket, **options)


def load_tokenizer_for(
    args: argparse.Namespace, shape: ClipShape
) -> tuple["VideoTokenizer", "Sizes"]:
    """The tokenizer of `--model`, and the scales that its latents of this shape are written in.

    Raises:
        CheckpointError: a folder that cannot be loaded.
        ValueError: frames that it cannot compress.
    """
    from videoar.runtime.model_folder import load_tokenizer, read_model_config, resolve_folder
    from videoar.runtime.modules import DTYPES
    from videoar.runtime.schedule import default_sizes

    folder = resolve_folder(args.model)
    tokenizer = load_tokenizer(folder, dtype=DTYPES[args.dtype], device=args.device)
    latent = tokenizer.config.latent_size(shape.height, shape.width)
    if (folder / "model_index.json").exists():
        config = read_model_config(folder)
        if config.transformer.sizes[-1] == latent:
            return tokenizer, config.transformer.sizes
    return tokenizer, default_sizes(*latent)
