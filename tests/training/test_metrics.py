"""PSNR and SSIM against known values and against the definition, written out in loops."""

import math

import numpy as np
import pytest

from videoar.training.metrics import psnr, ssim


def noisy_pair(shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 256, shape, dtype=np.uint8)
    b = np.clip(a + rng.normal(0, 40, shape), 0, 255).astype(np.uint8)
    return a, b


def ssim_in_loops(a: np.ndarray, b: np.ndarray) -> float:
    """The definition, one window at a time, on values of 0 .. 255."""
    line = [math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)]
    weight = np.array([[x * y for y in line] for x in line])
    weight /= weight.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    frames, height, width, channels = a.shape
    for t, top, left, c in np.ndindex(frames, height - 10, width - 10, channels):
        x = a[t, top : top + 11, left : left + 11, c].astype(float)
        y = b[t, top : top + 11, left : left + 11, c].astype(float)
        mx, my = (weight * x).sum(), (weight * y).sum()
        vx, vy = (weight * (x - mx) ** 2).sum(), (weight * (y - my) ** 2).sum()
        vxy = (weight * (x - mx) * (y - my)).sum()
        top_term = (2 * mx * my + c1) * (2 * vxy + c2)
        values.append(top_term / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(np.mean(values))


@pytest.mark.parametrize("step", [1, 5, 255])
def test_psnr_of_a_constant_difference(step):
    a = np.zeros((2, 3, 4, 3), np.uint8)
    assert psnr(a, a + np.uint8(step)) == pytest.approx(20 * math.log10(255 / step))


def test_psnr_takes_the_mean_over_the_clip_before_the_logarithm():
    a = np.zeros((2, 4, 4, 3))
    b = a.copy()
    b[1] = 0.2
    assert psnr(a, b) == pytest.approx(-10 * math.log10(0.04 / 2))


def test_equal_clips():
    a, _ = noisy_pair((2, 12, 12, 3))
    assert psnr(a, a) == math.inf
    assert ssim(a, a) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("shape", [(1, 11, 11, 1), (2, 13, 17, 3)])
def test_ssim_is_the_definition(shape):
    a, b = noisy_pair(shape)
    assert ssim(a, b) == pytest.approx(ssim_in_loops(a, b), abs=1e-12)
    assert ssim(b, a) == pytest.approx(ssim(a, b), abs=1e-12)


def test_uint8_and_floating_agree():
    a, b = noisy_pair((2, 14, 12, 3))
    assert psnr(a, b) == pytest.approx(psnr(a / 255, b / 255))
    assert ssim(a, b) == pytest.approx(ssim(a / 255, b / 255))


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_bad_arguments(metric):
    a, _ = noisy_pair((1, 12, 12, 3))
    with pytest.raises(ValueError, match="b: expected the shape of a"):
        metric(a, a[:, :11])
    with pytest.raises(ValueError, match="a: uint8 or floating"):
        metric(a.astype(np.int64), a)


def test_frames_smaller_than_the_window():
    a = np.zeros((1, 10, 30, 3), np.uint8)
    with pytest.raises(ValueError, match="at least 11"):
        ssim(a, a)
