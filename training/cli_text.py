"""`videoar train text-tokenizer`: a text tokenizer of a folder's captions."""

import argparse
from pathlib import Path

from videoar.training.cli_flags import Subparsers, add_kind


def add_text_tokenizer(kinds: Subparsers) -> None:
    """Register `videoar train text-tokenizer`."""
    text = "make a text tokenizer of your captions"
    more = (
        "Byte-level BPE in lower case, written as DIR/tokenizer.json for the text_tokenizer of a "
        "model file (docs/training.md)."
    )
    parser = add_kind(kinds, "text-tokenizer", text, _train_text_tokenizer, more)
    parser.add_argument(
        "--data", nargs="+", required=True, metavar="FOLDER", help="folders with a captions.jsonl"
    )
    text = "entries at most, 257 of which are bytes and the start token"
    parser.add_argument("--vocab-size", type=int, default=4096, metavar="N", help=text)
    parser.add_argument("--out", required=True, metavar="DIR", help="gets DIR/tokenizer.json")


def _train_text_tokenizer(args: argparse.Namespace) -> None:
    from videoar.training.train_text import (
        folder_captions,
        save_text_tokenizer,
        train_text_tokenizer,
    )

    captions = folder_captions(args.data)
    tokenizer = train_text_tokenizer(captions, args.vocab_size)
    path = Path(args.out) / "tokenizer.json"
    save_text_tokenizer(path, tokenizer)
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(captions)]
    print(f"captions    {len(captions)}")
    print(f"entries     {tokenizer.get_vocab_size()}")
    print(f"tokens      {sum(lengths) / len(lengths):.1f} a caption, {max(lengths)} at most")
    print(f"max_text    at least {max(lengths) + 1}")
    print(path)
