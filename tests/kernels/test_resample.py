"""`resample` against torch's own pooling and interpolation, and its adjoint."""

import sys

import pytest
import torch
import torch.nn.functional as F

from videoar.kernels.resample import (
    narrow_tiles,
    resample,
    resample_adjoint,
    resample_adjoint_ref,
    resample_matrix,
    resample_ref,
)

TRITON = CPP = True
pytestmark = pytest.mark.usefixtures("poisoned")
SHAPES = [((8, 8), (4, 4)), ((8, 8), (3, 3)), ((5, 7), (2, 3)), ((3, 3), (8, 8)), ((2, 5), (4, 9))]
SHAPES += [((1, 1), (6, 4)), ((17, 63), (5, 13)), ((4, 4), (1, 1)), ((24, 42), (9, 16))]


@pytest.mark.parametrize(("source", "target"), SHAPES)
def test_matches_torch(source: tuple[int, int], target: tuple[int, int], device: str) -> None:
    x = torch.randn(2, 3, *source, dtype=torch.float64, device=device)
    area = F.adaptive_avg_pool2d(x, target)
    torch.testing.assert_close(resample(x, target, "area"), area, atol=1e-6, rtol=1e-5)
    bilinear = F.interpolate(x, target, mode="bilinear", align_corners=False)
    torch.testing.assert_close(resample(x, target, "bilinear"), bilinear, atol=1e-6, rtol=1e-5)
    nearest = F.interpolate(x, target, mode="nearest")
    torch.testing.assert_close(resample(x, target, "nearest"), nearest, atol=0, rtol=0)


@pytest.mark.parametrize("mode", ["area", "bilinear", "nearest"])
def test_same_size_is_the_input_itself(mode: str, device: str) -> None:
    x = torch.randn(1, 2, 5, 6, device=device)
    assert resample(x, (5, 6), mode) is x


@pytest.mark.parametrize(("source", "target"), [*SHAPES, ((64, 64), (7, 9)), ((1, 130), (3, 1))])
@pytest.mark.parametrize("mode", ["area", "bilinear", "nearest"])
def test_float32_and_its_gradient(
    source: tuple[int, int], target: tuple[int, int], mode: str, device, assert_near
) -> None:
    wide = torch.randn(*source, 3, 2, dtype=torch.float64).permute(3, 2, 0, 1).requires_grad_()
    g = torch.randn(2, *target, 3, dtype=torch.float64).permute(0, 3, 1, 2)
    expected = resample_ref(wide, target, mode)
    expected_grad = torch.autograd.grad(expected, wide, g)[0]
    x = wide.detach().float().to(device).requires_grad_()
    y = resample(x, target, mode)
    grad = torch.autograd.grad(y, x, g.float().to(device))[0]
    assert_near(y, expected)
    assert_near(grad, expected_grad)


def test_rows_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch, triton_device) -> None:
    """Where all rows of the result are more than 32 bits can count."""
    monkeypatch.setattr(sys.modules[resample.__module__], "MAX_ROWS", 12)
    x = torch.randn(8, 4, 4, device=triton_device)
    expected = F.interpolate(x[None], (5, 6), mode="bilinear")[0]
    torch.testing.assert_close(resample(x, (5, 6)), expected)


def test_no_maps(device: torch.device) -> None:
    assert resample(torch.zeros(0, 3, 4, 4, device=device), (2, 5)).shape == (0, 3, 2, 5)


@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize("num_rows", [1, 48, 10**6])
@pytest.mark.parametrize("widths", [(1, 1), (5, 17), (64, 32), (128, 3)])
def test_tiles(num_rows: int, widths: tuple[int, int], itemsize: int) -> None:
    """Rows fit, and the compiler's gather has a value for each of 4 x 64 threads."""
    block_r, *blocks = narrow_tiles(num_rows, *widths, itemsize)
    assert 256 <= block_r * blocks[0] <= 4096
    assert block_r * blocks[1] <= 4096
    for block, width in zip(blocks, widths, strict=True):
        assert width <= block
        assert block & (block - 1) == 0


@pytest.mark.parametrize("mode", ["area", "bilinear", "nearest"])
def test_gradient_is_the_adjoint(mode: str, device: str) -> None:
    x = torch.randn(2, 5, 7, dtype=torch.float64, device=device, requires_grad=True)
    g = torch.randn(2, 3, 9, dtype=torch.float64, device=device)
    (resample(x, (3, 9), mode) * g).sum().backward()
    rows = resample_matrix(5, 3, mode, device).double()
    columns = resample_matrix(7, 9, mode, device).double()
    torch.testing.assert_close(x.grad, rows.T @ g @ columns)


def test_non_contiguous_and_half(device: str) -> None:
    x = torch.randn(4, 6, 3, device=device).permute(2, 0, 1)
    expected = F.interpolate(x[None], (8, 8), mode="bilinear")[0]
    torch.testing.assert_close(resample(x, (8, 8)), expected)
    half = resample(x.half(), (8, 8))
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), expected, atol=2e-3, rtol=2e-3)


def test_training_after_inference(device: torch.device) -> None:
    """Matrices are kept between calls; one made in inference mode must serve a backward pass."""
    x = torch.randn(2, 11, 13, device=device, requires_grad=True)
    with torch.inference_mode():
        resample(x, (6, 7), "area")
    resample(x, (6, 7), "area").sum().backward()
    assert x.grad.sum().item() == pytest.approx(2 * 6 * 7, rel=1e-4)


def test_bad_arguments() -> None:
    x = torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"mode: .*'cubic'"):
        resample(x, (2, 2), "cubic")
    for size in ((0, 2), (2.5, 2), (2,), (2, 2, 2), 2, (True, True), (1.0, 1.0)):
        with pytest.raises(ValueError, match=r"^size: expected \(h, w\)"):
            resample(x, size)
        with pytest.raises(ValueError, match=r"^size: expected \(h, w\)"):
            resample_adjoint(x, size)
    with pytest.raises(ValueError, match="x: expected floating"):
        resample(x[:0], (1, 1))
    with pytest.raises(ValueError, match="x: expected floating"):
        resample(x.long(), (1, 1))
    with pytest.raises(ValueError, match="lengths"):
        resample_matrix(0, 2, "area")


@pytest.mark.parametrize(("source", "target"), SHAPES)
@pytest.mark.parametrize("mode", ["area", "bilinear", "nearest"])
def test_adjoint_equals_the_gradient(
    source: tuple[int, int], target: tuple[int, int], mode: str, device, assert_near
) -> None:
    x = torch.zeros(3, *source, dtype=torch.float64, requires_grad=True)
    g = torch.rand(3, *target, dtype=torch.float64)
    expected = torch.autograd.grad(resample_ref(x, target, mode), x, g)[0]
    assert_near(resample_adjoint(g.float().to(device), source, mode), expected)
    assert_near(resample_adjoint_ref(g.float().to(device), source, mode), expected)


def test_the_kernel_of_the_adjoint_records_nothing(triton_device):
    """It has no backward; a result without one would stop gradients in silence."""
    g = torch.ones(2, 4, 4, device=triton_device, requires_grad=True)
    with pytest.raises(ValueError, match=r"^g: requires a gradient"):
        resample_adjoint(g, (2, 2))
    x = torch.ones(2, 2, 2, device=triton_device, requires_grad=True)
    resample(x, (4, 4)).sum().backward()
    assert (x.grad == 4).all()
