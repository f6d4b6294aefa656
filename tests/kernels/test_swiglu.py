"""SwiGLU against its formula in float64, element by element."""

import math

import pytest
import torch

from videoar.kernels.swiglu import swiglu, swiglu_ref


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


def test_extreme_gates(device):
    gate = torch.tensor([-1e4, -200.0, 0.0, 200.0, 1e4], device=device)
    y = swiglu(gate, torch.full_like(gate, 2.0))
    assert y.tolist() == [0, 0, 0, 400, 2e4]


def test_gradcheck():
    gate, up = torch.randn(2, 3, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(swiglu_ref, (gate.requires_grad_(), up.requires_grad_()))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_gradients_match_float64(dtype, tolerance, device):
    gate, up, grad = torch.randn(3, 17, 63, device=device).to(dtype)
    inputs = [gate.clone().requires_grad_(), up.clone().requires_grad_()]
    got = torch.autograd.grad((swiglu(*inputs) * grad).sum(), inputs)
    g, u, w = gate.double(), up.double(), grad.double()
    sigmoid = 1 / (1 + (-g).exp())
    expected = (w * u * sigmoid * (1 + g * (1 - sigmoid)), w * g * sigmoid)
    for a, b in zip(got, expected, strict=True):
        assert ((a.double() - b).square().mean() / b.square().mean()).sqrt() < tolerance


def test_refuses():
    with pytest.raises(ValueError, match=r"^gate: expected"):
        swiglu(torch.ones(3).long(), torch.ones(3).long())
    with pytest.raises(ValueError, match=r"^up: expected"):
        swiglu(torch.ones(2, 3), torch.ones(3))
