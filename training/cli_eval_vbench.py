"""`videoar eval vbench`: clips for VBench as a command."""

import argparse

from videoar.runtime.cli_arguments import add_compute, add_json, add_model, positive, seed
from videoar.training.cli_eval_data import add_sampling, sampling
from videoar.training.cli_flags import Subparsers, add_kind


def add_eval_vbench(kinds: Subparsers) -> None:
    """Register `videoar eval vbench`."""
    text = "generate clips in VBench's folder layout, <prompt>-<index>.mp4"
    more = (
        "Files that are there already are kept, so a stopped command goes on where it was. The "
        "seed of a clip follows from --seed, its prompt and its index."
    )
    parser = add_kind(kinds, "vbench", text, _eval_vbench, more)
    text = "text file of prompts, one a line, such as VBench's all_dimension.txt"
    parser.add_argument("--prompts", required=True, metavar="FILE", help=text)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the clips")
    text = "clips of each prompt (VBench takes 5, and 25 for temporal flickering)"
    parser.add_argument("--samples", type=positive, default=5, metavar="N", help=text)
    add_model(parser, presets=False)
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of all clips")
    text = "frames of a clip (default: the trained length)"
    parser.add_argument("--num-frames", type=positive, metavar="N", help=text)
    add_sampling(parser)
    add_compute(parser)
    add_json(parser)


def _eval_vbench(args: argparse.Namespace) -> None:
    from videoar.runtime.cli_models import load_model, print_json, use_compute
    from videoar.training.vbench import export_vbench, read_prompts

    use_compute(args)
    prompts = read_prompts(args.prompts)
    options = {"samples": args.samples, "seed": args.seed, "num_frames": args.num_frames}
    result = export_vbench(load_model(args), prompts, args.out, **options, **sampling(args))
    if args.json:
        print_json(result)
        return
    print(f"{result['folder']}: {result['made']} clips made, {result['kept']} kept")
    if result["renamed"]:
        count = len(result["renamed"])
        file = result["prompt_file"]
        print(f"{count} prompts are no file names: VBench needs --prompt_file {file}")
