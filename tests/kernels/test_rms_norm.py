"""RMSNorm against its formula in float64, element by element."""

import math
from importlib import import_module

import pytest
import torch

from videoar.kernels.rms_norm import _backward_tiles, _tiles, rms_norm, rms_norm_ref

TRITON = CPP = True
pytestmark = pytest.mark.usefixtures("poisoned")
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


def test_half_is_rounded_before_the_weight(device, half):
    x = torch.randn(17, 130, device=device).to(half)
    weight = torch.randn(130, device=device).to(half)
    normalised = brute(x.cpu(), torch.ones(130), 1e-6).to(device, half)
    expected = normalised * weight
    y = rms_norm(x, weight)
    assert y.dtype == half
    # float32 against float64 statistics may cross one rounding boundary in many thousand.
    assert (y != expected).float().mean() < 2e-3
    torch.testing.assert_close(y, expected, rtol=2**-7, atol=0)


def test_float32_weight_keeps_the_dtype_of_x(device, half):
    x, weight = torch.randn(3, 8, device=device).to(half), torch.randn(8, device=device)
    y = rms_norm(x, weight)
    assert y.dtype == half
    torch.testing.assert_close(y, rms_norm_ref(x, weight), rtol=2**-7, atol=0)


def test_gradcheck():
    def inputs(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(rms_norm_ref, (inputs(3, 5), inputs(5)))
    assert torch.autograd.gradcheck(rms_norm_ref, (inputs(2, 3, 5), inputs(5), inputs(2, 3, 5)))


def gradients(operation, leaves, grads, dtype):
    """Of x, weight and residual, or without a residual of x and weight."""
    inputs = [leaf.to(dtype).requires_grad_() for leaf in leaves]
    outputs = operation(*inputs)
    outputs = outputs if len(leaves) == 3 else (outputs,)
    return torch.autograd.grad(outputs, inputs, [g.to(dtype) for g in grads])


@pytest.mark.parametrize("shape", [(17, 63), (1, 17), (130, 17), (2, 3, 130), (600, 5)])
@pytest.mark.parametrize("with_residual", [False, True])
def test_gradients(shape, with_residual, device, assert_near):
    x, residual, grad_y, grad_s = torch.randn(4, *shape, device=device)
    weight = torch.randn(shape[-1], device=device)
    leaves = [x, weight, residual] if with_residual else [x, weight]
    grads = [grad_y, grad_s][: len(leaves) - 1]
    got = gradients(rms_norm, leaves, grads, torch.float32)
    expected = gradients(rms_norm_ref, leaves, grads, torch.float64)
    for a, b in zip(got, expected, strict=True):
        assert_near(a, b)


def test_gradients_of_one_channel(device):
    # y is weight times the sign of x, so what is left of the gradient of x is rounding error.
    x, grad = torch.tensor([[0.5], [-2.0], [3.0]]), torch.tensor([[1.0], [2.0], [3.0]])
    leaves = [x.to(device), torch.tensor([1.5], device=device)]
    grad_x, grad_weight = gradients(rms_norm, leaves, [grad.to(device)], torch.float32)
    torch.testing.assert_close(grad_x.cpu(), torch.zeros(3, 1), rtol=0, atol=1e-4)
    torch.testing.assert_close(grad_weight.cpu(), torch.tensor([2.0]), rtol=1e-5, atol=0)


def test_gradients_in_half(device, half):
    leaves = [torch.randn(s, device=device).to(half) for s in ((17, 63), (63,), (17, 63))]
    grads = torch.randn(2, 17, 63, device=device).to(half)
    got = gradients(rms_norm, leaves, grads, half)
    expected = gradients(rms_norm_ref, leaves, grads, torch.float64)
    for a, b in zip(got, expected, strict=True):
        assert ((a.double() - b).square().mean() / b.square().mean()).sqrt() < 3e-2


def test_gradients_of_strided_tensors(device, assert_near):
    x, grad = torch.randn(2, 17, 126, device=device)[..., ::2].unbind()
    wide = torch.randn(17, 130, device=device)
    residual, weight = wide[:, 3:66], torch.randn(63, device=device)
    leaves, grads = [x, weight, residual], [grad.t().contiguous().t(), grad.flip(0)]
    got = gradients(rms_norm, leaves, grads, torch.float32)
    for a, b in zip(got, gradients(rms_norm_ref, leaves, grads, torch.float64), strict=True):
        assert_near(a, b)


def test_one_gradient_at_a_time(device, assert_near):
    x, residual = torch.randn(2, 5, 17, device=device)
    weight = torch.randn(17, device=device).requires_grad_()
    y, s = rms_norm(x.requires_grad_(), weight, residual)
    assert torch.equal(torch.autograd.grad(s.sum(), x, retain_graph=True)[0], torch.ones_like(x))
    y.sum().backward()
    wide = [t.detach().double().requires_grad_() for t in (x, weight, residual)]
    rms_norm_ref(*wide)[0].sum().backward()
    assert_near(x.grad, wide[0].grad)
    assert_near(weight.grad, wide[1].grad)
    frozen = rms_norm(x, weight.detach())
    assert_near(
        torch.autograd.grad(frozen.sum(), x)[0],
        torch.autograd.grad(rms_norm_ref(wide[0], wide[1].detach()).sum(), wide[0])[0],
    )


def test_gradients_of_no_rows(device):
    x = torch.randn(0, 8, device=device).requires_grad_()
    weight = torch.ones(8, device=device).requires_grad_()
    rms_norm(x, weight).sum().backward()
    assert x.grad.shape == (0, 8)
    assert (weight.grad == 0).all()


def test_programs_of_several_blocks(triton_device, monkeypatch, assert_near):
    # By import_module: as an attribute of the package the name is the function.
    monkeypatch.setattr(import_module("videoar.kernels.rms_norm"), "MAX_PARTIALS", 2)
    assert _backward_tiles(300, 17)[3] == 160
    x, grad = torch.randn(2, 300, 17, device=triton_device)
    leaves = [x, torch.randn(17, device=triton_device)]
    got = gradients(rms_norm, leaves, [grad], torch.float32)
    for a, b in zip(got, gradients(rms_norm_ref, leaves, [grad], torch.float64), strict=True):
        assert_near(a, b)


def test_wide_rows(device, assert_near):
    x, weight = torch.randn(2, 8191, device=device), torch.randn(8191, device=device)
    assert_near(rms_norm(x, weight), rms_norm_ref(x.double(), weight.double()))


@pytest.mark.parametrize("width", [1, 17, 63, 130, 1536, 2048, 2560, 8192])
@pytest.mark.parametrize("rows", [1, 17, 511, 513, 16384])
def test_tiles_cover_the_rows_within_limits(rows, width):
    BLOCK_M, BLOCK_C, num_warps = _tiles(rows, width)
    assert width <= BLOCK_C
    assert max(1024, 2 * width, 16) >= BLOCK_M * BLOCK_C
    assert 1 <= num_warps <= 16
    BLOCK_M, BLOCK_C, num_warps, rows_per_program = _backward_tiles(rows, width)
    assert 1 <= num_warps <= 16
    assert rows_per_program % BLOCK_M == 0
    assert -(-rows // rows_per_program) <= 512


def test_kernel_refuses_what_it_cannot_serve(triton_device):
    def ones(*shape, dtype=torch.float32):
        return torch.ones(shape, dtype=dtype, device=triton_device)

    with pytest.raises(ValueError, match=r"^x: .*float64"):
        rms_norm(ones(2, 4, dtype=torch.float64), ones(4))
    with pytest.raises(ValueError, match=r"^weight: expected on .* as x, got on meta"):
        rms_norm(ones(2, 4), torch.ones(4, device="meta"))
    with pytest.raises(ValueError, match=r"^residual: expected on .* as x, got on meta"):
        rms_norm(ones(2, 4), ones(4), torch.ones(2, 4, device="meta"))
    with pytest.raises(ValueError, match=r"^weight: .*float64"):
        rms_norm(ones(2, 4), ones(4, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"^x: .*8192, got 8193"):
        rms_norm(ones(1, 8193), ones(8193))


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
