"""Linear layers with bf16 weights that are packed once, for CPUs that multiply pairs of bf16.

    y = x W^T

summed in float32, the inputs in their order: a row gives the same bits alone or among others, and
on any number of threads. Panels of 64 output features lie one behind the other,
`[out / 64, in / 2, 64, 2]`, as they are read. Bytes that must move: the weights once for each
chunk of rows.
"""

import torch
from torch import Tensor

from videoar.kernels.cpp import _C, address


def can_pack_panels(weight: Tensor) -> bool:
    """Whether this processor has products of pairs of bf16, and `weight` whole panels of them."""
    if not weight.is_cpu or weight.dtype != torch.bfloat16 or _C.isa() != "avx512_bf16":
        return False
    features, inputs = weight.shape
    return features % _C.PANEL == 0 and inputs % 2 == 0


def pack_panels(weight: Tensor) -> Tensor:
    """`[out,in]` bf16 as int32 `[out / 64, in / 2, 64]`: a word is two neighbouring inputs."""
    words = weight.contiguous().view(torch.int32)
    return words.view(-1, _C.PANEL, words.shape[1]).transpose(1, 2).contiguous()


def unpack_panels(packed: Tensor) -> Tensor:
    """What `pack_panels` was given."""
    return packed.transpose(1, 2).flatten(0, 1).contiguous().view(torch.bfloat16)


def packed_linear(x: Tensor, packed: Tensor) -> Tensor:
    """x W^T.

    Args:
        x: bf16 `[...,in]`, on the CPU.
        packed: of `pack_panels`.

    Returns:
        bf16 `[...,out]`.

    Raises:
        ValueError: another dtype, device or number of inputs.
    """
    panels, pairs, _ = packed.shape
    inputs, features = 2 * pairs, panels * _C.PANEL
    if x.dtype != torch.bfloat16 or not x.is_cpu or x.shape[-1] != inputs:
        text = f"bfloat16 [...,{inputs}] on cpu, got {x.dtype} {list(x.shape)} on {x.device}"
        raise ValueError(f"x: expected {text}")
    x = x.contiguous()
    y = x.new_empty(*x.shape[:-1], features)
    rows = x.numel() // inputs
    _C.packed_linear(address(x), address(packed), address(y), rows, inputs, features)
    return y
