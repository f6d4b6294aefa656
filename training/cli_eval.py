"""`videoar eval`: evaluation as commands; torch is imported when one of them runs."""

import argparse
from typing import TYPE_CHECKING

from videoar.runtime.cli_arguments import add_compute, add_json, add_model, positive
from videoar.runtime.errors import MediaError
from videoar.training.cli_flags import Subparsers, add_kind

if TYPE_CHECKING:
    from videoar.runtime.schedule import Sizes
    from videoar.runtime.video_tokenizer import VideoTokenizer


def add_eval(subparsers: Subparsers) -> None:
    """Register `videoar eval prompts | continuation | tokenizer`."""
    text = "measure prompt fidelity, continuation or reconstruction"
    parser = subparsers.add_parser("eval", help=text, description=text.capitalize() + ".")
    kinds = parser.add_subparsers(title="what to measure", metavar="WHAT", required=True)
    _add_eval_prompts(kinds)
    _add_eval_continuation(kinds)
    _add_eval_tokenizer(kinds)


def _add_eval_flags(parser: argparse.ArgumentParser, num: int, seed: int, seed_help: str) -> None:
    add_model(parser, presets=False)
    parser.add_argument("--num", type=positive, default=num, metavar="N", help="how many clips")
    parser.add_argument("--seed", type=int, default=seed, metavar="N", help=seed_help)
    add_compute(parser)
    add_json(parser)


def _add_eval_prompts(kinds: Subparsers) -> None:
    text = "generate clips for random prompts and judge them from their pixels"
    more = "Speed counts over the prompts that ask for motion."
    parser = add_kind(kinds, "prompts", text, _eval_prompts, more)
    _add_eval_flags(parser, 300, 10_000, "of the prompts; clip i is generated with seed + i")
    _add_sampling(parser)


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--guidance", metavar="G", help="guidance (default: the model's own)")
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="temperature (default: the model's own)"
    )


def _eval_prompts(args: argparse.Namespace) -> None:
    from videoar.runtime.cli_models import load_model, print_json, use_compute
    from videoar.training.evaluate import eval_prompts
    from videoar.training.judge import load_judge

    use_compute(args)
    model, judge = load_model(args), load_judge()
    sampling = {"guidance": args.guidance, "temperature": args.temperature}
    result = eval_prompts(model, judge, args.num, seed=args.seed, **sampling)
    if args.json:
        print_json(result)
        return
    for name in ("digit", "colour", "direction", "speed", "all"):
        share = "    -" if result[name] is None else f"{result[name]:6.1%}"
        note = f"  of {result['num_moving']} moving prompts" if name == "speed" else ""
        print(f"{name:<10}{share}{note}")
    print(f"{'judge':<10}{result['judge_accuracy']:6.1%}  on held-out digits")
    print(f"{'clips':<10}{result['num']:6d}")


def _add_eval_continuation(kinds: Subparsers) -> None:
    text = "continue held-out clips and judge the frames that were made"
    more = "With each clip's caption, and once more with the empty prompt."
    parser = add_kind(kinds, "continuation", text, _eval_continuation, more)
    _add_eval_flags(parser, 100, 10_000, "of the clips; clip i is continued with seed + i")
    text = "frames of a clip that are given (default: half of the trained length)"
    parser.add_argument("--context", type=int, metavar="N", help=text)
    _add_sampling(parser)


def _eval_continuation(args: argparse.Namespace) -> None:
    from videoar.runtime.cli_models import load_model, print_json, use_compute
    from videoar.training.evaluate import eval_continuation
    from videoar.training.judge import load_judge

    use_compute(args)
    model, judge = load_model(args), load_judge()
    sampling = {"guidance": args.guidance, "temperature": args.temperature}
    result = eval_continuation(
        model, judge, args.num, seed=args.seed, context=args.context, **sampling
    )
    if args.json:
        print_json(result)
        return
    print(f"{'':<10}{'prompted':>12}{'unprompted':>12}{'real':>12}")
    for name in ("digit", "colour", "direction", "speed", "all"):
        values = (result[name], result["unprompted"][name], result["real"][name])
        print(f"{name:<10}" + "".join(f"{'-' if v is None else f'{v:.1%}':>12}" for v in values))
    given, made = result["given_frames"], result["made_frames"]
    print(f"{result['num']} clips: {given} frames given, {made} made and judged")


def _add_eval_tokenizer(kinds: Subparsers) -> None:
    text = "encode and decode held-out clips and compare"
    parser = add_kind(kinds, "tokenizer", text, _eval_tokenizer)
    _add_eval_flags(parser, 200, 0, "of the held-out clips")
    parser.add_argument(
        "--data", metavar="FOLDER", help="videos to use (default: held-out moving digits)"
    )


def _load_tokenizer(
    args: argparse.Namespace,
) -> tuple["VideoTokenizer", "Sizes", tuple[int, int], int]:
    """The tokenizer, its scales, (height, width) and frame count.

    A tokenizer's own folder does not tell the last three: there they are those of the digits.
    """
    from videoar.runtime.model_folder import load_tokenizer, read_model_config, resolve_folder
    from videoar.runtime.pipeline import DTYPES
    from videoar.runtime.schedule import default_sizes
    from videoar.training.digits import NUM_FRAMES, SIZE

    folder = resolve_folder(args.model)
    tokenizer = load_tokenizer(folder, dtype=DTYPES[args.dtype], device=args.device)
    if (folder / "model_index.json").exists():
        config = read_model_config(folder)
        frame = (config.height, config.width)
        return tokenizer, config.transformer.sizes, frame, config.num_frames
    sizes = default_sizes(*tokenizer.config.latent_size(SIZE, SIZE))
    return tokenizer, sizes, (SIZE, SIZE), NUM_FRAMES


def _eval_tokenizer(args: argparse.Namespace) -> None:
    from videoar.runtime.cli_models import print_json, use_compute
    from videoar.training.evaluate import digit_clips, eval_tokenizer, folder_clips, report

    use_compute(args)
    tokenizer, sizes, frame, num_frames = _load_tokenizer(args)
    left_out: list[MediaError] = []

    def leave_out(error: MediaError) -> None:
        left_out.append(error)
        report(error)

    if args.data is None:
        clips = digit_clips(args.num, args.seed)
    else:
        clips = folder_clips(args.data, args.num, frame, num_frames, leave_out)
    result = eval_tokenizer(tokenizer, sizes, clips, args.num)
    result["unreadable"] = len(left_out)
    if args.json:
        print_json(result)
        return
    print(f"{'PSNR':<12}{result['psnr']:8.2f} dB")
    print(f"{'SSIM':<12}{result['ssim']:8.4f}")
    print(f"{'bits/pixel':<12}{result['bits_per_pixel']:8.4f}")
    print(f"{'clips':<12}{result['num']:8d}  {len(left_out)} files left out")
