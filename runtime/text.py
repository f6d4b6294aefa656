"""Prompts and class ids to the transformer's prefix tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from videoar.runtime.config import TransformerConfig
from videoar.runtime.errors import CheckpointError

if TYPE_CHECKING:
    # Models of classes need no tokenizer of texts.
    from tokenizers import Tokenizer

BOS, UNKNOWN = "<bos>", "<unk>"


def word_tokenizer(words: Sequence[str]) -> Tokenizer:
    """A tokenizer over whole lower-case words; punctuation is dropped."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate([BOS, UNKNOWN, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation("removed"), pre_tokenizers.Whitespace()]
    )
    return tokenizer


def byte_tokenizer() -> Tokenizer:
    """UTF-8 bytes; stands in where a preset has no text tokenizer of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([BOS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def open_text_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a `tokenizer.json`.

    Raises:
        CheckpointError: missing, broken, or without a start token.
    """
    from tokenizers import Tokenizer

    if not path.is_file():
        raise CheckpointError(f"{path}: does not exist")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{path}: no readable tokenizer ({error})") from error
    if tokenizer.token_to_id(BOS) is None:
        raise CheckpointError(f"{path}: no token {BOS}")
    # A file may ask for either; a prompt that is too long is an error instead.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encode_prompt(tokenizer: Tokenizer, prompt: str, max_text: int) -> list[int]:
    """`<bos>` and the prompt's tokens. The empty prompt is the unconditional one.

    Raises:
        ValueError: not a string of Unicode text, more tokens than the model takes, or words that
            it does not know.
    """
    if not isinstance(prompt, str):
        raise ValueError(f"prompt: expected a string, got {type(prompt).__name__}")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        strange = prompt[error.start : error.end]
        raise ValueError(f"prompt: no Unicode text, {strange!r} at {error.start}") from error
    encoding = tokenizer.encode(prompt, add_special_tokens=False)
    count = len(encoding.ids)
    if count > max_text - 1:
        raise ValueError(f"prompt: {count} tokens, the model takes at most {max_text - 1}")
    unknown = tokenizer.token_to_id(UNKNOWN)
    if unknown is not None and unknown in encoding.ids:
        pairs = zip(encoding.ids, encoding.offsets, strict=True)
        strange = [prompt[a:b] for i, (a, b) in pairs if i == unknown]
        known = sorted(w for w in tokenizer.get_vocab() if not w.startswith("<"))
        raise ValueError(f"prompt: unknown words {strange}; the model knows: {' '.join(known)}")
    return [tokenizer.token_to_id(BOS), *encoding.ids]


def check_class(class_id: int, config: TransformerConfig) -> list[int]:
    """The prefix of a class; `vocab_size` itself is "no class".

    Raises:
        ValueError: no class of the model.
    """
    if isinstance(class_id, bool) or not isinstance(class_id, int):
        raise ValueError(f"class_id: expected an int, got {class_id!r}")
    if not 0 <= class_id < config.vocab_size:
        raise ValueError(f"class_id: expected 0 .. {config.vocab_size - 1}, got {class_id}")
    return [class_id]


def pad(rows: Sequence[Sequence[int]], length: int) -> tuple[Tensor, Tensor]:
    """Rows of tokens to int64 `[B,length]`, padded with 0, and their lengths int64 `[B]`."""
    tokens = torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    return tokens, torch.tensor([len(row) for row in rows])
