"""The C++ kernels of `pack_bits` and `unpack_bits` (csrc/pack_bits.h)."""

import torch
from torch import Tensor

from videoar.kernels.cpp import _C, address, rows_of


def pack_bits_cpp(bits: Tensor) -> Tensor:
    """As `pack_bits`, for checked arguments."""
    d = bits.shape[-1]
    words = torch.empty(*bits.shape[:-1], -(-d // 32), dtype=torch.int32, device="cpu")
    bits_MC, rows, stride = rows_of(bits)
    _C.pack_bits(address(bits_MC), address(words), rows, d, stride)
    return words


def unpack_bits_cpp(words: Tensor, d: int) -> Tensor:
    """As `unpack_bits`, for checked arguments."""
    bits = torch.empty(*words.shape[:-1], d, dtype=torch.bool, device="cpu")
    words_MC, rows, stride = rows_of(words)
    _C.unpack_bits(address(words_MC), address(bits), rows, d, stride)
    return bits
