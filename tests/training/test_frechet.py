"""The Fréchet distance against closed forms, where it is exact, and its interval by simulation."""

import numpy as np
import pytest

from videoar.training.frechet import compare, fit, frechet_distance, from_covariance


def rotation(dim: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]


def samples(num: int, dim: int, seed: int = 0) -> np.ndarray:
    """Correlated, with scales from 0.01 to 10, as features of networks are."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num, dim)) * np.logspace(-2, 1, dim) @ rotation(dim, 7) + 3


def whitened(num: int, dim: int) -> np.ndarray:
    """Samples whose mean is 0 and whose covariance is the identity, exactly."""
    x = np.random.default_rng(1).normal(size=(num, dim))
    return np.linalg.qr(x - x.mean(axis=0))[0] * np.sqrt(num - 1)


def test_gaussians_whose_covariances_commute():
    """Then the distance is |m|^2 + sum (sqrt(l_a) - sqrt(l_b))^2, whatever the common axes."""
    dim, axes = 12, rotation(12, 3)
    values_a, values_b = np.linspace(0.1, 4, dim), np.linspace(2, 0.05, dim)
    mean_a, mean_b = np.zeros(dim), np.linspace(-1, 1, dim)
    a = from_covariance(mean_a, axes.T * values_a @ axes)
    b = from_covariance(mean_b, axes.T * values_b @ axes)
    expected = (mean_b**2).sum() + ((np.sqrt(values_a) - np.sqrt(values_b)) ** 2).sum()
    # `axes.T * values @ axes` has the columns of `axes.T` as its axes in both.
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-12)


def test_two_dimensions_that_do_not_commute():
    """tr sqrt(S_a S_b) of 2x2 matrices is sqrt(tr(S_a S_b) + 2 sqrt(det(S_a S_b)))."""
    s_a, s_b = np.array([[2.0, 0.6], [0.6, 0.5]]), np.array([[1.0, -0.3], [-0.3, 0.8]])
    product = s_a @ s_b
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = 0.25 + np.trace(s_a) + np.trace(s_b) - 2 * root
    a, b = from_covariance(np.zeros(2), s_a), from_covariance(np.array([0.3, 0.4]), s_b)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("num", "dim"), [(50, 8), (8, 8), (5, 40)])
def test_samples_and_their_covariance_give_the_same(num, dim):
    a, b = samples(num, dim), 1.5 * samples(num, dim, seed=1)
    pairs = [from_covariance(x.mean(0), np.cov(x.T)) for x in (a, b)]
    # The roots of the covariances' vanishing eigenvalues keep half of the digits.
    assert frechet_distance(fit(a), fit(b)) == pytest.approx(frechet_distance(*pairs), rel=1e-6)


def test_shifted_and_stretched_samples():
    x = whitened(200, 16)
    shift = np.linspace(0, 2, 16)
    assert frechet_distance(fit(x), fit(x + shift)) == pytest.approx((shift**2).sum(), rel=1e-12)
    assert frechet_distance(fit(x), fit(3 * x)) == pytest.approx(16 * 4, rel=1e-12)


@pytest.mark.parametrize(("num", "dim"), [(300, 16), (10, 64), (2, 5)])
def test_equal_sets(num, dim):
    """Without the rounding of a root's root: 1e-8 of the spread would be usual."""
    x = samples(num, dim)
    assert frechet_distance(fit(x), fit(x[::-1].copy())) < 1e-13 * x.var(axis=0).sum()


def test_orthogonal_supports_do_not_overlap():
    """Rank-deficient: sets in different subspaces are as far apart as their spreads together."""
    x = whitened(20, 3)
    a, b = np.hstack([x, 0 * x]), np.hstack([0 * x, 2 * x])
    assert frechet_distance(fit(a), fit(b)) == pytest.approx(3 + 3 * 4, rel=1e-12)


def test_compare_says_what_it_compared():
    a, b = samples(30, 40), samples(50, 40, seed=1) + 0.5
    found = compare(a, b, resamples=20)
    assert found["value"] == pytest.approx(frechet_distance(fit(a), fit(b)), rel=1e-5)
    assert (found["num_a"], found["num_b"], found["dim"]) == (30, 50, 40)
    assert found["rank_deficient"]
    assert not compare(samples(41, 40), samples(50, 40), resamples=0)["rank_deficient"]
    assert found == compare(a, b, resamples=20)
    assert found["standard_error"] != compare(a, b, resamples=20, seed=1)["standard_error"]
    middle = (found["low"] + found["high"]) / 2
    assert middle == pytest.approx(found["value"], rel=1e-4) or found["low"] == 0
    without = compare(a, b, resamples=0)
    assert without["value"] == found["value"]
    assert without["low"] is without["bias"] is without["standard_error"] is None


def test_the_interval_covers():
    """Of 60 experiments: the error bars match the spread, and the bias what the samples add."""
    rng, shift, dim = np.random.default_rng(0), 0.5, 8
    found = []
    for seed in range(60):
        a, b = rng.normal(size=(200, dim)), rng.normal(size=(200, dim)) + shift
        found.append(compare(a, b, resamples=40, seed=seed))
    values = np.array([f["value"] for f in found])
    error = np.mean([f["standard_error"] for f in found])
    assert 0.7 < error / values.std() < 1.4
    covered = np.mean([f["low"] <= values.mean() <= f["high"] for f in found])
    assert covered >= 0.85
    added = values.mean() - dim * shift**2
    assert 0.5 < np.mean([f["bias"] for f in found]) / added < 1.5


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((1, 3)), np.zeros((5, 3)), "features_a.*at least 2"),
        (np.zeros((5, 3)), np.zeros(5), "features_b"),
        (np.zeros((5, 3)), np.full((5, 3), np.nan), "features_b: values that are not finite"),
        (np.zeros((5, 3)), np.zeros((5, 4)), "3 in one set, 4 in the other"),
    ],
)
def test_bad_features(a, b, message):
    with pytest.raises(ValueError, match=message):
        compare(a, b)


def test_bad_covariances():
    with pytest.raises(ValueError, match="eigenvalue -1"):
        from_covariance(np.zeros(2), np.diag([1.0, -1.0]))
    with pytest.raises(ValueError, match="not symmetric"):
        from_covariance(np.zeros(2), np.array([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(ValueError, match=r"expected \[d\] and \[d,d\]"):
        from_covariance(np.zeros(2), np.eye(3))


def test_one_resample_tells_nothing():
    with pytest.raises(ValueError, match="resamples: 0, or at least 2, got 1"):
        compare(np.eye(4), np.eye(4), resamples=1)
