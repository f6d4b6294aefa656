"""SwiGLU against its formula in float64, element by element."""

import math

import pytest
import torch

from videoar.kernels.swiglu import _tiles, swiglu, swiglu_ref

TRITON = CPP = True
pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.mark.parametrize("shape", [(1, 1), (17, 63), (2, 3, 130), (7,), (0, 4)])
def test_matches_formula(shape, device):
    gate, up = 4 * torch.randn(shape), torch.randn(shape)
    expected = [
        float(g) / (1 + math.exp(-float(g))) * float(u)
        for g, u in zip(gate.flatten(), up.flatten(), strict=True)
    ]
    y = swiglu(gate.to(device), up.to(device)).cpu().double()
    expected = torch.tensor(expected, dtype=torch.float64).view(shape)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)


def test_halves_of_one_tensor(device):
    gate, up = torch.randn(17, 126, device=device).chunk(2, dim=-1)
    expected = gate.double() / (1 + (-gate.double()).exp()) * up.double()
    torch.testing.assert_close(swiglu(gate, up).double(), expected, rtol=1e-5, atol=1e-6)


# e^10000 overflows to infinity, whose reciprocal is the 0 that belongs there.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_extreme_gates(device):
    gate = torch.tensor([-1e4, -200.0, 0.0, 200.0, 1e4], device=device)
    y = swiglu(gate, torch.full_like(gate, 2.0))
    assert y.tolist() == [0, 0, 0, 400, 2e4]


def test_gradcheck():
    gate, up = torch.randn(2, 3, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(swiglu_ref, (gate.requires_grad_(), up.requires_grad_()))


def gradients(gate, up, grad):
    """From the kernel or its twin, and by the formula in float64."""
    inputs = [gate.clone().requires_grad_(), up.clone().requires_grad_()]
    got = torch.autograd.grad(swiglu(*inputs), inputs, grad)
    g, u, w = gate.double(), up.double(), grad.double()
    sigmoid = 1 / (1 + (-g).exp())
    return got, (w * u * sigmoid * (1 + g * (1 - sigmoid)), w * g * sigmoid)


@pytest.mark.parametrize("shape", [(17, 63), (1, 1), (130,), (2, 3, 17), (1, 2049), (0, 4)])
def test_gradients_match_float64(shape, device, assert_near):
    gate, up, grad = torch.randn(3, *shape, device=device)
    for a, b in zip(*gradients(gate, up, grad), strict=True):
        assert_near(a, b)


def test_gradients_in_half(device, half):
    for a, b in zip(*gradients(*torch.randn(3, 17, 63, device=device).to(half)), strict=True):
        assert ((a.double() - b).square().mean() / b.square().mean()).sqrt() < 2e-2


def test_gradients_of_strided_tensors(device, assert_near):
    gate, up = torch.randn(17, 260, device=device).chunk(2, dim=-1)
    for grad in (torch.randn(130, 17, device=device).t(), torch.ones(1, device=device)):
        for a, b in zip(*gradients(gate, up, grad.expand(17, 130)), strict=True):
            assert_near(a, b)


def test_rounds_as_the_reference(device, half):
    gate, up = torch.randn(2, 17, 63, device=device).to(half)
    # The last bit of an exponential may move one value in many hundred over a rounding boundary.
    assert (swiglu(gate, up) != swiglu_ref(gate, up)).float().mean() < 5e-3


@pytest.mark.parametrize("width", [1, 17, 63, 1023, 1024, 6272, 2**33])
@pytest.mark.parametrize("rows", [1, 17, 4096])
def test_tiles_cover_the_tensor(rows, width):
    BLOCK_M, BLOCK_F, programs = _tiles(rows, width)
    assert BLOCK_M * BLOCK_F == 1024
    assert programs * BLOCK_M * BLOCK_F >= rows * width
    assert (programs - 1) * 1024 < (rows + BLOCK_M) * (width + BLOCK_F)


def test_kernel_refuses_what_it_cannot_serve(triton_device):
    x = torch.ones(2, 4, dtype=torch.float64, device=triton_device)
    with pytest.raises(ValueError, match=r"^up: expected on .* as gate, got on meta"):
        swiglu(x, x.to("meta"))
    with pytest.raises(ValueError, match=r"^gate: .*float64"):
        swiglu(x, x)


def test_refuses():
    with pytest.raises(ValueError, match=r"^gate: expected"):
        swiglu(torch.ones(3).long(), torch.ones(3).long())
    with pytest.raises(ValueError, match=r"^up: expected"):
        swiglu(torch.ones(2, 3), torch.ones(3))
