"""RMSNorm against its formula in float64, element by element."""

import math

import pytest
import torch

from videoar.kernels.rms_norm import rms_norm, rms_norm_ref

SHAPES = [(1, 1), (17, 63), (5, 130), (2, 3, 17), (64,), (0, 8)]


def brute(x, weight, eps):
    y = torch.empty(x.shape, dtype=torch.float64)
    for row, out in zip(x.reshape(-1, x.shape[-1]), y.view(-1, x.shape[-1]), strict=True):
        values = [float(v) for v in row]
        rms = math.sqrt(sum(v * v for v in values) / len(values) + eps)
        for c, v in enumerate(values):
            out[c] = v / rms * float(weight[c])
    return y


@pytest.mark.parametrize("shape", SHAPES)
def test_matches_formula(shape, device):
    x, weight = torch.randn(shape), torch.randn(shape[-1])
    y = rms_norm(x.to(device), weight.to(device), eps=1e-3)
    torch.testing.assert_close(y.cpu().double(), brute(x, weight, 1e-3), rtol=1e-5, atol=1e-6)


def test_residual_is_added_first_and_returned(device):
    x, residual = torch.randn(2, 5, 63).to(device)
    weight = torch.randn(63, device=device)
    y, s = rms_norm(x, weight, residual)
    assert torch.equal(s, x + residual)
    expected = brute((x + residual).cpu(), weight.cpu(), 1e-6)
    torch.testing.assert_close(y.cpu().double(), expected, rtol=1e-5, atol=1e-6)


def test_non_contiguous_input(device):
    x = torch.randn(63, 17, device=device).t()
    weight = torch.randn(126, device=device)[::2]
    expected = brute(x.cpu(), weight.cpu(), 1e-6)
    torch.testing.assert_close(rms_norm(x, weight).cpu().double(), expected, rtol=1e-5, atol=1e-6)


def test_bfloat16_is_rounded_before_the_weight(device):
    x = torch.randn(17, 130, device=device).bfloat16()
    weight = torch.randn(130, device=device).bfloat16()
    normalised = brute(x.cpu(), torch.ones(130), 1e-6).bfloat16().to(device)
    expected = normalised * weight
    y = rms_norm(x, weight)
    assert y.dtype == torch.bfloat16
    # float32 against float64 statistics may cross one rounding boundary in many thousand.
    assert (y != expected).float().mean() < 2e-3
    torch.testing.assert_close(y, expected, rtol=2**-7, atol=0)


def test_float32_weight_keeps_the_dtype_of_x():
    x = torch.randn(3, 8).bfloat16()
    assert rms_norm(x, torch.ones(8)).dtype == torch.bfloat16


def test_gradcheck():
    def inputs(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(rms_norm_ref, (inputs(3, 5), inputs(5)))
    assert torch.autograd.gradcheck(rms_norm_ref, (inputs(2, 3, 5), inputs(5), inputs(2, 3, 5)))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_gradients_match_float64(dtype, tolerance, device):
    leaves = [torch.randn(s, device=device).to(dtype) for s in ((17, 63), (63,), (17, 63))]
    grad_y, grad_s = torch.randn(2, 17, 63, device=device).to(dtype)

    def gradients(cast):
        inputs = [leaf.to(cast).requires_grad_() for leaf in leaves]
        y, s = rms_norm(*inputs) if cast == dtype else rms_norm_ref(*inputs)
        loss = (y * grad_y.to(cast)).sum() + (s * grad_s.to(cast)).sum()
        return [g.double() for g in torch.autograd.grad(loss, inputs)]

    for got, expected in zip(gradients(dtype), gradients(torch.float64), strict=True):
        error = (got - expected).square().mean() / expected.square().mean()
        assert error.sqrt() < tolerance


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((torch.ones(2, 4).long(), torch.ones(4)), "x"),
        ((torch.ones(2, 4), torch.ones(5)), "weight"),
        ((torch.ones(2, 4), torch.ones(4), torch.ones(2, 5)), "residual"),
        ((torch.ones(2, 4), torch.ones(4), torch.ones(2, 4).double()), "residual"),
    ],
)
def test_refuses(arguments, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        rms_norm(*arguments)
