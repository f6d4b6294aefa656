"""Fixtures shared by all tests, and the one place where a test without its device is skipped."""

import pytest
import torch
from hypothesis import HealthCheck, settings

# A busy machine must not fail a property: the examples are checked, not their time.
settings.register_profile("videoar", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("videoar")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU always; the GPU in a variant of the same test that carries the marker `gpu`."""
    return torch.device(request.param)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
