"""Linear layers with packed weights: against float64, in every instruction set."""

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

pytestmark = pytest.mark.usefixtures("poisoned")

OnEveryCpu = Callable[[Callable[[], Tensor]], list[Tensor]]
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
needs_vectors = pytest.mark.skipif(_C.isa() == "baseline", reason="panels are for wide vectors")


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@BOTH
@pytest.mark.parametrize(
    ("rows", "inputs", "features"),
    [
        (1, 2, 64),
        (2, 194, 128),  # a block and one pair
        (6, 192, 64),
        (7, 100, 192),  # two groups of different size
        (13, 386, 64),
        (128, 256, 128),
        (193, 130, 64),  # more rows than go through the weights together
    ],
)
def test_against_float64(
    on_every_cpu: OnEveryCpu, rows: int, inputs: int, features: int, dtype: torch.dtype
) -> None:
    x, weight = draw(rows, inputs, dtype=dtype), draw(features, inputs, dtype=dtype, seed=1)
    packed = pack_panels(weight)
    exact = x.double() @ weight.double().T
    # Sums in float32, then one rounding to the dtype.
    rounding = exact.abs() / 256 if dtype == torch.bfloat16 else 0
    bound = rounding + 1e-6 * (x.double().abs() @ weight.double().abs().T)
    for found in on_every_cpu(lambda: packed_linear(x, packed)):
        assert found.dtype == dtype
        assert ((found.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("inputs", [1, 63, 65])
def test_odd_inputs_in_float32(on_every_cpu: OnEveryCpu, inputs: int) -> None:
    x = draw(9, inputs, dtype=torch.float32)
    weight = draw(64, inputs, dtype=torch.float32, seed=1)
    for found in on_every_cpu(lambda: packed_linear(x, pack_panels(weight))):
        torch.testing.assert_close(found, x @ weight.T, rtol=1e-5, atol=1e-5)


@BOTH
def test_axes_in_front_and_strides(dtype: torch.dtype) -> None:
    x, packed = draw(3, 2, 70, dtype=dtype), pack_panels(draw(64, 70, dtype=dtype, seed=1))
    whole = packed_linear(x, packed)
    assert whole.shape == (3, 2, 64)
    assert torch.equal(packed_linear(x.transpose(0, 1), packed), whole.transpose(0, 1))
    assert packed_linear(x[:0], packed).shape == (0, 2, 64)


@BOTH
@pytest.mark.parametrize("rows", [2, 8, 9, 18, 32, 128, 200])
def test_a_row_is_the_same_alone(on_every_cpu: OnEveryCpu, rows: int, dtype: torch.dtype) -> None:
    x, packed = draw(rows, 388, dtype=dtype), pack_panels(draw(128, 388, dtype=dtype, seed=1))
    whole = on_every_cpu(lambda: packed_linear(x, packed))
    for place in (0, -2):
        alone = on_every_cpu(lambda place=place: packed_linear(x[place][None], packed))
        for one, all_rows in zip(alone, whole, strict=True):
            assert torch.equal(one[0], all_rows[place])


@BOTH
@pytest.mark.parametrize(
    ("rows", "features"),
    [(24, 448), (200, 64), (130, 192)],  # fewer panels than threads: rows are shared out, too
)
def test_threads_change_nothing(
    on_every_cpu: OnEveryCpu, rows: int, features: int, dtype: torch.dtype
) -> None:
    x, weight = draw(rows, 512, dtype=dtype), draw(features, 512, dtype=dtype, seed=1)
    packed = pack_panels(weight)
    found = on_every_cpu(lambda: packed_linear(x, packed))
    for one, *others in zip(*[iter(found)] * 3, strict=True):
        assert all(torch.equal(one, other) for other in others)


@BOTH
def test_not_a_number_stays_in_its_row(on_every_cpu: OnEveryCpu, dtype: torch.dtype) -> None:
    x, packed = draw(8, 96, dtype=dtype), pack_panels(draw(64, 96, dtype=dtype, seed=1))
    x[3, 17], x[5, 40] = float("nan"), float("inf")
    for found in on_every_cpu(lambda: packed_linear(x, packed)):
        assert found[3].isnan().all()
        assert found[5].isinf().all()
        assert found[[0, 1, 2, 4, 6, 7]].isfinite().all()


@BOTH
def test_weights_come_back(dtype: torch.dtype) -> None:
    weight = draw(192, 30, dtype=dtype)
    assert torch.equal(unpack_panels(pack_panels(weight)), weight)


@needs_vectors
@BOTH
def test_products_have_panels_where_they_can(dtype: torch.dtype) -> None:
    layers = [nn.Linear(96, n, bias=False).to(dtype) for n in (64, 128)]
    product = Product(layers)
    assert product.panels
    assert all(torch.equal(a, b.weight) for a, b in zip(product.dense(), layers, strict=True))
    x = draw(5, 96, dtype=dtype)
    expected = torch.cat([layer(x) for layer in layers], -1)
    tolerance = 1.6e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(product(x), expected, rtol=tolerance, atol=tolerance / 10)
    assert not Product(layers, panels=False).panels
    assert not Product([nn.Linear(96, 100, bias=False).to(dtype)]).panels


@needs_vectors
def test_which_weights_are_for_panels(on_every_cpu: OnEveryCpu) -> None:
    assert can_pack_panels(torch.zeros(64, 63))
    assert can_pack_panels(torch.zeros(64, 64, dtype=torch.bfloat16))
    assert not can_pack_panels(torch.zeros(64, 63, dtype=torch.bfloat16))
    assert not can_pack_panels(torch.zeros(65, 64))
    assert not can_pack_panels(torch.zeros(64, 64, dtype=torch.float16))
    narrowest = on_every_cpu(lambda: can_pack_panels(torch.zeros(64, 64)))[0]
    assert narrowest == (_C.isas()[0] != "baseline")


@BOTH
def test_other_inputs_are_refused(dtype: torch.dtype) -> None:
    packed = pack_panels(draw(64, 64, dtype=dtype))
    other = torch.bfloat16 if dtype == torch.float32 else torch.float32
    name = str(dtype).removeprefix("torch.")
    for x in (torch.zeros(2, 64, dtype=other), torch.zeros(2, 62, dtype=dtype)):
        with pytest.raises(ValueError, match=rf"x: expected {name} \[...,64\] on cpu, got"):
            packed_linear(x, packed)


@pytest.mark.parametrize("x", [torch.zeros(()), torch.zeros(0), torch.zeros(2, 64, device="meta")])
def test_no_inputs_and_no_memory(x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^x: expected float32 \[...,64\] on cpu, got"):
        packed_linear(x, pack_panels(torch.zeros(64, 64)))


@BOTH
@pytest.mark.parametrize(
    "wrong",
    [
        lambda p: p.transpose(1, 2).contiguous().transpose(1, 2),
        lambda p: p[:, :, :32].contiguous(),
        lambda p: p[:, ::2],
        lambda p: p[0],
        lambda p: p[:, :0],
        lambda p: p.double(),
        lambda p: p.half(),
        lambda p: p.to("meta"),
    ],
)
def test_other_panels_are_refused(wrong: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    packed = wrong(pack_panels(draw(128, 64, dtype=dtype)))
    x = draw(2, 64, dtype=dtype)
    for call in (lambda: packed_linear(x, packed), lambda: unpack_panels(packed)):
        with pytest.raises(ValueError, match=r"^packed: expected contiguous .* on cpu, got"):
            call()


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(65, 8),
        torch.zeros(64, 7, dtype=torch.bfloat16),
        torch.zeros(64, 8, dtype=torch.float64),
        torch.zeros(64),
        torch.zeros(1, 64, 8),
        torch.zeros(0, 8),
        torch.zeros(64, 0, dtype=torch.bfloat16),
    ],
)
def test_weights_without_whole_panels_are_refused(weight: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^weight: expected float32 or bfloat16 \[64 n, in\]"):
        pack_panels(weight)


@pytest.mark.parametrize("name", ["x", "packed"])
def test_what_autograd_would_record_is_refused(name: str) -> None:
    """The kernel has no backward: the gradient would be lost without a word."""
    arguments = {"x": torch.ones(2, 8), "packed": pack_panels(torch.ones(64, 8))}
    arguments[name].requires_grad_()
    with pytest.raises(ValueError, match=f"^{name}: .* no backward"):
        packed_linear(**arguments)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert (packed_linear(**arguments) == 8).all()


@pytest.mark.parametrize(("inputs", "features", "dtype"), [(3, 64, 1), (4, 63, 0), (4, 64, 0)])
def test_what_the_kernel_refuses(inputs: int, features: int, dtype: int) -> None:
    with pytest.raises(ValueError, match="check failed"):
        _C.packed_linear(0, 0, 0, 1, inputs, features, dtype)
