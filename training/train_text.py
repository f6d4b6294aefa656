"""A text tokenizer of one's own captions: byte-level BPE by the `tokenizers` library."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from videoar.runtime.aside import written_aside
from videoar.runtime.text import BOS
from videoar.training.labels import CAPTIONS_NAME, read_captions

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The start token and every byte.
MIN_VOCABULARY = 257


def train_text_tokenizer(captions: Sequence[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE of NFKC-normalised lower-case text: no text is unknown to it.

    Args:
        vocab_size: entries at most, `<bos>` (0) and the bytes among them; it has fewer where
            no pair of pieces comes twice.

    Raises:
        ValueError: no captions, or less room than the bytes need.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if vocab_size < MIN_VOCABULARY:
        raise ValueError(f"vocab_size: at least {MIN_VOCABULARY}, got {vocab_size}")
    if not captions:
        raise ValueError("captions: there are none to train on")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer, length=len(captions))
    # As an entry and no added token, the start token is not found in a prompt that spells it.
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    plain = Tokenizer(models.BPE(model["vocab"], merges))
    plain.normalizer, plain.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    plain.decoder = tokenizer.decoder
    return plain


def folder_captions(folders: Sequence[str | Path]) -> list[str]:
    """The captions in the `captions.jsonl` of each folder, in order.

    Raises:
        ValueError: a folder without that file, a line that is not understood, or no caption.
    """
    captions: list[str] = []
    for folder in folders:
        path = Path(folder) / CAPTIONS_NAME
        if not path.is_file():
            raise ValueError(f"{path}: does not exist")
        found, _ = read_captions(path)
        if not found:
            raise ValueError(f"{path}: no captions in it")
        captions += found.values()
    return captions


def save_text_tokenizer(path: Path, tokenizer: Tokenizer) -> None:
    """Write a `tokenizer.json` aside and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside:
        aside.write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
