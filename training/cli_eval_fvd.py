"""`videoar eval fvd`: Fréchet video distances as a command."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from videoar.runtime.cli_arguments import positive
from videoar.training.cli_eval_data import (
    ClipShape,
    LeftOut,
    add_common,
    add_held_out,
    add_sampling,
    clip_shape,
    held_out,
    load_tokenizer_for,
    sampling,
)
from videoar.training.cli_flags import Subparsers, add_kind

if TYPE_CHECKING:
    import numpy as np

    from videoar.runtime.config import ModelConfig
    from videoar.runtime.pipeline import VideoAR

FORMS = ("generated", "restored")


def add_eval_fvd(kinds: Subparsers) -> None:
    """Register `videoar eval fvd`."""
    text = "Fréchet video distance of generated or restored clips to real ones"
    more = (
        "FVD with the I3D that --i3d names; without it TFVD, the same distance in features of "
        "TransNetV2, which is another number. Clips are generated for the captions or classes of "
        "the real ones, or come from --videos."
    )
    parser = add_kind(kinds, "fvd", text, _eval_fvd, more)
    add_common(parser, 300, 0, "of the held-out clips; clip i is generated with seed + i")
    add_held_out(parser)
    text = "what the model does: gFVD from its generated clips, rFVD from its tokenizer's restored"
    parser.add_argument("--form", choices=FORMS, default=FORMS[0], help=text)
    text = "folder of clips of any system to judge instead; --form says what they are"
    parser.add_argument("--videos", metavar="FOLDER", help=text)
    text = "I3D as TorchScript (the published i3d_torchscript.pt); it is a program, and is run"
    parser.add_argument("--i3d", metavar="FILE", help=text)
    text = "resampled sets that the confidence interval is from, 0 for none"
    parser.add_argument("--resamples", type=int, default=100, metavar="N", help=text)
    text = "clips of one pass through the feature network"
    parser.add_argument("--batch", type=positive, default=8, metavar="N", help=text)
    add_sampling(parser)


def _eval_fvd(args: argparse.Namespace) -> None:
    from videoar.runtime.cli_models import load_model, model_config, print_json, use_compute
    from videoar.training.eval_clips import condition_of
    from videoar.training.features import clip_features, load_i3d, load_transnet
    from videoar.training.fvd import frechet_video

    _check(args)
    use_compute(args)
    shape, left_out = clip_shape(args), LeftOut()
    # What is missing or broken is found before minutes of computing.
    generates = args.form == "generated" and args.videos is None
    if generates:
        _check_size(model_config(args), shape)
    network = load_i3d(args.i3d, args.device) if args.i3d else load_transnet(args.device)
    model = load_model(args) if generates else None
    conditions: list[str | int] = []

    def real() -> "Iterator[np.ndarray]":
        for sample in held_out(args, shape, left_out):
            if model is not None:
                conditions.append(condition_of(sample, model.config.transformer.condition))
            yield sample.frames

    reference = clip_features(real(), network, batch=args.batch, total=args.num)
    made = _made(args, shape, left_out, model, conditions, len(reference))
    options = {"form": args.form, "resamples": args.resamples, "batch": args.batch}
    result = frechet_video(reference, made, network, total=len(reference), **options)
    result |= {"num_frames": shape.frames, "height": shape.height, "width": shape.width}
    result["unreadable"] = len(left_out.errors)
    if args.json:
        print_json(result)
    else:
        _print(result)


def _check(args: argparse.Namespace) -> None:
    if args.resamples < 0 or args.resamples == 1:
        raise ValueError(f"--resamples: 0, or at least 2, got {args.resamples}")
    if args.num < 2:
        raise ValueError(f"--num: a distance needs at least 2 clips, got {args.num}")


def _check_size(config: "ModelConfig", shape: ClipShape) -> None:
    if (config.height, config.width) != (shape.height, shape.width):
        made = f"{config.height}x{config.width}"
        raise ValueError(f"--size: the model generates {made}, real clips must have the same")


def _made(
    args: argparse.Namespace,
    shape: ClipShape,
    left_out: LeftOut,
    model: "VideoAR | None",
    conditions: list[str | int],
    num: int,
) -> "Iterator[np.ndarray]":
    """The clips that are judged."""
    from videoar.training.eval_clips import folder_clips, generated, restore

    size = (shape.height, shape.width)
    if args.videos is not None:
        return folder_clips(args.videos, num, size, shape.frames, left_out)
    if model is not None:
        options = {"seed": args.seed, "num_frames": shape.frames}
        return generated(model, conditions, **options, **sampling(args))
    tokenizer, sizes = load_tokenizer_for(args, shape)
    # The same clips again; what cannot be read has been named already.
    again = held_out(args, shape, LeftOut(silent=True))
    return (restore(tokenizer, sizes, sample.frames)[0] for sample in again)


def _print(result: dict) -> None:
    value, network = result["value"], "I3D" if "TFVD" not in result["metric"] else "TransNetV2"
    print(f"{result['metric']:<8}{value:12.4f}  features of {network}")
    if result["low"] is not None:
        interval = f"{result['low']:.4f} to {result['high']:.4f}"
        print(f"{'95 %':<8}{interval:>12}  standard error {result['standard_error']:.4f}")
        print(f"{'bias':<8}{result['bias']:12.4f}  about what so few clips add to the value")
    clips = f"{result['num']} against {result['num_reference']}"
    shape = "x".join(str(result[name]) for name in ("num_frames", "height", "width"))
    print(f"{'clips':<8}{clips:>12}  of {shape}, {result['unreadable']} files left out")
    if result["rank_deficient"]:
        print(
            f"note: covariances of {result['dim']} features lack rank with so few clips; "
            "compare with the same number of clips only"
        )
