"""Memory of training steps: the prediction within 15 % of the measured peak."""

import sys

import pytest

from videoar.benchmarks.train_memory import measured_peak


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "options",
    [
        ("--batch", "8"),
        ("--batch", "24", "--checkpointing"),
        ("--part", "tokenizer", "--batch", "1"),
    ],
    ids=" ".join,
)
def test_predicted_within_15_percent(options):
    facts = measured_peak("--preset", "digits", "--threads", "1", *options)
    assert facts["predicted"] == pytest.approx(facts["peak"], rel=0.15)
