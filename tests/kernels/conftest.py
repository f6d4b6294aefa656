"""Fixtures of the kernel tests."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from videoar import _C
from videoar.benchmarks import timing
from videoar.kernels.dispatch import use_backend

# By dtype of the result: largest error over largest value, and RMS of the error over RMS.
TOLERANCES = {
    torch.float32: (2e-5, 2e-6),
    torch.float16: (2e-3, 1e-3),
    torch.bfloat16: (1.6e-2, 8e-3),
}


@pytest.fixture
def assert_near() -> Callable[[Tensor, Tensor], None]:
    """`assert_near(got, expected)`: two relative thresholds, see `TOLERANCES`."""

    def check(got: Tensor, expected: Tensor) -> None:
        assert got.shape == expected.shape
        if not got.numel():
            return
        limits = TOLERANCES[got.dtype]
        expected = expected.detach().cpu().double()
        error = (got.detach().cpu().double() - expected).abs()
        worst = (error.max() / expected.abs().max()).item()
        rms = (error.square().mean() / expected.square().mean()).sqrt().item()
        where = [int(i) for i in torch.unravel_index(error.argmax(), error.shape)]
        message = f"max {worst:.2e} at {where}, RMS {rms:.2e}; allowed {limits}"
        assert worst <= limits[0], message
        assert rms <= limits[1], message

    return check


@pytest.fixture
def half(request: pytest.FixtureRequest, device: torch.device) -> torch.dtype:
    """The 16-bit dtype to test: bfloat16, but float16 in Triton's interpreter.

    There a conversion to bfloat16 truncates, and its `tl.dot` is wrong.
    """
    interpreted = request.node.callspec.params["device"] == "interpreter"
    return torch.float16 if interpreted else torch.bfloat16


@pytest.fixture
def on_every_cpu() -> Callable[[Callable[[], object]], list[object]]:
    """`on_every_cpu(run)`: what `run` gives by instruction set and by number of threads."""

    def run_all(run: Callable[[], object]) -> list[object]:
        before, threads, results = _C.isa(), torch.get_num_threads(), []
        try:
            for name in _C.isas():
                _C.set_isa(name)
                for count in (1, 2, 5):
                    torch.set_num_threads(count)
                    results.append(run())
        finally:
            _C.set_isa(before)
            torch.set_num_threads(threads)
        return results

    return run_all


@pytest.fixture
def triton_device() -> Iterator[torch.device]:
    """Where Triton serves, for tests of what only its kernels do: the GPU, or its interpreter."""
    with use_backend("triton"):
        yield torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="module")
def poisoned() -> Iterator[None]:
    """Fill what `torch.empty` returns with NaN (integers: their largest value).

    For a test module: `pytestmark = pytest.mark.usefixtures("poisoned")`.
    """
    with timing.poisoned():
        yield
