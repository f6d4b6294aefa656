"""The benchmark's cases, 16 bits wide: right, the same bits again and again, and as a graph.

On a GPU they have the sizes of the published models: many programs at once, whose races would show
as unequal runs. On a CPU the same tests run at tiny sizes.
"""

import pytest
import torch

from videoar.benchmarks.kernel_case import Case, Setting
from videoar.benchmarks.kernel_cases import CASES
from videoar.benchmarks.timing import compare
from videoar.kernels import use_backend

pytestmark = pytest.mark.usefixtures("poisoned")
RUNS = {"cuda": 10, "cpu": 2}


def cases_of(op: str, device: torch.device, dtype: torch.dtype) -> list[Case]:
    small = device.type == "cpu"
    return list(CASES[op](Setting(device=device, dtype=dtype, small=small)))


def assert_equal(got, expected, message):
    for place, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert torch.equal(a, b), f"{message}: result {place}"


@pytest.mark.parametrize("op", sorted(CASES))
def test_right_and_repeatable(op, half, device):
    for case in cases_of(op, device, half):
        with use_backend("reference"):
            expected = case.expected(*case.make(1))
        first = case.run(*case.make(1))
        assert compare(first, expected, case.ties) == "", case.name
        for run in range(RUNS[device.type]):
            assert_equal(case.run(*case.make(1)), first, f"{case.name}, run {run}")


@pytest.mark.gpu
@pytest.mark.parametrize("op", sorted(CASES))
def test_a_replayed_graph_equals_the_call(op):
    """Captured with some inputs and replayed with others, which it must read from the device."""
    for case in cases_of(op, torch.device("cuda"), torch.bfloat16):
        if not case.launch_bound:
            continue
        inputs = case.make(1)
        case.run(*inputs)  # compiles, and makes the tables that are kept
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = case.run(*inputs)
        for seed in (2, 3):
            for held, new in zip(inputs, case.make(seed), strict=True):
                held.copy_(new)
            graph.replay()
            assert_equal(results, case.run(*case.make(seed)), f"{case.name}, inputs {seed}")
