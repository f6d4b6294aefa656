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
from videoar.kernels.dispatch import refuse_recording

# What packed weights hold: floats, or pairs of bf16.
_WORDS = {torch.float32: torch.float32, torch.bfloat16: torch.int32}
_DTYPE = {words: dtype for dtype, words in _WORDS.items()}


def can_pack_panels(weight: Tensor) -> bool:
    """Whether `weight` has whole panels, of a dtype that this processor multiplies well."""
    return weight.is_cpu and whole_panels(*weight.shape, weight.dtype)


def whole_panels(features: int, inputs: int, dtype: torch.dtype) -> bool:
    """As `can_pack_panels`, of a weight `[features,inputs]` that is not there yet."""
    return _C.isa() != "baseline" and _whole(features, inputs, dtype)


def _whole(features: int, inputs: int, dtype: torch.dtype) -> bool:
    words, rest = divmod(inputs * dtype.itemsize, 4)
    whole = features % _C.PANEL == 0 and rest == 0 and min(features, words) > 0
    return dtype in _WORDS and whole


def pack_panels(weight: Tensor) -> Tensor:
    """`[out,in]` as `[out / 64, words, 64]`: float32, or int32 words of two neighbouring bf16.

    Raises:
        ValueError: another dtype, features that are no whole panels, no inputs, or an odd number
            of them in bf16.
    """
    if weight.dim() != 2 or not _whole(*weight.shape, weight.dtype):
        expected = f"float32 or bfloat16 [{_C.PANEL} n, in], in bfloat16 an even in"
        raise ValueError(f"weight: expected {expected}, got {weight.dtype} {list(weight.shape)}")
    words = weight.contiguous().view(_WORDS[weight.dtype])
    return words.unflatten(0, (-1, _C.PANEL)).transpose(1, 2).contiguous()


def unpack_panels(packed: Tensor) -> Tensor:
    """What `pack_panels` was given.

    Raises:
        ValueError: `packed` is not of `pack_panels`.
    """
    dtype = _dtype(packed)
    return packed.transpose(1, 2).flatten(0, 1).contiguous().view(dtype)


def packed_linear(x: Tensor, packed: Tensor) -> Tensor:
    """x W^T.

    Args:
        x: float32 or bf16 `[...,in]`, on the CPU, of the dtype that was packed.
        packed: of `pack_panels`.

    Returns:
        `[...,out]` in the dtype of `x`.

    Raises:
        ValueError: another dtype, device or number of inputs, a `packed` that is not of
            `pack_panels`, or a gradient that autograd would have to record.
    """
    dtype, (panels, words, _) = _dtype(packed), packed.shape
    inputs, features = words * 4 // dtype.itemsize, panels * _C.PANEL
    if x.dtype != dtype or not x.is_cpu or x.shape[-1:] != (inputs,):
        name = str(dtype).removeprefix("torch.")
        text = f"{name} [...,{inputs}] on cpu, got {x.dtype} {list(x.shape)} on {x.device}"
        raise ValueError(f"x: expected {text}")
    refuse_recording("packed_linear", x=x, packed=packed)
    x = x.contiguous()
    y = x.new_empty(*x.shape[:-1], features)
    rows, code = x.numel() // inputs, DTYPE_CODES[dtype]
    _C.packed_linear(address(x), address(packed), address(y), rows, inputs, features, code)
    return y


def _dtype(packed: Tensor) -> torch.dtype:
    """Of the weights in `packed`; ValueError if the kernel could not read them."""
    dtype = _DTYPE.get(packed.dtype)
    panels = packed.dim() == 3 and packed.shape[2] == _C.PANEL and packed.numel() > 0
    if dtype is None or not panels or not packed.is_contiguous() or not packed.is_cpu:
        got = f"{packed.dtype} {list(packed.shape)}, strides {packed.stride()}, on {packed.device}"
        expected = f"contiguous float32 or int32 [panels, words, {_C.PANEL}] on cpu"
        raise ValueError(f"packed: expected {expected}, got {got}")
    return dtype
