"""`--data` and `--cache` of the training commands, and the command `videoar train cache`."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from videoar.training.cli_flags import LazyParser, Subparsers, add_fields, add_kind, values_of

if TYPE_CHECKING:
    from videoar.training.video_folder import VideoFolder


def add_data(parser: argparse.ArgumentParser, *, cache: bool) -> None:
    """Add `--preset`, `--data` and, with `cache`, `--cache`."""
    text = "architecture and frame size, or a model file, .toml (default: the config's)"
    parser.add_argument("--preset", metavar="NAME", help=text)
    text = "folders of videos and pictures to train all stages on (default: the config's data)"
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--data", action="extend", nargs="+", metavar="FOLDER", help=text)
    if cache:
        text = "token caches to train all stages on (see `videoar train cache`)"
        group.add_argument("--cache", action="extend", nargs="+", metavar="FOLDER", help=text)


def add_cache(kinds: Subparsers) -> None:
    """Register `videoar train cache`."""

    def populate(parser: LazyParser) -> None:
        from videoar.training.folder_config import FolderConfig
        from videoar.training.write_cache import CacheConfig

        add_fields(parser, CacheConfig, skip=("clip",))
        add_fields(parser, FolderConfig)

    text = "encode a folder of videos to token shards, to train the transformer without encoding"
    more = "Stopped half-way it goes on where it was; finished shards are kept."
    parser = add_kind(kinds, "cache", text, _train_cache, more, populate=populate)
    parser.add_argument(
        "--tokenizer",
        required=True,
        metavar="DIR",
        help="the tokenizer: the --out of its training, a component's or a model's folder",
    )
    parser.add_argument("--data", required=True, metavar="FOLDER", help="videos and pictures")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the shards")
    text = "whose frame size, clip length, scales and rate the clips have, or a model file, .toml"
    parser.add_argument("--preset", default="digits", metavar="NAME", help=text)
    text = "frames a clip, 1 for pictures (default: the preset's)"
    parser.add_argument("--num-frames", type=int, metavar="N", help=text)


def _train_cache(args: argparse.Namespace) -> None:
    from videoar.runtime.model_folder import load_tokenizer
    from videoar.runtime.presets import preset
    from videoar.training.folder_config import FolderConfig
    from videoar.training.token_cache import TokenCache
    from videoar.training.video_folder import Bucket
    from videoar.training.write_cache import CacheConfig, write_cache

    model = preset(args.preset)
    given = FolderConfig(**values_of(args, FolderConfig))
    clip = given.clip(model.fps)
    config = CacheConfig(**values_of(args, CacheConfig, skip=("clip",)), clip=clip)
    frames = model.num_frames if args.num_frames is None else args.num_frames
    bucket = Bucket(frames=frames, height=model.height, width=model.width)
    tokenizer = load_tokenizer(args.tokenizer)
    folder = given.scan(args.data)
    print_scan(folder)
    out = Path(args.out)
    broken = write_cache(out, folder, tokenizer, model.transformer.sizes, bucket, config)
    count = len(TokenCache(out, tokenizer).rows)
    print(f"{out}: {count} clips of {bucket}, {len(broken)} files could not be decoded")


def print_scan(folder: "VideoFolder") -> None:
    """Say on stderr how many files a folder has, and which were left out and why."""
    lines = [f"{folder.path}: {len(folder.items)} files, {len(folder.skipped)} left out"]
    lines += [f"  {name}: {reason}" for name, reason in list(folder.skipped.items())[:10]]
    lines += ["  ..."] * (len(folder.skipped) > 10)
    print("\n".join(lines), file=sys.stderr)
