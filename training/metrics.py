"""How alike two clips are: PSNR and SSIM.

    PSNR = -10 log10(mean((a - b)^2))                                   values in [0,1]
    SSIM = mean over windows of
           (2 m_a m_b + c1) (2 s_ab + c2) / ((m_a^2 + m_b^2 + c1) (s_a^2 + s_b^2 + c2))

with Gaussian windows of 11x11, sigma 1.5, that lie inside the frame wholly, c1 = 0.01^2 and
c2 = 0.03^2 (Wang et al., IEEE TIP 13(4), 2004), each channel for itself.
"""

import numpy as np

WINDOW = 11
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of one clip in dB; infinite for equal clips.

    Args:
        a, b: of one shape, uint8, or floating in [0,1].

    Raises:
        ValueError: two shapes, nothing in them, or another dtype.
    """
    a, b = _unit_range(a, b)
    error = float(np.mean((a - b) ** 2))
    return float("inf") if error == 0 else float(-10 * np.log10(error))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity of one clip, at most 1: mean over frames, channels and windows.

    Args:
        a, b: `[T,H,W,C]` of one shape, uint8, or floating in [0,1]; sides of at least 11.

    Raises:
        ValueError: other shapes or dtypes.
    """
    a, b = _unit_range(a, b)
    if a.ndim != 4 or min(a.shape[1:3]) < WINDOW:
        shape = list(a.shape)
        raise ValueError(f"a: expected [T,H,W,C] with sides of at least {WINDOW}, got {shape}")
    mean_a, mean_b = _window_mean(a), _window_mean(b)
    variance_a = _window_mean(a * a) - mean_a**2
    variance_b = _window_mean(b * b) - mean_b**2
    covariance = _window_mean(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    structure = (2 * covariance + C2) / (variance_a + variance_b + C2)
    return float(np.mean(luminance * structure))


def _unit_range(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in [0,1], float64."""
    if a.shape != b.shape or not a.size:
        raise ValueError(f"b: expected the shape of a {list(a.shape)}, got {list(b.shape)}")
    scaled = []
    for name, x in (("a", a), ("b", b)):
        if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
            raise ValueError(f"{name}: uint8 or floating in [0,1] needed, got {x.dtype}")
        scaled.append(x / 255 if x.dtype == np.uint8 else x.astype(np.float64))
    return scaled[0], scaled[1]


def _window_mean(x_THWC: np.ndarray) -> np.ndarray:
    """Gaussian mean of every window, `[T,H-10,W-10,C]`."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    taps = np.exp(-0.5 * (offsets / SIGMA) ** 2)
    taps /= taps.sum()
    for axis in (1, 2):
        x_THWC = np.lib.stride_tricks.sliding_window_view(x_THWC, WINDOW, axis=axis) @ taps
    return x_THWC
