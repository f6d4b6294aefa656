"""`videoar eval curves | samples | heatmap`: pictures as commands."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from videoar.runtime.cli_arguments import add_compute, add_json, positive, seed
from videoar.runtime.errors import MediaError
from videoar.training.cli_eval_data import add_sampling, sampling
from videoar.training.cli_flags import Subparsers, add_kind

if TYPE_CHECKING:
    import numpy as np

PROMPTS = ("a red three moving left slowly", "a blue seven moving down quickly")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help=".png")
    add_json(parser)


def _check_output(args: argparse.Namespace) -> None:
    from videoar.runtime.media import check_writable

    if args.output.suffix.lower() != ".png":
        raise ValueError(f"--output: {args.output}: .png is needed")
    check_writable(args.output)


def _print(args: argparse.Namespace, result: dict) -> None:
    from videoar.runtime.cli_models import print_json

    if args.json:
        print_json(result)
    else:
        print(result["output"])


def add_eval_curves(kinds: Subparsers) -> None:
    """Register `videoar eval curves`."""
    text = "draw the training curves of a run, all its stages"
    parser = add_kind(kinds, "curves", text, _eval_curves)
    text = "the --out of a training: every log.jsonl in it and below is a stage"
    parser.add_argument("folder", metavar="RUN", help=text)
    _add_output(parser)


def _eval_curves(args: argparse.Namespace) -> None:
    from videoar.training.curves import plot_curves

    _check_output(args)
    _print(args, plot_curves(args.folder, args.output))


def add_eval_heatmap(kinds: Subparsers) -> None:
    """Register `videoar eval heatmap`."""
    text = "draw bit accuracy by latent frame and scale"
    parser = add_kind(kinds, "heatmap", text, _eval_heatmap)
    text = "what `videoar eval bits --json` printed, in a file, or the --out of a training"
    parser.add_argument("source", metavar="SOURCE", help=text)
    _add_output(parser)


def _eval_heatmap(args: argparse.Namespace) -> None:
    from videoar.training.pictures import plot_bits

    _check_output(args)
    _print(args, plot_bits(args.source, args.output))


def add_eval_samples(kinds: Subparsers) -> None:
    """Register `videoar eval samples`."""
    text = "draw samples of several checkpoints, or saved ones, one row each"
    more = "All checkpoints get the same prompts and seeds, so that rows differ by training alone."
    parser = add_kind(kinds, "samples", text, _eval_samples, more)
    text = "checkpoint or folder of saved clips (the first by name); NAME=FOLDER names the row"
    parser.add_argument("source", nargs="+", metavar="FOLDER", help=text)
    shown = " and ".join(map(repr, PROMPTS))
    text = f"columns of the picture; with saved clips their titles (default: {shown})"
    parser.add_argument("--prompt", action="extend", nargs="+", metavar="PROMPT", help=text)
    text = "frames of a clip to draw"
    parser.add_argument("--frames", type=positive, default=6, metavar="N", help=text)
    text = "frames of a clip to generate (default: the trained length)"
    parser.add_argument("--num-frames", type=positive, metavar="N", help=text)
    text = "of the first prompt; each further one has 1 more"
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help=text)
    add_sampling(parser)
    add_compute(parser)
    _add_output(parser)


def _eval_samples(args: argparse.Namespace) -> None:
    from videoar.runtime.cli_models import use_compute
    from videoar.training.pictures import plot_samples

    use_compute(args)
    _check_output(args)
    prompts = args.prompt or list(PROMPTS)
    rows = [_row(args, text, prompts) for text in args.source]
    _print(args, plot_samples(rows, prompts, args.output, frames=args.frames))


def _row(args: argparse.Namespace, text: str, prompts: list[str]) -> "tuple[str, list[np.ndarray]]":
    """The name and clips of a row."""
    from videoar.runtime.media import list_media, read_video
    from videoar.runtime.pipeline import VideoAR

    name, _, given = text.rpartition("=")
    folder = Path(given)
    if (folder / "model_index.json").exists() or not folder.is_dir():
        model = VideoAR.from_pretrained(given, dtype=args.dtype, device=args.device)
        options = {"seed": args.seed, "num_frames": args.num_frames, **sampling(args)}
        result = model.generate(prompts, **options)
        return name or folder.name, list(result.frames)
    paths = list_media(folder)
    if len(paths) < (count := len(prompts)):
        raise MediaError(f"{folder}: {len(paths)} clips, {count} are needed, one a prompt")
    return name or folder.name, [read_video(path)[0] for path in paths[:count]]
