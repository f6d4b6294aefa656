"""Packing of bits into 32-bit words, little-endian: bit i of word w is element 32 w + i.

Formula: word_w = sum_i bit_{32 w + i} 2^i, read as a signed int32; the bits past d are zero.
Axes: d bits of a token, W = ceil(d / 32) words. Bytes moved by a token: d + 4 W.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from videoar.kernels.dispatch import select

WORD_BITS = 32


def pack_bits_ref(bits: Tensor) -> Tensor:
    """`pack_bits` in plain PyTorch."""
    _check_bits(bits)
    d = bits.shape[-1]
    num_words = -(-d // WORD_BITS)
    padded = F.pad(bits.bool().to(torch.int64), (0, num_words * WORD_BITS - d))
    padded = padded.unflatten(-1, (num_words, WORD_BITS))
    words = (padded << _shifts(bits, torch.int64)).sum(-1)
    # Bit 31 is the sign of an int32; torch leaves a narrowing cast out of range undefined.
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def pack_bits(bits: Tensor) -> Tensor:
    """Pack bits into words.

    Args:
        bits: bool, or uint8 whose nonzero values count as one, [..., d] with d >= 1.

    Returns:
        int32 [..., ceil(d / 32)].

    Raises:
        ValueError: another dtype, or no bits.
    """
    return select("pack_bits", bits, _PACK_BITS)(bits)


def unpack_bits_ref(words: Tensor, d: int) -> Tensor:
    """`unpack_bits` in plain PyTorch."""
    _check_words(words, d)
    bits = (words[..., None] >> _shifts(words, torch.int32)) & 1
    return bits.flatten(-2)[..., :d].bool()


def unpack_bits(words: Tensor, d: int) -> Tensor:
    """Unpack the first d bits of packed words.

    Args:
        words: int32 [..., ceil(d / 32)]; bits past d are ignored.
        d: bits of a token, at least 1.

    Returns:
        bool [..., d].

    Raises:
        ValueError: another dtype, or a number of words that does not fit d.
    """
    return select("unpack_bits", words, _UNPACK_BITS)(words, d)


_PACK_BITS = {"reference": pack_bits_ref}
_UNPACK_BITS = {"reference": unpack_bits_ref}


def _shifts(like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.arange(WORD_BITS, dtype=dtype, device=like.device)


def _check_bits(bits: Tensor) -> None:
    if bits.dtype not in (torch.bool, torch.uint8):
        raise ValueError(f"bits: expected bool or uint8, got {bits.dtype}")
    if bits.dim() == 0 or bits.shape[-1] == 0:
        raise ValueError(f"bits: expected [..., d] with d >= 1, got {list(bits.shape)}")


def _check_words(words: Tensor, d: int) -> None:
    if words.dtype != torch.int32:
        raise ValueError(f"words: expected int32, got {words.dtype}")
    if d < 1:
        raise ValueError(f"d: expected at least 1, got {d}")
    num_words = -(-d // WORD_BITS)
    if words.dim() == 0 or words.shape[-1] != num_words:
        raise ValueError(f"words: expected [..., {num_words}] for d = {d}, got {list(words.shape)}")
