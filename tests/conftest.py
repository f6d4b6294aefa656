"""Fixtures shared by all tests, and the one place where a test without its device is skipped."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from zlib import crc32

import pytest
import torch
from hypothesis import HealthCheck, settings

# Triton decides when it is imported: without a GPU the kernels' tests run in its interpreter.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# A busy machine must not fail a property: the examples are checked, not their time.
settings.register_profile("videoar", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("videoar")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test with `device` on every device, in the interpreter and with every instruction set.

    A test module with `TRITON = True` tests an op that has a Triton kernel: its tests run once
    more on CPU tensors with that backend. One with `CPP = True` tests an op that has a C++ kernel:
    its tests run once more with every instruction set that is narrower than this processor's.
    """
    if "device" not in metafunc.fixturenames:
        return
    devices = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
    if getattr(metafunc.module, "TRITON", False) and not torch.cuda.is_available():
        devices.insert(1, "interpreter")
    if getattr(metafunc.module, "CPP", False):
        from videoar import _C

        devices += [f"cpu-{name}" for name in _C.isas()[:-1]]
    metafunc.parametrize("device", devices, indirect=True)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The device of the test's tensors; see `pytest_generate_tests`."""
    from videoar.kernels.dispatch import use_backend

    if request.param == "interpreter":
        with use_backend("triton"):
            yield torch.device("cpu")
    elif request.param.startswith("cpu-"):
        with instruction_set(request.param.removeprefix("cpu-")):
            yield torch.device("cpu")
    else:
        yield torch.device(request.param)


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Let the C++ kernels use this instruction set inside the block."""
    from videoar import _C

    before = _C.isa()
    _C.set_isa(name)
    try:
        yield
    finally:
        _C.set_isa(before)


@pytest.fixture(autouse=True)
def _own_numbers(request: pytest.FixtureRequest) -> None:
    """A test draws the same numbers whichever tests run before it."""
    torch.manual_seed(crc32(request.node.nodeid.encode()))


def pytest_itemcollected(item: pytest.Item) -> None:
    """Where there is a GPU, what only Triton's kernels do is tested on it."""
    if "triton_device" in getattr(item, "fixturenames", ()) and torch.cuda.is_available():
        item.add_marker(pytest.mark.gpu)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
