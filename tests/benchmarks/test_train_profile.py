"""The profile of a training step: every operation in one class, shares of the whole."""

import json

import pytest

from videoar.benchmarks import train_profile
from videoar.benchmarks.train_profile import ATTENTION, CLASSES, LOSS, PRODUCTS, SMALL, class_of


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mm", PRODUCTS),
        ("aten::convolution_backward", PRODUCTS),
        ("_ChunkAttention", ATTENTION),
        ("_ChunkAttentionBackward", ATTENTION),
        ("autograd::engine::evaluate_function: _ChunkAttentionBackward", SMALL),
        ("_BitwiseCrossEntropyBackward", LOSS),
        ("_RMSNorm", SMALL),
        ("aten::copy_", SMALL),
    ],
)
def test_classes(name, kind):
    assert class_of(name) == kind


def test_shares():
    share = train_profile.shares(dict(zip(CLASSES, (5.0, 2.0, 1.0, 0.5, 1.5), strict=True)))
    assert sum(share[name] for name in CLASSES) == pytest.approx(1)
    assert share["attention and small operations"] == pytest.approx(0.3)


def test_of_a_step(capsys):
    """Every class takes time, so no name has changed unnoticed."""
    options = ["--preset", "digits", "--layers", "1", "--repeats", "1", "--batch", "2"]
    assert train_profile.main(options) == 0
    *_, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert set(found["ms"]) == set(CLASSES)
    assert all(found["ms"][name] > 0 for name in CLASSES)
    assert sum(found["shares"][name] for name in CLASSES) == pytest.approx(1)
