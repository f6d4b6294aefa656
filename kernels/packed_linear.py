"""Linear layers whose weights are packed once, on a CPU.

    y = x W^T

summed in float32, the inputs in their order: a row gives the same bits alone or among others, and
on any number of threads. Panels of 64 output features lie one behind the other, as they are read:
`[out / 64, in, 64]`, in bf16 `[out / 64, in / 2, 64, 2]`. Bytes that must move: the weights once
for each chunk of rows.
"""

import torch
from torch import Tensor

from videoar.kernels.cpp import _C, DTYPE_CODES, address

# What packed weights hold: floats, or pairs of bf16.
_WORDS = {torch.float32: torch.float32, torch.bfloat16: torch.int32}


def can_pack_panels(weight: Tensor) -> bool:
    """Whether `weight` has whole panels, of a dtype that this processor multiplies well."""
    return weight.is_cpu and whole_panels(*weight.shape, weight.dtype)


def whole_panels(features: int, inputs: int, dtype: torch.dtype) -> bool:
    """As `can_pack_panels`, of a weight `[features,inputs]` that is not there yet."""
    if dtype not in _WORDS or _C.isa() == "baseline":
        return False
    return features % _C.PANEL == 0 and inputs * dtype.itemsize % 4 == 0


def pack_panels(weight: Tensor) -> Tensor:
    """`[out,in]` as `[out / 64, words, 64]`: float32, or int32 words of two neighbouring bf16."""
    words = weight.contiguous().view(_WORDS[weight.dtype])
    return words.view(-1, _C.PANEL, words.shape[1]).transpose(1, 2).contiguous()


def unpack_panels(packed: Tensor) -> Tensor:
    """What `pack_panels` was given."""
    return packed.transpose(1, 2).flatten(0, 1).contiguous().view(_dtype(packed))


def packed_linear(x: Tensor, packed: Tensor) -> Tensor:
    """x W^T.

    Args:
        x: float32 or bf16 `[...,in]`, on the CPU, of the dtype that was packed.
        packed: of `pack_panels`.

    Returns:
        `[...,out]` in the dtype of `x`.

    Raises:
        ValueError: another dtype, device or number of inputs.
    """
    dtype, (panels, words, _) = _dtype(packed), packed.shape
    inputs, features = words * 4 // dtype.itemsize, panels * _C.PANEL
    if x.dtype != dtype or not x.is_cpu or x.shape[-1] != inputs:
        name = str(dtype).removeprefix("torch.")
        text = f"{name} [...,{inputs}] on cpu, got {x.dtype} {list(x.shape)} on {x.device}"
        raise ValueError(f"x: expected {text}")
    x = x.contiguous()
    y = x.new_empty(*x.shape[:-1], features)
    rows, code = x.numel() // inputs if inputs else x.shape[:-1].numel(), DTYPE_CODES[dtype]
    _C.packed_linear(address(x), address(packed), address(y), rows, inputs, features, code)
    return y


def _dtype(packed: Tensor) -> torch.dtype:
    return next(dtype for dtype, words in _WORDS.items() if words == packed.dtype)
