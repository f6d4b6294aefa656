"""`videoar eval`: evaluation as commands; torch is imported when one of them runs."""

import argparse

from videoar.runtime.cli_arguments import positive
from videoar.training.cli_eval_data import (
    LeftOut,
    add_common,
    add_held_out,
    add_sampling,
    clip_shape,
    held_out,
    load_tokenizer_for,
    sampling,
)
from videoar.training.cli_eval_fvd import add_eval_fvd
from videoar.training.cli_eval_pictures import add_eval_curves, add_eval_heatmap, add_eval_samples
from videoar.training.cli_eval_vbench import add_eval_vbench
from videoar.training.cli_flags import Subparsers, add_kind


def add_eval(subparsers: Subparsers) -> None:
    """Register the commands of `videoar eval`."""
    text = "measure models and draw what they have learned"
    parser = subparsers.add_parser("eval", help=text, description=text.capitalize() + ".")
    kinds = parser.add_subparsers(title="what to do", metavar="WHAT", required=True)
    _add_eval_prompts(kinds)
    _add_eval_continuation(kinds)
    _add_eval_tokenizer(kinds)
    _add_eval_bits(kinds)
    add_eval_fvd(kinds)
    add_eval_vbench(kinds)
    add_eval_curves(kinds)
    add_eval_samples(kinds)
    add_eval_heatmap(kinds)


def _add_eval_prompts(kinds: Subparsers) -> None:
    text = "generate clips for random prompts and judge them from their pixels"
    more = "Speed counts over the prompts that ask for motion."
    parser = add_kind(kinds, "prompts", text, _eval_prompts, more)
    add_common(parser, 300, 10_000, "of the prompts; clip i is generated with seed + i")
    text = "frames of a clip (default: the trained length); longer ones are judged in parts"
    parser.add_argument("--num-frames", type=positive, metavar="N", help=text)
    add_sampling(parser)


def _eval_prompts(args: argparse.Namespace) -> None:
    from videoar.runtime.cli_models import load_model, print_json, use_compute
    from videoar.training.evaluate import eval_prompts
    from videoar.training.judge import load_judge

    use_compute(args)
    model, judge = load_model(args), load_judge()
    options = {"seed": args.seed, "num_frames": args.num_frames, **sampling(args)}
    result = eval_prompts(model, judge, args.num, **options)
    if args.json:
        print_json(result)
        return
    for name in ("digit", "colour", "direction", "speed", "all"):
        share = "    -" if result[name] is None else f"{result[name]:6.1%}"
        note = f"  of {result['num_moving']} moving prompts" if name == "speed" else ""
        print(f"{name:<10}{share}{note}")
    for part in result.get("parts", ()):
        first, last = part["frames"]
        shares = "  ".join(f"{name} {part[name]:.1%}" for name in ("digit", "colour", "both"))
        print(f"frames {first} to {last}: {shares}")
    print(f"{'judge':<10}{result['judge_accuracy']:6.1%}  on held-out digits")
    print(f"{'clips':<10}{result['num']:6d}")


def _add_eval_continuation(kinds: Subparsers) -> None:
    text = "continue held-out clips and judge the frames that were made"
    more = "With each clip's caption, and once more with the empty prompt."
    parser = add_kind(kinds, "continuation", text, _eval_continuation, more)
    add_common(parser, 100, 10_000, "of the clips; clip i is continued with seed + i")
    text = "frames of a clip that are given (default: half of the trained length)"
    parser.add_argument("--context", type=int, metavar="N", help=text)
    add_sampling(parser)


def _eval_continuation(args: argparse.Namespace) -> None:
    from videoar.runtime.cli_models import load_model, print_json, use_compute
    from videoar.training.evaluate import eval_continuation
    from videoar.training.judge import load_judge

    use_compute(args)
    model, judge = load_model(args), load_judge()
    options = {"seed": args.seed, "context": args.context}
    result = eval_continuation(model, judge, args.num, **options, **sampling(args))
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
    more = "PSNR, SSIM and bits a pixel. A tokenizer's own folder is taken for one of the digits."
    parser = add_kind(kinds, "tokenizer", text, _eval_tokenizer, more)
    add_common(parser, 200, 0, "of the held-out clips")
    add_held_out(parser)
    text = "draw the median clip of each folder, and what came back of it"
    parser.add_argument("--picture", metavar="PNG", help=text)


def _eval_tokenizer(args: argparse.Namespace) -> None:
    from videoar.runtime.cli_models import print_json, use_compute
    from videoar.runtime.media import write_png
    from videoar.training import restoration

    use_compute(args)
    shape, left_out = clip_shape(args), LeftOut()
    tokenizer, sizes = load_tokenizer_for(args, shape)
    samples = held_out(args, shape, left_out)
    clips = list(restoration.restorations(tokenizer, sizes, samples, args.num))
    result = restoration.mean_scores(clips) | {"unreadable": len(left_out.errors)}
    folders = restoration.by_folder(clips) if args.data else {}
    if args.picture:
        chosen = restoration.median_of_each_folder(clips)
        write_png(args.picture, restoration.comparison_sheet(chosen))
    if args.json:
        print_json(result | ({"folders": folders} if folders else {}))
        return
    print(f"{'PSNR':<12}{result['psnr']:8.2f} dB")
    print(f"{'SSIM':<12}{result['ssim']:8.4f}")
    print(f"{'bits/pixel':<12}{result['bits_per_pixel']:8.4f}")
    print(f"{'clips':<12}{result['num']:8d}  {result['unreadable']} files left out")
    for name, row in folders.items() if len(folders) > 1 else ():
        print(f"{row['psnr']:8.2f} dB  SSIM {row['ssim']:.4f}  {row['num']:5d} clips of {name}")


def _add_eval_bits(kinds: Subparsers) -> None:
    text = "predict the bits of held-out clips, teacher forced, by frame and scale"
    more = "With --data the clips need the captions or classes that the model is conditioned on."
    parser = add_kind(kinds, "bits", text, _eval_bits, more)
    add_common(parser, 200, 0, "of the held-out clips")
    add_held_out(parser)


def _eval_bits(args: argparse.Namespace) -> None:
    from videoar.runtime.cli_models import load_model, print_json, use_compute
    from videoar.training.bits import eval_bits

    use_compute(args)
    shape, left_out = clip_shape(args), LeftOut()
    samples = held_out(args, shape, left_out)
    result = eval_bits(load_model(args), samples, total=args.num)
    result["unreadable"] = len(left_out.errors)
    if args.json:
        print_json(result)
        return
    scales = [f"{h}x{w}" for h, w in result["sizes"]]
    print("bits right" + "".join(f"{name:>9}" for name in [*scales, "all"]))
    rows = zip(result["bits"], result["frames"], strict=True)
    for number, (row, mean) in enumerate(rows, start=1):
        print(f"frame {number:<4}" + "".join(f"{share:9.1%}" for share in [*row, mean]))
    means = [*result["scales"], result["accuracy"]]
    print("all       " + "".join(f"{share:9.1%}" for share in means))
    print(f"{result['loss']:.4f} nats a bit, {result['num']} clips")
