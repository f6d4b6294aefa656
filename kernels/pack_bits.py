"""Packing of bits into 32-bit words, little-endian: bit i of word w is element 32 w + i.

Formula: word_w = sum_i bit_{32 w + i} 2^i, read as a signed int32; the bits past d are zero.
Axes: d bits of a token, W = ceil(d / 32) words. Bytes moved by a token: d + 4 W.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from videoar.kernels.dispatch import select
from videoar.kernels.jit import jit, tl, triton
from videoar.kernels.pack_bits_cpp import pack_bits_cpp, unpack_bits_cpp
from videoar.kernels.rows import as_rows
from videoar.kernels.variant import Variant

WORD_BITS = 32
# 2,048 bits a program, sixteen bytes a thread.
BLOCK_W = 64
NUM_WARPS = 4
MAX_WORDS = 2**31 - BLOCK_W


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


@jit
def _pack_kernel(bits_ptr, words_ptr, count, num_words, d, stride_bt, BLOCK_W: tl.constexpr):
    """word = sum_i (bit_{32 w + i} != 0) 2^i, for BLOCK_W words of `count`; words are contiguous.

    Bytes: 32 read and 4 written a word.
    """
    offs = tl.program_id(0) * BLOCK_W + tl.arange(0, BLOCK_W)
    mask = offs < count
    token, word = (offs // num_words).to(tl.int64), offs % num_words
    shift = tl.arange(0, 32)
    offs_bit = word[:, None] * 32 + shift[None, :]
    mask_bit = mask[:, None] & (offs_bit < d)
    bits = tl.load(bits_ptr + token[:, None] * stride_bt + offs_bit, mask_bit, other=0)
    # No two terms share a bit, so the wrapping int32 sum is the unsigned word.
    words = tl.sum((bits != 0).to(tl.int32) << shift[None, :], 1)
    tl.store(words_ptr + offs, words, mask)


@jit
def _unpack_kernel(words_ptr, bits_ptr, count, num_words, d, stride_wt, BLOCK_W: tl.constexpr):
    """bit_{32 w + i} = (word_w >> i) & 1, for BLOCK_W words of `count`; bits are contiguous.

    Bytes: 4 read and 32 written a word.
    """
    offs = tl.program_id(0) * BLOCK_W + tl.arange(0, BLOCK_W)
    mask = offs < count
    token, word = (offs // num_words).to(tl.int64), offs % num_words
    words = tl.load(words_ptr + token * stride_wt + word, mask, other=0)
    shift = tl.arange(0, 32)
    bits = ((words[:, None] >> shift[None, :]) & 1).to(tl.uint8)
    offs_bit = word[:, None] * 32 + shift[None, :]
    mask_bit = mask[:, None] & (offs_bit < d)
    tl.store(bits_ptr + token[:, None] * d + offs_bit, bits, mask_bit)


def _pack_bits_triton(bits: Tensor) -> Tensor:
    _check_bits(bits)
    d = bits.shape[-1]
    num_words = -(-d // WORD_BITS)
    words = torch.empty((*bits.shape[:-1], num_words), dtype=torch.int32, device=bits.device)
    _check_count("bits", words)
    if words.numel():
        rows = as_rows(bits).view(torch.uint8)
        count = words.numel()
        _pack_kernel[(triton.cdiv(count, BLOCK_W),)](
            rows, words, count, num_words, d, rows.stride(0), BLOCK_W, num_warps=NUM_WARPS
        )
    return words


def _unpack_bits_triton(words: Tensor, d: int) -> Tensor:
    _check_words(words, d)
    bits = torch.empty((*words.shape[:-1], d), dtype=torch.bool, device=words.device)
    _check_count("words", words)
    if bits.numel():
        rows = as_rows(words)
        count = words.numel()
        _unpack_kernel[(triton.cdiv(count, BLOCK_W),)](
            rows,
            bits.view(torch.uint8),
            count,
            words.shape[-1],
            d,
            rows.stride(0),
            BLOCK_W,
            num_warps=NUM_WARPS,
        )
    return bits


def _pack_bits_cpp(bits: Tensor) -> Tensor:
    _check_bits(bits)
    return pack_bits_cpp(bits)


def _unpack_bits_cpp(words: Tensor, d: int) -> Tensor:
    _check_words(words, d)
    return unpack_bits_cpp(words, d)


_PACK_BITS = {"reference": pack_bits_ref, "cpp": _pack_bits_cpp, "triton": _pack_bits_triton}
_UNPACK_BITS = {
    "reference": unpack_bits_ref,
    "cpp": _unpack_bits_cpp,
    "triton": _unpack_bits_triton,
}


def aot_variants() -> list[Variant]:
    """The 48 bits of a token of the published tokenizer."""
    pointers = {"bits_ptr": "*u8", "words_ptr": "*i32"}
    sizes = {"count": "i32", "num_words": "i32", "d": "i32"}
    return [
        Variant(
            name=name,
            kernel=kernel,
            signature=pointers | sizes | {stride: "i32"},
            constexprs={"BLOCK_W": BLOCK_W},
            divisible=divisible,
            num_warps=NUM_WARPS,
        )
        for name, kernel, stride, divisible in (
            ("pack_bits", _pack_kernel, "stride_bt", (*pointers, "d", "stride_bt")),
            ("unpack_bits", _unpack_kernel, "stride_wt", (*pointers, "d")),
        )
    ]


def _shifts(like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.arange(WORD_BITS, dtype=dtype, device=like.device)


def _check_count(name: str, words: Tensor) -> None:
    """The kernels divide the word's number in 32 bits; the last program reaches past the end."""
    if words.numel() > MAX_WORDS:
        raise ValueError(f"{name}: expected at most {MAX_WORDS} words, got {words.numel()}")


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
