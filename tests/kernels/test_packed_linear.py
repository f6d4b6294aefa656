"""Linear layers with packed bf16 weights: against float64, in every instruction set."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from videoar import _C
from videoar.kernels.packed_linear import (
    can_pack_panels,
    pack_panels,
    packed_linear,
    unpack_panels,
)
from videoar.runtime.packed import Product

OnEveryCpu = Callable[[Callable[[], Tensor]], list[Tensor]]
WIDEST = _C.isa()
needs_pairs = pytest.mark.skipif(WIDEST != "avx512_bf16", reason="no products of bf16 pairs here")


def bf16(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.parametrize(
    ("rows", "inputs", "features"),
    [
        (1, 2, 64),
        (2, 64, 64),
        (7, 190, 128),  # a block of inputs and less than one
        (8, 192, 64),
        (13, 386, 192),
        (32, 200, 128),
        (193, 130, 64),  # more rows than go through the weights together
    ],
)
def test_against_float64(on_every_cpu: OnEveryCpu, rows: int, inputs: int, features: int) -> None:
    x, weight = bf16(rows, inputs), bf16(features, inputs, seed=1)
    packed = pack_panels(weight)
    exact = x.double() @ weight.double().T
    # Sums in float32, then one rounding to bf16.
    bound = exact.abs() / 256 + 1e-6 * (x.double().abs() @ weight.double().abs().T)
    for found in on_every_cpu(lambda: packed_linear(x, packed)):
        assert ((found.double() - exact).abs() <= bound).all()


def test_axes_in_front_and_strides() -> None:
    x, packed = bf16(3, 2, 70), pack_panels(bf16(64, 70, seed=1))
    whole = packed_linear(x, packed)
    assert whole.shape == (3, 2, 64)
    assert torch.equal(packed_linear(x.transpose(0, 1), packed), whole.transpose(0, 1))
    assert packed_linear(x[:0], packed).shape == (0, 2, 64)


@pytest.mark.parametrize("rows", [2, 8, 9, 18, 32, 128, 200])
def test_a_row_is_the_same_alone(rows: int) -> None:
    x, packed = bf16(rows, 388), pack_panels(bf16(128, 388, seed=1))
    whole = packed_linear(x, packed)
    assert all(torch.equal(packed_linear(x[i : i + 1], packed), whole[i : i + 1]) for i in (0, -2))


def test_threads_change_nothing(on_every_cpu: OnEveryCpu) -> None:
    x, packed = bf16(24, 512), pack_panels(bf16(448, 512, seed=1))
    found = on_every_cpu(lambda: packed_linear(x, packed))
    for one, *others in zip(*[iter(found)] * 3, strict=True):
        assert all(torch.equal(one, other) for other in others)


def test_weights_come_back() -> None:
    weight = bf16(192, 30)
    assert torch.equal(unpack_panels(pack_panels(weight)), weight)


@needs_pairs
def test_products_have_panels_where_they_can() -> None:
    layers = [nn.Linear(96, n, bias=False).bfloat16() for n in (64, 128)]
    product = Product(layers)
    assert product.panels
    assert all(torch.equal(a, b.weight) for a, b in zip(product.dense(), layers, strict=True))
    x = bf16(5, 96)
    expected = torch.cat([layer(x) for layer in layers], -1)
    torch.testing.assert_close(product(x), expected, rtol=1.6e-2, atol=1e-3)
    assert not Product([nn.Linear(96, 100, bias=False).bfloat16()]).panels
    assert not Product([nn.Linear(96, 64, bias=False)]).panels


def test_other_weights_are_not_for_panels() -> None:
    assert not can_pack_panels(torch.zeros(64, 64))
    assert not can_pack_panels(torch.zeros(64, 63, dtype=torch.bfloat16))
    assert not can_pack_panels(torch.zeros(65, 64, dtype=torch.bfloat16))
    assert can_pack_panels(torch.zeros(64, 64, dtype=torch.bfloat16)) == (WIDEST == "avx512_bf16")


@pytest.mark.parametrize("x", [torch.zeros(2, 64), torch.zeros(2, 62, dtype=torch.bfloat16)])
def test_other_inputs_are_refused(x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"x: expected bfloat16 \[...,64\] on cpu, got"):
        packed_linear(x, pack_panels(bf16(64, 64)))
    with pytest.raises(ValueError, match="check failed"):
        _C.packed_linear(0, 0, 0, rows=1, in_features=3, out_features=64)
