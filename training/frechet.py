"""The Fréchet distance of two sets of features, each taken for a Gaussian.

    d(a, b) = |m_a - m_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2))

(Dowson and Landau, Journal of Multivariate Analysis 12, 1982; over features of video: FVD,
arXiv 1812.01717). With factors `S = A^T A` the last trace is the sum of the singular values of
`A B^T`. So no root of a product is taken, nothing is clipped or nudged, equal sets have distance 0
up to rounding, and covariances without full rank (fewer samples than features) are no special case.

Everything is float64. The estimate is too large by a term of order 1/n, whatever the features, so
only distances of equal numbers of samples can be compared.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

# Half the width of a 95 % interval in standard errors.
_NORMAL_95 = 1.959964


@dataclass(frozen=True, slots=True, kw_only=True)
class Gaussian:
    """Mean `[d]` and a factor `[r,d]` of the covariance, `factor.T @ factor`."""

    mean: np.ndarray
    factor: np.ndarray


def fit(features: Any) -> Gaussian:
    """Mean and unbiased covariance (1/(n-1)) of `features [n,d]`.

    Raises:
        ValueError: another shape, fewer than two samples, or values that are not finite.
    """
    features = _checked("features", features)
    mean = features.mean(axis=0)
    factor = (features - mean) / np.sqrt(len(features) - 1)
    # The triangle of a QR decomposition is a factor of the same covariance with d rows only.
    return Gaussian(mean=mean, factor=np.linalg.qr(factor, mode="r"))


def from_covariance(mean: np.ndarray, covariance: np.ndarray) -> Gaussian:
    """The Gaussian of a mean `[d]` and a symmetric covariance `[d,d]`.

    Raises:
        ValueError: shapes that do not fit, or a covariance that is not symmetric or has an
            eigenvalue below 0 beyond rounding.
    """
    mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
        shapes = f"{list(mean.shape)} and {list(covariance.shape)}"
        raise ValueError(f"mean, covariance: expected [d] and [d,d], got {shapes}")
    if not np.allclose(covariance, covariance.T, rtol=1e-9, atol=0):
        raise ValueError("covariance: not symmetric")
    values, vectors = np.linalg.eigh(covariance)
    if values.min() < -1e-9 * np.abs(values).max():
        raise ValueError(f"covariance: has the eigenvalue {values.min():.3g}")
    factor = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    return Gaussian(mean=mean, factor=factor)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """d(a, b), at least 0.

    Raises:
        ValueError: of different numbers of features.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features: {len(a.mean)} in one set, {len(b.mean)} in the other")
    overlap = np.linalg.svd(a.factor @ b.factor.T, compute_uv=False).sum()
    spread = np.square(a.factor).sum() + np.square(b.factor).sum() - 2 * overlap
    return float(max(0.0, np.square(a.mean - b.mean).sum() + spread))


def compare(features_a: Any, features_b: Any, *, resamples: int = 100, seed: int = 0) -> dict:
    """The Fréchet distance of two sets, with a 95 % confidence interval.

    Both sets are drawn again with replacement `resamples` times (bootstrap). The distance of
    resampled sets lies above that of the sets themselves, for the reason for which that lies
    above the populations'; so the interval is the value plus and minus 1.96 standard deviations
    over the resampled sets, not their percentiles.

    Args:
        features_a, features_b: arrays or CPU tensors `[n,d]`; n may differ.
        resamples: 0 for none.
        seed: of the resampling.

    Returns:
        `value`, the distance of the two sets as they are; `standard_error`, `low`, `high` (low at
        least 0) and `bias`, the mean over resampled sets minus the value, which is about how far
        the number of samples lifts the value itself (these four None without resampling); `num_a`,
        `num_b`, `dim`; `rank_deficient`, whether a set has no more samples than features. Floats
        have 6 significant digits.

    Raises:
        ValueError: shapes or values that cannot be compared, or a single resample.
    """
    if resamples < 0 or resamples == 1:
        raise ValueError(f"resamples: 0, or at least 2, got {resamples}")
    a, b = _checked("features_a", features_a), _checked("features_b", features_b)
    value = frechet_distance(fit(a), fit(b))
    result: dict[str, Any] = {"value": value}
    result |= dict.fromkeys(("standard_error", "low", "high", "bias"))
    if resamples:
        rng = np.random.default_rng(seed)
        drawn = [frechet_distance(_redrawn(a, rng), _redrawn(b, rng)) for _ in range(resamples)]
        error = float(np.std(drawn, ddof=1))
        result |= {"standard_error": error, "bias": float(np.mean(drawn)) - value}
        result |= {"low": max(0.0, value - _NORMAL_95 * error), "high": value + _NORMAL_95 * error}
    result = {k: v if v is None else float(f"{v:.6g}") for k, v in result.items()}
    counts = {"num_a": len(a), "num_b": len(b), "dim": a.shape[1]}
    return result | counts | {"rank_deficient": min(len(a), len(b)) <= a.shape[1]}


def _redrawn(features: np.ndarray, rng: np.random.Generator) -> Gaussian:
    return fit(features[rng.integers(len(features), size=len(features))])


def _checked(name: str, features: Any) -> np.ndarray:
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 2 or not features.shape[1]:
        shape = list(features.shape)
        raise ValueError(f"{name}: expected [n,d] with n of at least 2, got {shape}")
    if not np.isfinite(features).all():
        raise ValueError(f"{name}: values that are not finite")
    return features
