"""`--data` and `--cache` of the training commands, and the command `videoar train cache`."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from videoar.training.cli_flags import LazyParser, Subparsers, add_fields, add_kind, values_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from videoar.runtime.config import ModelConfig
    from videoar.runtime.video_tokenizer import VideoTokenizer
    from videoar.training.sources import SourceOf
    from videoar.training.video_folder import VideoFolder

# Settings of folders that a cache has its own of, or none.
NOT_CACHED = ("weights", "workers")


def add_data(parser: argparse.ArgumentParser, *, cache: bool) -> None:
    """Add `--preset`, `--data`, the flags of `FolderConfig` and, with `cache`, `--cache`."""
    from videoar.training.folder_config import FolderConfig

    text = "architecture and frame size; others than digits need data of your own"
    parser.add_argument("--preset", default="digits", metavar="NAME", help=text)
    text = "folders of videos and pictures to train on (default: moving digits)"
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--data", nargs="+", metavar="FOLDER", help=text)
    if cache:
        text = "token caches to train on (see `videoar train cache`)"
        group.add_argument("--cache", nargs="+", metavar="FOLDER", help=text)
    add_fields(parser, FolderConfig, prefix="data")


def training_data(
    args: argparse.Namespace,
    model: "ModelConfig",
    *,
    tokenizer: "VideoTokenizer | None" = None,
    text_tokenizer: "Tokenizer | None" = None,
) -> "SourceOf | None":
    """What the flags name: folders, token caches, or None for the moving digits.

    Args:
        tokenizer: encodes the folders' clips, and must be the one of the caches; None: frames are
            trained on, whatever their captions.
        text_tokenizer: what the captions must suit.

    Raises:
        ValueError: flags without the data they are for, a missing or unknown caption or class.
        MediaError: a folder without readable media, or with none that are long enough.
        CheckpointError: a cache that is unfinished, or of another tokenizer.
    """
    from videoar.training.folder_config import FolderConfig, cache_sources, folder_sources

    config = FolderConfig(**values_of(args, FolderConfig, prefix="data"))
    if args.data:
        return folder_sources(args.data, config, model, tokenizer, text_tokenizer, print_scan)
    if getattr(args, "cache", None):
        return cache_sources(args.cache, config, model, tokenizer, text_tokenizer)
    if config != FolderConfig():
        raise ValueError("--data: missing, the flags that begin with --data- are for it")
    if args.preset != "digits":
        raise ValueError(f"--data: missing, the moving digits are no data for {args.preset}")
    return None


def add_cache(kinds: Subparsers) -> None:
    """Register `videoar train cache`."""

    def populate(parser: LazyParser) -> None:
        from videoar.training.folder_config import FolderConfig
        from videoar.training.write_cache import CacheConfig

        add_fields(parser, CacheConfig, skip=("clip",))
        add_fields(parser, FolderConfig, skip=NOT_CACHED)

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
    text = "whose frame size, clip length, scales and frame rate the clips have"
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
    given = FolderConfig(**values_of(args, FolderConfig, skip=NOT_CACHED))
    config = CacheConfig(**values_of(args, CacheConfig, skip=("clip",)), clip=given.clip(model))
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
