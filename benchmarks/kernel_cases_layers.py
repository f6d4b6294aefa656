"""The cases of the transformer's other layers and of its loss."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from videoar import kernels
from videoar.benchmarks.kernel_case import (
    Case,
    Setting,
    compiled,
    random_bits,
    random_tensors,
    same,
    upcast,
    with_backward,
)
from videoar.benchmarks.kernel_costs import cross_entropy_bytes
from videoar.kernels.bitwise_cross_entropy import bitwise_cross_entropy_ref
from videoar.kernels.rms_norm import rms_norm_ref
from videoar.kernels.swiglu import swiglu_ref


def rms_norm_cases(setting: Setting) -> Iterator[Case]:
    """The width of videoar-xl."""
    rows, width = (64, 128) if setting.small else (32768, 2048)
    elements, itemsize = rows * width, setting.dtype.itemsize

    def plain(op: Callable, x: Tensor, weight: Tensor) -> tuple[Tensor]:
        return (op(x, weight),)

    def residual(op: Callable, x: Tensor, weight: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        return op(x, weight, r)

    def torch_own(x: Tensor, weight: Tensor) -> tuple[Tensor]:
        return (F.rms_norm(x, (width,), weight, 1e-6),)

    x, weight = (rows, width), (width,)
    yield Case(
        op="rms_norm",
        name=f"forward, {rows} x {width}",
        num_bytes=2 * elements * itemsize,
        flops=4 * elements,
        make=lambda seed: random_tensors(setting, seed, [x, weight]),
        run=partial(plain, kernels.rms_norm),
        expected=upcast(partial(plain, rms_norm_ref)),
        torch_best={
            "rms_norm": lambda: torch_own,
            "compiled": compiled(partial(plain, rms_norm_ref)),
        },
    )
    for backward in (False, True):
        wrap = partial(with_backward, outputs=2) if backward else same
        shapes = [x, weight, x, *[x, x] * backward]
        yield Case(
            op="rms_norm",
            name=f"{'forward+backward' if backward else 'forward'}, residual, {rows} x {width}",
            num_bytes=(8 if backward else 4) * elements * itemsize,
            flops=(15 if backward else 5) * elements,
            make=lambda seed, shapes=shapes, grads=3 * backward: random_tensors(
                setting, seed, shapes, grads
            ),
            run=wrap(partial(residual, kernels.rms_norm)),
            expected=upcast(wrap(partial(residual, rms_norm_ref))),
            torch_best={"compiled": compiled(partial(residual, rms_norm_ref), wrap)},
        )


def swiglu_cases(setting: Setting) -> Iterator[Case]:
    """The MLP width of videoar-l."""
    shape = (64, 128) if setting.small else (16384, 6272)
    elements = shape[0] * shape[1]

    def apply(op: Callable, gate: Tensor, up: Tensor) -> tuple[Tensor]:
        return (op(gate, up),)

    for backward in (False, True):
        wrap = with_backward if backward else same
        yield Case(
            op="swiglu",
            name=f"{'forward+backward' if backward else 'forward'}, {shape[0]} x {shape[1]}",
            num_bytes=(8 if backward else 3) * elements * setting.dtype.itemsize,
            flops=(16 if backward else 5) * elements,
            make=lambda seed, backward=backward: random_tensors(
                setting, seed, [shape] * (2 + backward), 2 * backward
            ),
            run=wrap(partial(apply, kernels.swiglu)),
            expected=upcast(wrap(partial(apply, swiglu_ref))),
            torch_best={"compiled": compiled(partial(apply, swiglu_ref), wrap)},
        )


def bitwise_cross_entropy_cases(setting: Setting) -> Iterator[Case]:
    """The mean over the 48 bits of every token, from logits."""
    tokens, dim = (64 if setting.small else 2**20), 48

    def apply(op: Callable, x: Tensor, bits: Tensor) -> tuple[Tensor]:
        return (op(x, bits),)

    for backward in (False, True):

        def make(seed: int, backward=backward) -> tuple[Tensor, ...]:
            (logits,) = random_tensors(setting, seed, [(tokens, 2 * dim)], int(backward))
            grad = (torch.ones((), device=setting.device),) * backward
            return logits, random_bits(setting, seed, tokens, dim), *grad

        wrap = with_backward if backward else same
        yield Case(
            op="bitwise_cross_entropy",
            name=f"{'forward+backward' if backward else 'forward'}, {tokens} tokens of {dim}",
            num_bytes=cross_entropy_bytes(tokens * dim, setting.dtype.itemsize, backward),
            flops=(16 if backward else 8) * tokens * dim,
            make=make,
            run=wrap(partial(apply, kernels.bitwise_cross_entropy)),
            expected=upcast(wrap(partial(apply, bitwise_cross_entropy_ref))),
            torch_best={"compiled": compiled(partial(apply, bitwise_cross_entropy_ref), wrap)},
        )
