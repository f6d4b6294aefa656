"""`videoar train footage`: the clips of real footage, as a folder to train on."""

import argparse
from pathlib import Path

from videoar.runtime.cli_arguments import seed
from videoar.training.cli_flags import Subparsers, add_kind


def add_footage(kinds: Subparsers) -> None:
    """Register `videoar train footage`."""
    text = "write clips of real footage, to train and test a tokenizer on"
    more = "From videos and photographs in Python packages (extra train); split by source."
    parser = add_kind(kinds, "footage", text, _write_footage, more)
    parser.add_argument("--out", required=True, metavar="DIR", help="gets DIR/train and DIR/test")
    parser.add_argument(
        "--num-train", type=int, default=4000, metavar="N", help="clips of DIR/train"
    )
    parser.add_argument("--num-test", type=int, default=96, metavar="N", help="clips of DIR/test")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of windows and pans")


def _write_footage(args: argparse.Namespace) -> None:
    from videoar.training.footage import write_folder

    for split, num in (("train", args.num_train), ("test", args.num_test)):
        if num < 0:
            raise ValueError(f"num-{split}: at least 0, got {num}")
        write_folder(Path(args.out), split, num, args.seed)
    print(args.out)
